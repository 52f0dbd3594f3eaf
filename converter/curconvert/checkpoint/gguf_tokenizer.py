"""Builds tokenizer files from a GGUF file's metadata.

A GGUF file only names its pre-tokenizer (`tokenizer.ggml.pre`), so this module has a list of known names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from curconvert.base.errors import InputError
from curconvert.checkpoint.companions import json_bytes

logger = logging.getLogger(__name__)

_CONTROL, _USER_DEFINED = 3, 4  # gguf's token types
_SPACE = "▁"

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_WORD = rf"{_PREFIX}\p{{L}}+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_TEKKEN = rf"{_PREFIX}{_UPPER}*{_LOWER}+|{_PREFIX}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
_GPT4O = (
    rf"{_PREFIX}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_PREFIX}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_SPLITS: Mapping[str, str] = {
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
}
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_GPT2 = ("gpt-2", "olmo", "default")
# These take whole words of the vocabulary without merging, and start text with BOS unless the file says otherwise.
_IGNORE_MERGES = ("llama3", "llama-v3", "llama-bpe", "tekken")


def tokenizer_files(metadata: Mapping[str, Any], source: str) -> dict[str, bytes]:
    """Return the tokenizer and generation files.

    An unknown kind of vocabulary gives a warning and no tokenizer files, because the weights are usable without them.

    Args:
        metadata: The file's key-value pairs.
        source: Name of the file in messages.

    Returns:
        Content by file name: `generation_config.json` and, if the kind is known, `tokenizer.json`,
        `tokenizer_config.json` and `chat_template.jinja`.

    Raises:
        InputError: The vocabulary is malformed.
    """
    ids = _special_ids(metadata)
    ends = [value for value in dict.fromkeys((ids["eos"], ids["eot"])) if value is not None]
    generation = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends if len(ends) > 1 else ids["eos"],
        "pad_token_id": ids["pad"],
    }
    files = {
        "generation_config.json": json_bytes({key: value for key, value in generation.items() if value is not None})
    }
    template = metadata.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise InputError(f"{source}: malformed tokenizer metadata: chat_template of the wrong type")
    found = tokenizer_of(metadata, source)
    if found is None:
        return files
    tokenizer, special = found
    settings: dict[str, Any] = {f"{name}_token": text for name, text in special.items() if name != "eot"}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings["model_input_names"] = ["input_ids", "attention_mask"]  # 4.57 would add token_type_ids
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if length:
        settings["model_max_length"] = length
    if template:
        settings["chat_template"] = template
        files["chat_template.jinja"] = template.encode("utf-8")
    files["tokenizer_config.json"] = json_bytes(settings)
    files["tokenizer.json"] = tokenizer.to_str(pretty=True).encode("utf-8")
    return files


def tokenizer_of(metadata: Mapping[str, Any], source: str) -> tuple[Tokenizer, dict[str, str]] | None:
    """Return the tokenizer, and its special tokens by name (`bos`, `eos`, `eot`, `unk`, `pad`).

    Args:
        metadata: The keys `tokenizer.ggml.*` and `general.architecture` of a GGUF file.
        source: Name of the file in messages.

    Returns:
        None, if there is no vocabulary; and after a warning, if its kind is unknown.

    Raises:
        InputError: The vocabulary is malformed.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        return None
    if not isinstance(tokens, list):
        raise InputError(f"{source}: malformed tokenizer metadata: tokens of the wrong type")
    special = {name: _token(tokens, n, source) for name, n in _special_ids(metadata).items() if n is not None}
    tokenizer = _build(metadata, tokens, special, source)
    return None if tokenizer is None else (tokenizer, special)


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    names = (("bos", "bos"), ("eos", "eos"), ("eot", "eot"), ("unk", "unknown"), ("pad", "padding"))
    return {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in names}


def _build(
    metadata: Mapping[str, Any], tokens: Sequence[str], special: Mapping[str, str], source: str
) -> Tokenizer | None:
    kind = metadata.get("tokenizer.ggml.model")
    pre = metadata.get("tokenizer.ggml.pre") or "default"
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(tokens, metadata.get("tokenizer.ggml.merges") or [], pre, source)
            starts_with_bos = pre in _IGNORE_MERGES
        elif kind == "llama":
            tokenizer = _sentencepiece(metadata, tokens, special)
            starts_with_bos = True
        else:
            logger.warning("%s: tokenizer kind %r is unknown; continuing without a tokenizer", source, kind)
            return None
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises plain Exception
        raise InputError(f"{source}: malformed tokenizer metadata: {' '.join(str(error).split())}") from None
    if tokenizer is None:
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    types = metadata.get("tokenizer.ggml.token_type") or []
    for token, token_type in zip(tokens, types, strict=False):
        if token_type in (_CONTROL, _USER_DEFINED) and token in vocabulary:
            added = AddedToken(token, normalized=False, special=token_type == _CONTROL)
            (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
    _add_ends(tokenizer, metadata, special, starts_with_bos)
    return tokenizer


def _byte_level(tokens: Sequence[str], merges: Sequence[str], pre: str, source: str) -> Tokenizer | None:
    """Return a BPE tokenizer over bytes written as characters, as in GPT-2; None for an unknown pre-tokenizer."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre in _IGNORE_MERGES))
    if pre in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        if _SPLITS[pre] == _QWEN2:
            tokenizer.normalizer = normalizers.NFC()
    elif pre in _SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif pre in _GPT2:
        if pre == "default":
            logger.warning("%s names no pre-tokenizer; GPT-2's is assumed", source)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        logger.warning("%s: pre-tokenizer %r is unknown; continuing without a tokenizer", source, pre)
        return None
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], special: Mapping[str, str]) -> Tokenizer:
    """Return a BPE tokenizer over characters, with ▁ for the space and byte fallback, as in Llama 1 and 2."""
    # GGUF stores Gemma's runs of spaces as spaces, but its vocabulary writes each as ▁.
    pieces = [token.replace(" ", _SPACE) if token and not token.strip(" ") else token for token in tokens]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
    # Gemma's scores do not follow its merge order; its ids do.
    scores = [-float(number) for number in range(len(pieces))] if gemma else metadata["tokenizer.ggml.scores"]
    merges = _merges(vocabulary, scores)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=special.get("unk"), fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", _SPACE)
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the merges: every pair of pieces that forms another piece, best pieces first."""
    found = [
        (-scores[number], vocabulary[piece[:cut]], vocabulary[piece[cut:]], piece[:cut], piece[cut:])
        for piece, number in vocabulary.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _add_ends(
    tokenizer: Tokenizer, metadata: Mapping[str, Any], special: Mapping[str, str], starts_with_bos: bool
) -> None:
    """Make the tokenizer add BOS before and EOS after the text, if the file says so."""
    before = metadata.get("tokenizer.ggml.add_bos_token", starts_with_bos) and "bos" in special
    after = metadata.get("tokenizer.ggml.add_eos_token", False) and "eos" in special
    if not before and not after:
        return
    used = ([special["bos"]] if before else []) + ([special["eos"]] if after else [])
    bos, eos = ([special["bos"]] if before else []), ([special["eos"]] if after else [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*bos, "$A", *eos],
        pair=[*bos, "$A", *eos, *(f"{token}:1" for token in bos), "$B:1", *(f"{token}:1" for token in eos)],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(used)],
    )


def _token(tokens: Sequence[str], number: object, source: str) -> str:
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise InputError(f"{source}: special token id {number!r} is outside the vocabulary of {len(tokens)}")
    return tokens[number]
