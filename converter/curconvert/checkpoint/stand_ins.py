"""Recognizes files that are not what their name says: pointers, web pages, archives, files of another format."""

from __future__ import annotations

import re
from pathlib import Path

from curconvert.base.errors import InputError
from curconvert.checkpoint.commands import save_file

_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/.*?size (\d{1,20})", re.DOTALL)
_PAGES = (b"<!doctype html", b"<html", b"<?xml")
_READ = 4096  # bytes; answers of servers are shorter
_PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]")  # torch.save writes a zip archive, and wrote a plain pickle
_FORMATS = (
    (re.compile(rb"GGUF"), ".gguf", "a GGUF file"),
    (re.compile(rb".{8}\{\s*\"", re.DOTALL), ".safetensors", "a safetensors file"),
)
_UNREAD = (
    (re.compile(rb"\x1f\x8b"), "a gzip archive; unpack it"),
    (re.compile(rb"\x89HDF"), "an HDF5 file, such as Keras writes; give the model's safetensors"),
)


def stand_in(path: Path) -> str | None:
    """Return what a binary file is that has only the name of one, and what to do; None if it is not known."""
    begin = _begin(path)
    rules = (_empty(begin), pointer_or_page(begin), _other_format(path, begin), _text(begin))
    return next(filter(None, rules), None)


def text_stand_in(path: Path) -> str | None:
    """Return what a text file is that has only the name of one, and what to do; None if it is not known."""
    return pointer_or_page(_begin(path))


def refuse_stand_in(path: Path) -> Path:
    """Return the path of a text file that is what its name says.

    Raises:
        InputError: It is a Git LFS pointer or a web page.
    """
    if found := text_stand_in(path):
        raise InputError(f"{path}: {found}")
    return path


def pointer_or_page(begin: bytes) -> str | None:
    """Return what a file is that begins with these bytes, if it is a Git LFS pointer or a web page."""
    if match := _LFS.match(begin):
        size = match[1].decode()
        return f"a Git LFS pointer to {size} bytes; run git lfs pull in its folder, or download the file itself"
    if begin.lstrip().lower().startswith(_PAGES):
        return "a web page; download the file itself"
    return None


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_READ)
    except OSError:
        return b"?"  # what opens the file reports it


def _empty(begin: bytes) -> str | None:
    if not begin:
        return "an empty file; download it again"
    if len(begin) == _READ and not begin.strip(b"\0"):
        return "a file of zeros, as an interrupted download leaves it; download it again"
    return None


def _other_format(path: Path, begin: bytes) -> str | None:
    for magic, suffix, what in _FORMATS:
        if magic.match(begin) and path.suffix.lower() != suffix:
            return f"{what}; rename it to {path.with_suffix(suffix).name}"
    if _PICKLE.match(begin):
        target = path.with_name(f"{path.stem}-converted.safetensors")
        return f"a file of torch.save; if you trust it, write safetensors and give {target}: {save_file(path, target)}"
    return next((what for magic, what in _UNREAD if magic.match(begin)), None)


def _text(begin: bytes) -> str | None:
    """Return the short text with which a server answered in the place of a file."""
    try:
        text = begin.decode() if len(begin) < _READ else ""
    except UnicodeDecodeError:
        return None
    if not text.strip() or not all(character.isprintable() or character.isspace() for character in text):
        return None
    return f"a text, {text.strip()[:60]!r}; download the file again"
