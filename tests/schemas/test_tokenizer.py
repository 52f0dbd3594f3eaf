"""`tokenizer.json`: what published models use passes, and nothing that makes much text of little."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers

from curconvert.checkpoint.gguf_tokenizer import _SPLITS
from curconvert_schemas.tokenizer import MAX_BYTES, check_tokenizer
from support.fuzzing import memory_below, within
from support.tokenizer_bombs import (
    BEGIN,
    BOMBS,
    DOUBLE,
    SOUND,
    TEXT,
    charsmap,
    content,
    replace,
    sequence,
    split,
    template,
)

PATTERNS = (
    *_SPLITS.values(),
    r"'(?i:[sdmt]|ll)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s+$",
    r"[\p{Lu}\p{Lo}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re)?|[\p{Han}]+",
    r"(?<=\d)(?=(?:\d{3})+(?!\d))",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    r"(?:\r?\n)+(?!\r?\n)",
    "[一-龥ࠀ-一가-퟿]+",
    r"[(a+)+]*",
)
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 2": {
        "normalizer": sequence("normalizer", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")),
        "pre_tokenizer": None,
        "decoder": sequence(
            "decoder", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ),
    },
    "Gemma": {
        "normalizer": replace(" ", "▁"),
        "pre_tokenizer": {**split(" "), "pattern": {"String": " "}, "behavior": "MergedWithPrevious"},
    },
    "T5": {
        "normalizer": sequence("normalizer", charsmap(b"x", b"\xe2\x80\x94" * 11), replace(" {2,}", "▁", "Regex")),
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    },
    "Qwen": {"normalizer": {"type": "NFC"}, "pre_tokenizer": sequence("pre_tokenizer", *map(split, PATTERNS[:2]))},
    "begin and end": {"post_processor": template([BEGIN, TEXT, BEGIN])},
    "no steps": dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder")),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parts_of_published_models_pass(name: str) -> None:
    """And they are parts that the library loads."""
    data = json.dumps({**SOUND, **PUBLISHED[name]}).encode()
    check_tokenizer(data)
    if name != "T5":  # whose rules are cut short here
        assert Tokenizer.from_buffer(data).get_vocab_size() == 300


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_patterns_of_published_models_pass(pattern: str) -> None:
    """Possessive quantifiers, sets in sets, groups that look ahead."""
    data = json.dumps({**SOUND, "pre_tokenizer": split(pattern)}).encode()
    check_tokenizer(data)
    Tokenizer.from_buffer(data).encode("Hello, 123 wörld 世界\n")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(name: str) -> None:
    """Before the library reads it, in a moment."""
    data = content(name)
    with memory_below(100e6), within(1), pytest.raises(ValueError, match=r".") as caught:
        check_tokenizer(data)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("times", "allowed"), [(10, True), (11, False)])
def test_growth_is_what_the_library_makes(times: int, allowed: bool) -> None:
    """Ten doublings make 1,024 characters of one, which is the limit."""
    real = normalizers.Sequence([normalizers.Replace("a", "aa")] * times)
    assert len(real.normalize_str("a")) == 2**times
    data = json.dumps({**SOUND, "normalizer": sequence("normalizer", *[DOUBLE] * times)}).encode()
    if allowed:
        check_tokenizer(data)
    else:
        with pytest.raises(ValueError, match="may make 2048 characters of one"):
            check_tokenizer(data)


@pytest.mark.parametrize(
    "data",
    [b" " * (MAX_BYTES + 1), b"[" + b"0," * 2**22 + b"0]", b"[]", b"{", b"\xff", b"[" * 10**5, b'{"a":1,"a":2}'],
)
def test_what_is_too_large_or_no_object_is_refused(data: bytes) -> None:
    """Without parsing it, where parsing would take the memory."""
    with memory_below(200e6), within(1), pytest.raises(ValueError, match=r"."):
        check_tokenizer(data)
