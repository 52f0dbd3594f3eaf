"""Checks `tokenizer.json` before the tokenizers library runs it: nothing in it may make much text of little.

The library runs what the file describes in native code, which nothing can stop. So growth is computed beforehand: of
replacements, of a sequence of them, and of special tokens. Patterns that backtrack exponentially are refused.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from curconvert_schemas.strict import loads

MAX_BYTES = 2**26  # published files have up to 35 MB
_MOST_COMMAS = 2**22  # values, roughly; each needs some 100 bytes while it is parsed
_MOST_PARTS = 64
_MOST_GROWTH = 1024  # NFKC makes 18 characters of one, SentencePiece's rules up to 54
_MOST_ADDED = 1000  # special tokens around a text
_MOST_TOKEN = 10_000  # characters of one token
_MOST_PATTERN = 4000  # characters of all patterns of a step
_NESTED = {  # component → name of the list of components in a sequence
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
    "decoder": "decoders",
}  # fmt: skip
# Most characters that one character becomes, by type. Types with a text of their own are computed below.
_GROWTH = {
    "normalizer": {
        "BertNormalizer": 4, "ByteLevel": 4, "Lowercase": 2, "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Nmt": 1,
        "Precompiled": 1, "Prepend": 1, "Replace": 1, "Strip": 1, "StripAccents": 1,
    },
    "pre_tokenizer": dict.fromkeys((
        "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation",
        "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit",
    ), 1),
    "post_processor": dict.fromkeys((
        "BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing",
    ), 1),
    "decoder": dict.fromkeys((
        "BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece",
    ), 1),
}  # fmt: skip


def check_tokenizer(data: bytes) -> None:
    """Check the bytes of a `tokenizer.json`.

    Raises:
        ValueError: Not JSON, too large, or a part of it could fill the memory or never end.
    """
    if len(data) > MAX_BYTES or data.count(b",") > _MOST_COMMAS:
        raise ValueError(f"larger than {MAX_BYTES} bytes or {_MOST_COMMAS} values")
    content = loads(data)
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    for where in _NESTED:
        parts = list(_parts(content.get(where), where))
        if len(parts) > _MOST_PARTS:
            raise ValueError(f"{where} has more than {_MOST_PARTS} parts")
        patterns = sum(len(_regex(part)) for part in parts)
        if patterns > _MOST_PATTERN:
            raise ValueError(f"the patterns of {where} have more than {_MOST_PATTERN} characters")
        growth = math.prod(_growth(part, where) for part in parts)
        if growth > _MOST_GROWTH:
            raise ValueError(f"{where} may make {growth} characters of one; {_MOST_GROWTH} are allowed")
    _check_model(content.get("model"))


def _parts(value: Any, where: str) -> Iterator[Mapping[str, Any]]:
    """Yield the components of a step; nesting is bounded by the JSON parser."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {type(value).__name__}, not a component")
    if value.get("type") != "Sequence":
        yield value
        return
    for part in _list(value.get(_NESTED[where])):
        yield from _parts(part, where)


def _growth(part: Mapping[str, Any], where: str) -> int:
    """Return how many characters or tokens a component makes of one at most, after a check of its pattern."""
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _GROWTH[where]:
        raise ValueError(f"{where} has an unknown component {str(kind)[:40]!r}")
    _check_pattern(_regex(part))
    if kind == "Replace":
        pattern = part.get("pattern")
        plain = _text(pattern.get("String", "")) if isinstance(pattern, dict) else _text(pattern or "")
        content = len(_text(part.get("content", "")))
        return 1 + content if not plain else max(1, math.ceil(content / len(plain)))
    if kind == "Prepend":
        return 1 + len(_text(part.get("prepend", "")))
    if kind == "Precompiled":
        return _longest_rule(_text(part.get("precompiled_charsmap") or ""))
    if kind == "TemplateProcessing":
        _check_template(part)
    return _GROWTH[where][kind]


def _longest_rule(charsmap: str) -> int:
    """Return the bytes of the longest text that SentencePiece's rules write: a trie's size, the trie, then texts."""
    try:
        data = base64.b64decode(charsmap, validate=True)
    except binascii.Error:
        raise ValueError("precompiled_charsmap is not base64") from None
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max(1, *map(len, texts.split(b"\0"))) if texts else 1


def _check_template(part: Mapping[str, Any]) -> None:
    special = part.get("special_tokens")
    names = special if isinstance(special, dict) else {}
    lengths = {name: len(_list(each.get("ids"))) for name, each in names.items() if isinstance(each, dict)}
    pieces = [piece for piece in _list(part.get("single")) if isinstance(piece, dict)]
    if sum("Sequence" in piece for piece in pieces) > 1:
        raise ValueError("post_processor repeats the text")
    tokens = [piece["SpecialToken"] for piece in pieces if isinstance(piece.get("SpecialToken"), dict)]
    if sum(lengths.get(str(token.get("id")), 0) for token in tokens) > _MOST_ADDED:
        raise ValueError(f"post_processor adds more than {_MOST_ADDED} tokens")


def _check_model(model: Any) -> None:
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens = vocabulary if isinstance(vocabulary, dict) else [each[0] for each in _list(vocabulary) if _list(each)]
    if max((len(token) for token in tokens if isinstance(token, str)), default=0) > _MOST_TOKEN:
        raise ValueError(f"a token has more than {_MOST_TOKEN} characters")
    characters = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(characters, int) and characters > _MOST_TOKEN:
        raise ValueError(f"max_input_chars_per_word is {characters}; {_MOST_TOKEN} are allowed")


# A part of a regular expression: an escape, a set (sets may hold sets), the start or end of a group, a quantifier.
_SYMBOL = re.compile(
    r"\\[pP]\{[^}]*\}|\\[xuk]\{[^}]*\}|\\.|\[|\]|\((?:\?[#:=!>~(|]|\?<[=!]|\?[a-zA-Z-]*:?)?|\)"
    r"|[*+?][?+]?|\{\d*(?:,\d*)?\}[?+]?|.",
    re.DOTALL,
)
_REFERENCE = re.compile(r"\\([1-9]|[kg][<{'])")
_MANY = 10  # repetitions that count as unbounded


def _check_pattern(pattern: str) -> None:
    """Refuse what can take exponential time: repeated groups that repeat or choose, references, conditions."""
    sets = 0
    groups = [False]  # of each open group: whether it holds a repetition or a choice
    closed = False  # the same of the group that a quantifier would repeat
    for match in _SYMBOL.finditer(pattern):
        symbol = match.group()
        if symbol == "[":
            sets += 1
        elif sets:
            sets -= symbol == "]"
            closed = False
        elif symbol in ("(?(", "(?~") or _REFERENCE.match(pattern, match.start()):
            raise ValueError(f"a pattern refers to what it matched ({symbol[:10]!r})")
        elif symbol[0] == "(":
            groups.append(False)
        elif symbol == ")":
            closed = groups.pop()
            groups = groups or [False]
            groups[-1] |= closed
        elif symbol == "|":
            groups[-1], closed = True, False
        elif _repeats(symbol):
            if closed:
                raise ValueError("a pattern repeats a group that repeats or chooses, which can take for ever")
            groups[-1] = True
        elif symbol[0] not in "?{":
            closed = False


def _repeats(symbol: str) -> bool:
    """Return whether a symbol is a quantifier of many repetitions."""
    if symbol[0] != "{" or len(symbol) < 3:
        return symbol[0] in "*+"
    last = symbol.rstrip("?+").strip("{}").split(",")[-1]
    return not last or int(last[:9]) >= _MANY


def _regex(part: Mapping[str, Any]) -> str:
    pattern = part.get("pattern")
    return _text(pattern.get("Regex", "")) if isinstance(pattern, dict) else ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {type(value).__name__}")
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
