"""Collects the files that an artifact gets besides weights: tokenizer, generation defaults, chat template."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curconvert.base.errors import InputError
from curconvert.checkpoint.files import ModelFolder, load_json_object
from curconvert.checkpoint.stand_ins import refuse_stand_in
from curconvert.checkpoint.types import Companions
from curconvert_runtime.format.artifact import Artifact
from curconvert_schemas.client_settings import SETTINGS, foreign_keys

COMPANION_NAMES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
# Other files of the artifact say what these say.
REPLACED_NAMES = ("chat_template.json", "special_tokens_map.json", "tekken.json")
TOKENIZER_LIMIT = 100_000_000

logger = logging.getLogger(__name__)


def folder_companions(folder: ModelFolder) -> Companions:
    """Return the companion files of the model in a folder, without settings that may name code or files.

    Raises:
        InputError: A file is a link out of the folder, is no regular file, too large, or its JSON is malformed.
    """
    copied: dict[str, Path] = {}
    written: dict[str, bytes] = {}
    for name in COMPANION_NAMES:
        path = folder.regular(name)
        if path is not None:
            copied[name] = refuse_stand_in(path)
            if (size := path.stat().st_size) > TOKENIZER_LIMIT:
                raise InputError(f"{path}: {size} bytes, expected a file of at most {TOKENIZER_LIMIT}")
    for name in sorted(SETTINGS.keys() & copied.keys()):
        settings = load_json_object(copied[name], TOKENIZER_LIMIT)
        kept = _without_foreign(copied[name], settings)
        if kept != settings:
            del copied[name]
            written[name] = json_bytes(kept)
    return Companions(copied, written)


def _without_foreign(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's settings without those that may name code or files; name them in a warning."""
    foreign = foreign_keys(path.name, settings)
    if foreign:
        logger.warning(
            "%s: %s left out: an artifact names no code and no files, so only known settings hold text",
            path,
            ", ".join(foreign),
        )
    return {key: value for key, value in settings.items() if key not in foreign}


def artifact_companions(artifact: Artifact) -> Companions:
    """Return an artifact's copies of its original's companion files."""
    return Companions({name: artifact.file(name) for name in COMPANION_NAMES if artifact.has(name)})


def json_bytes(value: object) -> bytes:
    """Return a companion file's content as indented JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
