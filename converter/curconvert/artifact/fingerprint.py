"""Lists what the bytes of a conversion depend on. An interrupted run resumes only if none of it has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from curconvert.artifact.manifest import FORMAT_VERSION
from curconvert.base.environment import environment
from curconvert.calibration.text import CalibrationTokens
from curconvert.checkpoint.types import Checkpoint, Companions
from curconvert_runtime import __version__
from curconvert_runtime.format.hashing import sha256


def fingerprint(
    checkpoint: Checkpoint, companions: Companions, tokens: CalibrationTokens, options: Mapping[str, Any]
) -> dict[str, str]:
    """Return versions, hashes, options and environment of a conversion, by names that messages show.

    Args:
        checkpoint: The original; its files are hashed.
        companions: Its other files.
        tokens: The calibration text, before the model adds text of its own.
        options: All options as JSON.
    """
    copied = {f"source file {name}": sha256(path) for name, path in companions.copied.items()}
    written = {
        f"source file {name}": hashlib.sha256(content).hexdigest() for name, content in companions.written.items()
    }
    return {
        **common(checkpoint.files.hashes(), tokens.sha256, tokens.begin, options),
        **copied,
        **written,
        **({"option --ignore": json.dumps(checkpoint.ignore)} if checkpoint.ignore else {}),
        "model config": hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode()).hexdigest(),
    }


def common(
    sources: Iterable[Mapping[str, Any]], token_sha256: str, begin: int | None, options: Mapping[str, Any]
) -> dict[str, str]:
    """Return the part of a fingerprint that all work on a model and a text has.

    Args:
        sources: Size and sha256 of each file of the original. Names do not count.
        token_sha256: sha256 of the text's tokens.
        begin: The begin token of the text's sequences.
        options: All options as JSON.
    """
    contents = sorted(f"{entry['size']} bytes, {entry['sha256']}" for entry in sources)
    files = {f"weight file {number} of {len(contents)}": content for number, content in enumerate(contents, 1)}
    return {
        "curconvert version": __version__,
        "artifact format": FORMAT_VERSION,
        **_flat("option", options),
        **files,
        "begin token": json.dumps(begin),
        "calibration text (sha256 of its tokens)": token_sha256,
        **_flat("environment", environment()),
    }


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested values as JSON texts; a name is the path of keys, joined by spaces."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(f"{prefix} {name}", value)
        else:
            found[f"{prefix} {name}"] = json.dumps(value)
    return found
