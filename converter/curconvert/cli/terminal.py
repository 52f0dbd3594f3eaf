"""Prints text that comes from files: every way from the command line to a terminal leads through here.

A name or a generated text may hold escape sequences, which would clear the screen, change the window's title or write
to the clipboard.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Any

import rich.console
import rich.table

from curconvert.base.display import harmless, one_line


class Console(rich.console.Console):
    """Prints each text on one line, harmless."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts and renderables."""
        super().print(*map(_harmless, objects), **options)


class Table(rich.table.Table):
    """A table whose cells are harmless."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row of texts and renderables."""
        super().add_row(*map(_harmless, cells), **options)


class Formatter(logging.Formatter):
    """Formats log messages as harmless lines, and tracebacks as harmless text."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Return the message on one line."""
        return one_line(super().formatMessage(record))

    def formatException(  # noqa: N802
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        """Return the traceback."""
        return harmless(super().formatException(ei))


def for_stdout(text: str) -> str:
    """Return generated text as it goes to stdout: harmless on a terminal, exact in a pipe or a file."""
    return harmless(text) if sys.stdout.isatty() else text


def _harmless(shown: Any) -> Any:
    return one_line(shown) if isinstance(shown, str) else shown
