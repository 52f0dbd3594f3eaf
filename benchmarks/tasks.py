"""Perplexity of a whole text and accuracy on BLiMP and PIQA, from a session's logits alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curconvert_runtime.session import Session
from curconvert_runtime.text import Tokenizer

_TOKENS = 2048  # per batch: bounds its logits to 400 MB at a vocabulary of 49,152


def perplexity(session: Session, windows: NDArray[np.int64]) -> float:
    """Return exp of the mean negative log-probability of each window's tokens but the first.

    Args:
        session: The model.
        windows: Token ids, (windows, tokens).
    """
    step = max(1, _TOKENS // windows.shape[1])
    losses = [_log_probs(session, list(windows[i : i + step])) for i in range(0, len(windows), step)]
    return math.exp(-float(np.mean(np.concatenate([row for batch in losses for row in batch]))))


def blimp(session: Session, tokenizer: Tokenizer, folder: Path, prefix: int, limit: int) -> list[bool]:
    """Tell for each minimal pair whether the grammatical sentence is more probable (Warstadt et al. 2020).

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        folder: One `.jsonl` file for each phenomenon.
        prefix: Token that stands before each sentence, so that its first token counts.
        limit: Pairs of each phenomenon, the first ones.
    """
    files = [path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.jsonl"))]
    pairs = [json.loads(line) for lines in files for line in lines[:limit]]
    texts = [pair[key] for pair in pairs for key in ("sentence_good", "sentence_bad")]
    rows = [[prefix, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
    scores = _scores(session, rows, [1] * len(rows))
    return [bool(good > bad) for good, bad in zip(scores[::2], scores[1::2], strict=True)]


def piqa(session: Session, tokenizer: Tokenizer, folder: Path, prefix: int) -> list[bool]:
    """Tell for each question whether the right solution is more probable (Bisk et al. 2020).

    The prompt is `Question: … Answer:`; the score is the log-probability of the solution's tokens, not normalised.

    Args:
        session: The model.
        tokenizer: Its tokenizer.
        folder: Holds `valid.jsonl` and `valid-labels.lst`.
        prefix: Token before the prompt.
    """
    questions = [json.loads(line) for line in (folder / "valid.jsonl").read_text().splitlines()]
    labels = [int(line) for line in (folder / "valid-labels.lst").read_text().split()]
    rows, starts = [], []
    for question in questions:
        prompt = [prefix, *tokenizer.encode(f"Question: {question['goal']}\nAnswer:", add_special_tokens=False)]
        for key in ("sol1", "sol2"):
            rows.append([*prompt, *tokenizer.encode(f" {question[key].strip()}", add_special_tokens=False)])
            starts.append(len(prompt))
    scores = _scores(session, rows, starts)
    return [
        (second > first) == bool(label) for first, second, label in zip(scores[::2], scores[1::2], labels, strict=True)
    ]


def accuracy(correct: Sequence[bool]) -> dict[str, Any]:
    """Return the share of right answers and its binomial standard error."""
    share = float(np.mean(correct))
    return {"share": share, "error": math.sqrt(share * (1 - share) / len(correct)), "count": len(correct)}


def _scores(session: Session, rows: list[list[int]], starts: list[int]) -> list[float]:
    """Sum each row's log-probabilities from its start on, rows of like length together."""
    scores = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    while order:
        step = max(1, _TOKENS // len(rows[order[0]]))
        part, order = order[:step], order[step:]
        found = _log_probs(session, [np.array(rows[index], np.int64) for index in part])
        for index, values in zip(part, found, strict=True):
            scores[index] = float(np.sum(values[starts[index] - 1 :]))
    return scores


def _log_probs(session: Session, rows: list[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """Return the log-probability of each row's tokens but the first; summed in float32 over the vocabulary."""
    logits = session.logits([row.tolist() for row in rows])
    found = []
    for row, scores in zip(rows, logits, strict=True):
        wide = torch.from_numpy(np.ascontiguousarray(scores[:-1]))
        picked = wide.gather(1, torch.from_numpy(row[1:])[:, None])[:, 0]
        found.append((picked - wide.logsumexp(1)).double().numpy())
    return found
