"""What is in a folder, and whether it stayed as it was."""

from __future__ import annotations

import hashlib
import os
import shutil
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


def in_hub_cache(folder: Path, cache: Path) -> Path:
    """Put a folder's files into the layout of the Hugging Face cache; return the snapshot, which holds only links."""
    repository = cache / "models--someone--model"
    snapshot_folder, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot_folder.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blobs / blob)
        (snapshot_folder / path.name).symlink_to(Path("../../blobs") / blob)
    return snapshot_folder


def hard_linked(folder: Path, out: Path) -> Path:
    """Copy a folder as `cp -rl` does: both names lead to the same bytes."""
    return Path(shutil.copytree(folder, out, copy_function=os.link))
