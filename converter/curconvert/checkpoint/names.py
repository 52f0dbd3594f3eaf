"""Finds the language model among the names of stored tensors, and gives its tensors their canonical names.

Training programs save models within wrappers whose names then stand before or within those of the tensors. A multimodal
model holds its language model as a part.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from curconvert.base.errors import InputError
from curconvert.checkpoint.ignore import around, ignore_option
from curconvert.checkpoint.strict import EMBEDDING
from curconvert.families.family import BLOCKS
from curconvert.families.wrappers import TEXT_STEMS

STEM = BLOCKS.removesuffix("layers")
"""What stands before `layers`, `embed_tokens` and `norm` in a canonical name."""
_LEAF = EMBEDDING.removeprefix(STEM)
_PARTS = (_LEAF.partition(".")[0], "layers", "norm")
_HEAD = "lm_head."
# torch.compile, FSDP and activation checkpointing put these between the names of modules, also of those within a model.
_WITHIN = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_FIRST_BLOCK = re.compile(r"(.*?(?<![^.]))layers\.0\.")


@dataclass(frozen=True)
class Names:
    """The names of a checkpoint's tensors.

    Attributes:
        canonical: The canonical name of each stored tensor; tensors outside the language model keep their names.
        outside: The stored names of those.
        part: Whether the language model is named as the part of a multimodal one.
        notices: What was left out of the names, or added.
    """

    canonical: dict[str, str]
    outside: Collection[str]
    part: bool
    notices: tuple[str, ...]


def canonical_names(stored: Iterable[str], source: str) -> Names:
    """Return the canonical names of stored tensors.

    Args:
        stored: Their names in the files.
        source: Name of the checkpoint in messages.

    Raises:
        InputError: They hold several language models, or a tensor twice.
    """
    bare = {name: _WITHIN.sub("", name) for name in stored}
    stems = sorted(_stems(bare.values()))
    if len(stems) > 1:
        raise _several(f"{source}: holds several language models", stems, ignore_option(*around(stems[-1], stems[:-1])))
    stem = stems[0] if stems else STEM
    heads = sorted({head for name in bare.values() if (head := _head_stem(name, stem)) is not None})
    if len(heads) > 1:
        raise _several(f"{source}: holds several lm_heads", heads, ignore_option(f"{heads[-1]}{_HEAD}", "*"))
    head = heads[0] if heads else ""
    canonical, outside = {}, set()
    for name, text in bare.items():
        if text.startswith(f"{head}{_HEAD}"):
            canonical[name] = text.removeprefix(head)
        elif text.startswith(stem) and text.removeprefix(stem).partition(".")[0] in _PARTS:
            canonical[name] = f"{STEM}{text.removeprefix(stem)}"
        else:
            canonical[name] = name
            outside.add(name)
    _refuse_twice(canonical, source)
    part = next((known for known in TEXT_STEMS if f".{stem}".endswith(f".{known}")), None)
    dropped = sorted({match for name in bare if name not in outside for match in _WITHIN.findall(name)})
    return Names(canonical, outside, part is not None, _notices(stem, part or STEM, dropped))


def _stems(names: Collection[str]) -> set[str]:
    """Return what stands before `embed_tokens` and `layers` of each language model."""
    embeddings = {
        name.removesuffix(_LEAF) for name in names if name == _LEAF or name.endswith(f".{_LEAF}")
    }  # fmt: skip
    return embeddings & {match[1] for name in names if (match := _FIRST_BLOCK.match(name))}


def _head_stem(name: str, stem: str) -> str | None:
    """Return what stands before `lm_head` in a name, if the lm_head is beside or around the language model."""
    before, found, _ = name.rpartition(_HEAD)
    around = stem.startswith(before) and (before != stem or not stem) and (not before or before.endswith("."))
    return before if found and around else None


def _several(fault: str, stems: list[str], option: str) -> InputError:
    listed = " and ".join(repr(stem[:60]) for stem in stems[:3])
    return InputError(f"{fault}: tensor names begin with {listed}; leave out all but one, such as {option}")


def _refuse_twice(canonical: dict[str, str], source: str) -> None:
    first: dict[str, str] = {}
    for name, meant in canonical.items():
        if meant in first:
            usual, foreign = sorted((first[meant], name), key=len)
            raise InputError(
                f"{source}: {usual:.200} and {foreign:.200} are the same tensor; leave out one of them, such as "
                f"{ignore_option(*around(foreign, [usual]))}"
            )
        first[meant] = name


def _notices(stem: str, usual: str, dropped: list[str]) -> tuple[str, ...]:
    notices = [f"tensor names are read without {part!r}" for part in dropped]
    if stem.endswith(usual) and stem != usual:
        notices.append(f"tensor names are read without {stem.removesuffix(usual)!r}")
    elif not stem:
        notices.append(f"tensor names are read with {usual!r} before them")
    elif stem != usual:
        notices.append(f"tensor names are read with {usual!r} in the place of {stem!r}")
    return tuple(notices)
