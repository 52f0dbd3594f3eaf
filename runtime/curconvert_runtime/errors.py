"""Every error a user can meet, with the exit code of the command line.

A message is one line: what, where (file, tensor), found and expected, and what to do.
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
    """Refuse an option that is no integer, or a smaller one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} {value!r}: expected an integer of at least {least}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read a file into an error that names it."""
    try:
        yield
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}); restore the file") from None


def unsound(where: object, what: str) -> IntegrityError:
    """Return the error of an artifact that must be made again."""
    return IntegrityError(f"{where}: {what}; convert the model again")
