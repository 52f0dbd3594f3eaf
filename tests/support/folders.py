"""What is in a folder, and whether it stayed as it was."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path


def files_of(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Describe all that is below a folder: kind, permissions, a file's bytes and time of change, a link's target."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content: tuple[object, ...] = ()
        if stat.S_ISREG(status.st_mode):
            content = (status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        elif stat.S_ISLNK(status.st_mode):
            content = (path.readlink(),)
        found[str(path.relative_to(folder))] = (status.st_mode, *content)
    return found
