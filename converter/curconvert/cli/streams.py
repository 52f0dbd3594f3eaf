"""Makes the standard streams safe to write to: any text in any encoding, and a disk or a reader that gives up.

A failed write does not stop the command: its exit code says first what the work gave. Only a command that succeeds
ends with an error because its output was lost.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from curconvert.base.errors import BackendError, InputError

CLOSED_PIPE = 141
"""Exit code when the reader of the output has left: 128 plus the number of SIGPIPE, as in shells."""

_HANDLER = "curconvert.plain"
_PLAIN = {
    "→": "->", "×": "x", "·": "*", "…": "...", "Δ": "delta ", "‖": "||", "≥": ">=", "≤": "<=", "−": "-", "–": "-",
    "✓": "ok", "✗": "FAILED", "�": "?", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
# Handlers that Python chooses by itself. A user who sets another one keeps it.
_DEFAULTS = ("strict", "surrogateescape", "backslashreplace")


def typed(text: str) -> str:
    """Return a text as the user typed it: bytes that an ASCII locale could not decode are taken as UTF-8."""
    try:
        return text.encode(sys.getfilesystemencoding(), "surrogateescape").decode("utf-8") if _escaped(text) else text
    except UnicodeError:
        return text


def typed_input() -> str:
    """Return all of the standard input.

    Raises:
        InputError: It is closed, or it is no text in the encoding of the locale.
    """
    if sys.stdin is None:
        raise InputError("standard input is closed; pass the text with --prompt")
    try:
        text = sys.stdin.read()
        return text.encode(sys.stdin.encoding, "surrogateescape").decode("utf-8") if _escaped(text) else text
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not {sys.stdin.encoding} text ({error.reason})") from None


def echo(text: str = "", *, nl: bool = True) -> None:
    """Write a text to stdout at once."""
    sys.stdout.write(text + "\n" * nl)
    sys.stdout.flush()


def lost() -> bool:
    """Tell whether output was lost, so that it makes no sense to produce more."""
    return _error(sys.stdout) is not None


@contextmanager
def safe_streams() -> Iterator[None]:
    """Run a command with safe stdout and stderr; lost output turns its success into another exit code."""
    codecs.register_error(_HANDLER, _replaced)
    _fill_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_safe(stream, number) for number, stream in enumerate(before, 1))
    try:
        yield
        _exit_if_lost()
    except SystemExit as end:
        if not end.code:
            _exit_if_lost()
        raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _exit_if_lost() -> None:
    sys.stdout.flush()
    error = _error(sys.stdout)
    if error is None:
        return
    if error.errno == errno.EPIPE:
        sys.exit(CLOSED_PIPE)
    sys.stderr.write(f"error: standard output: cannot be written ({error.strerror}); the work itself is done\n")
    sys.exit(BackendError.exit_code)


def _fill_descriptors() -> None:
    """Open closed standard descriptors, so that no file of the work gets their numbers. Writing to them still fails."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDONLY)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)


class _Raw(io.RawIOBase):
    """Writes to a descriptor's stream until that fails; then remembers the error and drops what follows."""

    def __init__(self, inner: io.RawIOBase) -> None:
        self._inner = inner
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._inner.fileno()

    def isatty(self) -> bool:
        return self._inner.isatty()

    def write(self, data: Any) -> int | None:
        if self.error is None:
            try:
                return self._inner.write(data)
            except OSError as error:
                self.error = error
        return len(data)


def _safe(stream: TextIO | None, number: int) -> TextIO:
    """Return a stream that writes to the same place, and never fails. One without a descriptor of its own stays."""
    if stream is None:  # closed by the caller
        return io.TextIOWrapper(io.BufferedWriter(_Raw(io.FileIO(number, "w", closefd=False))), "utf-8", _HANDLER)
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # the same if Python runs unbuffered
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(raw, io.RawIOBase):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Raw(raw)), stream.encoding, _HANDLER if stream.errors in _DEFAULTS else stream.errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def _error(stream: Any) -> OSError | None:
    error: OSError | None = getattr(getattr(getattr(stream, "buffer", None), "raw", None), "error", None)
    return error


def _escaped(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Return plain characters for those that an encoding lacks, or their escape sequences."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    plain = (_PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode() for character in missing)
    return "".join(plain), error.end
