"""Presents a base model with an adapter merged into it as one checkpoint; each tensor is merged when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from curconvert.base.errors import InputError
from curconvert.checkpoint.adapters.adapter import Adapter
from curconvert.checkpoint.adapters.changes import Change, Replacement, Rows
from curconvert.checkpoint.adapters.peft_config import MERGE_WITH_PEFT
from curconvert.checkpoint.complete import OpenCheckpoint
from curconvert.checkpoint.finished import Stated, finished
from curconvert.checkpoint.names import STEM
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.strict import EMBEDDING, HEAD
from curconvert.checkpoint.types import Checkpoint, Companions, TensorInfo
from curconvert.families.family import family_of
from curconvert.families.wrappers import TEXT_STEMS

# How names of a multimodal model's language model begin, and how the base's begin.
_TEXT_PARTS = (("", ""), *((stem, STEM) for stem in TEXT_STEMS), ("language_model.lm_head.", "lm_head."))


def merged(adapter: Adapter, base: Checkpoint, companions: Companions) -> Checkpoint:
    """Return the base with an adapter merged into it. No weight is read yet.

    Args:
        adapter: The adapter.
        base: The base model.
        companions: The adapter's own tokenizer files, if it has some.

    Raises:
        InputError: The adapter changes tensors that the base does not have, or of other shapes.
    """
    changes: dict[str, list[Change]] = {}
    for name, wanted in adapter.changes(base.config).items():
        for target, parts in _targets(name, wanted, base, adapter.path):
            changes.setdefault(target, []).extend(parts)
    config, tensors = _untied(base, changes)
    for name, parts in changes.items():
        shape: tuple[int, ...] | None = tensors[name].shape
        for change in parts:
            shape = None if shape is None else change.shape_after(shape)
        if shape is None:
            raise InputError(
                f"{adapter.path}: what it does to {name} does not fit the base's {list(tensors[name].shape)}; give "
                "the base that it was trained on"
            )
        tensors[name] = replace(tensors[name], shape=shape, location=None)
    notice = f"an adapter changes {len(changes)} tensors of {base.path.name}"
    files = SourceFiles((*base.files, *adapter.files))
    config = _resized(config, tensors, adapter.path)

    @cache
    def files_besides() -> Companions:
        own = base.companions()
        stated = Stated(adapter.path, {**base.config, **own.special_tokens.fields()}, {}, config)
        return finished(_with_tokenizer(own, companions), stated)

    def read(name: str) -> torch.Tensor:
        tensor = base.read(name if name in base.tensors else EMBEDDING)  # an lm_head that the base ties to it
        for change in changes.get(name, ()):
            tensor = change.apply(tensor)
        return tensor

    return OpenCheckpoint(
        base.kind, adapter.path, files, config, tensors, base.ignore, (*base.notices, notice), files_besides, read
    )


def _targets(
    name: str, changes: Sequence[Change], base: Checkpoint, path: Path
) -> Iterator[tuple[str, Sequence[Change]]]:
    """Yield the base's names of a tensor, which are several for a fused projection, with the changes of each."""
    for theirs, ours in _TEXT_PARTS:
        if not name.startswith(theirs):
            continue
        found = ours + name.removeprefix(theirs)
        if found in base.tensors or (found == HEAD and base.config["tie_word_embeddings"]):
            yield found, changes
            return
        family = family_of(base.config)
        for fused in family.fused:
            if f".{fused}." in found:
                start = 0
                for part, size in family.parts(base.config, fused).items():
                    piece = found.replace(fused, f"{fused.rpartition('.')[0]}.{part}")
                    yield piece, [change.rows(start, start + size) for change in changes]
                    start += size
                return
    raise InputError(
        f"{path}: changes the tensor {name:.200}, which the base {base.path} does not have; give the base "
        "that it was trained on"
    )


def _untied(base: Checkpoint, changes: dict[str, list[Change]]) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Return config and tensors, with an lm_head of its own if the adapter changes it apart from the embedding.

    In training, an adapter of a tied embedding changes the embedding only, and one of the lm_head the lm_head only.
    They stay tied where PEFT ties them too: trained rows, a new vocabulary, and copies that are alike.
    """
    config, tensors = dict(base.config), dict(base.tensors)
    touched = [name for name in (EMBEDDING, HEAD) if name in changes]
    if not touched or not config["tie_word_embeddings"]:
        return config, tensors
    if len(touched) == 2 and _alike(changes[EMBEDDING], changes[HEAD]):
        del changes[HEAD]
        return config, tensors
    if HEAD not in touched and all(_stays_tied(change, tensors[EMBEDDING]) for change in changes[EMBEDDING]):
        return config, tensors
    tensors[HEAD] = replace(tensors[EMBEDDING], name=HEAD)
    return config | {"tie_word_embeddings": False}, tensors


def _alike(one: Sequence[Change], other: Sequence[Change]) -> bool:
    """Tell whether two changes put the same values in the place of a tensor."""
    if len(one) != 1 or len(other) != 1:
        return False
    first, second = one[0], other[0]
    return isinstance(first, Replacement) and isinstance(second, Replacement) and first.equals(second)


def _stays_tied(change: Change, embedding: TensorInfo) -> bool:
    return isinstance(change, Rows) or (isinstance(change, Replacement) and change.shape[0] != embedding.shape[0])


def _resized(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], path: Path) -> dict[str, Any]:
    """Return the config with the number of tokens that the embedding has after the merge."""
    rows = {name: tensors[name].shape[0] for name in (EMBEDDING, HEAD) if name in tensors}
    if len(set(rows.values())) > 1:
        listed = " and ".join(f"{name} has {count} rows" for name, count in rows.items())
        raise InputError(f"{path}: changes the vocabulary in part: {listed}; {MERGE_WITH_PEFT}")
    return {**config, "vocab_size": rows[EMBEDDING]}


_TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json",
)  # fmt: skip
_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def _with_tokenizer(base: Companions, adapter: Companions) -> Companions:
    """Return the companions of the merged model. Files of one tokenizer stay together."""
    own = {*adapter.copied, *adapter.written}
    replaced = set()
    if own & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        replaced |= {*_TOKENIZER_FILES, *_TEMPLATES}
    elif own & set(_TEMPLATES):
        replaced |= set(_TEMPLATES)
    return Companions(
        {name: path for name, path in base.copied.items() if name not in replaced}
        | {name: path for name, path in adapter.copied.items() if name in replaced},
        {name: content for name, content in base.written.items() if name not in replaced}
        | {name: content for name, content in adapter.written.items() if name in replaced},
        notices=() if replaced else base.notices,
    )
