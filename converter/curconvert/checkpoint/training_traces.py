"""Removes from a model's files what belongs to a training run, or to the machine of one, and not to the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from curconvert.checkpoint.companions import json_bytes

# Arguments of the run's tokenizer calls: clients would cut or fill every text as the run did.
_CALLS = (
    "max_length",
    "padding",
    "pad_to_max_length",
    "pad_to_multiple_of",
    "stride",
    "truncation",
    "truncation_strategy",
)
# Of the machine that saved the tokenizer. Other paths and code have been left out before.
_MACHINE = ("local_files_only", "name_or_path", "special_tokens_map_file", "token", "use_auth_token")


def clean_tokenizer(content: bytes, tokenizer: Tokenizer) -> tuple[bytes, list[str]]:
    """Return `tokenizer.json` without truncation, padding and BPE dropout, and what was removed.

    Args:
        content: The file's bytes; returned unchanged if nothing has to go.
        tokenizer: The same tokenizer, opened.
    """
    found = {
        "truncation": tokenizer.truncation,
        "padding": tokenizer.padding,
        "BPE dropout": getattr(tokenizer.model, "dropout", None),
    }
    removed = [name for name, value in found.items() if value is not None]
    if not removed:
        return content, []
    value = json.loads(content)  # tokenizers has read it, so it is JSON
    value |= {"truncation": None, "padding": None}
    if "dropout" in value["model"]:
        value["model"]["dropout"] = None
    return json_bytes(value), removed


def clean_settings(settings: Mapping[str, Any], context: int) -> tuple[dict[str, Any], list[str]]:
    """Return `tokenizer_config.json` without arguments of a run, and what was removed.

    Args:
        settings: The file's content.
        context: The model's longest sequence. A smaller `model_max_length` is the length of a run's examples.
    """
    removed = [name for name in _CALLS if settings.get(name) not in (None, False)]
    kept = {
        key: value for key, value in settings.items() if key not in (*_CALLS, *_MACHINE) and not key.startswith("_")
    }
    length = kept.get("model_max_length")
    if isinstance(length, int | float) and length < context:
        kept["model_max_length"] = context
        removed.append(f"model_max_length {length}")
    return kept, removed
