"""Takes the config of the language model out of a multimodal model's config."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from transformers import CONFIG_MAPPING

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.config import rejected_by_transformers, validate
from curconvert.families.family import SUPPORTED_FAMILIES
from curconvert.families.wrappers import IMAGE_ROTARY, TEXT_FAMILIES, Wrapper

_TIED = "tie_word_embeddings"
# Fields that are taken from the outer config if the text config lacks them.
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "quantization_config")


def text_config(raw: Mapping[str, Any], wrapper: Wrapper, head_stored: bool, source: str) -> dict[str, Any]:
    """Return the config of the language model, as transformers completes it.

    Args:
        raw: The multimodal model's config.
        wrapper: Its model type.
        head_stored: Whether an lm_head is stored. It decides about tying if the config says nothing.
        source: Name of the config in messages.

    Raises:
        InputError: There is no text config, or transformers rejects it.
        UnsupportedError: The language model is of no supported family, or transformers is too old for the model.
    """
    if wrapper.model_type not in CONFIG_MAPPING:
        raise UnsupportedError(
            f"{source}: this version of transformers does not know {wrapper.model_type}; upgrade transformers, or pass "
            "--config with the language model's own config.json"
        )
    nested = raw.get("text_config")
    if nested is None and wrapper.flat:
        nested = {key: value for key, value in raw.items() if not isinstance(value, dict) or key.startswith("rope_")}
        arguments = {key: value for key, value in nested.items() if key != "model_type"}
    else:
        arguments = {"text_config": nested}
    if not isinstance(nested, dict):
        raise InputError(
            f"{source}: text_config is {nested!r:.60}, expected an object that describes the language model of this "
            f"{wrapper.model_type} model; pass --config with the language model's own config.json"
        )
    validate(nested, source, complete=False)  # transformers makes lists that are as long as a number says
    with rejected_by_transformers(source):
        parsed = CONFIG_MAPPING[wrapper.model_type](**deepcopy(arguments)).get_text_config()
        values: dict[str, Any] = parsed.to_dict()
    family = TEXT_FAMILIES.get(parsed.model_type, parsed.model_type)
    if family not in SUPPORTED_FAMILIES:
        raise UnsupportedError(
            f"{source}: the language model of this {wrapper.model_type} model is a {family!r:.60}, which is not "
            f"supported; supported are {', '.join(SUPPORTED_FAMILIES)}"
        )
    known = CONFIG_MAPPING[family]().to_dict().keys()
    found = {key: value for key, value in values.items() if key in known and key not in (_TIED, *_SHARED)}
    for key in _SHARED:
        if (value := nested.get(key, raw.get(key))) is not None:
            found[key] = value
    # A config that does not say it gets transformers' default for the multimodal type, which its head may contradict.
    tied = [part[_TIED] for part in (raw, nested) if isinstance(part.get(_TIED), bool)]
    default = CONFIG_MAPPING[wrapper.model_type]().to_dict().get(_TIED)
    found[_TIED] = any(tied) if tied else bool(default) and not head_stored
    return _without_image_axes(found) | {"model_type": family}


def _without_image_axes(values: dict[str, Any]) -> dict[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(rope := values.get(key), dict) and rope.keys() & set(IMAGE_ROTARY):
            plain = {name: value for name, value in rope.items() if name not in IMAGE_ROTARY}
            kinds = {name: "default" for name in ("type", "rope_type") if plain.get(name) == "mrope"}
            values[key] = plain | kinds
    return values
