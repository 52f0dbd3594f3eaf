"""Reads GGUF files: converts llama.cpp's names and layouts to Hugging Face's and dequantizes one tensor at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.base.roles import Role
from curconvert.checkpoint.gguf_config import GLOBAL_TENSORS, config_from_metadata
from curconvert.checkpoint.gguf_tokenizer import tokenizer_files
from curconvert.checkpoint.recognize import refuse_gguf
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.stand_ins import stand_in
from curconvert.checkpoint.types import Companions, TensorInfo
from curconvert.families.family import BLOCKS, FUSED_ATTENTION, FUSED_MLP, LINEAR_PATHS, linear_name

_RAW: Mapping[GGMLQuantizationType, tuple[str, torch.dtype]] = {
    GGMLQuantizationType.F32: ("F32", torch.float32),
    GGMLQuantizationType.F16: ("F16", torch.float16),
    GGMLQuantizationType.BF16: ("BF16", torch.bfloat16),
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": LINEAR_PATHS[Role.QUERY],
    "attn_k": LINEAR_PATHS[Role.KEY],
    "attn_v": LINEAR_PATHS[Role.VALUE],
    "attn_qkv": FUSED_ATTENTION,
    "attn_output": LINEAR_PATHS[Role.OUTPUT],
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": LINEAR_PATHS[Role.GATE],
    "ffn_up": LINEAR_PATHS[Role.UP],
    "ffn_down": LINEAR_PATHS[Role.DOWN],
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Block tensor names of architectures that differ from Llama's.
_BLOCK_OF: Mapping[str, Mapping[str, str]] = {
    "gemma2": _BLOCK | {"ffn_norm": "pre_feedforward_layernorm"},
    "gemma3": _BLOCK | {"ffn_norm": "pre_feedforward_layernorm"},
    "phi3": _BLOCK | {"ffn_up": FUSED_MLP},
}
# llama.cpp interleaves the two halves of each rotary head for these; the others keep Hugging Face's order.
_PERMUTED = ("llama", "granite", "smollm3")
# Norms of these multiply by 1 + w; llama.cpp stores 1 + w instead of w.
_SHIFTED_NORMS = ("gemma2", "gemma3")
_DECODED_AT_ONCE = 2**20  # elements


class _BoundedReader(GGUFReader):  # type: ignore[misc]
    """The gguf package's reader with a check for the file's end, where the original would loop up to 2⁶³ times."""

    data: npt.NDArray[Any]

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        if isinstance(self.data, np.memmap):
            self.data = self.data.view(np.ndarray)  # the reader makes many thousand slices, and plain arrays are faster
        values: npt.NDArray[Any] = super()._get(offset, dtype, count, override_order)
        if len(values) != count:
            raise ValueError(f"the file ends within the data at byte {offset}")
        return values


@dataclass(frozen=True)
class StoredGguf:
    """Position and encoding of a tensor in a file; `shape` is in torch's order."""

    file: Path
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class GgufFile:
    """Presents a GGUF file, or all parts of a split one, as a checkpoint: config, tensors, tokenizer.

    Attributes:
        files: The files.
        metadata: The key-value pairs of the first one, arrays as lists.
        config: The Hugging Face config built from them.
    """

    files: SourceFiles
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]
    _stored: Mapping[str, StoredGguf]

    @classmethod
    def open(cls, files: SourceFiles) -> GgufFile:
        """Return the file, with its metadata and tensor headers read.

        Args:
            files: One file, or all parts in order.

        Raises:
            InputError: A file is not valid GGUF, or the parts do not belong together.
            UnsupportedError: The architecture or a quantization is not supported.
        """
        path = files[0]
        metadata, by_ggml_name = _read_parts(files)
        refuse_gguf(metadata, by_ggml_name, str(path))
        architecture = str(metadata.get("general.architecture"))
        shapes = {name: stored.shape for name, stored in by_ggml_name.items()}
        factors = {name: _floats(by_ggml_name[name], files) for name in GLOBAL_TENSORS if name in by_ggml_name}
        try:
            config = config_from_metadata(metadata, shapes, factors, str(path))
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:  # a key of another type or absurd size
            raise InputError(f"{path}: malformed metadata: {type(error).__name__}: {error}") from None
        stored: dict[str, StoredGguf] = {}
        for name, entry in by_ggml_name.items():
            _check_decodable(entry.file, name, entry.kind)
            if name in GLOBAL_TENSORS:
                continue
            canonical = canonical_name(entry.file, architecture, name)
            if canonical in stored:
                raise InputError(f"{entry.file}: tensor {name} is the second one for {canonical}")
            stored[canonical] = entry
        return cls(files, metadata, config, stored)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape of each tensor, by Hugging Face name; quantized tensors are float32."""
        return {
            name: TensorInfo(name, "F32" if self._transform(name) is _unshift else _dtype(entry), entry.shape)
            for name, entry in self._stored.items()
        }

    def read(self, info: TensorInfo) -> torch.Tensor:
        """Return one tensor, dequantized and in Hugging Face's layout."""
        tensor = decode(self._stored[info.name], self.files)
        transform = self._transform(info.name)
        return tensor if transform is None else transform(tensor)

    def companions(self) -> Companions:
        """Return the tokenizer files, built from the metadata."""
        return Companions(written=tokenizer_files(self.metadata, str(self.files[0])))

    def _transform(self, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        architecture = self.metadata["general.architecture"]
        if architecture in _SHIFTED_NORMS and name.endswith("norm.weight"):
            return _unshift
        heads = heads_to_unpermute(architecture, name, self.config)
        return None if heads is None else lambda tensor: unpermute(tensor, heads)


def _read_parts(files: SourceFiles) -> tuple[dict[str, Any], dict[str, StoredGguf]]:
    """Return the metadata of the first file, and the tensors of all of them.

    Raises:
        InputError: A file is not valid GGUF, or the parts do not belong together.
    """
    metadata: dict[str, Any] = {}
    tensors: dict[str, StoredGguf] = {}
    for number, path in enumerate(files):
        found, part = read_file(path)
        count, place = found.get("split.count") or 1, found.get("split.no") or 0
        if (count, place) != (len(files), number):
            raise InputError(
                f"{path}: its metadata say part {place!r:.20} of {count!r:.20}, counted from 0; all parts must be in "
                "one folder under the names that llama-gguf-split gave them, such as NAME-00001-of-00003.gguf"
            )
        if twice := tensors.keys() & part.keys():
            raise InputError(f"{path}: tensor {min(twice):.200} is also in {tensors[min(twice)].file.name}")
        metadata = metadata or found
        tensors |= part
    total = metadata.get("split.tensors.count")
    if len(files) > 1 and total is not None and total != len(tensors):
        raise InputError(f"{files[0]}: the parts hold {len(tensors)} tensors, the metadata say {total!r:.20}")
    return metadata, tensors


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, StoredGguf]]:
    """Return the metadata and tensors of one file, by llama.cpp's names."""
    try:
        reader = _BoundedReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        # Keep only numbers, so that the reader's memory map of the whole file is released.
        tensors = {
            tensor.name: StoredGguf(
                path,
                tensor.tensor_type,
                tuple(int(size) for size in reversed(tensor.shape.tolist())),
                int(tensor.data_offset),
                int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: {stand_in(path) or f'not a valid GGUF file: {reason}'}") from None
    if reader.byte_order != "I":
        raise UnsupportedError(f"{path}: the byte order differs from this machine's; convert the file first")
    return metadata, tensors


def heads_to_unpermute(architecture: str, name: str, config: Mapping[str, Any]) -> int | None:
    """Return the number of heads whose rows llama.cpp stores in another order; None for other tensors."""
    if architecture in _PERMUTED:
        for role, heads in ((Role.QUERY, "num_attention_heads"), (Role.KEY, "num_key_value_heads")):
            if f".{LINEAR_PATHS[role]}." in name:
                return int(config[heads])
    return None


def unpermute(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the rows of queries or keys in Hugging Face's order: per head, from (pairs, 2) to (2, pairs).

    Args:
        tensor: (heads · head_dim, …) in llama.cpp's order.
        heads: Number of heads.

    Raises:
        InputError: The number of rows does not fit the number of heads.
    """
    rows = tensor.shape[0]
    if rows % (2 * heads):
        kinds = " or ".join(map(linear_name, (Role.QUERY, Role.KEY)))
        raise InputError(f"GGUF: {rows} rows of {kinds} are not {heads} heads of an even width")
    return tensor.reshape(heads, rows // heads // 2, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _unshift(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() - 1.0


def canonical_name(path: Path, architecture: str, name: str) -> str:
    """Return the Hugging Face name of a tensor.

    Raises:
        UnsupportedError: No supported model has such a tensor.
    """
    stem, _, kind = name.rpartition(".")
    if kind in ("weight", "bias"):
        if stem in _TOP:
            return f"{_TOP[stem]}.{kind}"
        match = re.fullmatch(r"blk\.(0|[1-9][0-9]{0,4})\.(\w+)", stem)
        block = _BLOCK_OF.get(architecture, _BLOCK)
        if match and match[2] in block:
            return f"{BLOCKS}.{match[1]}.{block[match[2]]}.{kind}"
    raise UnsupportedError(f"{path}: tensor {name} is not part of a supported {architecture} model")


def _check_decodable(path: Path, name: str, kind: GGMLQuantizationType) -> None:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
    except NotImplementedError:
        raise UnsupportedError(f"{path}: tensor {name} is {kind.name}, which the gguf package cannot decode") from None


def _dtype(entry: StoredGguf) -> str:
    return _RAW[entry.kind][0] if entry.kind in _RAW else "F32"


def decode(entry: StoredGguf, files: SourceFiles) -> torch.Tensor:
    """Return a tensor as it is stored, dequantized if it is quantized."""
    with files.open(entry.file) as file:
        data = np.memmap(file, dtype=np.uint8, mode="r", offset=entry.offset, shape=(entry.length,))
    if entry.kind in _RAW:
        return torch.from_numpy(np.array(data)).view(_RAW[entry.kind][1]).view(entry.shape)
    decoded = torch.empty(entry.shape, dtype=torch.float32)
    table = decoded.view(-1, entry.shape[-1]).numpy()
    rows = data.reshape(len(table), -1)
    step = max(1, _DECODED_AT_ONCE // entry.shape[-1])
    for start in range(0, len(rows), step):  # the decoder's intermediate arrays are several times its result
        table[start : start + step] = dequantize(rows[start : start + step], entry.kind)
    return decoded


def _floats(entry: StoredGguf, files: SourceFiles) -> list[float]:
    return [float(value) for value in decode(entry, files).float()]
