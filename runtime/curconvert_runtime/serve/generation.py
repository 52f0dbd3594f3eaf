"""Generates text for one prompt or a batch, with stop conditions and streaming."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np

from curconvert_runtime.errors import InputError, UnsupportedError, check_integer
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import CONFIG, TOKENIZER
from curconvert_runtime.serve import requests
from curconvert_runtime.serve.decoding import Decoder
from curconvert_runtime.serve.requests import Ids
from curconvert_runtime.serve.runner import Runner
from curconvert_runtime.serve.sampling import Sampling, choose, generation_settings
from curconvert_runtime.serve.text import TextStream, Tokenizer

FinishReason = Literal["eos", "stop", "length", "context"]
OnText = Callable[[int, str], None]
"""Called with (row, text)."""


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate text. None takes the model's setting in `generation_config.json`, or the one without effect.

    Attributes:
        max_new_tokens: Maximum number of new tokens. Generation also stops when the context is full.
        temperature: Sampling temperature; 0 is greedy.
        top_k: Sample among the k most likely tokens; 0 is no limit.
        top_p: Sample among the most likely tokens up to this total probability; 1 is no limit.
        min_p: Sample among tokens with this share of the largest probability; 0 is no limit.
        repetition_penalty: Divides positive and multiplies negative logits of the tokens so far; 1 is no penalty.
        seed: Seed of the sampling. Row i of a batch uses the seed (seed, i).
        stop: Texts that end a row. The result does not include them.
        ignore_eos: Continue after an end-of-sequence token.
        chat: Apply the chat template to each text prompt, as one user message.
    """

    max_new_tokens: int = 128
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    chat: bool = False

    def __post_init__(self) -> None:
        for name, low in (("max_new_tokens", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), low)
        self.sampling({})
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise InputError(f"stop {self.stop!r}: expected a tuple of non-empty texts")

    def sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """Return how to choose tokens: these options, then the model's `settings` in `generation_config.json`."""
        return Sampling.of({field.name: getattr(self, field.name) for field in fields(Sampling)}, settings)


@dataclass(frozen=True)
class Completion:
    """The result for one prompt.

    Attributes:
        prompt_ids: Token ids of the prompt, special tokens included.
        ids: Generated token ids, without the end-of-sequence token.
        text: Generated text, cut before a stop text. Empty if the artifact has no tokenizer.
        finish_reason: `eos`, `stop`, `length` (`max_new_tokens`) or `context` (the context is full).
    """

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Piece:
    """The new text of one row after one decoding step.

    Attributes:
        row: Index of the prompt.
        token: New token id; None in the last piece of a row.
        text: New text. It never ends within a character or a stop text.
        completion: The result; only in the last piece of a row.
    """

    row: int
    token: int | None
    text: str
    completion: Completion | None = None


def end_tokens(artifact: Artifact) -> frozenset[int]:
    """Return the ids that end a sequence. They come from `generation_config.json`, otherwise from `config.json`."""
    for settings in (generation_settings(artifact), artifact.config if artifact.has(CONFIG) else {}):
        value = settings.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        found = frozenset(token for token in ids if isinstance(token, int) and not isinstance(token, bool))
        if found:
            return found
    return frozenset()


@dataclass
class _Row:
    """Tokens and text of one row, and the reason for which it ended."""

    prompt: Ids
    options: GenerationOptions
    sampling: Sampling
    generator: np.random.Generator
    stream: TextStream | None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    shown: int = 0
    reason: FinishReason | None = None

    def add(self, token: int, ends: frozenset[int]) -> str:
        """Append a token, set `reason` if the row ends, and return the text to show."""
        if token in ends and not self.options.ignore_eos:
            return self.finish("eos")
        self.ids.append(token)
        if self.stream:
            self.text += self.stream.push(token)
        if self._cut():
            self.reason = "stop"
        elif len(self.ids) == self.options.max_new_tokens:
            return self.finish("length")
        return self._show()

    def finish(self, reason: FinishReason) -> str:
        """End the row and return the text that was held back."""
        self.reason = reason
        if self.stream:
            self.text += self.stream.flush()
        if self._cut():
            self.reason = "stop"
        return self._show()

    def _cut(self) -> bool:
        """Cut the text before the first stop text, if there is one."""
        found = [at for at in (self.text.find(stop) for stop in self.options.stop) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def _show(self) -> str:
        """Return text not shown yet. An end that may become a stop text is held back."""
        end = len(self.text)
        if self.reason is None:
            for stop in self.options.stop:
                part = next((n for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n])), 0)
                end = min(end, len(self.text) - part)
        shown, self.shown = self.text[self.shown : max(end, self.shown)], max(end, self.shown)
        return shown

    def completion(self) -> Completion:
        """Return the finished row's result."""
        assert self.reason is not None
        return Completion(tuple(self.prompt.tolist()), tuple(self.ids), self.text, self.reason)


def _is_text(prompt: object) -> bool:
    # A conversation is a list of messages: text as well.
    return isinstance(prompt, str) or (
        isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
    )


def _is_single(prompt: Any) -> bool:
    if isinstance(prompt, np.ndarray) or _is_text(prompt):
        return _is_text(prompt) or prompt.ndim == 1
    return isinstance(prompt, Sequence) and len(prompt) > 0 and not _is_text(prompt[0]) and np.ndim(prompt[0]) == 0


def _encode(prompt: Any, tokenizer: Tokenizer | None, options: GenerationOptions) -> Any:
    if not _is_text(prompt):
        return prompt
    if tokenizer is None:
        raise UnsupportedError("the artifact has no tokenizer.json; give token ids instead of text")
    if not isinstance(prompt, str):
        return tokenizer.encode_chat(prompt)
    return tokenizer.encode_chat([{"role": "user", "content": prompt}]) if options.chat else tokenizer.encode(prompt)


def stream(session: Runner, prompt: Any, options: GenerationOptions | None = None) -> Iterator[Piece]:
    """Generate text for one prompt or a batch, piece by piece.

    Args:
        session: A loaded artifact, from `load`.
        prompt: A text, a conversation (a list of messages), token ids, or a list of these. The tokenizer adds special
            tokens to texts; the chat template adds them to conversations.
        options: None takes the model's sampling settings, and at most 128 new tokens.

    Yields:
        One piece per row and step, in row order. The last piece of a row holds its `Completion`.

    Raises:
        CurConvertError: The prompt is wrong, or the artifact has no tokenizer for a text.
    """
    options = options or GenerationOptions()
    tokenizer = session.tokenizer if session.artifact.has(TOKENIZER) else None
    if options.stop and tokenizer is None:
        raise UnsupportedError("stop texts need tokenizer.json, which the artifact lacks; leave them out")
    prompts = [prompt] if _is_single(prompt) else prompt
    if not isinstance(prompts, Sequence | np.ndarray) or isinstance(prompts, bytes) or len(prompts) == 0:
        raise InputError("empty batch: give a prompt or a non-empty list of prompts")
    sampling = options.sampling(generation_settings(session.artifact))
    rows = [
        _Row(
            requests.token_row(_encode(one, tokenizer, options), session.vocab_size, session.max_positions),
            options,
            sampling,
            np.random.default_rng([options.seed, index]),
            TextStream(tokenizer) if tokenizer else None,
        )
        for index, one in enumerate(prompts)
    ]
    return _decode(session, rows, end_tokens(session.artifact))


def _decode(session: Runner, rows: list[_Row], ends: frozenset[int]) -> Iterator[Piece]:
    """Decode all rows together, or each in a batch of its own if they would change each other's rotary frequencies."""
    batches = [[n] for n in range(len(rows))] if session.rope_follows_length else [list(range(len(rows)))]
    for pieces in itertools.zip_longest(*(_steps(session, rows, batch, ends) for batch in batches), fillvalue=()):
        yield from itertools.chain.from_iterable(pieces)


def _steps(session: Runner, rows: list[_Row], running: list[int], ends: frozenset[int]) -> Iterator[list[Piece]]:
    """Run some rows' prompts, then decode one token per row and step. Finished rows leave the batch."""
    decoder = Decoder(session, [rows[index].prompt for index in running], rows[0].options.max_new_tokens)
    logits = decoder.prefill()
    while True:
        tokens, pieces = list[int](), list[Piece]()
        for index, scores in zip(running, logits, strict=True):
            row = rows[index]
            token = choose(scores, row.sampling, [*row.prompt, *row.ids], row.generator)
            text = row.add(token, ends)
            if row.reason is None and len(row.prompt) + len(row.ids) > session.max_positions:
                text += row.finish("context")
            tokens.append(token)
            done = None if row.reason is None else row.completion()
            pieces.append(Piece(index, None if done else token, text, done))
        yield pieces
        going = [slot for slot, index in enumerate(running) if rows[index].reason is None]
        if not going:
            return
        if len(going) < len(running):
            decoder.keep(going)
            running, tokens = [running[slot] for slot in going], [tokens[slot] for slot in going]
        logits = decoder.step(tokens)


def generate(
    session: Runner, prompt: Any, options: GenerationOptions | None = None, on_text: OnText | None = None
) -> Completion | list[Completion]:
    """Generate text for one prompt or a batch. Arguments and errors are those of `stream`.

    Returns:
        A `Completion`, or a list of them for a batch. Until then, each new text goes to `on_text` as (row, text).
    """
    done: dict[int, Completion] = {}
    for piece in stream(session, prompt, options):
        if on_text and piece.text:
            on_text(piece.row, piece.text)
        if piece.completion:
            done[piece.row] = piece.completion
    return done[0] if _is_single(prompt) else [done[index] for index in sorted(done)]
