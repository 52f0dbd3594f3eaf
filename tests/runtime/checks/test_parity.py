"""Teacher forcing against an unpadded oracle, and the comparisons that follow."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from curconvert_runtime.checks.parity import (
    MAX_PARITY,
    Outputs,
    compare,
    largest_difference,
    limit_of,
    real_positions,
    teacher_forced,
)
from curconvert_runtime.checks.report import Check

VOCABULARY = 31
LENGTHS = np.array([29, 20, 17])
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)


class PrefixModel:
    """Answers by the sum of a row's tokens so far; its keys are (token, position). Padding must reach neither."""

    def __init__(self, padding: str) -> None:
        self.padding = padding
        self.calls: list[tuple[int, ...]] = []

    def allocate_cache(self, batch: int, capacity: int) -> np.ndarray:
        assert capacity == LENGTHS.max()
        return np.zeros((batch, 2, 0, 1), np.float32)

    def forward(self, input_ids: np.ndarray, attention_mask: np.ndarray, *, past: np.ndarray) -> tuple:
        self.calls.append(input_ids.shape)
        batch, new = input_ids.shape
        columns = past.shape[2]
        assert attention_mask.shape == (batch, columns + new)
        grown = np.concatenate([past, np.zeros((batch, 2, new, 1), np.float32)], axis=2)
        logits = np.full((batch, new, VOCABULARY), np.nan, np.float32)
        for row in range(batch):
            real = np.flatnonzero(attention_mask[row])
            assert (np.diff(real) == 1).all()
            if self.padding == "left":
                assert real[-1] == columns + new - 1
                write = range(columns, columns + new)
                fresh = [(c, c - columns) for c in write if attention_mask[row, c]]
            else:
                assert real[0] == 0
                kept = 0 if columns == 0 else len(real) - new
                fresh = [(kept + i, i) for i in range(len(real) - kept)]
            for column, source in fresh:
                grown[row, 0, column] = input_ids[row, source]
                grown[row, 1, column] = column - real[0]
                total = int(grown[row, 0, real[0] : column + 1].sum())
                logits[row, source] = TABLE[total % VOCABULARY]
        return logits, grown


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    batch = np.random.default_rng(1).integers(1, VOCABULARY, (3, LENGTHS.max()))
    return np.where(real_positions(LENGTHS), batch, 0)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_answers_do_not_depend_on_padding(ids: np.ndarray, padding: str) -> None:
    """Logits and keys equal those of each sequence by itself, wherever the padding goes."""
    answers = teacher_forced(PrefixModel(padding), ids, LENGTHS, padding, lambda cache: (cache, cache))
    for row, length in enumerate(LENGTHS):
        expected = TABLE[np.cumsum(ids[row, :length]) % VOCABULARY]
        np.testing.assert_array_equal(answers.logits[row, :length], expected)
        np.testing.assert_array_equal(answers.first_key[row, 0, :length, 0], ids[row, :length])
        np.testing.assert_array_equal(answers.last_key[row, 1, :length, 0], np.arange(length))


def test_prefill_is_one_call_and_sixteen_tokens_are_decoded(ids: np.ndarray) -> None:
    """The cache is exercised: one prefill of the longest prompt, then 16 steps of one token."""
    model = PrefixModel("left")
    teacher_forced(model, ids, LENGTHS, "left", lambda cache: (cache, cache))
    assert model.calls == [(3, 13)] + [(3, 1)] * 16


def _answers(seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    shapes = ((3, 29, 5), (3, 2, 29, 4), (3, 2, 29, 4))
    return Outputs(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def _compare(found: Outputs, expected: Outputs, limit: float = 1e-3) -> dict[str, bool]:
    checks = compare("p", found, expected, lengths=LENGTHS, limit=limit, against="it")
    return {check.name: check.passed for check in checks}


def test_equal_answers_pass() -> None:
    """Identical answers differ by zero, and pass even a limit of zero."""
    assert all(_compare(_answers(), _answers(), 0.0).values())


def test_differences_behind_a_rows_end_do_not_count() -> None:
    """Numbers after a row's last token are nobody's."""
    changed = _answers()
    changed.logits[1, 20:] = np.nan
    changed.first_key[2, :, 17:] = 7
    assert all(_compare(changed, _answers()).values())


@pytest.mark.parametrize("part", ["logits", "first_key", "last_key"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e3])
def test_one_wrong_number_fails_its_check_only(part: str, value: float) -> None:
    """A single NaN, infinity or wrong number fails the check that is about it, and no other."""
    changed = _answers()
    getattr(changed, part)[1, 1, 1] = value
    assert _compare(changed, _answers()) == {f"p.{name}": name != part for name in ("logits", "first_key", "last_key")}


def test_other_shapes_fail() -> None:
    """A key of another head count is a failed check, not an exception."""
    changed = _answers()
    assert not _compare(Outputs(changed.logits, changed.first_key[:, :1], changed.last_key), _answers())["p.first_key"]


def test_key_differences_are_relative() -> None:
    """Keys scaled by a million with an error of one part in a million pass."""
    a = _answers()
    big = Outputs(a.logits, a.first_key * 1e6, a.last_key * 1e6)
    near = Outputs(a.logits, a.first_key * 1e6 + 1, a.last_key * 1e6 + 1)
    assert all(_compare(near, big).values())


def test_the_same_infinity_on_both_sides_is_not_agreement() -> None:
    """Two overflowed models do not agree: the difference is NaN."""
    bad = np.full((3, 29, 2), np.inf)
    assert math.isnan(largest_difference(bad, bad, real_positions(LENGTHS)))


@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("part", ["logits", "first_key", "last_key"])
def test_the_limit_does_not_depend_on_the_size_of_the_numbers(part: str, size: float) -> None:
    """Half of the limit passes and twice the limit fails, for models with small and with large logits."""
    rng = np.random.default_rng(0)
    numbers = (size * rng.uniform(-1, 1, (3, 2, 29, 4))).astype(np.float32)
    numbers[0, 0, 0, 0] = size
    reference = Outputs(numbers[:, 0], numbers, numbers)
    for share, passes in ((0.5, True), (2.0, False)):
        moved = getattr(reference, part).copy()
        moved[2, ..., 3, 1] += share * 1e-4 * size
        found = {check.name: check for check in _compared(reference, replace(reference, **{part: moved}))}
        assert found.pop(f"x.{part}").passed == passes
        assert all(check.passed for check in found.values())
        assert all("/ max |" in check.detail for check in found.values())


def _compared(reference: Outputs, answers: Outputs) -> list[Check]:
    return compare("x", answers, reference, lengths=np.array([29, 20, 17]), limit=MAX_PARITY, against="torch")


@pytest.mark.parametrize(("arithmetic", "limit"), [("float32", 1e-4), ("float16", 0.02)])
def test_a_float16_graph_has_a_limit_of_its_own(arithmetic: str, limit: float) -> None:
    """Unless a larger one is given."""
    assert limit_of(arithmetic, 1e-4) == limit
    assert limit_of(arithmetic, 0.5) == 0.5
