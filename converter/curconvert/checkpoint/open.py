"""Opens any supported model (file, folder, GGUF, hub id) as a complete, checked `Checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from curconvert.base.dtypes import dtype_name
from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.companions import folder_companions
from curconvert.checkpoint.config import merge_overrides, normalize_config, parse_overrides, refuse_artifact, with_dtype
from curconvert.checkpoint.files import ModelFolder, load_json_object, regular_file
from curconvert.checkpoint.hub import fetch_snapshot, is_hub_id
from curconvert.checkpoint.infer import infer_config
from curconvert.checkpoint.safetensors_file import (
    DTYPES,
    INDEX_NAME,
    SINGLE_NAME,
    is_legacy_buffer,
    map_tensor,
    read_header,
    read_index,
)
from curconvert.checkpoint.strict import EMBEDDING, HEAD, check_layers, check_tensors, resolve_tying
from curconvert.checkpoint.types import ByteRange, Checkpoint, Companions, SourceKind, TensorInfo
from curconvert.families.family import Family, family_of
from curconvert.families.skeleton import expected_tensors

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NO_PICKLE = (
    "pickle files can run code and are not read; load the model once with transformers and "
    "save_pretrained(folder, safe_serialization=True)"
)


@dataclass(frozen=True)
class _Storage:
    """Result of a reader: tensors by stored name, and a function to read them."""

    kind: SourceKind
    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], torch.Tensor]
    companions: Callable[[], Companions]


@dataclass
class _OpenCheckpoint:
    """A `Checkpoint` over any storage; `_slices` has the rows of a stored tensor that a canonical name means."""

    kind: SourceKind
    path: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    _storage: _Storage
    _slices: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype; raw bytes are memory-mapped, so do not write to it."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: there is no tensor {name}")
        if name not in self._slices:
            return self._storage.read(name)
        stored, start, stop = self._slices[name]
        return self._storage.read(stored)[start:stop]

    def companions(self) -> Companions:
        """Return the non-weight files that travel with the model."""
        return self._storage.companions()


def open_checkpoint(
    source: str | Path,
    *,
    config: Path | None = None,
    config_set: Mapping[str, Any] | None = None,
    revision: str | None = None,
) -> Checkpoint:
    """Open a checkpoint without reading its weights.

    Args:
        source: A `.safetensors` file, a Hugging Face folder, a `.gguf` file or a hub id `organization/name`.
        config: A config.json to use instead of the one beside the weights.
        config_set: Config fields that override the stored ones; text is parsed as JSON if possible.
        revision: Branch, tag or commit of a hub id.

    Returns:
        The checkpoint: config normalized, names canonical, every tensor present and of the right shape.

    Raises:
        InputError: The files are missing, malformed or inconsistent.
        UnsupportedError: The files are valid but not supported (pickle, quantized, another family).
        BackendError: The download of a hub id failed.
    """
    overrides = parse_overrides(config_set or {})
    config = config.expanduser() if config else None
    path = _locate(str(source), revision)
    try:
        return _open(path, config, overrides)
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from None


def _open(path: Path, config: Path | None, overrides: Mapping[str, Any]) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path, config, overrides)
    regular_file(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _open_lone_file(path, config, overrides)
    if suffix == ".gguf":
        return _open_gguf(path, config, overrides)
    if suffix in _PICKLES:
        raise UnsupportedError(f"{path}: {_NO_PICKLE}")
    raise InputError(f"{path}: expected a .safetensors or .gguf file, a model folder or a hub id")


def _locate(source: str, revision: str | None) -> Path:
    try:
        path = Path(source).expanduser()
        found = path.exists() or path.is_symlink()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{source!r}: not a usable path: {' '.join(str(error).split())}") from None
    if found:
        return path
    if is_hub_id(source):
        return fetch_snapshot(source, revision)
    raise InputError(f"{path}: no such file or folder")


def _open_folder(path: Path, config: Path | None, overrides: Mapping[str, Any]) -> Checkpoint:
    folder = ModelFolder.at(path)
    config = config or folder.regular("config.json")
    if config is not None:
        refuse_artifact(load_json_object(config), str(path))
    single, index = folder.regular(SINGLE_NAME), folder.regular(INDEX_NAME)
    if single is not None and index is not None:
        raise InputError(f"{path}: holds both {SINGLE_NAME} and {INDEX_NAME}; remove the one that is not the model")
    if index is not None:
        files, stored = read_index(folder)
    elif single is not None:
        files, stored = (single,), read_header(single)
    else:
        raise _nothing_to_open(path)
    if config is None:
        raise InputError(f"{path / 'config.json'}: no such file; pass --config")
    raw = merge_overrides(load_json_object(config), overrides)
    return _complete(_mapped("directory", path, files, stored), raw)


def _nothing_to_open(path: Path) -> InputError | UnsupportedError:
    names = sorted(entry.name for entry in path.iterdir())
    if others := [name for name in names if name.endswith((".safetensors", ".gguf"))]:
        return InputError(f"{path}: holds no {SINGLE_NAME}; name the file itself, such as {path / others[0]}")
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return UnsupportedError(f"{path / pickles[0]}: {_NO_PICKLE}")
    return InputError(f"{path}: holds neither {SINGLE_NAME} nor {INDEX_NAME}; name a folder or file with weights")


def _open_lone_file(path: Path, config: Path | None, overrides: Mapping[str, Any]) -> Checkpoint:
    if re.search(r"-\d{5}-of-(?!00001)\d{5}\.safetensors$", path.name):
        raise InputError(f"{path}: one shard of several; name its folder instead")
    storage = _mapped("safetensors", path, (path,), read_header(path))
    config = config or ModelFolder.at(path.parent).regular("config.json")
    if config is not None:
        return _complete(storage, merge_overrides(load_json_object(config), overrides))
    return _complete(storage, infer_config(storage.tensors, overrides, str(path)))


def _open_gguf(path: Path, config: Path | None, overrides: Mapping[str, Any]) -> Checkpoint:
    from curconvert.checkpoint.gguf import GgufFile  # noqa: PLC0415 - the gguf package is slow to load

    file = GgufFile.open(path)
    raw = load_json_object(config) if config else file.config
    storage = _Storage("gguf", path, (path,), file.tensors, file.read, file.companions)
    return _complete(storage, merge_overrides(raw, overrides))


def _mapped(kind: SourceKind, path: Path, files: tuple[Path, ...], stored: Mapping[str, TensorInfo]) -> _Storage:
    tensors = {name: info for name, info in stored.items() if not is_legacy_buffer(name)}
    folder = ModelFolder.at(path if kind == "directory" else path.parent)
    return _Storage(
        kind, path, files, tensors, lambda name: map_tensor(tensors[name]), lambda: folder_companions(folder)
    )


def _complete(storage: _Storage, raw: Mapping[str, Any]) -> Checkpoint:
    """Normalize the config, split fused projections, decide tying, and check that nothing is missing or left over."""
    source = str(storage.path)
    config = normalize_config(raw, source)
    tensors, slices = _split_fused(storage.tensors, config, family_of(config), source)
    config["tie_word_embeddings"] = resolve_tying(tensors, config["tie_word_embeddings"], storage.read, source)
    if config["tie_word_embeddings"]:
        tensors.pop(HEAD, None)
    check_layers(tensors, config["num_hidden_layers"], source)
    # Pass a copy, because transformers adds keys to the nested rope objects.
    check_tensors(tensors, expected_tensors(deepcopy(config)), source)
    if not config.get("dtype"):
        config = with_dtype(config, dtype_name(DTYPES[tensors[EMBEDDING].dtype]))
    return _OpenCheckpoint(storage.kind, storage.path, storage.files, config, tensors, storage, slices)


def _split_fused(
    stored: Mapping[str, TensorInfo], config: Mapping[str, Any], family: Family, source: str
) -> tuple[dict[str, TensorInfo], dict[str, tuple[str, int, int]]]:
    """Replace fused projections by their row slices, which are byte ranges of a row-major tensor.

    Returns:
        The tensors by canonical name; and the stored tensor, first row and end of each slice.
    """
    tensors: dict[str, TensorInfo] = {}
    slices: dict[str, tuple[str, int, int]] = {}
    for name, info in stored.items():
        path = next((path for path in family.fused if f".{path}." in name), None)
        if path is None:
            tensors[name] = info
            continue
        parts = family.parts(config, path)
        if not info.shape or info.shape[0] != sum(parts.values()):
            rows = " + ".join(map(str, parts.values()))
            raise InputError(f"{source}: tensor {name} is {list(info.shape)}, the config says {rows} rows")
        start = 0
        for part, size in parts.items():
            piece = name.replace(path, f"{path.rpartition('.')[0]}.{part}")
            if piece in stored:
                raise InputError(f"{source}: tensor {piece} is stored both by itself and within {name}")
            tensors[piece] = replace(info, name=piece, shape=(size, *info.shape[1:]), location=_rows(info, start, size))
            slices[piece] = (name, start, start + size)
            start += size
    return tensors, slices


def _rows(info: TensorInfo, start: int, size: int) -> ByteRange | None:
    if info.location is None:
        return None
    row = info.location.length // info.shape[0]
    return replace(info.location, offset=info.location.offset + start * row, length=size * row)
