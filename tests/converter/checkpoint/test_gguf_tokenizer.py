"""Tokenizers rebuilt from GGUF metadata tokenize like the originals."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from curconvert.base.errors import InputError
from curconvert.checkpoint.gguf_tokenizer import tokenizer_files

TEXT = "Hello world's 123 4567 tests, don't    stop!\n\n  Café naïve HTTPServer x=1;\t\tend. " * 3
NORMAL, CONTROL, USER, BYTE = 1, 3, 4, 6


def trained(pre: Any) -> Tokenizer:
    """Train a small byte-level BPE on the text, with any pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return tokenizer


def metadata_of(tokenizer: Tokenizer, pre: str, **extra: Any) -> dict[str, Any]:
    """Write a byte-level tokenizer down as GGUF does, with two control tokens and a plain added one at the end."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<|start|>", "<|end|>", "<think>"]
    return {
        "general.architecture": "llama",
        "llama.context_length": 64,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * (len(tokens) - 3) + [CONTROL, CONTROL, USER],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        **extra,
    }


def rebuilt(metadata: dict[str, Any]) -> Tokenizer:
    """Load the tokenizer.json that the metadata gives."""
    return Tokenizer.from_str(tokenizer_files(metadata, "m.gguf")["tokenizer.json"].decode())


def pieces(pre: str, text: str) -> list[str]:
    """Split a text with the pre-tokenizer of a GGUF name; spaces appear as Ġ, line feeds as Ċ."""
    tokenizer = rebuilt(metadata_of(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), pre))
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "default"])
def test_text_comes_back(pre: str) -> None:
    """Encoding and decoding is the identity, special tokens included."""
    tokenizer = rebuilt(metadata_of(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), pre))
    text = TEXT + "<|start|>日本語<think>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre", "original"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (
            "smollm",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
        ),
    ],
)
def test_ids_are_those_of_the_original_tokenizer(pre: str, original: Any) -> None:
    """The same text gives the same ids as the tokenizer that was written down."""
    source = trained(original)
    assert rebuilt(metadata_of(source, pre)).encode(TEXT).ids == source.encode(TEXT).ids


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "I've 1234 DON'T", ["I", "'ve", "Ġ1234", "ĠDON", "'", "T"]),
        ("smollm", "I've 1234 x", ["I", "'ve", "Ġ", "1", "2", "3", "4", "Ġx"]),
        ("llama-bpe", "DON'T 12345 (x)\n\ny", ["DON", "'T", "Ġ", "123", "45", "Ġ(", "x", ")ĊĊ", "y"]),
        ("qwen2", "DON'T 123\n\n  y", ["DON", "'T", "Ġ", "1", "2", "3", "ĊĊ", "Ġ", "Ġy"]),
        ("tekken", "httpServer it's 12", ["http", "Server", "Ġit", "'s", "Ġ", "1", "2"]),
        ("gpt-4o", "httpServer it's 1234", ["http", "Server", "Ġit's", "Ġ", "123", "4"]),
    ],
)
def test_text_is_split_as_the_vocabulary_expects(pre: str, text: str, expected: list[str]) -> None:
    """Digits, contractions and line ends, written out per pre-tokenizer."""
    assert pieces(pre, text) == expected


def test_added_tokens_stay_whole_and_only_control_ones_are_special() -> None:
    """Control tokens are skipped on decoding; user-defined ones are not."""
    metadata = metadata_of(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), "gpt-2")
    tokenizer = rebuilt(metadata)
    ids = tokenizer.encode("<|start|>a<think>").ids
    assert ids[0] == metadata["tokenizer.ggml.bos_token_id"]
    assert ids[-1] == len(metadata["tokenizer.ggml.tokens"]) - 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>"


@pytest.mark.parametrize(
    ("pre", "flags", "starts", "ends"),
    [
        ("gpt-2", {}, False, False),
        ("gpt-2", {"tokenizer.ggml.add_bos_token": True}, True, False),
        ("gpt-2", {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, True, True),
        ("llama-bpe", {}, True, False),
        ("llama-bpe", {"tokenizer.ggml.add_bos_token": False}, False, False),
    ],
)
def test_bos_and_eos_are_added_as_the_file_says(pre: str, flags: dict[str, bool], starts: bool, ends: bool) -> None:
    """A Llama 3 vocabulary starts with BOS unless the file says otherwise; others only on request."""
    metadata = metadata_of(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), pre, **flags)
    ids = rebuilt(metadata).encode("a").ids
    assert (ids[0] == metadata["tokenizer.ggml.bos_token_id"]) is starts
    assert (ids[-1] == metadata["tokenizer.ggml.eos_token_id"]) is ends


def sentencepiece(architecture: str = "llama", **extra: Any) -> dict[str, Any]:
    """A vocabulary in the style of Llama 2: pieces with scores, bytes as a fallback, no merges."""
    pieces = ["▁", "a", "b", "c", "ab", "▁ab", "abc", "▁a", "  ", "▁▁", "▁▁▁▁"]
    if architecture != "gemma2":
        pieces.remove("  ")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [2, CONTROL, CONTROL, *[BYTE] * 256, *(USER if piece == "  " else NORMAL for piece in pieces)]
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(number) for number in range(len(tokens))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **extra,
    }


def test_sentencepiece_merges_by_score() -> None:
    """BOS, a leading space, best pieces first: `ab` before `▁a`, so `▁ab` and then `c`."""
    assert rebuilt(sentencepiece()).encode("abc ab").tokens == ["<s>", "▁ab", "c", "▁ab"]


def test_sentencepiece_falls_back_to_bytes() -> None:
    """A character outside the vocabulary becomes its UTF-8 bytes, and comes back."""
    tokenizer = rebuilt(sentencepiece())
    encoding = tokenizer.encode("é", add_special_tokens=False)
    assert encoding.tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoding.ids) == "é"


def test_without_a_space_prefix_text_starts_as_it_is() -> None:
    """`add_space_prefix = false`: no leading ▁."""
    tokenizer = rebuilt(sentencepiece(**{"tokenizer.ggml.add_space_prefix": False}))
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["abc"]
    assert tokenizer.decode(tokenizer.encode(" ab").ids) == " ab"


def test_gemma_spells_runs_of_spaces_like_every_space() -> None:
    """GGUF stores them as spaces; the merges build them from ▁."""
    tokenizer = rebuilt(sentencepiece("gemma2", **{"tokenizer.ggml.add_space_prefix": False}))
    assert tokenizer.encode("a    b", add_special_tokens=False).tokens == ["a", "▁▁▁▁", "b"]


def test_settings_name_the_special_tokens_and_the_template() -> None:
    """tokenizer_config.json has what both transformers versions and the runtime read."""
    metadata = metadata_of(
        trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), "gpt-2", **{"tokenizer.chat_template": "{{ x }}é"}
    )
    files = tokenizer_files(metadata, "m.gguf")
    settings = json.loads(files["tokenizer_config.json"])
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (settings["bos_token"], settings["eos_token"]) == ("<|start|>", "<|end|>")
    assert settings["model_max_length"] == 64
    assert settings["chat_template"] == files["chat_template.jinja"].decode() == "{{ x }}é"


def test_both_end_tokens_end_generation() -> None:
    """An end-of-turn token stops generation like the end of text."""
    metadata = metadata_of(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), "gpt-2")
    metadata["tokenizer.ggml.eot_token_id"] = metadata["tokenizer.ggml.bos_token_id"]
    generation = json.loads(tokenizer_files(metadata, "m.gguf")["generation_config.json"])
    assert generation["eos_token_id"] == [
        metadata["tokenizer.ggml.eos_token_id"],
        metadata["tokenizer.ggml.bos_token_id"],
    ]


@pytest.mark.parametrize("change", [{"tokenizer.ggml.pre": "hieroglyphs"}, {"tokenizer.ggml.model": "rwkv"}])
def test_an_unknown_kind_gives_a_warning_and_no_tokenizer(
    change: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong tokens would be worse than none."""
    metadata = metadata_of(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), "gpt-2", **change)
    with caplog.at_level(logging.WARNING):
        files = tokenizer_files(metadata, "m.gguf")
    assert files.keys() == {"generation_config.json"}
    assert "is unknown; continuing without a tokenizer" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.eos_token_id": 10**6},
        {"tokenizer.ggml.merges": ["zz qq"]},
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0]},
        {"tokenizer.ggml.tokens": [1, 2, 3], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1},
    ],
)
def test_malformed_metadata_is_refused(change: dict[str, Any]) -> None:
    """One line that names the file."""
    metadata = metadata_of(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), "gpt-2", **change)
    with pytest.raises(InputError, match=r"m\.gguf: ") as caught:
        tokenizer_files(metadata, "m.gguf")
    assert "\n" not in str(caught.value)
