"""The safetensors reader: every type, and malformed headers."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curconvert_runtime import IntegrityError
from curconvert_runtime.format.tensor_file import MAX_HEADER_BYTES, read_headers, read_tensor
from support.safetensors_files import save_file

GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write(path: Path, header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"])
def test_every_dtype_is_read(tmp_path: Path, dtype: str) -> None:
    """What was written comes back with the same dtype, shape and bits."""
    value = (np.random.default_rng(0).standard_normal((3, 5)) * 10).astype(dtype)
    save_file({"x": value, "scalar": np.zeros((), dtype), "empty": np.zeros((0, 4), dtype)}, tmp_path / "f")
    headers = read_headers(tmp_path / "f")
    np.testing.assert_array_equal(read_tensor(headers["x"]), value, strict=True)
    assert read_tensor(headers["scalar"]).shape == ()
    assert read_tensor(headers["empty"]).shape == (0, 4)


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    """The upper half of a float32 is a bfloat16; widening appends zero bits."""
    values = np.array([1.0, -2.5, 0.0, np.inf], np.float32)
    data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = {"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    np.testing.assert_array_equal(read_tensor(read_headers(write(tmp_path / "f", header, data))["x"]), values)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\xff\xff", "not valid JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"a":1', "not valid JSON"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', "appears twice"),
        (b'{"__metadata__":{"k":{"x":"y"}}}', "__metadata__"),
        (b'{"__metadata__":3}', "__metadata__"),
        ({"a": 3}, "exactly dtype"),
        ({"a": GOOD["a"] | {"extra": 1}}, "exactly dtype"),
        ({"a": GOOD["a"] | {"dtype": "F8_E4M3"}}, "unknown dtype"),
        ({"a": GOOD["a"] | {"dtype": ["F32"]}}, "unknown dtype"),
        ({"a": GOOD["a"] | {"shape": [-2]}}, "shape"),
        ({"a": GOOD["a"] | {"shape": [True, 2]}}, "shape"),
        ({"a": GOOD["a"] | {"shape": 2}}, "shape"),
        ({"a": GOOD["a"] | {"shape": [2**62, 2**62]}}, "needs"),
        ({"a": GOOD["a"] | {"data_offsets": [-8, 0]}}, "data_offsets"),
        ({"a": GOOD["a"] | {"data_offsets": [8, 0]}}, "needs"),
        ({"a": GOOD["a"] | {"data_offsets": [0, 8, 9]}}, "data_offsets"),
        ({"a": GOOD["a"] | {"data_offsets": [0.0, 8]}}, "data_offsets"),
        ({"a": GOOD["a"], "b": GOOD["a"]}, "overlaps"),
        ({"a": GOOD["a"] | {"data_offsets": [8, 16]}}, "hole"),
        ({}, "tensors end at"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "tensors end at"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "tensors end at"),
    ],
)
def test_malformed_headers_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    """Each rule of the format has its own one-line refusal."""
    with pytest.raises(IntegrityError, match=message) as caught:
        read_headers(write(tmp_path / "f", header))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10_000, 200_000_000])
def test_a_header_longer_than_the_file_is_refused(tmp_path: Path, length: int) -> None:
    """The length is checked before anything is allocated."""
    with pytest.raises(IntegrityError, match="header length"):
        read_headers(write(tmp_path / "f", GOOD, length=length))


@pytest.mark.parametrize("entry", [b" ", b'"a":[],', b'"%06d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'])
def test_a_header_longer_than_any_real_one_is_refused(tmp_path: Path, entry: bytes) -> None:
    """A bomb of blanks, of tiny entries, or of empty tensors is refused before it is parsed."""
    size = MAX_HEADER_BYTES + 1
    text = (b"{" + entry * (size // len(entry)) + b" " * size)[:size]
    start = time.process_time()
    with pytest.raises(IntegrityError, match=f"header length {size}, expected at most {MAX_HEADER_BYTES}"):
        read_headers(write(tmp_path / "f", text))
    assert time.process_time() - start < 1


def test_the_largest_header_is_read_in_seconds(tmp_path: Path) -> None:
    """60,000 empty tensors take a third of a second of the processor's time; work that is quadratic takes minutes."""
    header = {f"{number:06}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(60_000)}
    path = write(tmp_path / "f", header, data=b"")
    start = time.process_time()
    assert len(read_headers(path)) == 60_000
    assert time.process_time() - start < 10


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_shorter_than_its_prefix_is_refused(tmp_path: Path, size: int) -> None:
    """An empty or cut file is no safetensors file."""
    (tmp_path / "f").write_bytes(b"\0" * size)
    with pytest.raises(IntegrityError):
        read_headers(tmp_path / "f")


@given(st.binary(max_size=200))
def test_random_bytes_never_escape_as_another_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever the bytes, the answer is headers or an IntegrityError."""
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    with contextlib.suppress(IntegrityError):
        read_headers(path)
