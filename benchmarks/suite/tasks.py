"""Measures perplexity of a text and accuracy on BLiMP and PIQA, with the artifact loaded as a torch model.

300,000 tokens per model take hours in float32 on two cores. So transformers loads the same factors and computes
matrix products in bfloat16, and the rest in float32. `quality.py` prints the difference if it has both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import curconvert  # noqa: F401  # registers what loads an artifact
from curconvert_runtime.serve.text import Tokenizer

_TOKENS = 4096  # per batch
_ROWS = 128  # rows of logits at a time: 25 MB with a vocabulary of 49,152, which fits in a cache


class Scorer:
    """Computes log-probabilities with a causal language model, with matrix products in bfloat16.

    Args:
        model: transformers' model, for evaluation.
    """

    def __init__(self, model: Any) -> None:
        self._body: nn.Module = model.get_decoder()
        self._head: Tensor = model.get_output_embeddings().weight.detach().to(torch.bfloat16)

    @classmethod
    def load(cls, path: Path) -> Scorer:
        """Load an artifact."""
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
        return cls(model.eval())

    def log_probs(self, rows: list[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Return the log-probability of each row's tokens, without the first.

        Shorter rows are padded on the right, which earlier tokens do not see.
        """
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.from_numpy(row)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            hidden = self._body(ids, use_cache=False).last_hidden_state[:, :-1].reshape(-1, self._head.shape[1])
            targets = ids[:, 1:].reshape(-1, 1)
            parts = [self._picked(hidden[i : i + _ROWS], targets[i : i + _ROWS]) for i in range(0, len(hidden), _ROWS)]
        scores = torch.cat(parts).reshape(len(rows), -1).numpy()
        return [found[: len(row) - 1] for found, row in zip(scores, rows, strict=True)]

    def _picked(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = (hidden.to(torch.bfloat16) @ self._head.T).float()
        return logits.gather(1, targets)[:, 0] - logits.logsumexp(1)


def perplexity(scorer: Scorer, windows: NDArray[np.int64]) -> float:
    """Return the perplexity: exp of the mean negative log-probability of each window's tokens, without the first.

    Args:
        scorer: The model.
        windows: Token ids, (windows, tokens).
    """
    step = max(1, _TOKENS // windows.shape[1])
    losses = [scorer.log_probs(list(windows[i : i + step])) for i in range(0, len(windows), step)]
    return math.exp(-float(np.mean(np.concatenate([row for batch in losses for row in batch]))))


def blimp(scorer: Scorer, tokenizer: Tokenizer, folder: Path, prefix: int, limit: int) -> list[bool]:
    """Tell for each minimal pair whether the grammatical sentence is more probable (Warstadt et al. 2020).

    Args:
        scorer: The model.
        tokenizer: Its tokenizer.
        folder: One `.jsonl` file for each phenomenon.
        prefix: Token before each sentence, so that the sentence's first token counts.
        limit: Number of pairs per phenomenon; the first ones are used.
    """
    files = [path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.jsonl"))]
    pairs = [json.loads(line) for lines in files for line in lines[:limit]]
    texts = [pair[key] for pair in pairs for key in ("sentence_good", "sentence_bad")]
    rows = [[prefix, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
    scores = _scores(scorer, rows, [1] * len(rows))
    return [bool(good > bad) for good, bad in zip(scores[::2], scores[1::2], strict=True)]


@dataclass(frozen=True)
class Question:
    """A question of PIQA (Bisk et al. 2020).

    Attributes:
        prompt: `Question: … Answer:`.
        solutions: The two possible answers.
        label: Index of the right one.
    """

    prompt: str
    solutions: tuple[str, str]
    label: int


def piqa_questions(folder: Path) -> list[Question]:
    """Read PIQA's questions from `valid.jsonl` and `valid-labels.lst`."""
    lines = [json.loads(line) for line in (folder / "valid.jsonl").read_text(encoding="utf-8").splitlines()]
    labels = [int(line) for line in (folder / "valid-labels.lst").read_text(encoding="utf-8").split()]
    return [
        Question(f"Question: {line['goal']}\nAnswer:", (f" {line['sol1'].strip()}", f" {line['sol2'].strip()}"), label)
        for line, label in zip(lines, labels, strict=True)
    ]


def piqa_scores(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question], prefix: Sequence[int] = ()
) -> NDArray[np.float64]:
    """Return the log-probability of each solution's tokens, not normalized, (questions, 2).

    Args:
        scorer: The model.
        tokenizer: Its tokenizer.
        questions: The questions.
        prefix: Tokens before the prompt.
    """
    rows, starts = [], []
    for question in questions:
        prompt = [*prefix, *tokenizer.encode(question.prompt, add_special_tokens=not prefix)]
        for solution in question.solutions:
            rows.append([*prompt, *tokenizer.encode(solution, add_special_tokens=False)])
            starts.append(len(prompt))
    return np.array(_scores(scorer, rows, starts)).reshape(-1, 2)


def piqa(questions: Sequence[Question], scores: NDArray[np.float64]) -> list[bool]:
    """Tell for each question whether the right solution is more probable.

    Args:
        questions: The questions.
        scores: Result of `piqa_scores`.
    """
    return [bool(second > first) == bool(q.label) for (first, second), q in zip(scores, questions, strict=True)]


def accuracy(correct: Sequence[bool]) -> dict[str, Any]:
    """Return the share of correct answers and its binomial standard error."""
    share = float(np.mean(correct))
    return {"share": share, "error": math.sqrt(share * (1 - share) / len(correct)), "count": len(correct)}


def _scores(scorer: Scorer, rows: list[list[int]], starts: list[int]) -> list[float]:
    """Return the sum of each row's log-probabilities from its start; rows of similar length run in one batch."""
    scores = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    while order:
        step = max(1, _TOKENS // len(rows[order[0]]))
        part, order = order[:step], order[step:]
        found = scorer.log_probs([np.array(rows[index], np.int64) for index in part])
        for index, values in zip(part, found, strict=True):
            scores[index] = float(np.sum(values[starts[index] - 1 :]))
    return scores
