"""The version of the installed package."""

from __future__ import annotations

from importlib import metadata


def installed_version() -> str:
    """Return the version of curconvert, or a mark where the source tree was never installed."""
    try:
        return metadata.version("curconvert")
    except metadata.PackageNotFoundError:
        return "0+unknown"
