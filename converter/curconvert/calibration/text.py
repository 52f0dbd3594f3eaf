"""Reads and tokenizes the calibration text, and cuts it into calibration and probe sequences."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer

from curconvert.base.counted import counted
from curconvert.base.errors import InputError
from curconvert.base.tensors_file import opened_tensors
from curconvert.base.types import Ids
from curconvert.calibration.documents import read_documents
from curconvert.calibration.tokenizer import TOKEN_TENSOR, TextTools
from curconvert.checkpoint.types import Checkpoint, Companions
from curconvert.options.calibration import BUILTIN, CalibrationOptions
from curconvert_runtime.serve.text import windows

CHUNK_CHARACTERS = 16_384
# A text with more characters for each wanted token is sampled, at LEAST_CHUNKS places or more.
# The limit is generous: English has some 4.5 characters per token.
CHARACTERS_PER_TOKEN = 32
LEAST_CHUNKS = 64
_NO_FILES = Companions()


@dataclass(frozen=True, eq=False)
class CalibrationTokens:
    """Holds token ids to calibrate on and, disjoint from them, token ids to verify on.

    Attributes:
        calibration: int64, (N, tokens_per_sequence).
        probes: int64, (P, tokens_per_sequence).
        source: `builtin` or the file's name (without its folder, so that it is the same on every machine).
        sha256: Hex digest of the little-endian int64 ids, calibration first, then probes.
        notices: One sentence for each request that could not be met.
        begin: The begin token that every sequence starts with; None without one.
    """

    calibration: Ids
    probes: Ids
    source: str
    sha256: str
    notices: tuple[str, ...]
    begin: int | None = None


def load_tokens(
    options: CalibrationOptions, companions: Companions = _NO_FILES, *, vocab_size: int | None = None
) -> CalibrationTokens:
    """Read the calibration source and cut it into calibration and probe sequences, without padding.

    Args:
        options: What to read and how much to take.
        companions: The model's tokenizer, its settings and its chat template.
        vocab_size: Rows of the model's embedding; ids are checked against it when it is given.

    Raises:
        InputError: The source is missing, malformed or too short, its ids do not fit the model, or it is text and
            there is no tokenizer.
    """
    path, tools = None if options.source == BUILTIN else Path(options.source), TextTools(companions)
    if path is not None and path.suffix == ".safetensors":
        ids = _read_ids(path)
    else:
        tokenizer = tools.tokenizer(options.source)
        text = builtin_text() if path is None else _read_text(path, options, tools)
        if not text.strip():
            raise InputError(f"{options.source}: the calibration text is empty")
        ids = _tokenize(text, tokenizer, options)
    begin = tools.begin if options.begin else None
    if vocab_size is not None:
        check_range(options.source, ids, vocab_size)
        if begin is not None:
            check_range("tokenizer.json, begin token", np.array([begin]), vocab_size)
    return _split(ids, options, BUILTIN if path is None else path.name, begin)


def digest(calibration: Ids, probes: Ids) -> str:
    """Return the sha256 that `CalibrationTokens` records."""
    found = hashlib.sha256(calibration.astype("<i8").tobytes())
    found.update(probes.astype("<i8").tobytes())
    return found.hexdigest()


def _split(ids: Ids, options: CalibrationOptions, source: str, begin: int | None) -> CalibrationTokens:
    """Cut a stream of ids into sequences; probes and calibration are both spread evenly over the text."""
    length = options.tokens_per_sequence
    table = windows(ids, length, begin)
    if len(table) < 2:
        needed, after = (2 * length, "") if begin is None else (2 * length - 2, ", with the begin token")
        raise InputError(
            f"{source}: {ids.size} tokens, but at least {needed} are needed (one calibration and one probe "
            f"sequence of {length} tokens{after}); give more text or use shorter sequences"
        )
    chosen, held_out = divided(len(table), options)
    calibration, probes = table[chosen], table[held_out]

    name = "the builtin text" if source == BUILTIN else source
    counts = (
        ("calibration", len(calibration), options.sequences),
        ("probe", len(probes), options.probe_sequences),
    )
    notices = tuple(
        f"{name} gives {counted(found, f'{kind} sequence')} of {length} tokens, fewer than the {wanted} requested"
        for kind, found, wanted in counts
        if found < wanted
    )
    return CalibrationTokens(calibration, probes, source, digest(calibration, probes), notices, begin)


def divided(available: int, options: CalibrationOptions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the calibration sequences and of the probe sequences, both spread evenly over the text.

    Args:
        available: Number of sequences in the text, at least 2.
        options: How many of each are wanted. If there are too few, at most a fifth become probes, but at least one.
    """
    enough = available >= options.sequences + options.probe_sequences
    probe_count = options.probe_sequences if enough else min(options.probe_sequences, max(1, available // 5))
    phase = float(np.random.default_rng(options.seed).random())
    held_out = _spread(available, probe_count, phase)
    rest = np.setdiff1d(np.arange(available), held_out)
    return rest[_spread(rest.size, min(options.sequences, rest.size), phase)], held_out


def _spread(total: int, count: int, phase: float) -> NDArray[np.int64]:
    """Return `count` distinct, evenly spaced indices below `total`; `phase` in [0, 1) places each in its interval."""
    return np.floor((np.arange(count) + phase) * total / count).astype(np.int64)


def builtin_text() -> str:
    """Return the text that comes with curconvert."""
    folder = files(__package__) / "builtin"
    parts = sorted((part for part in folder.iterdir() if part.name.endswith(".txt")), key=lambda part: part.name)
    return "\n".join(part.read_text(encoding="utf-8") for part in parts)


def _read_text(path: Path, options: CalibrationOptions, tools: TextTools) -> str:
    if not path.is_file():
        raise InputError(
            f"{path}: no such calibration file (or write `builtin` for the text that comes with curconvert)"
        )
    return read_documents(path, options.text_field, tools, _chunks_needed(options) * CHUNK_CHARACTERS)


def _chunks_needed(options: CalibrationOptions) -> int:
    wanted = (options.sequences + options.probe_sequences) * options.tokens_per_sequence
    return max(LEAST_CHUNKS, -(-wanted * CHARACTERS_PER_TOKEN // CHUNK_CHARACTERS))


def _tokenize(text: str, tokenizer: Tokenizer, options: CalibrationOptions) -> Ids:
    """Tokenize a text in chunks: an encoding takes about a hundred bytes per token, its ids take eight."""
    chunks = list(_chunks(text))
    needed = _chunks_needed(options)
    if len(chunks) > needed:
        chunks = [chunks[i] for i in _spread(len(chunks), needed, 0.5)]
    ids = [np.asarray(tokenizer.encode(chunk, add_special_tokens=False).ids, dtype=np.int64) for chunk in chunks]
    return np.concatenate(ids)


def _chunks(text: str) -> Iterator[str]:
    """Yield pieces of at most CHUNK_CHARACTERS, cut before a line break, otherwise before a space."""
    start = 0
    while start < len(text):
        end = start + CHUNK_CHARACTERS
        if end < len(text):
            cut = text.rfind("\n", start + 1, end)
            cut = cut if cut > 0 else text.rfind(" ", start + 1, end)
            end = cut if cut > 0 else end
        yield text[start:end]
        start = end


def _read_ids(path: Path) -> Ids:
    """Read token ids; the rows of a table are joined in order."""
    if not path.is_file():
        raise InputError(f"{path}: no such calibration file")
    try:
        with opened_tensors(path, "numpy") as file:
            if TOKEN_TENSOR not in file.keys():  # noqa: SIM118 - the handle is no mapping
                raise InputError(
                    f"{path}: no tensor {TOKEN_TENSOR!r} (found: {', '.join(sorted(file.keys())) or 'none'})"
                )
            header = file.get_slice(TOKEN_TENSOR)
            dtype, shape = header.get_dtype(), tuple(header.get_shape())
            if dtype not in {"I32", "I64"} or len(shape) not in {1, 2}:
                raise InputError(
                    f"{path}: {TOKEN_TENSOR} is {dtype} of shape {shape}; expected I32 or I64 with one or two axes"
                )
            ids: Ids = file.get_tensor(TOKEN_TENSOR).astype(np.int64).reshape(-1)
            return ids
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {error}") from error


def check_range(source: str, ids: Ids, vocab_size: int) -> None:
    """Reject token ids that are not rows of the embedding.

    Raises:
        InputError: An id is out of range; the message names the first such id and its position.
    """
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if outside.size:
        first = int(outside[0])
        raise InputError(
            f"{source}: token {first} is {int(ids[first])}, but the model's vocabulary has {vocab_size} entries; "
            "the tokenizer or the ids belong to another model"
        )


def check_context(checkpoint: Checkpoint, options: CalibrationOptions) -> None:
    """Reject calibration sequences that are longer than the model's context.

    Raises:
        InputError: The sequences are too long.
    """
    wanted, context = options.tokens_per_sequence, int(checkpoint.config["max_position_embeddings"])
    if wanted > context:
        raise InputError(f"--calibration-tokens {wanted}: the model's context is {context} tokens; use fewer")
