"""Hashes files, and remembers digests and passed checks in the user's cache.

Hashing a 15 GB model takes longer than starting it. A digest is stored under the file's path, with size, inode, device
and both timestamps. If any of them differs, the file is hashed again. A program can reset the modification time but not
the change time, so both count.

A check that depends only on given bytes runs once. The cache stores passed checks under the sha256 of these bytes.
Failed checks are not stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

_MIN_CACHED_BYTES = 2**20
# Two writes within one clock tick have the same timestamps, so digests of recently written files are not stored.
_SETTLED_SECONDS = 2.0


def sha256(path: Path) -> str:
    """Return the lower-case hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(kind: str, key: bytes) -> Path | None:
    """Return the path of a key's cache file; None if the user has no home directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "curconvert" / kind / hashlib.sha256(key).hexdigest()


def _identity(path: Path) -> list[object]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _remembered(entry: Path, identity: list[object]) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads(entry.read_bytes())
        if isinstance(stored, list) and len(stored) == 2 and stored[0] == identity and isinstance(stored[1], str):
            return stored[1]
    return None


def _remember(entry: Path | None, found: object) -> None:
    import tempfile  # noqa: PLC0415 - slow to import, and most starts have nothing to store

    if entry is None:
        return
    # The cache only saves time: a read-only home or a full disk is no reason to fail.
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=entry.parent)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(found, file)
            Path(name).replace(entry)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def cached_sha256(path: Path, *, fresh: bool = False) -> str:
    """Return the sha256 of a file (absolute path), from the user's cache if the file did not change.

    With `fresh`, always read the bytes.
    """
    before = _identity(path)
    if int(str(before[1])) < _MIN_CACHED_BYTES:
        return sha256(path)
    entry = _entry("sha256", os.fsencode(path))
    known = None if fresh or entry is None else _remembered(entry, before)
    if known is not None:
        return known
    digest = sha256(path)
    status = path.stat()
    settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
    if settled and _identity(path) == before:
        _remember(entry, [before, digest])
    return digest


def check_once(check: Callable[[], None], *parts: str, fresh: bool = False) -> None:
    """Call `check`, which raises on a failure, unless the same `parts` passed before; with `fresh`, always call it.

    The result must depend only on `parts`: what is checked, and a name for the rules.
    """
    entry = _entry("passed", json.dumps(parts).encode())
    with contextlib.suppress(OSError):
        if not fresh and entry is not None and entry.is_file():
            return
    check()
    _remember(entry, "passed")
