"""Hypothesis mutations of JSON files and safetensors headers, and the limits within which opening them must stay."""

from __future__ import annotations

import copy
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import strategies as st

# What hostile or careless writers put where a number, a name or an object belongs.
HUGE = (2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 2**64 + 8, 10**30, 10**400, -(2**63), -1)
ODD = (
    *HUGE, 0, 1, 2, 3, 7, 8, 0.0, -0.0, 0.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"), None, True,
    False, "", "0", "8", "F64", "F8_E4M3", "I64", "BF16", "BOOL", "U8", "\0", "\n", "\ud800", "../x", "é" * 40, [], {},
    [0], [[]], [-1], [None], [{}], {"": None}, [2**32, 2**32], [1, 2, 3], [10**400], "x" * 5000, [0] * 1000,
)  # fmt: skip
DEEP = 3000


def _places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value within a JSON value."""
    if where:
        yield where
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*where, key))


def _parent(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        value = value[key]
    return value


def _nested(depth: int, kind: str) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


@st.composite
def mutated_json(draw: st.DrawFn, sound: Any) -> bytes:
    """Draw a damaged serialization of a JSON object: one to four changes to its values, keys or text.

    Args:
        draw: hypothesis'.
        sound: The object that is damaged; it stays as it is.
    """
    value = copy.deepcopy(sound)
    duplicate = False
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 4)))):
        places = list(_places(value))
        if not places:
            break
        place = draw(st.sampled_from(places))
        parent, key = _parent(value, place), place[-1]
        change = draw(
            st.sampled_from(("odd", "odd", "step", "remove", "add", "copy", "rename", "nest", "twice", "any"))
        )
        if change == "odd":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif change == "any":
            parent[key] = draw(_JSON)
        elif change == "step" and type(parent[key]) in (int, float):
            parent[key] = draw(st.sampled_from((parent[key] + 1, parent[key] - 1, -parent[key], parent[key] * 1000)))
        elif change == "remove":
            del parent[key]
        elif change == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(("", "a", "weight", "\0", "\n", "__metadata__", "rope_type", "x" * 3000)))] = (
                draw(_JSON)
            )
        elif change == "copy":
            other = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(_parent(sound, other)[other[-1]]) if _holds(sound, other) else None
        elif change == "rename" and isinstance(parent, dict):
            parent[draw(st.text(max_size=12))] = parent.pop(key)
        elif change == "nest":
            parent[key] = _nested(
                draw(st.sampled_from((1, 3, 30, 300, 900))), draw(st.sampled_from(("list", "object")))
            )
        elif change == "twice":
            duplicate = True
    text = json.dumps(value)
    if duplicate and isinstance(value, dict) and value:
        name = draw(st.sampled_from(sorted(value)))
        text = f"{{{json.dumps(name)}: {json.dumps(value[name])}, {text[1:]}"
    return _mutated_text(draw, text.encode())


def _holds(value: Any, place: tuple[Any, ...]) -> bool:
    try:
        _parent(value, (*place, None))
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _mutated_text(draw: st.DrawFn, text: bytes) -> bytes:
    """Now and then flip bytes, cut, or nest so deeply that a recursive parser would fall."""
    change = draw(st.sampled_from(("none",) * 12 + ("flip", "cut", "insert", "deep")))
    if change == "flip":
        content = bytearray(text)
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(content)
    place = draw(st.integers(0, len(text)))
    if change == "cut":
        return text[:place]
    if change == "insert":
        return text[:place] + draw(st.binary(max_size=8)) + text[place:]
    if change == "deep":
        return text[:place] + draw(st.sampled_from((b"[", b'{"a":'))) * draw(st.integers(1, DEEP)) + text[place:]
    return text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(HUGE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def mutated_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a damaged copy of a safetensors file: header, its announced length, the end of the data.

    Args:
        draw: hypothesis'.
        content: A sound file.
    """
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    change = draw(st.sampled_from(("json", "json", "retype", "reshape", "overlap", "text", "length", "data")))
    announced: int | None = None
    if change == "json":
        header = draw(mutated_json(json.loads(header)))
    elif change in ("retype", "reshape"):
        header = draw(_mutated_entry(json.loads(header), change))
    elif change == "text":
        header = _mutated_text(draw, header)
    elif change == "overlap":
        table = json.loads(header)
        names = sorted(name for name in table if name != "__metadata__")
        one, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        begin, end = table[other]["data_offsets"]
        shift = draw(st.sampled_from((0, -1, 1, -8, 8, 4096)))
        table[one]["data_offsets"] = [begin + shift, end + shift]
        if draw(st.booleans()):
            table[one]["shape"] = table[other]["shape"]
        header = json.dumps(table).encode()
    elif change == "length":
        announced = draw(st.integers(0, len(content)) | st.sampled_from((2**31, 2**32, 2**63, 2**64 - 1, 100_000_000)))
    else:
        data = draw(st.sampled_from((data[:-1], data[1:], data + b"\0", b"", data * 2)))
    return (len(header) if announced is None else announced).to_bytes(8, "little") + header + data


@st.composite
def _mutated_entry(draw: st.DrawFn, table: dict[str, Any], change: str) -> bytes:
    """Give one tensor another dtype or shape of as many bytes: a valid file that is another model."""
    entry = table[draw(st.sampled_from(sorted(name for name in table if name != "__metadata__")))]
    if change == "retype":
        entry["dtype"] = draw(st.sampled_from(("I32", "U32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E5M2")))
        width = {"6": 2, "4": 8, "8": 1, "L": 1, "2": 1 if "_" in entry["dtype"] else 4}[entry["dtype"][-1]]
        entry["shape"] = [*entry["shape"][:-1], entry["shape"][-1] * 4 // width]
    else:
        count = math.prod(entry["shape"])
        other = [[count], [1, count], [count, 1], entry["shape"][::-1], [*entry["shape"], 1], [2, count // 2]]
        entry["shape"] = draw(st.sampled_from(other))
    return json.dumps(table).encode()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail a test that computes for longer in this thread: neither other load nor idle threads that spin count.

    A signal interrupts one that takes many times as much, so that no endless loop hangs.
    """

    def late(_number: int, _frame: FrameType | None) -> None:
        pytest.fail(f"took far more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGPROF, late)
    begin = time.thread_time()
    signal.setitimer(signal.ITIMER_PROF, 20 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    used = time.thread_time() - begin
    assert used <= seconds, f"took {used:.1f} s of CPU time, {seconds} s are allowed"


@contextmanager
def memory_below(allowed: float) -> Iterator[None]:
    """Fail a test whose resident memory rises by more than this many bytes above where it started.

    The peak of the process is reset first (Linux), so that what ran before hides nothing.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    yield
    grown = _peak() - before
    assert grown <= allowed, f"memory grew by {grown / 1e6:.0f} MB, {allowed / 1e6:.0f} MB are allowed"


def _peak() -> int:
    """Most resident memory since the last reset, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
