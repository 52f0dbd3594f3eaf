"""Reads `tokenizer.model`, sentencepiece's format, without the sentencepiece package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from curconvert.checkpoint.gguf_tokenizer import tokenizer_of

_BPE = 2  # sentencepiece's model type
_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1
_SPACE = "▁"


def sentencepiece_model(content: bytes) -> Any:
    """Return the parsed file, or None if it is not sentencepiece's, such as the one of Llama 3, which is tiktoken's."""
    from transformers.convert_slow_tokenizer import import_protobuf  # noqa: PLC0415 - slow to load

    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception:  # noqa: BLE001 - protobuf's error class depends on its version
        return None
    return proto if proto.pieces else None


def is_plain(proto: Any) -> bool:
    """Return whether the model is BPE without a table of characters to replace, as in all supported families."""
    return proto.trainer_spec.model_type == _BPE and not proto.normalizer_spec.precompiled_charsmap


def sentencepiece_tokenizer(
    proto: Any, settings: Mapping[str, Any], added: Mapping[str, int], config: Mapping[str, Any]
) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer of a plain model, and its special tokens by name.

    Args:
        proto: The parsed file.
        settings: Content of `tokenizer_config.json`; it may add tokens, and says which ends a text gets.
        added: Content of `added_tokens.json`: ids of further tokens.
        config: The model's config.
    """
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    extra = {**{number: AddedToken(text, normalized=False) for text, number in added.items()}, **_decoder(settings)}
    extra = {number: token for number, token in extra.items() if 0 <= number < config["vocab_size"]}
    for number in range(len(pieces), max(extra, default=-1) + 1):
        token = extra.get(number)
        kind = _NORMAL if token is None else _CONTROL if token.special else _USER_DEFINED
        pieces.append((token.content if token else f"<hole {number}>", -1e30, kind))
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "unknown": trainer.unk_id, "padding": trainer.pad_id}
    metadata = {
        "general.architecture": config["model_type"],
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [text for text, _, _ in pieces],
        "tokenizer.ggml.scores": [score for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
        "tokenizer.ggml.add_space_prefix": settings.get("add_prefix_space", normalizer.add_dummy_prefix) is not False,
        "tokenizer.ggml.add_bos_token": settings.get("add_bos_token", True),
        "tokenizer.ggml.add_eos_token": settings.get("add_eos_token", False),
        **{f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items() if number >= 0},
    }
    found = tokenizer_of(metadata, "tokenizer.model")
    assert found is not None
    tokenizer, named = found
    if settings.get("legacy") is False and metadata["tokenizer.ggml.add_space_prefix"]:
        # Newer models put the space only before a text, and not after each special token as well.
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    tokenizer.add_tokens([token for token in extra.values() if tokenizer.token_to_id(token.content) is not None])
    return tokenizer, {f"{name}_token": text for name, text in named.items()}


def _decoder(settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Return the tokens that `tokenizer_config.json` adds, by id, with what each takes from its surroundings."""
    names = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return {
        int(number): AddedToken(entry["content"], **{name: bool(entry.get(name)) for name in names})
        for number, entry in (settings.get("added_tokens_decoder") or {}).items()
    }
