"""Opens any supported model (file, folder, GGUF, hub id) as a complete, checked `Checkpoint`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.companions import folder_companions
from curconvert.checkpoint.complete import Given, Storage, check_family, complete
from curconvert.checkpoint.config import parse_overrides, refuse_artifact
from curconvert.checkpoint.files import ModelFolder, load_json_object, regular_file
from curconvert.checkpoint.hub import fetch_snapshot, is_hub_id
from curconvert.checkpoint.ignore import Ignored
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

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_NO_PICKLE = (
    "pickle files can run code and are not read; load the model once with transformers and "
    "save_pretrained(folder, safe_serialization=True)"
)


def open_checkpoint(
    source: str | Path,
    *,
    config: Path | None = None,
    config_set: Mapping[str, Any] | None = None,
    revision: str | None = None,
    ignore: Collection[str] = (),
) -> Checkpoint:
    """Open a checkpoint without reading its weights.

    Args:
        source: A `.safetensors` file, a Hugging Face folder, a `.gguf` file or a hub id `organization/name`.
        config: A config.json to use instead of the one beside the weights.
        config_set: Config fields that override the stored ones; text is parsed as JSON if possible.
        revision: Branch, tag or commit of a hub id.
        ignore: Patterns, such as `mtp.*`, of stored tensors to leave out because the model does not know them.

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
        return _open(path, config, given)
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


def _open_folder(path: Path, config: Path | None, given: Given) -> Checkpoint:
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
        raise _nothing_to_open(path)
    if raw is None:
        raise InputError(f"{path / 'config.json'}: no such file; pass --config")
    check_family(raw, given.overrides)
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


def _nothing_to_open(path: Path) -> InputError | UnsupportedError:
    names = sorted(entry.name for entry in path.iterdir())
    if others := [name for name in names if name.endswith((".safetensors", ".gguf"))]:
        return InputError(f"{path}: holds no {SINGLE_NAME}; name the file itself, such as {path / others[0]}")
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return UnsupportedError(f"{path / pickles[0]}: {_NO_PICKLE}")
    return InputError(f"{path}: holds neither {SINGLE_NAME} nor {INDEX_NAME}; name a folder or file with weights")


def _open_lone_file(path: Path, config: Path | None, given: Given) -> Checkpoint:
    part = Part.named(path.name)
    if part and part.count > 1:
        raise InputError(f"{path}: one of {part.count} shards; name its folder instead: {path.parent}")
    config = config or ModelFolder.at(path.parent).regular("config.json")
    raw = load_json_object(config) if config else None
    if raw is not None:
        check_family(raw, given.overrides)
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
