"""Reads training data: sequences of running text, or lines of a task in which a part of the tokens counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from curconvert.base.errors import InputError
from curconvert.base.types import Ids
from curconvert.calibration.documents import TASK_FIELDS, json_lines, read_utf8, string_field
from curconvert.calibration.text import check_range, digest, divided, load_tokens
from curconvert.calibration.tokenizer import TextTools
from curconvert.checkpoint.types import Companions
from curconvert.options.heal import HealOptions
from curconvert_runtime.format.files import TOKENIZER

IGNORED = -100
"""Target of a position that losses ignore, as in torch and transformers."""


class Batch(NamedTuple):
    """Holds some sequences, padded on the right, where no earlier token sees the padding.

    Attributes:
        ids: (sequences, tokens) int64.
        targets: The same shape: the next token, or IGNORED.
        learned: The same shape, bool: positions whose hidden states and divergence count.
    """

    ids: Tensor
    targets: Tensor
    learned: Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """Holds sequences of one length; its attributes are those of `Batch`, as arrays."""

    ids: Ids
    targets: Ids
    learned: NDArray[np.bool_]

    @classmethod
    def of_text(cls, ids: Ids) -> Examples:
        """Return examples of running text, (sequences, tokens), in which every token counts."""
        targets = np.full_like(ids, IGNORED)
        targets[:, :-1] = ids[:, 1:]
        return cls(ids, targets, np.ones(ids.shape, np.bool_))

    @classmethod
    def of_lines(cls, lines: Sequence[tuple[Sequence[int], int]]) -> Examples:
        """Return examples from lines of token ids, each with the number of tokens before the part that counts."""
        shape = (len(lines), max(len(ids) for ids, _ in lines))
        padded, targets = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        for row, (ids, start) in enumerate(lines):
            padded[row, : len(ids)] = ids
            first = max(start, 1)  # no earlier token predicts the first one
            targets[row, first - 1 : len(ids) - 1] = ids[first:]
        return cls(padded, targets, targets != IGNORED)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of positions that count in each sequence."""
        found: NDArray[np.int64] = self.learned.sum(1, dtype=np.int64)
        return found

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, rows: NDArray[np.int64]) -> Examples:
        """Return the examples with these row numbers."""
        return Examples(self.ids[rows], self.targets[rows], self.learned[rows])

    def batch(self, chosen: NDArray[np.intp]) -> Batch:
        """Return the chosen examples as a batch, cut after the last position that counts."""
        end = int(np.flatnonzero(self.learned[chosen].any(0))[-1]) + 1
        parts = (part[chosen, :end] for part in (self.ids, self.targets, self.learned))
        return Batch(*map(torch.from_numpy, parts))


@dataclass(frozen=True, eq=False)
class Data:
    """Holds examples to train on and, disjoint from them, held-out examples that decide when training ends.

    Attributes:
        training: Examples to train on.
        held_out: Examples to measure on.
        source: `builtin`, or the file's name.
        sha256: Sha256 of the token ids, see `CalibrationTokens`; for a task, of the padded ids with their targets.
        notices: One sentence for each request that could not be met.
        begin: The begin token before every sequence or line; None without one.
    """

    training: Examples
    held_out: Examples
    source: str
    sha256: str
    notices: tuple[str, ...]
    begin: int | None


def load_data(options: HealOptions, companions: Companions, vocab_size: int) -> Data:
    """Read the training data of an objective.

    A line of a task is `{"prompt": …, "completion": …}`, in which the completion's tokens count, or `{"text": …}`, in
    which all tokens except the first count. Other fields are ignored. Prompt and text start with the tokenizer's begin
    token. Prompt and completion are tokenized separately, and nothing is added at the end.

    Args:
        options: What to read and how much to take; `tokens_per_sequence` is the most tokens of a task's line.
        companions: The model's tokenizer, its settings and its chat template.
        vocab_size: Rows of the model's embedding.

    Raises:
        InputError: The data are missing, malformed or too few.
    """
    if options.objective == "distill":
        tokens = load_tokens(options.data, companions, vocab_size=vocab_size)
        training, held_out = (Examples.of_text(ids) for ids in (tokens.calibration, tokens.probes))
        return Data(training, held_out, tokens.source, tokens.sha256, tokens.notices, tokens.begin)
    path, longest = Path(options.data.source), options.data.tokens_per_sequence
    if not path.is_file():
        raise InputError(f"{path}: no such file (--data)")
    if TOKENIZER not in {**companions.written, **companions.copied}:
        raise InputError(f"{path}: the artifact has no tokenizer.json, which a task needs")
    tools = TextTools(companions)
    begin = tools.begin if options.data.begin else None
    found = list(_lines(path, tools.tokenizer(str(path)), begin, options.data.text_field))
    lines = [line for line in found if len(line[0]) <= longest]
    if len(lines) < 2:
        raise InputError(
            f"{path}: {len(lines)} of {len(found)} lines have at most {longest} tokens (--data-tokens), but at least "
            "2 are needed, one to train on and one held out"
        )
    whole = Examples.of_lines(lines)
    check_range(str(path), whole.ids.reshape(-1), vocab_size)
    training, held_out = map(whole.part, divided(len(lines), options.data))
    left = len(found) - len(lines)
    notice = f"{path.name}: {left} of {len(found)} lines left out: more than {longest} tokens (--data-tokens)"
    sha256 = digest(*(np.stack([part.ids, part.targets]) for part in (training, held_out)))
    return Data(training, held_out, path.name, sha256, (notice,) if left else (), begin)


def _lines(path: Path, tokenizer: Tokenizer, begin: int | None, text_field: str) -> Iterator[tuple[list[int], int]]:
    """Yield each line's token ids, and the number of tokens before the part that counts."""

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    first = [] if begin is None else [begin]
    for where, record in json_lines(path, read_utf8(path)):
        if text_field in record and not set(TASK_FIELDS) & set(record):
            ids = [*first, *tokens(string_field(where, record, text_field))]
            start = 1
        else:
            prompt, completion = _parts(where, record, text_field)
            before = [*first, *tokens(prompt)]
            ids = [*before, *tokens(completion)]
            start = len(before)
        if len(ids) <= max(start, 1):
            raise InputError(f"{where}: nothing to learn: expected at least one token that follows another one")
        yield ids, start


def _parts(where: str, record: Mapping[str, Any], text_field: str) -> tuple[str, str]:
    if not set(TASK_FIELDS) <= set(record) or text_field in record:
        raise InputError(
            f"{where}: expected either the fields 'prompt' and 'completion' or the field {text_field!r} "
            f"(fields: {', '.join(record) or 'none'})"
        )
    prompt, completion = (string_field(where, record, field) for field in TASK_FIELDS)
    return prompt, completion
