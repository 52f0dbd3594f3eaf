"""Versions of installed packages."""

from __future__ import annotations

from importlib import metadata  # takes as long to import as the rest of this package: import this module when needed


def version() -> str:
    """Return curconvert's version."""
    try:
        return metadata.version("curconvert")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a session computes, those that are installed."""
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
