"""bfloat16 products for calibration: where they are taken, and that one bad block is enough to leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from curconvert.blocks import precision
from curconvert.blocks.precision import calibration_dtype, multiplies_bfloat16
from curconvert.blocks.stream import Block, BlockStream
from curconvert.checkpoint import open_checkpoint
from curconvert.jobs.convert import convert
from curconvert.options.source import SourceOptions
from support.families import make_checkpoint
from support.tiny_runs import manifest_of, stored_tensors, tiny_options


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags : fpu amx_bf16\n", True),
        ("flags : fpu avx512f\n", False),
        ("model name : avx512_bf16\n", False),
        (None, False),
    ],
)
def test_the_cpu_says_what_it_multiplies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: bool
) -> None:
    """Linux lists instructions; elsewhere there is no such file, and float32 serves."""
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(precision, "_CPUINFO", file)
    assert multiplies_bfloat16() is expected


def chosen(folder: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, error: float = 0.0) -> torch.dtype:
    """Choose for the first block of a tiny model, whose bfloat16 products are wrong by a share of the result."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    real = Block.forward

    def forward(self: Block, hidden: torch.Tensor, **named: Any) -> torch.Tensor:
        found = real(self, hidden, **named)
        return found + error * (found - hidden) if named.get("dtype") == torch.bfloat16 else found

    monkeypatch.setattr(Block, "forward", forward)
    checkpoint = open_checkpoint(make_checkpoint(folder, "llama", dtype=dtype).folder)
    stream = BlockStream(checkpoint)
    hidden = stream.embed(torch.arange(3, 23).reshape(2, 10))
    with stream.block(0) as block:
        return calibration_dtype(checkpoint, block, hidden)


def test_sixteen_bit_weights_are_multiplied_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU can."""
    assert chosen(tmp_path / "model", torch.bfloat16, monkeypatch) == torch.bfloat16


def test_float32_weights_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have digits that bfloat16 would drop."""
    assert chosen(tmp_path / "model", torch.float32, monkeypatch) == torch.float32


def test_results_that_are_too_far_off_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three percent of what the block adds is above the limit of two."""
    assert chosen(tmp_path / "model", torch.bfloat16, monkeypatch, error=0.03) == torch.float32


@pytest.mark.parametrize("layers", ["all", "angular:2"])
def test_a_conversion_differs_by_little(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, layers: str
) -> None:
    """The statistics are not the same, and the errors are within a twentieth."""
    model = make_checkpoint(tmp_path / "model", "llama", dtype=torch.bfloat16, num_hidden_layers=5)
    links, errors = [], []
    for fast in (False, True):
        monkeypatch.setattr(precision, "multiplies_bfloat16", lambda fast=fast: fast)
        out = tmp_path / f"out{fast}"
        convert(SourceOptions(str(model.folder)), out, tiny_options(tokens, layers=layers))
        links.append({name: U for name, U in stored_tensors(out).items() if name.endswith(".U")})
        matrices = [matrix for matrix in manifest_of(out)["matrices"] if matrix["form"] != "dense"]
        errors.append([matrix["relative_output_error"] for matrix in matrices])
    assert links[0].keys() == links[1].keys()
    assert any(not torch.equal(U, links[1][name]) for name, U in links[0].items())
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
