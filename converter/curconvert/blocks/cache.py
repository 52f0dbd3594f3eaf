"""Knows what transformers calls the argument that takes a cache."""

from __future__ import annotations

import inspect

from torch import nn


def cache_argument(module: nn.Module) -> str:
    """Return the name of the parameter of a model's, or of a decoder layer's, `forward` that takes a cache.

    transformers 5.24 renamed it from `past_key_values` to `cache`.
    """
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
