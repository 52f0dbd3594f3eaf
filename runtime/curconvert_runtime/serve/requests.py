"""Checks token ids, masks and positions that a caller passes. A wrong one raises an `InputError` of one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.errors import InputError

Ids: TypeAlias = NDArray[np.int64]
Logits: TypeAlias = NDArray[np.float32]
TokenIds: TypeAlias = Sequence[int] | NDArray[Any]
TokenRows: TypeAlias = TokenIds | Sequence[TokenIds]


def integers(values: Any, what: str) -> Ids:
    """Return `values` as a C-contiguous int64 array of the same shape."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, TypeError):
        raise InputError(f"{what}: rows differ in length or hold values that are not integers") from None
    if array.size == 0:
        return np.zeros(array.shape, np.int64)
    if array.dtype.kind not in "iu":
        raise InputError(f"{what}: expected integers, found {array.dtype}")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise InputError(f"{what}: {array.max()} does not fit 64 bits")
    return np.asarray(array, dtype=np.int64, order="C")


def check_ids(ids: Ids, vocab_size: int) -> None:
    """Raise `InputError` for token ids outside 0 … vocab_size - 1."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        bad = int(ids[(ids < 0) | (ids >= vocab_size)][0])
        raise InputError(f"token id {bad}: the vocabulary is 0 … {vocab_size - 1}; use the artifact's own tokenizer")


def is_flat(ids: TokenRows) -> bool:
    """Tell whether `ids` is one sequence rather than a batch."""
    if isinstance(ids, np.ndarray):
        return ids.ndim == 1
    return len(ids) > 0 and np.ndim(ids[0]) == 0  # `integers` rejects a mixture of tokens and sequences


def token_rows(ids: TokenRows, vocab_size: int, max_positions: int) -> list[Ids]:
    """Return each sequence as a 1-D int64 array; one flat sequence is a batch of one."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence | np.ndarray):
        raise InputError(f"token ids: expected a list or array of integers, found {type(ids).__name__}")
    if isinstance(ids, np.ndarray) and ids.ndim not in (1, 2):
        raise InputError(f"token ids: expected 1 or 2 dimensions, found {ids.ndim}")
    rows: list[Any] = [ids] if is_flat(ids) else list(ids)
    if not rows:
        raise InputError("empty batch: give at least one sequence of token ids")
    return [token_row(row, vocab_size, max_positions) for row in rows]


def token_row(ids: Any, vocab_size: int, max_positions: int) -> Ids:
    """Return one sequence as a 1-D int64 array; raise `InputError` if it is empty, too long or has invalid ids."""
    row = integers(ids, "token ids")
    if row.ndim != 1:
        raise InputError(f"token ids: expected a flat sequence, found {row.ndim} dimensions")
    if row.size == 0:
        raise InputError("empty prompt: give at least one token")
    if row.size > max_positions:
        raise InputError(f"prompt of {row.size} tokens: the model's context is {max_positions}; shorten it")
    check_ids(row, vocab_size)
    return row


def padded(rows: Sequence[Ids], side: str, fill: int = 0) -> tuple[Ids, Ids]:
    """Return (ids, attention mask), both [batch, longest], padded on `side` (`left` or `right`)."""
    width = max(map(len, rows))
    ids = np.full((len(rows), width), fill, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        span = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[index, span] = row
        mask[index, span] = 1
    return ids, mask


def check_mask(mask: Ids, shape: tuple[int, int], side: str) -> None:
    """Raise `InputError` for a mask that is not of shape (batch, past + new tokens) or that the graph would misread.

    A graph with `right` padding sees only the length of each row, so a row's ones must come first.
    """
    if mask.shape != shape:
        raise InputError(f"attention mask {list(mask.shape)}: expected {list(shape)} (past and new tokens)")
    if ((mask != 0) & (mask != 1)).any():
        raise InputError("attention mask: expected zeros and ones only")
    if not mask.any(axis=1).all():
        raise InputError(f"attention mask: row {int(np.argmin(mask.any(axis=1)))} attends to nothing")
    if side == "right" and (np.diff(mask, axis=1) > 0).any():
        raise InputError("attention mask: the fused graph takes right padding only; use the portable graph")


def default_positions(mask: Ids, new: int, side: str) -> Ids:
    """Return the position of each new token in its own row, [batch, new], from the mask over past and new tokens.

    After a right-padded prefill, padding separates a row's prompt from its new tokens. Positions then end at the row's
    length minus one. Otherwise a token's position is the number of ones before it in its row.
    """
    total = mask.shape[1]
    if side == "right" and total > new:
        positions = mask.sum(axis=1, keepdims=True) - new + np.arange(new)
    else:
        positions = (mask.cumsum(axis=1) - 1)[:, total - new :]
    return np.ascontiguousarray(np.maximum(positions, 0), dtype=np.int64)
