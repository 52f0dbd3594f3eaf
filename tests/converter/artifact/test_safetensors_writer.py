"""The streaming writer against the safetensors library, and everything that it must refuse."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from curconvert.artifact.safetensors_writer import SafetensorsWriter, save_tensors
from curconvert.base.errors import InputError
from curconvert.base.finite import all_finite
from curconvert.base.layout import TensorSpec
from curconvert.checkpoint.safetensors_file import DTYPES, map_tensor, read_header
from curconvert.checkpoint.source_files import SourceFiles
from curconvert_runtime.format.tensor_file import read_headers
from support.folders import files_of


def tensors() -> dict[str, torch.Tensor]:
    """One of each dtype, with an empty one, a scalar, and shapes that leave nothing aligned by chance."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "z.weight": normal(7, 3),
        "half": normal(5).half(),
        "brain": normal(3, 3, 3).bfloat16(),
        "rows": torch.arange(11, dtype=torch.int32),
        "ids": torch.arange(-2, 3, dtype=torch.int64),
        "empty": normal(0, 4),
        "scalar": normal(),
        'name with ünïcode and "quotes"': normal(1).half(),
    }


def write(folder: Path, content: dict[str, torch.Tensor], **settings: int) -> SafetensorsWriter:
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()]
    with SafetensorsWriter(folder, specs, **settings) as writer:  # type: ignore[arg-type]
        for name in reversed(content):
            writer.write(name, content[name])
        writer.finish()
    return writer


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_the_library_reads_back_what_was_written(tmp_path: Path) -> None:
    """Every dtype, an empty tensor, a scalar and odd names; in any order of writing."""
    write(tmp_path, tensors())
    assert_same(load_file(tmp_path / "model.safetensors"), tensors())


def test_the_file_says_that_it_is_for_torch(tmp_path: Path) -> None:
    """transformers refuses files without this metadata."""
    write(tmp_path, tensors())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_tensors_are_aligned_to_their_elements(tmp_path: Path) -> None:
    """A memory map of each tensor is a valid array; the table names the same bytes that the header does."""
    writer = write(tmp_path, tensors())
    raw = (tmp_path / "model.safetensors").read_bytes()
    for name, tensor in tensors().items():
        location = writer.tensors[name].location
        assert location is not None
        assert location.offset % tensor.element_size() == 0
        stored = raw[location.offset : location.offset + location.length]
        assert stored == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_a_file_has_no_longer_header_than_the_readers_take(tmp_path: Path) -> None:
    """The longest names and largest offsets of as many tensors as one file gets."""
    specs = [TensorSpec(f"{number:0200}", torch.float32, ()) for number in range(10_001)]
    with SafetensorsWriter(tmp_path, specs) as writer:
        assert [len(read_headers(file)) for file in writer.files] == [10_000, 1]


def test_shards_have_an_index_and_hold_every_tensor_once(tmp_path: Path) -> None:
    """The names are those that transformers looks for."""
    writer = write(tmp_path, tensors(), shard_bytes=60)
    names = sorted(path.name for path in tmp_path.iterdir())
    count = len(writer.files)
    assert count > 2
    assert names == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)] + [
        "model.safetensors.index.json"
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors().values())
    found: dict[str, torch.Tensor] = {}
    for file in writer.files:
        part = load_file(file)
        assert not found.keys() & part.keys()
        assert {index["weight_map"][name] for name in part} == {file.name}
        found |= part
    assert_same(found, tensors())


@pytest.mark.parametrize("shard_bytes", [60, 10**9])
def test_the_bytes_depend_on_names_and_values_only(tmp_path: Path, shard_bytes: int) -> None:
    """Announced and written in another order: the same files."""
    contents = []
    for folder, content in (("a", tensors()), ("b", dict(sorted(tensors().items())))):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, content, shard_bytes=shard_bytes)
        contents.append(files_of(tmp_path / folder))
    assert contents[0] == contents[1]


@pytest.mark.parametrize("umask, mode", [(0o077, 0o600), (0o022, 0o644)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """A container's other user can read the file where the umask lets it."""
    previous = os.umask(umask)
    try:
        write(tmp_path, tensors(), shard_bytes=60)
    finally:
        os.umask(previous)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def test_non_contiguous_tensors_are_written_in_their_logical_order(tmp_path: Path) -> None:
    """A transposed view and a slice with steps."""
    base = torch.arange(24.0).reshape(4, 6)
    content = {"transposed": base.T, "steps": base[::2, 1::2]}
    write(tmp_path, content)
    assert_same(load_file(tmp_path / "model.safetensors"), content)


def test_values_are_rounded_to_the_announced_dtype(tmp_path: Path) -> None:
    """As torch rounds them, in pieces that are smaller than the tensor."""
    weight = torch.randn(5_000_000, generator=torch.Generator().manual_seed(1))
    with SafetensorsWriter(tmp_path, [TensorSpec("w", torch.bfloat16, (5_000_000,))]) as writer:
        writer.write("w", weight)
        writer.finish()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], weight.bfloat16())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    """safetensors itself would store them without a word."""
    weight = torch.ones(9)
    weight[4] = value
    with (
        SafetensorsWriter(tmp_path, [TensorSpec("a.b", dtype, (9,))]) as writer,
        pytest.raises(InputError, match=r"^a\.b: holds NaN or infinity; the checkpoint is damaged"),
    ):
        writer.write("a.b", weight)


@pytest.mark.parametrize("dtype, value", [(torch.float16, 7e4), (torch.float16, -1e30), (torch.bfloat16, 3.4e38)])
def test_values_that_overflow_the_dtype_are_refused(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    """The message names the tensor, the value and the way out."""
    weight = torch.tensor([1.0, value])
    with (
        SafetensorsWriter(tmp_path, [TensorSpec("a.b", dtype, (2,))]) as writer,
        pytest.raises(InputError, match=r"^a\.b: .* does not fit b?float16; choose --dtype"),
    ):
        writer.write("a.b", weight)


def test_a_tensor_that_was_never_written_is_noticed(tmp_path: Path) -> None:
    """Its place would hold zeros."""
    specs = [TensorSpec(name, torch.float32, (2,)) for name in ("written", "forgotten")]
    with SafetensorsWriter(tmp_path, specs) as writer:
        writer.write("written", torch.ones(2))
        with pytest.raises(ValueError, match="never written: forgotten"):
            writer.finish()


def test_another_shape_than_announced_is_noticed(tmp_path: Path) -> None:
    """It would run over its neighbor."""
    with (
        SafetensorsWriter(tmp_path, [TensorSpec("w", torch.float32, (2, 3))]) as writer,
        pytest.raises(ValueError, match=r"w: shape \(3, 2\), announced \(2, 3\)"),
    ):
        writer.write("w", torch.ones(3, 2))


@pytest.mark.parametrize("settings", [{}, {"shard_bytes": 40}])
def test_an_interrupted_file_is_gone_on_with(tmp_path: Path, settings: dict[str, int]) -> None:
    """What was written before stays, what was not is still missed, and the bytes are those of one go."""
    content = tensors()
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "whole", content, **settings)
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in content.items()]
    first, rest = list(content)[:4], list(content)[4:]
    with SafetensorsWriter(tmp_path / "parts", specs, **settings) as writer:  # type: ignore[arg-type]
        for name in first:
            writer.write(name, content[name])
        assert writer.written == sorted(first)
    with SafetensorsWriter(tmp_path / "parts", specs, **settings) as writer:  # type: ignore[arg-type]
        writer.resume(first)
        with pytest.raises(ValueError, match="never written"):
            writer.finish()
        for name in rest:
            writer.write(name, content[name])
        writer.finish()
    found = [files_of(tmp_path / part) for part in ("whole", "parts")]
    assert found[0] == found[1]


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """Other weights may lie behind it."""
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        write(tmp_path, tensors())
    assert (tmp_path / "other").read_bytes() == b"other"


def test_save_tensors_writes_a_small_file(tmp_path: Path) -> None:
    """The one-call form for probes."""
    save_tensors(tmp_path / "probes.safetensors", tensors())
    assert_same(load_file(tmp_path / "probes.safetensors"), tensors())


def copied(source: Path, folder: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Copy every tensor of a file with `copy`, the first one last so that places do not agree by chance."""
    infos = {name: info for name, info in read_header(source).items() if info.dtype in DTYPES}
    mapped = {name: map_tensor(info, SourceFiles([source])) for name, info in infos.items()}
    specs = [TensorSpec(name, dtype or tensor.dtype, tuple(tensor.shape)) for name, tensor in mapped.items()]
    with SafetensorsWriter(folder, specs, "copy") as writer:
        for name in sorted(mapped, reverse=True):
            writer.copy(name, mapped[name], infos[name])
        writer.finish()
    return load_file(folder / "copy.safetensors")


@pytest.mark.parametrize("kernel", ["copies", "refuses", "copies a little", "has no such call"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tensors_are_copied_from_file_to_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, dtype: torch.dtype | None
) -> None:
    """The same bytes, whatever the kernel can do; another dtype is converted as `write` does."""
    content = {name: t for name, t in tensors().items() if t.is_floating_point() and t.numel()}
    write(tmp_path, content)
    real, calls = os.copy_file_range, []

    def call(source: int, target: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if kernel == "refuses":
            raise OSError(errno.EXDEV, "two file systems")
        return real(source, target, min(count, 5) if kernel == "copies a little" else count, *offsets)

    monkeypatch.setattr(os, "copy_file_range", call)
    if kernel == "has no such call":
        monkeypatch.delattr(os, "copy_file_range")
    found = copied(tmp_path / "model.safetensors", tmp_path, dtype)
    assert found.keys() == content.keys()
    for name, tensor in content.items():
        assert torch.equal(found[name], tensor.to(dtype or tensor.dtype)), name
    assert bool(calls) == (kernel != "has no such call")  # a bfloat16 tensor stays one


def test_a_copied_tensor_is_checked_like_a_written_one(tmp_path: Path) -> None:
    """NaN is named although the bytes would not pass through this process."""
    write(tmp_path, {"good": torch.ones(3)})
    save_file({"bad": torch.tensor([1.0, math.nan])}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="bad: holds NaN or infinity"):
        copied(tmp_path / "model.safetensors", tmp_path)


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other refusal of the kernel is taken for "cannot copy"."""

    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path, {"x": torch.ones(3)})
    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        copied(tmp_path / "model.safetensors", tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_one_bad_number_is_found_wherever_it_is(dtype: torch.dtype, value: float) -> None:
    """Also where another one takes its sum back; large numbers whose sum overflows are no fault."""
    tensor = torch.zeros(1000, dtype=dtype)
    assert all_finite(tensor)
    assert all_finite(torch.full((1000,), torch.finfo(dtype).max, dtype=dtype))
    for place in (0, 517, 999):
        bad = tensor.clone()
        bad[place] = value
        assert not all_finite(bad)
    assert not all_finite(torch.tensor([math.inf, -math.inf], dtype=dtype))
    assert all_finite(torch.arange(3))
