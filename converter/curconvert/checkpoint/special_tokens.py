"""Decides the begin, end and padding tokens of a model, once for every file of the artifact.

End tokens come from `generation_config.json`, otherwise from `config.json`. The tokenizer's own end token is always one
of them. The padding token comes from the first of `generation_config.json`, `config.json` and the tokenizer that names
one. Otherwise it is the first end token, as in transformers. The begin token is the tokenizer's, because texts start
with it; otherwise it comes from the configs. A GGUF file states all of them in its metadata.

A config often repeats the defaults of its family in transformers, such as Llama's 2, whatever the tokenizer is. So if a
config states that default, and the tokenizer names another token, the tokenizer decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curconvert.base.errors import InputError

FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids by purpose. None or an empty tuple means that the model has no such token.

    Attributes:
        begin: The token before a text.
        end: The tokens that end a text, the most important one first.
        pad: The token that fills rows of a batch.
    """

    begin: int | None = None
    end: tuple[int, ...] = ()
    pad: int | None = None

    def fields(self) -> dict[str, int | list[int] | None]:
        """Return the tokens as Hugging Face's configs name them; several end tokens are a list."""
        end = list(self.end) if len(self.end) > 1 else next(iter(self.end), None)
        return {"bos_token_id": self.begin, "eos_token_id": end, "pad_token_id": self.pad}


@dataclass(frozen=True)
class Source:
    """What one file says about special tokens.

    Attributes:
        name: The file, for messages.
        values: Token ids by field: `bos_token_id`, `eos_token_id`, `pad_token_id`.
        defaults: The family's defaults, if the file may only repeat them; otherwise empty.
    """

    name: str
    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def decide(
    configs: Sequence[Source], tokenizer: Source, default: Source, vocab_size: int
) -> tuple[SpecialTokens, list[str]]:
    """Return the model's special tokens, and a notice for each value that does not count.

    Args:
        configs: The configs, the more important one first.
        tokenizer: The ids of the tokenizer's own special tokens.
        default: What transformers assumes for fields that no config has; it counts last.
        vocab_size: Number of rows of the embedding.

    Raises:
        InputError: A value is not a token id.
    """
    notices: list[str] = []
    own = {key: _checked(tokenizer, key, vocab_size, notices) for key in FIELDS}

    def stated(key: str) -> tuple[tuple[int, ...], str]:
        for source in configs:
            if found := _checked(source, key, vocab_size, notices):
                repeats = found == _checked(Source(source.name, source.defaults), key, vocab_size, [])
                if not own[key] or own[key] == found or not repeats:
                    return found, source.name
                notices.append(
                    f"{source.name}: {key} {_shown(found)} is the default of transformers; the tokenizer names "
                    f"{_shown(own[key])}, which counts"
                )
        return (), ""

    ends, where = stated("eos_token_id")
    if ends and not set(own["eos_token_id"]) <= set(ends):
        notices.append(
            f"{tokenizer.name}: the end token {_shown(own['eos_token_id'])} is not among those of {where}, "
            f"{_shown(ends)}; all of them end a text"
        )
    ends = tuple(dict.fromkeys((*ends, *own["eos_token_id"])))
    assumed = {key: _checked(default, key, vocab_size, []) for key in FIELDS}
    if not ends:
        ends = assumed["eos_token_id"]
        last = f"{_shown(ends)} counts, {default.name}" if ends else "generation stops only at its length limit"
        notices.append(f"no file of the model names an end token; {last}")
    begin = own["bos_token_id"] or stated("bos_token_id")[0] or assumed["bos_token_id"]
    pad = stated("pad_token_id")[0] or own["pad_token_id"] or assumed["pad_token_id"] or ends
    return SpecialTokens(next(iter(begin), None), ends, next(iter(pad), None)), list(dict.fromkeys(notices))


def _checked(source: Source, key: str, vocab_size: int, notices: list[str]) -> tuple[int, ...]:
    """Return the ids of one field that are in the vocabulary; -1 is the spelling of "none" in old configs."""
    value = source.values.get(key)
    ids = value if isinstance(value, list) else [value]
    found = []
    for token in ids:
        if token is None or token == -1:
            continue
        if isinstance(token, bool) or not isinstance(token, int):
            raise InputError(f"{source.name}: {key} is {value!r:.60}, expected token ids; correct the file")
        if 0 <= token < vocab_size:
            found.append(token)
        else:
            notices.append(f"{source.name}: {key} {token} is outside the vocabulary of {vocab_size}; it is left out")
    return tuple(dict.fromkeys(found))


def _shown(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
