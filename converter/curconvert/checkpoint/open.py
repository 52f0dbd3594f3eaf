"""Opens any supported model (file, folder, GGUF, hub id) as a complete, checked `Checkpoint`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from curconvert.base.errors import InputError
from curconvert.checkpoint.adapters.adapter import Adapter
from curconvert.checkpoint.adapters.find import find_adapter, holds_model
from curconvert.checkpoint.adapters.merge import merged
from curconvert.checkpoint.companions import folder_companions
from curconvert.checkpoint.complete import Given, Storage, check_family, complete
from curconvert.checkpoint.config import parse_overrides, refuse_artifact
from curconvert.checkpoint.files import ModelFolder, load_json_object, regular_file
from curconvert.checkpoint.hub import fetch_snapshot, is_hub_id
from curconvert.checkpoint.ignore import Ignored
from curconvert.checkpoint.recognize import nothing_to_open, other_file, refuse_folder
from curconvert.checkpoint.safetensors_file import map_tensor, read_headers
from curconvert.checkpoint.shards import (
    INDEX_NAME,
    SINGLE_NAME,
    Part,
    check_index,
    indexed_files,
    set_in,
    whole_set,
)
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.types import Checkpoint, SourceKind, TensorInfo


def open_checkpoint(
    source: str | Path,
    *,
    config: Path | None = None,
    config_set: Mapping[str, Any] | None = None,
    revision: str | None = None,
    ignore: Collection[str] = (),
    base: str | Path | None = None,
) -> Checkpoint:
    """Open a checkpoint without reading its weights.

    Args:
        source: A `.safetensors` file, a Hugging Face folder, a `.gguf` file or a hub id `organization/name`; or an
            adapter, if there is a `base`.
        config: A config.json to use instead of the one beside the weights.
        config_set: Config fields that override the stored ones; text is parsed as JSON if possible.
        revision: Branch, tag or commit of a hub id.
        ignore: Patterns, such as `mtp.*`, of stored tensors to leave out because the model does not know them.
        base: The model that the adapter `source` changes. Config, overrides and patterns apply to it.

    Returns:
        The checkpoint: config normalized, names canonical, every tensor present and of the right shape.

    Raises:
        InputError: The files are missing, malformed or inconsistent.
        UnsupportedError: The files are valid but not supported (pickle, quantized, another family).
        BackendError: The download of a hub id failed.
    """
    given = Given(parse_overrides(config_set or {}), Ignored(tuple(ignore)))
    config = config.expanduser() if config else None
    path = _locate(str(source), revision)
    try:
        adapter = find_adapter(path)
        if base is None:
            if adapter is not None and not holds_model(path):
                raise adapter.needs_base()
            opened = _open(path, config, given)
            if adapter is not None:
                opened.notices += ("there is an adapter beside the model, which is left out; --base would merge it",)
            return opened
        if adapter is None:
            raise InputError(f"{path}: no LoRA adapter, so there is nothing to merge into a base; leave out --base")
        return _merged(adapter, open_checkpoint(base, config=config, config_set=config_set, ignore=ignore))
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from None


def _open(path: Path, config: Path | None, given: Given) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path, config, given)
    regular_file(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _open_lone_file(path, config, given)
    if suffix == ".gguf":
        return _open_gguf(path, path, config, given)
    raise other_file(path)


def _merged(adapter: Adapter, base: Checkpoint) -> Checkpoint:
    folder = adapter.path if adapter.path.is_dir() else adapter.path.parent
    return merged(adapter, base, folder_companions(ModelFolder.at(folder)))


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


def _open_folder(path: Path, config: Path | None, given: Given) -> Checkpoint:
    refuse_folder(path)
    folder = ModelFolder.at(path)
    named, config = config, config or folder.regular("config.json")
    raw = load_json_object(config) if config else None
    if raw is not None:
        refuse_artifact(raw, str(path))
    single, index = folder.regular(SINGLE_NAME), folder.regular(INDEX_NAME)
    if single is not None and index is not None:
        raise InputError(f"{path}: holds both {SINGLE_NAME} and {INDEX_NAME}; remove the one that is not the model")
    shards = None if single or index else set_in(folder, ".safetensors")
    if not (single or index or shards):
        if part := set_in(folder, ".gguf"):
            return _open_gguf(path, path / part.names[0], named, given)
        raise nothing_to_open(path)
    if raw is None:
        raise InputError(f"{path / 'config.json'}: no such file; pass --config")
    check_family(raw, given.overrides, str(path))
    if index is not None:
        return complete(_indexed(path, folder, given.ignored), raw, given)
    files = SourceFiles(whole_set(folder, shards) if shards else filter(None, [single]))
    return complete(_mapped("directory", path, files, read_headers(files)), raw, given)


def _indexed(path: Path, folder: ModelFolder, ignored: Ignored) -> Storage:
    weight_map, shards = indexed_files(folder)
    files = SourceFiles(shards)
    tensors = read_headers(files)
    unlisted, notices = check_index(weight_map, tensors, ignored, str(path))
    return _mapped("directory", path, files, tensors, unlisted, notices)


def _open_lone_file(path: Path, config: Path | None, given: Given) -> Checkpoint:
    part = Part.named(path.name)
    if part and part.count > 1:
        raise InputError(f"{path}: one of {part.count} shards; name its folder instead: {path.parent}")
    config = config or ModelFolder.at(path.parent).regular("config.json")
    raw = load_json_object(config) if config else None
    if raw is not None:
        refuse_artifact(raw, str(path))
        check_family(raw, given.overrides, str(path))
    files = SourceFiles((path,))
    return complete(_mapped("safetensors", path, files, read_headers(files)), raw, given)


def _open_gguf(path: Path, first: Path, config: Path | None, given: Given) -> Checkpoint:
    """Open a GGUF file, or all parts of a split one. `path` is what the user named, `first` any part."""
    from curconvert.checkpoint.gguf import GgufFile  # noqa: PLC0415 - the gguf package is slow to load

    part = Part.named(first.name)
    files = SourceFiles(whole_set(ModelFolder.at(first.parent), part) if part and part.count > 1 else (first,))
    file = GgufFile.open(files)
    raw = load_json_object(config) if config else file.config
    return complete(Storage("gguf", path, files, file.tensors, file.read, file.companions), raw, given)


def _mapped(
    kind: SourceKind,
    path: Path,
    files: SourceFiles,
    tensors: Mapping[str, TensorInfo],
    unlisted: Collection[str] = (),
    notices: tuple[str, ...] = (),
) -> Storage:
    folder = ModelFolder.at(path if kind == "directory" else path.parent)
    return Storage(
        kind, path, files, tensors, lambda info: map_tensor(info, files), lambda: folder_companions(folder), unlisted,
        notices,
    )  # fmt: skip
