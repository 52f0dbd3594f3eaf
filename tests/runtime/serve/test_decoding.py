"""A batch on its way: prompts without needless logits, steps without new buffers, rows that leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curconvert_runtime import GenerationOptions, Session, load
from curconvert_runtime.serve import decoding
from curconvert_runtime.serve.decoding import Decoder
from support.tiny_artifact import reseal, toy_logits, toy_tensors

PROMPTS = [[1, 2, 3, 4, 5], [7, 9], [250, 260, 3]]
TENSORS = toy_tensors()
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def last_logits(ids: list[int]) -> Any:
    """Return the toy's float64 logits after the last token."""
    return toy_logits(ids, TENSORS)[-1]


def decoder(session: Session, prompts: list[list[int]] = PROMPTS, new: int = 4) -> Decoder:
    return Decoder(session, [np.array(row) for row in prompts], new)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short, a lone prompt runs in pieces of two."""
    monkeypatch.setattr(decoding, "_PIECE_TOKENS", 2)


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1], [[7], [1, 2, 3]], [[5]]])
def test_a_prefill_gives_each_rows_last_logits(session: Session, pieces: None, prompts: list[list[int]]) -> None:
    """Together, alone and in pieces, or beside a row of one token: the logits are those after the whole prompt."""
    logits = decoder(session, prompts).prefill()
    np.testing.assert_allclose(logits, [last_logits(row) for row in prompts], **TOLERANCE)


def test_steps_after_a_prefill_continue_each_row(session: Session, pieces: None) -> None:
    """Every row goes on at its own length."""
    batch = decoder(session)
    batch.prefill()
    for chosen in ([11, 12, 13], [14, 15, 16]):
        logits = batch.step(np.array(chosen))
    expected = [
        last_logits([*row, first, second])
        for row, first, second in zip(PROMPTS, (11, 12, 13), (14, 15, 16), strict=True)
    ]
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_rope_that_follows_the_length_forbids_pieces(
    toy: Path, pieces: None, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """With such frequencies a prompt cut into pieces would not be what the model was trained on."""
    (toy / "config.json").write_text(json.dumps({key: {"rope_type": "longrope"}}))
    reseal(toy)
    session = load(toy, threads=1)
    forward, widths = session.forward, []

    def watched(ids: Any, *arguments: Any, **options: Any) -> Any:
        widths.append(ids.shape[1])
        return forward(ids, *arguments, **options)

    monkeypatch.setattr(session, "forward", watched)
    for prompts in (PROMPTS, PROMPTS[:1]):
        np.testing.assert_allclose(decoder(session, prompts).prefill()[0], last_logits(PROMPTS[0]), **TOLERANCE)
    assert widths == [5, 5]


def test_fused_steps_reuse_one_binding(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first step nothing is bound and nothing is placed: the cache and the logits stay where they are."""
    session = load(sealed, graph="fused", threads=1)
    batch = decoder(session)
    batch.prefill()
    first = batch.step(np.array([1, 2, 3]))
    for name in ("io_binding", "place", "bind_cache"):
        monkeypatch.setattr(session, name, None)
    second = batch.step(np.array([4, 5, 6]))
    assert np.shares_memory(first, second)


@pytest.mark.parametrize("slots", [[0, 2], [1, 2], [2], [1]])
def test_rows_that_leave_do_not_change_the_others(session: Session, slots: list[int]) -> None:
    """Whichever rows stay, in whatever places of the buffers, they go on as if alone."""
    batch = decoder(session)
    batch.prefill()
    batch.step(np.array([11, 12, 13]))
    batch.keep(slots)
    logits = batch.step(np.array([20 + slot for slot in slots]))
    expected = [last_logits([*PROMPTS[slot], 11 + slot, 20 + slot]) for slot in slots]
    np.testing.assert_allclose(logits, expected, **TOLERANCE)


def test_a_row_that_ended_is_not_computed(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch gets narrower as rows end: no step is spent on them."""
    rows: list[int] = []
    step = Decoder.step

    def watched(self: Decoder, tokens: Any) -> Any:
        rows.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(Decoder, "step", watched)
    session = load(sealed, graph="fused", threads=1)
    texts = session.generate(["Hi", "Ho"], GenerationOptions(max_new_tokens=8, temperature=3.0, top_k=60))
    ends = texts[0].text[2:3]
    assert ends not in texts[1].text
    rows.clear()
    session.generate(["Hi", "Ho"], GenerationOptions(max_new_tokens=8, temperature=3.0, top_k=60, stop=(ends,)))
    assert rows[0] == 2
    assert set(rows) == {1, 2}
    assert len(rows) == 7
