"""Collects the files that an artifact gets besides weights: tokenizer, generation defaults, chat template."""

from __future__ import annotations

import json
from pathlib import Path

from curconvert.checkpoint.files import ModelFolder, load_json_object
from curconvert.checkpoint.types import Companions
from curconvert_runtime.format.artifact import Artifact

COMPANION_NAMES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
TOKENIZER_LIMIT = 100_000_000


def folder_companions(folder: ModelFolder) -> Companions:
    """Return the companion files of the model in a folder.

    Raises:
        InputError: A file is a link out of the folder, is no regular file, or its JSON is malformed.
    """
    copied: dict[str, Path] = {}
    written: dict[str, bytes] = {}
    for name in COMPANION_NAMES:
        path = folder.regular(name)
        if path is not None:
            copied[name] = path
    if path := copied.get("tokenizer_config.json"):
        settings = load_json_object(path, TOKENIZER_LIMIT)
        # transformers 5 writes a class name that 4.57 cannot load; both versions load the name written here.
        if settings.get("tokenizer_class") == "TokenizersBackend":
            del copied["tokenizer_config.json"]
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            settings.setdefault("model_input_names", ["input_ids", "attention_mask"])  # or 4.57 adds token_type_ids
            written["tokenizer_config.json"] = json_bytes(settings)
    return Companions(copied, written)


def artifact_companions(artifact: Artifact) -> Companions:
    """Return an artifact's copies of its original's companion files."""
    return Companions({name: artifact.file(name) for name in COMPANION_NAMES if artifact.has(name)})


def json_bytes(value: object) -> bytes:
    """Return a companion file's content as indented JSON."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
