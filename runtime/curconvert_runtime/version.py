"""Reads the versions of installed packages."""

from __future__ import annotations

from importlib import metadata  # takes as long to import as the rest of this package: import this module when needed


def version() -> str:
    """Return curconvert's version."""
    return _installed("curconvert").get("curconvert", "0+unknown")  # run from a source tree that was never installed


def installed_versions() -> dict[str, str]:
    """Return the versions of the installed packages that decide what a session computes, by name."""
    return _installed("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")


def _installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
