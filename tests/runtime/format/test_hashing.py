"""The digest cache saves work and never vouches for a changed file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from curconvert_runtime.format import hashing

OLD = 1_000_000_000


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file large enough to be remembered, in an environment with its own cache and no settling time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", -1.0)
    path = tmp_path / "big"
    path.write_bytes(b"a" * 2**20)
    return path


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    reads: list[Path] = []
    original = hashing.sha256

    def counting(path: Path) -> str:
        reads.append(path)
        return original(path)

    monkeypatch.setattr(hashing, "sha256", counting)
    return reads


def test_an_unchanged_file_is_read_once(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second question is answered from the cache, with the same digest."""
    reads = count_reads(monkeypatch)
    assert hashing.cached_sha256(big) == hashing.cached_sha256(big) == hashlib.sha256(big.read_bytes()).hexdigest()
    assert len(reads) == 1


def test_fresh_reads_again(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for a fresh digest, the cache is not consulted."""
    hashing.cached_sha256(big)
    reads = count_reads(monkeypatch)
    hashing.cached_sha256(big, fresh=True)
    assert len(reads) == 1


def test_a_change_with_the_old_modification_time_is_noticed(big: Path) -> None:
    """Putting size and modification time back does not hide a write."""
    os.utime(big, (OLD, OLD))
    before = hashing.cached_sha256(big)
    with big.open("r+b") as file:
        file.write(b"b")
    os.utime(big, (OLD, OLD))
    assert hashing.cached_sha256(big) != before


def test_a_replaced_file_is_noticed(big: Path) -> None:
    """Another file of equal size under the same name has another inode."""
    before = hashing.cached_sha256(big)
    other = big.with_name("other")
    other.write_bytes(b"b" * 2**20)
    other.replace(big)
    assert hashing.cached_sha256(big) != before


def test_a_young_file_is_not_remembered(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file written a moment ago could change again without new timestamps."""
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 1000.0)
    reads = count_reads(monkeypatch)
    hashing.cached_sha256(big)
    hashing.cached_sha256(big)
    assert len(reads) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '["x", "y"]', "null"])
def test_a_damaged_cache_is_ignored(big: Path, content: str) -> None:
    """Nonsense in the cache means hashing again."""
    digest = hashing.cached_sha256(big)
    for entry in (big.parent / "cache").rglob("*"):
        if entry.is_file():
            entry.write_text(content)
    assert hashing.cached_sha256(big) == digest


def test_a_cache_that_cannot_be_written_is_no_error(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a usable cache directory the digest is simply computed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(big))
    assert hashing.cached_sha256(big) == hashlib.sha256(big.read_bytes()).hexdigest()


def test_a_check_is_made_once(big: Path) -> None:
    """What passed is not looked at again, unless it is asked for; other bytes are, and a refusal is not remembered."""
    made: list[str] = []

    def refuse() -> None:
        made.append("refused")
        raise ValueError

    hashing.check_once(lambda: made.append("a"), "rules", "a")
    hashing.check_once(refuse, "rules", "a")
    assert made == ["a"]
    for parts, fresh in ((("rules", "b"), False), (("rules", "b"), False), (("other rules", "a"), False),
                         (("rules", "a"), True), (("rule", "sa"), False)):  # fmt: skip
        with pytest.raises(ValueError):
            hashing.check_once(refuse, *parts, fresh=fresh)
    assert made == ["a"] + 5 * ["refused"]
