"""The way to another device: refusals, and shapes on torch's meta device. No GPU was at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from curconvert.base.checks import check_device
from curconvert.base.device import find_device
from curconvert.base.errors import BackendError, InputError
from curconvert.blocks.stream import BlockStream, placed
from curconvert.checkpoint import open_checkpoint
from curconvert.jobs.convert import convert
from curconvert.linalg.chunked import ChunkedMatrix, product
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.source import SourceOptions
from support.families import make_checkpoint
from support.tiny_runs import tiny_options, token_file

META = torch.device("meta")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:x", "CUDA", "cpu:0", "cuda:0 "])
def test_other_names_are_refused(name: str) -> None:
    """The message says what would do."""
    with pytest.raises(InputError, match="expected cpu, cuda or cuda:N"):
        check_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    """There is no fallback to the CPU, and nothing is written."""
    with pytest.raises(BackendError, match=f"--device {name}: torch .* sees 0 CUDA devices"):
        find_device(name)
    model = make_checkpoint(tmp_path / "model", "llama")
    options = tiny_options(token_file(tmp_path / "ids.safetensors"), device=name)
    with pytest.raises(BackendError, match=f"--device {name}"):
        convert(SourceOptions(str(model.folder)), tmp_path / "out", options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.safetensors", "model"]


@pytest.mark.parametrize("values", [{"method": "auto", "keep": 0.9}, {"method": "fwsvd"}, {"self_text": 0.5}])
def test_what_runs_on_the_cpu_only_is_refused_elsewhere(values: dict[str, object]) -> None:
    """Instead of a part of the work silently staying there."""
    with pytest.raises(InputError, match="run on the CPU only"):
        ConvertOptions.for_method(device="cuda", **values)  # type: ignore[arg-type]


def test_blocks_run_where_they_are_placed(tmp_path: Path) -> None:
    """Weights, arguments and inputs go to the device; on meta only shapes come out."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "llama").folder)
    stream = BlockStream(checkpoint, device=META)
    hidden = stream.embed(torch.zeros((2, 5), dtype=torch.int64))
    assert hidden.device.type == "cpu"
    with stream.block(0) as block:
        assert block.on_gpu
        assert {parameter.device for parameter in block.layer.parameters()} == {META}
        found = block.forward(hidden.to(META))
    assert found.device == META
    assert found.shape == hidden.shape


def test_nested_arguments_are_placed() -> None:
    """Masks and rotary tables come as tensors, tuples and dicts; what is no tensor stays."""
    x = torch.ones(2)
    found = placed({"a": (x, [x, 3]), "b": None}, META)
    assert found["a"][0].device == found["a"][1][0].device == META
    assert found["a"][1][1] == 3
    assert found["b"] is None


@pytest.mark.parametrize("absolute, scale", [(False, None), (True, np.ones(6))])
def test_products_stay_on_the_weights_device(absolute: bool, scale: np.ndarray | None) -> None:
    """The parts of a matrix, and its rounding to float32, are where the weight is."""
    matrix = ChunkedMatrix(torch.empty((9, 6), dtype=torch.bfloat16, device=META), absolute, scale)
    for _, part in matrix.parts():
        assert (part.device, part.dtype, part.shape) == (META, torch.float64, (9, 6))
        assert product(part, torch.empty((6, 4), dtype=torch.float64, device=META)).shape == (9, 4)
    assert matrix.single().shape == (9, 6)
    assert matrix.single().device == META
