"""The guide `docs/guides/add-a-method.md`, word for word: its module, and nothing else, is a new method."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import curconvert.methods
from curconvert.jobs.convert import convert
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.methods.core.registry import methods
from curconvert.options.settings import LINEARS
from curconvert.options.source import SourceOptions
from curconvert_runtime import load
from curconvert_runtime.checks.verification import VerifyOptions
from support.command_line import call, refused
from support.families import VOCABULARY, make_checkpoint
from support.tiny_runs import LENGTH, manifest_of, tiny_options

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "add-a-method.md"
TEXT = GUIDE.read_text(encoding="utf-8")
FILES = dict(re.findall(r"^## `(\S+\.py)`\n\n```python\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE))
MODULE, TEST = "converter/curconvert/methods/second_rows.py", "tests/converter/methods/test_second_rows.py"


@pytest.fixture(autouse=True)
def added(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the guide's module where methods are looked for, and take it away again."""
    folder, name = tmp_path_factory.mktemp("added"), "second_rows"
    (folder / f"{name}.py").write_text(FILES[MODULE], encoding="utf-8")
    monkeypatch.setattr(curconvert.methods, "__path__", [*curconvert.methods.__path__, str(folder)])
    importlib.invalidate_caches()
    methods.cache_clear()
    yield
    sys.modules.pop(f"curconvert.methods.{name}", None)
    vars(curconvert.methods).pop(name, None)
    methods.cache_clear()


def test_every_second_row_is_kept(tmp_path: Path, tokens: Path) -> None:
    """As it was; the other outputs are 0."""
    model = make_checkpoint(tmp_path / "model", "llama").folder
    options = tiny_options(tokens, "second-rows", rank=None, targets=LINEARS)
    convert(SourceOptions(str(model)), tmp_path / "out", options, verification=VerifyOptions())
    source, stored = load_file(model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    targets = [name for name in source if "_proj" in name]
    assert len(targets) == 2 * len(LINEARS)
    for name in targets:
        order = np.full(len(source[name]), len(source[name]) // 2)
        order[::2] = np.arange(len(source[name]) // 2)
        np.testing.assert_array_equal(stored[name], source[name][::2])
        np.testing.assert_array_equal(stored[name.replace("weight", "order")], order)


def test_the_guide_and_this_file_show_the_same_code() -> None:
    """Two files are the whole change, and the guide is short."""
    assert list(FILES) == [MODULE, TEST]
    assert FILES[TEST] in Path(__file__).read_text(encoding="utf-8")
    assert len(TEXT.encode()) <= 4000


def test_the_command_line_knows_it(tmp_path: Path, tokens: Path) -> None:
    """Both graphs agree with transformers' model whose other rows are zero; the biases stay."""
    model, out = make_checkpoint(tmp_path / "model", "qwen2"), tmp_path / "out"
    asked = (
        model.folder, "--method", "second-rows", "--layers", "all", "--targets", "all", "--calibration", tokens,
        "--calibration-sequences", "12", "--calibration-tokens", str(LENGTH), "--probe-sequences", "2",
    )  # fmt: skip
    shown = call("plan", *asked, "-o", tmp_path, "--json")
    assert shown.exit_code == 0, shown.output
    done = call("convert", *asked, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    assert manifest_of(out)["options"]["method"] == "second-rows"
    assert {(row["form"], row["basis"]) for row in manifest_of(out)["matrices"]} == {("sparse_rows", "rows")}
    assert torch_parity(out).passed
    assert all(check.passed for check in check_slices(out, model.folder))
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (2, 15))
    with torch.inference_mode():
        for name, module in model.oracle.named_modules():
            if name.endswith("_proj"):
                module.weight[1::2] = 0
        expected = model.oracle(input_ids=torch.from_numpy(ids)).logits.numpy()
    for graph in ("portable", "fused"):
        session = load(out, graph=graph, threads=1)
        for row, wanted in zip(ids, expected, strict=True):
            np.testing.assert_allclose(session.logits(row), wanted, rtol=0, atol=1e-4)


def test_it_takes_no_size(tmp_path: Path) -> None:
    """The message names the method, as those of other methods do."""
    result = call("convert", "x", "-o", tmp_path / "out", "--method", "second-rows", "--rank", "8")
    refused(result, 2, "--rank: --method second-rows takes no size")
