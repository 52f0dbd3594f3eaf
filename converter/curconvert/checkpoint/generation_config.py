"""Makes an artifact's `generation_config.json`: the model's own defaults, checked, with the decided special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from transformers import GenerationConfig

from curconvert.base.errors import InputError
from curconvert.checkpoint.special_tokens import FIELDS, SpecialTokens
from curconvert_runtime.serve.sampling import Sampling
from curconvert_schemas.generation import rare_settings

# Of the run that saved the file, or without effect on the text.
_NOT_DEFAULTS = ("transformers_version", "use_cache", "output_attentions", "output_hidden_states")


@cache
def generation_fields() -> frozenset[str]:
    """Return the settings of generation. Older models have them in `config.json`."""
    names = (name for name in vars(GenerationConfig()) if not name.startswith("_"))
    return frozenset(names) - {*FIELDS, *_NOT_DEFAULTS}


def generation_config(stored: Mapping[str, Any], tokens: SpecialTokens, where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the content of the artifact's file, and notices about settings that do not count.

    Args:
        stored: Content of the model's `generation_config.json`, or settings of generation in its `config.json`.
        tokens: The model's special tokens.
        where: The file, for messages.
    """
    kept = {key: value for key, value in stored.items() if key not in _NOT_DEFAULTS and not key.startswith("_")}
    kept = {key: value for key, value in (kept | tokens.fields()).items() if value is not None}
    notices = []
    for name in [field.name for field in fields(Sampling) if field.name in kept]:
        try:
            Sampling(**{name: kept[name]})
        except InputError as error:
            notices.append(f"{where}: {error}; it is left out")
            del kept[name]
    if names := rare_settings(kept):
        notices.append(f"{where}: curconvert's runtime does not follow {', '.join(names)}; transformers does")
    return kept, notices
