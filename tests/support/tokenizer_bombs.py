"""Contents of `tokenizer.json` that fill the memory, take for ever, or are no tokenizer."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from support.tiny_artifact import byte_tokenizer

SOUND: dict[str, Any] = json.loads(byte_tokenizer().to_str())


def replace(old: str, new: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def sequence(where: str, *parts: dict[str, Any]) -> dict[str, Any]:
    names = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}
    return {"type": "Sequence", names.get(where, "decoders"): list(parts)}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def charsmap(*texts: bytes) -> dict[str, Any]:
    """Return SentencePiece's rules: the size of a trie, the trie, and what it writes."""
    data = (8).to_bytes(4, "little") + bytes(8) + b"".join(text + b"\0" for text in texts)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def template(pieces: list[dict[str, Any]], ids: int = 1) -> dict[str, Any]:
    special = {"id": "<s>", "ids": [297] * ids, "tokens": ["<s>"] * ids}
    return {"type": "TemplateProcessing", "single": pieces, "pair": [], "special_tokens": {"<s>": special}}


def _sequences(depth: int, part: dict[str, Any]) -> dict[str, Any]:
    for _ in range(depth):
        part = sequence("normalizer", part, part)
    return part


TEXT, BEGIN = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
DOUBLE = replace("a", "aa")
BOMBS: dict[str, dict[str, Any]] = {
    "a text that doubles 31 times": {"normalizer": sequence("normalizer", *[DOUBLE] * 31)},
    "a text that doubles in nested sequences": {"normalizer": _sequences(5, DOUBLE)},
    "a text that grows at once": {"normalizer": replace("a", "a" * 10**6)},
    "a text that grows by a pattern": {"normalizer": replace(".", "a" * 10**6, "Regex")},
    "a text that grows between characters": {"normalizer": replace("", "a" * 10**6)},
    "a text that grows at its start": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
    "rules that write long texts": {"normalizer": charsmap(b"x", b"y" * 10**6)},
    "rules twice": {"normalizer": sequence("normalizer", charsmap(b"y" * 100), charsmap(b"y" * 100))},
    "a decoder that doubles 31 times": {"decoder": sequence("decoder", *[DOUBLE] * 31)},
    "a decoder that grows at once": {"decoder": replace("a", "a" * 10**6)},
    "a thousand parts": {"normalizer": sequence("normalizer", *[replace("a", "b")] * 1000)},
    "a text in itself": {"post_processor": sequence("post_processor", *[template([TEXT, TEXT])] * 31)},
    "many special tokens": {"post_processor": template([BEGIN] * 10**4 + [TEXT], ids=10**4)},
    "nested repetitions": {"pre_tokenizer": split(r"(a+)+$")},
    "nested repetitions, counted": {"pre_tokenizer": split(r"(a{1,99}){10,}b")},
    "nested repetitions in a longer pattern": {"pre_tokenizer": split(r"\p{N}{1,3}|(?:\p{L}+\s?)*!|\s+")},
    "repeated choice": {"pre_tokenizer": split(r"(a|a)*$")},
    "repeated choice, deeper": {"pre_tokenizer": split(r"((?:a|b)x)+")},
    "reference": {"pre_tokenizer": split(r"(.*)x\1")},
    "named reference": {"pre_tokenizer": split(r"(?<n>.*)x\k<n>")},
    "recursion": {"pre_tokenizer": split(r"(?<n>a\g<n>?b)")},
    "condition": {"pre_tokenizer": split(r"(a)?(?(1)b|c)")},
    "nested repetitions of a normalizer": {"normalizer": replace(r"(a+)+$", "a", "Regex")},
    "nested repetitions of a decoder": {"decoder": replace(r"(a+)+$", "a", "Regex")},
    "long pattern": {"pre_tokenizer": split("a*b|" * 10_000)},
    "long patterns": {"pre_tokenizer": sequence("pre_tokenizer", *[split("a*b|" * 900)] * 60)},
    "long token": {"model": {**SOUND["model"], "vocab": {"a" * 10**6: 0}}},
    "long token of a list": {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 10**6, 0.0]]}},
    "long words": {"model": {"type": "WordPiece", "vocab": {"a": 0}, "max_input_chars_per_word": 10**9}},
    "unknown normalizer": {"normalizer": {"type": "Exec"}},
    "unknown decoder": {"decoder": {"type": "Exec"}},
    "part without a type": {"pre_tokenizer": {"pattern": {"Regex": "a"}}},
    "text in place of a part": {"normalizer": "NFC"},
    "list in place of a part": {"normalizer": sequence("normalizer", [])},  # type: ignore[arg-type]
    "number in place of a pattern": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": 3}}},
    "number in place of a text": {"normalizer": {"type": "Prepend", "prepend": 3}},
    "rules that are no base64": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}},
}
"""By name: what replaces a part of a sound tokenizer."""


def content(name: str) -> bytes:
    """Return the file of a bomb."""
    return json.dumps(copy.deepcopy(SOUND) | BOMBS[name]).encode()
