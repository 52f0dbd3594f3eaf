"""Defines every error that curconvert raises on purpose, with the command line's exit code for it.

A message is one line: what is wrong, where (file, tensor), what was found and expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CurConvertError(Exception):
    """Base class of all errors below."""

    exit_code = 1


class InputError(CurConvertError):
    """A file, option or request is wrong."""

    exit_code = 2


class VerificationError(CurConvertError):
    """A check of the verification failed."""

    exit_code = 3


class IntegrityError(CurConvertError):
    """A file differs from the manifest, or is missing, malformed or unexpected."""

    exit_code = 4


class UnsupportedError(CurConvertError):
    """The input is valid, but this version does not support it."""

    exit_code = 5


class BackendError(CurConvertError):
    """A package, execution provider or operator is missing or failed."""

    exit_code = 6


def check_integer(name: str, value: object, least: int) -> None:
    """Raise `InputError` unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} {value!r}: expected an integer of at least {least}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an `OSError` while reading a file into an `IntegrityError` that names the file."""
    try:
        yield
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}); restore the file") from None


def unsound(where: object, what: str) -> IntegrityError:
    """Return an `IntegrityError` that tells the user to convert the model again."""
    return IntegrityError(f"{where}: {what}; convert the model again")
