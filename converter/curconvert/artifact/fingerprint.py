"""What the bytes of a conversion depend on: an interrupted one is continued only where all of it is as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from curconvert.artifact.manifest import FORMAT_VERSION, source_files
from curconvert.base.environment import environment
from curconvert.calibration.text import CalibrationTokens
from curconvert.checkpoint.types import Checkpoint, Companions
from curconvert_runtime import __version__
from curconvert_runtime.format.hashing import sha256


def fingerprint(
    checkpoint: Checkpoint, companions: Companions, tokens: CalibrationTokens, options: Mapping[str, Any]
) -> dict[str, str]:
    """Return versions, hashes, options and environment of a conversion.

    Args:
        checkpoint: The original, whose files are hashed.
        companions: Its other files.
        tokens: The calibration text, as it is before the model writes some of it.
        options: As JSON; all of them count.

    Returns:
        By names that are meant for messages.
    """
    copied = {f"source file {name}": sha256(path) for name, path in companions.copied.items()}
    written = {
        f"source file {name}": hashlib.sha256(content).hexdigest() for name, content in companions.written.items()
    }
    return {
        **common(source_files(checkpoint), tokens.sha256, options),
        **copied,
        **written,
        "model config": hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode()).hexdigest(),
    }


def common(sources: Iterable[Mapping[str, Any]], token_sha256: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Return what any work on a model and a text depends on.

    Args:
        sources: Name, size and sha256 of each file of the original.
        token_sha256: Of the text.
        options: As JSON; all of them count.
    """
    files = {f"source file {entry['name']}": f"{entry['size']} bytes, {entry['sha256']}" for entry in sources}
    return {
        "curconvert version": __version__,
        "artifact format": FORMAT_VERSION,
        **_flat("option", options),
        **files,
        "calibration text (sha256 of its tokens)": token_sha256,
        **_flat("environment", environment()),
    }


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested values as text, by dotted name."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix} {name}", value)
        else:
            found[f"{prefix} {name}"] = json.dumps(value)
    return found
