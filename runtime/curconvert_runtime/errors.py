"""Every error a user can meet, with the exit code of the command line.

* CurConvertError (1)
    * InputError (2): a file, option or request is wrong
    * VerificationError (3): the artifact runs but is not good enough, or not the model it claims to be
    * IntegrityError (4): bytes differ from the manifest, or a file is missing, malformed or unexpected
    * UnsupportedError (5): correct input that this version refuses by name
    * BackendError (6): a missing package, execution provider or operator, or one that failed

A message is one line: what, where (file, tensor), found and expected, and what to do.
"""

from __future__ import annotations


class CurConvertError(Exception):
    """Root of all errors that curconvert raises on purpose."""

    exit_code = 1


class InputError(CurConvertError):
    """A file, option or request is wrong."""

    exit_code = 2


class VerificationError(CurConvertError):
    """A verification gate failed."""

    exit_code = 3


class IntegrityError(CurConvertError):
    """The artifact's bytes are not what its manifest says."""

    exit_code = 4


class UnsupportedError(CurConvertError):
    """The input is well formed but this version does not handle it."""

    exit_code = 5


class BackendError(CurConvertError):
    """A needed package, execution provider or operator is missing or failed."""

    exit_code = 6
