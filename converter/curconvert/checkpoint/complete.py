"""Turns what a reader found into a complete, checked `Checkpoint`: names, config, tying, dtypes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.config import merge_overrides, normalize_config, with_dtype
from curconvert.checkpoint.dtypes import common_dtype
from curconvert.checkpoint.finished import Stated, finished
from curconvert.checkpoint.ignore import Ignored, some
from curconvert.checkpoint.infer import infer_config
from curconvert.checkpoint.names import STEM, canonical_names
from curconvert.checkpoint.recognize import refuse_heads, without_head
from curconvert.checkpoint.safetensors_file import check_dtype, is_legacy_buffer, refuse_quantized
from curconvert.checkpoint.shards import unlisted_notices
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.stored.plain import plain_weights
from curconvert.checkpoint.strict import EMBEDDING, HEAD, check_layers, check_tensors, resolve_tying
from curconvert.checkpoint.text_part import text_config
from curconvert.checkpoint.types import ByteRange, Checkpoint, Companions, SourceKind, TensorInfo
from curconvert.families.family import Family, family_of
from curconvert.families.skeleton import expected_tensors
from curconvert.families.wrappers import WRAPPERS, Wrapper


@dataclass(frozen=True)
class Given:
    """What the user says about a checkpoint, beyond its files.

    Attributes:
        overrides: Config fields that replace the stored ones.
        ignored: Tensors to leave out.
    """

    overrides: Mapping[str, Any]
    ignored: Ignored


@dataclass(frozen=True)
class Storage:
    """Result of a reader: tensors by stored name, and a function to read them.

    Attributes:
        kind: Kind of the source.
        path: The file or folder that the user named.
        files: Every file that holds weights.
        tensors: The stored tensors.
        read: Reads one of them.
        companions: Returns the files besides the weights.
        unlisted: Names of tensors that the index does not list; the model need not have them.
        notices: What the reader has to say.
    """

    kind: SourceKind
    path: Path
    files: SourceFiles
    tensors: Mapping[str, TensorInfo]
    read: Callable[[TensorInfo], torch.Tensor]
    companions: Callable[[], Companions]
    unlisted: Collection[str] = ()
    notices: tuple[str, ...] = ()


@dataclass
class OpenCheckpoint:
    """A `Checkpoint` over anything that reads a tensor by its name."""

    kind: SourceKind
    path: Path
    files: SourceFiles
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    ignore: tuple[str, ...]
    notices: tuple[str, ...]
    companions: Callable[[], Companions]
    _read: Callable[[str], torch.Tensor]

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype; raw bytes are memory-mapped, so do not write to it."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: there is no tensor {name}")
        return self._read(name)


def complete(storage: Storage, raw: Mapping[str, Any] | None, given: Given) -> Checkpoint:
    """Find the language model, normalize its config, and check that nothing is missing or left over.

    Args:
        storage: What the reader found.
        raw: The config as stored; None infers it from shapes.
        given: What the user says.

    Raises:
        InputError: Tensors and config contradict each other, or one of them is malformed.
        UnsupportedError: The model or a dtype is not supported.
    """
    source, ignored = str(storage.path), given.ignored
    plain = plain_weights(storage.tensors, storage.read, {**(raw or {}), **given.overrides}, source)
    storage = replace(storage, tensors=plain.tensors, read=plain.read, notices=(*storage.notices, *plain.notices))
    wanted = [name for name in storage.tensors if not is_legacy_buffer(name)]
    names = canonical_names([name for name in wanted if not ignored.covers(name)], source)
    left_out = [name for name in wanted if name not in names.canonical or ignored.covers(names.canonical[name])]
    stored = {
        canonical: storage.tensors[name]
        for name, canonical in names.canonical.items()
        if not ignored.covers(canonical)
    }  # fmt: skip
    outside = {name for name in names.outside if name in stored}
    wrapper, config = _config(raw, given, {name: stored[name] for name in stored if name not in outside}, source)
    notices = [*storage.notices, *names.notices, *ignored.notices(left_out)]
    if wrapper is not None or names.part:
        kind = f"{wrapper.model_type}: " if wrapper else ""
        notices.append(f"{kind}only the language model ({config['model_type']}) is read; left out: {_towers(outside)}")
        stored = {name: info for name, info in stored.items() if name not in outside}
    unlisted = {name for name, info in stored.items() if info.name in storage.unlisted}
    for name, info in stored.items():
        if name not in unlisted:
            refuse_quantized(info)
        if name in (EMBEDDING, HEAD):  # they are compared below
            check_dtype(info)
    tensors, slices = _split_fused(stored, config, family_of(config), source)

    def read(name: str) -> torch.Tensor:
        whole, start, stop = slices.get(name, (name, 0, None))
        return storage.read(stored[whole])[start:stop]

    if HEAD not in tensors and not config["tie_word_embeddings"] and (headless := without_head(raw or {})):
        raise UnsupportedError(
            f"{source}: a {headless:.60}, saved without its lm_head, so it makes no text; give the model that "
            "AutoModelForCausalLM saves"
        )
    hint = f" (--ignore leaves out {some(left_out)})" if left_out else ""
    config["tie_word_embeddings"] = resolve_tying(tensors, config["tie_word_embeddings"], read, source, hint)
    if config["tie_word_embeddings"]:
        tensors.pop(HEAD, None)
    check_layers(tensors, config["num_hidden_layers"], source, hint)
    # Pass a copy, because transformers adds keys to the nested rope objects.
    expected = expected_tensors(deepcopy(config))
    if unlisted:
        notices += unlisted_notices(unlisted - expected.keys(), unlisted & expected.keys())
        tensors = {name: info for name, info in tensors.items() if name in expected or name not in unlisted}
    for name in tensors.keys() & expected.keys():
        check_dtype(tensors[name])
    check_tensors(tensors, expected, source, hint)
    dtype, mixed = common_dtype(tensors, read)
    where = storage.path.parent if storage.kind == "safetensors" else storage.path
    stated = Stated(where, {**(raw or {}), **given.overrides}, given.overrides, config)
    return OpenCheckpoint(
        storage.kind, storage.path, storage.files, with_dtype(config, dtype), tensors, ignored.patterns,
        (*notices, *mixed), cache(lambda: finished(storage.companions(), stated)), read,
    )  # fmt: skip


def check_family(raw: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> None:
    """Raise, before the weights are looked at, if the model type or the head of a config is not supported."""
    merged = {**raw, **overrides}
    if str(merged.get("model_type")) not in WRAPPERS:
        family_of(merged)
    refuse_heads(merged, source)


def _config(
    raw: Mapping[str, Any] | None, given: Given, tensors: Mapping[str, TensorInfo], source: str
) -> tuple[Wrapper | None, dict[str, Any]]:
    """Return the multimodal model type, if the config is of one, and the normalized config of the language model."""
    if raw is None:
        return None, normalize_config(infer_config(tensors, given.overrides, source), source)
    wrapper = WRAPPERS.get(str(given.overrides.get("model_type", raw.get("model_type"))))
    if wrapper is None:
        return None, normalize_config(merge_overrides(raw, given.overrides), source)
    overrides = {key: value for key, value in given.overrides.items() if key != "model_type"}
    text = text_config(raw, wrapper, HEAD in tensors, source)
    return wrapper, normalize_config(merge_overrides(text, overrides), source)


def _towers(outside: Collection[str]) -> str:
    """Return the parts of a multimodal model besides its language model, with the number of tensors of each."""
    counts = Counter(name.removeprefix(STEM).partition(".")[0] for name in outside)
    parts = (f"{part} ({count} tensor{'s' * (count > 1)})" for part, count in sorted(counts.items()))
    return ", ".join(parts) or "nothing"


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
            tensors[name] = replace(info, name=name)
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
