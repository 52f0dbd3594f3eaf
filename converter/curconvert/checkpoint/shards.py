"""Finds the files of a checkpoint that is stored in several: by its index, or by the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from curconvert.base.errors import InputError
from curconvert.checkpoint.files import ModelFolder, load_json_object
from curconvert.checkpoint.ignore import Ignored, some
from curconvert.checkpoint.safetensors_file import NAME_LIMIT
from curconvert.checkpoint.types import TensorInfo

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
INDEX_LIMIT = 2_000_000  # bytes, enough for about 20,000 tensors

_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.safetensors|\.gguf)")
_HEAD = re.compile(r"(.+\.)?lm_head\.weight")


@dataclass(frozen=True)
class Part:
    """The name of one file of a set, such as `model-00001-of-00003.safetensors`.

    Attributes:
        stem: What the names of the set begin with.
        number: Number of this file; the first is 1.
        count: Number of files of the set.
        suffix: `.safetensors` or `.gguf`.
    """

    stem: str
    number: int
    count: int
    suffix: str

    @classmethod
    def named(cls, name: str) -> Part | None:
        """Return the part that a file name describes; None for other names."""
        match = _PART.fullmatch(name)
        if match is None or len(name) > NAME_LIMIT or not 1 <= int(match["number"]) <= int(match["count"]):
            return None
        return cls(match["stem"], int(match["number"]), int(match["count"]), match["suffix"])

    @property
    def pattern(self) -> str:
        """The names of the whole set, for messages."""
        return f"{self.stem}-*-of-{self.count:05}{self.suffix}"

    @property
    def names(self) -> list[str]:
        """The names of the whole set, in order."""
        return [f"{self.stem}-{number:05}-of-{self.count:05}{self.suffix}" for number in range(1, self.count + 1)]


def whole_set(folder: ModelFolder, part: Part) -> tuple[Path, ...]:
    """Return the files of a set, in order.

    Raises:
        InputError: One is missing, or is no regular file in the folder.
    """
    here = {entry.name for entry in folder.path.iterdir()}
    names = part.names
    if missing := [name for name in names if name not in here]:
        raise InputError(
            f"{folder.path / missing[0]}: missing; {len(names) - len(missing)} of the {len(names)} files "
            f"{part.pattern} are here, and all are needed"
        )
    return tuple(path for name in names if (path := folder.regular(name)) is not None)


def set_in(folder: ModelFolder, suffix: str) -> Part | None:
    """Return a part of the only set of files with this suffix in a folder; None if there is no set.

    A set whose names begin with `model` is preferred, because transformers writes and reads no other.

    Raises:
        InputError: There are several.
    """
    parts = [part for entry in sorted(folder.path.iterdir()) if (part := Part.named(entry.name))]
    sets = {part.pattern: part for part in parts if part.suffix == suffix}
    preferred = {pattern: part for pattern, part in sets.items() if part.stem == "model"} or sets
    if len(preferred) > 1:
        raise InputError(
            f"{folder.path}: holds several models, {' and '.join(preferred)}; move all but one to another folder"
        )
    return next(iter(preferred.values()), None)


def indexed_files(folder: ModelFolder) -> tuple[dict[str, str], tuple[Path, ...]]:
    """Return the table of an index file, and the shards that it names, sorted by name.

    Raises:
        InputError: The table is malformed, or names a file that is missing or outside the folder.
    """
    path = folder.regular(INDEX_NAME)
    if path is None:
        raise InputError(f"{folder.path / INDEX_NAME}: no such file")
    weight_map = load_json_object(path, INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not _is_plain_name(shard):
            raise InputError(
                f"{path}: tensor {name!r:.200} is in {shard!r:.60}, expected the name of a .safetensors file"
            )
    shards = {shard: folder.regular(shard) for shard in sorted(set(weight_map.values()))}
    for shard, file in shards.items():
        if file is None:
            raise InputError(f"{path}: shard {shard:.200} is missing from the folder")
    return weight_map, tuple(file for file in shards.values() if file is not None)


def check_index(
    weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo], ignored: Ignored, source: str
) -> tuple[Collection[str], tuple[str, ...]]:
    """Compare an index with its shards, as leniently as transformers does.

    Returns:
        The tensors that the index does not list; and notices.

    Raises:
        InputError: A tensor is not where the index places it. A tied lm_head need not be stored.
    """
    notices = []
    for name, shard in weight_map.items():
        location = tensors[name].location if name in tensors else None
        if location is None and _HEAD.fullmatch(name):
            notices.append(f"{INDEX_NAME} lists {name:.200}, which no shard holds; the embedding takes its place")
        elif (location is None or location.file.name != shard) and not ignored.covers(name):
            raise InputError(
                f"{source}: {INDEX_NAME}: tensor {name:.200} is not in {shard:.200}, where the index places it; "
                "fetch both files again"
            )
    return tensors.keys() - weight_map.keys(), tuple(notices)


def unlisted_notices(left_out: Collection[str], read: Collection[str]) -> list[str]:
    """Return what to say about tensors of the shards that the index does not list."""
    notices = []
    if left_out:
        notices.append(f"{INDEX_NAME} does not list {some(left_out)}; left out, because the model has no such tensor")
    if read:
        notices.append(f"{INDEX_NAME} does not list {some(read)}; read, because the model needs it")
    return notices


def _is_plain_name(value: object) -> bool:
    """Tell whether a value is a `.safetensors` file name without a path, on any operating system."""
    return (
        isinstance(value, str)
        and value.endswith(".safetensors")
        and not any(character in value for character in "/\\:\0")
        and not value.startswith("..")
        and len(value) <= NAME_LIMIT
    )
