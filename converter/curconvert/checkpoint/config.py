"""Checks a Hugging Face config, completes it with the family's defaults, and writes it for transformers 4 and 5.

Version 5 keeps all rotary settings in `rope_parameters` and calls the stored dtype `dtype`. Version 4 (which optimum
pins) has `rope_theta`, `rope_scaling`, `rope_local_base_freq` and `torch_dtype`. A normalized config has all of these
fields, with the same values.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.base.names import QUANT_METHOD
from curconvert.checkpoint.generation_config import generation_fields
from curconvert.families.family import SUPPORTED_FAMILIES, family_of
from curconvert_schemas import strict
from curconvert_schemas.client_settings import foreign_keys

logger = logging.getLogger(__name__)

DTYPE_NAMES = ("float32", "float16", "bfloat16")
_WIDTH_LIMIT = 2**24
# Largest accepted value of each count that decides shapes or loops. A missing or null count takes the family's default.
_INTEGERS: Mapping[str, int] = {
    "vocab_size": _WIDTH_LIMIT,
    "hidden_size": _WIDTH_LIMIT,
    "intermediate_size": _WIDTH_LIMIT,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 65_536,
    "num_key_value_heads": 65_536,
    "head_dim": 65_536,
    "max_position_embeddings": 2**31 - 1,
    "original_max_position_embeddings": 2**31 - 1,
    "sliding_window": 2**31 - 1,
}
_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_POSITIVE = ("rms_norm_eps", "rope_theta", "rope_local_base_freq", "partial_rotary_factor", "query_pre_attn_scalar")
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_ROPE_POSITIVE = (
    "rope_theta",
    "factor",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "short_factor",
    "long_factor",
)
# Always dropped: paths and choices of the run that saved the config. `use_cache` is false after a training that saved
# memory, and makes generation slow.
_OF_A_RUN = ("attn_implementation", "gradient_checkpointing", "unsloth_fixed", "unsloth_version", "use_cache")
# Dropped unless the source has them, because they do not describe the model. transformers decides by its own version in
# the config whether a Mistral tokenizer needs a repair, so that one stays.
_NOISE = (
    "transformers_version",
    "chunk_size_feed_forward",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
)


def parse_overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of `--config-set`, parsed as JSON if possible (`8`, `true`, `{"a": 1}`), otherwise as text."""
    parsed: dict[str, Any] = {}
    for key, value in settings.items():
        try:
            parsed[key] = strict.loads(value) if isinstance(value, str) else value
        except ValueError:
            parsed[key] = value
    return parsed


def merge_overrides(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with overrides; a rope override in the version 4 dialect also changes `rope_parameters`."""
    merged = {**raw, **overrides}
    parameters = deepcopy(raw.get("rope_parameters"))
    rope = overrides.keys() & {"rope_theta", "rope_scaling", "rope_local_base_freq"}
    if not rope or not isinstance(parameters, dict) or "rope_parameters" in overrides:
        return merged
    full = parameters.get("full_attention", parameters)
    sliding = parameters.get("sliding_attention")
    if not isinstance(full, dict) or not isinstance(overrides.get("rope_scaling") or {}, dict):
        return merged  # the validation rejects it later
    if "rope_scaling" in rope:
        kept = {key: full[key] for key in ("rope_theta", "partial_rotary_factor") if key in full}
        full.clear()
        full |= kept | (overrides["rope_scaling"] or {"rope_type": "default"})
    if "rope_theta" in rope:
        full["rope_theta"] = overrides["rope_theta"]
        family = SUPPORTED_FAMILIES.get(str(raw.get("model_type")))
        if family is not None and family.one_rope_base and isinstance(sliding, dict):
            sliding["rope_theta"] = overrides["rope_theta"]
    if "rope_local_base_freq" in rope and isinstance(sliding, dict):
        sliding["rope_theta"] = overrides["rope_local_base_freq"]
    # Remove it, because transformers prefers a top-level rope_scaling, which has no base.
    merged.pop("rope_scaling", None)
    return {**merged, "rope_parameters": parameters}


def normalize_config(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the config, validated and completed.

    Args:
        raw: The config as stored, in either dialect.
        source: Name of the config in messages, usually its path.

    Returns:
        A config that transformers 4.57 and 5 both load, with the family's defaults filled in.

    Raises:
        InputError: A field is missing, of the wrong type or out of range.
        UnsupportedError: The family or a rope scaling is not supported.
    """
    dropped = {"auto_map", "architectures", *_OF_A_RUN, *generation_fields()}
    values = {key: value for key, value in raw.items() if key not in dropped and not key.startswith("_")}
    family = family_of(values)
    _refuse_unsupported(values, source)
    values.pop("quantization_config", None)
    validate(values, source)
    for key in ("head_dim", "num_key_value_heads", "rope_scaling", "rope_parameters"):
        if values.get(key, ...) is None:
            del values[key]
    if family.one_rope_base and "rope_parameters" not in values and "rope_theta" in values:
        # transformers 5 uses the version 4 base only for full layers, but sliding layers have the same base.
        plain = {"rope_type": "default", "rope_theta": values["rope_theta"]}
        values["rope_parameters"] = {"sliding_attention": plain, "full_attention": dict(plain)}
    scaling = values.get("rope_scaling")
    if scaling and "su" in (scaling.get("type"), scaling.get("rope_type")):
        values["rope_scaling"] = {**scaling, "type": "longrope", "rope_type": "longrope"}  # its name in early Phi-3s
    for key in _special_tokens_outside(values):
        raise InputError(
            f"{source}: {key} is {values[key]!r:.60}, outside the vocabulary of {values['vocab_size']}; "
            f"correct it or pass --config-set {key}=null"
        )
    for key in ("rope_scaling", "rope_parameters"):
        _check_rope(values.get(key) or {}, source)  # transformers builds tables from it and only warns of wrong types
    config = _complete(values, source)
    for key in _special_tokens_outside(config):
        config[key] = None  # the family's default is an id of a larger vocabulary
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = config["num_attention_heads"]
    if config.get("head_dim") is None:
        if config["hidden_size"] % config["num_attention_heads"]:
            raise InputError(
                f"{source}: hidden_size {config['hidden_size']} is not a multiple of num_attention_heads "
                f"{config['num_attention_heads']} and head_dim is not given"
            )
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    validate(config, source)
    if config["num_attention_heads"] % config["num_key_value_heads"]:
        raise InputError(
            f"{source}: num_attention_heads {config['num_attention_heads']} is not a multiple of "
            f"num_key_value_heads {config['num_key_value_heads']}"
        )
    config["architectures"] = [family.architecture]
    config["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", False))
    return _without_foreign(_both_dialects(config, source), raw, source)


def refuse_artifact(raw: Mapping[str, Any], source: str) -> None:
    """Reject the config of an artifact, whose factors would otherwise look like damaged weights.

    Raises:
        UnsupportedError: The config is an artifact's.
    """
    quantized = raw.get("quantization_config")
    if isinstance(quantized, dict) and quantized.get("quant_method") == QUANT_METHOD:
        raise UnsupportedError(f"{source}: is an artifact, already compressed; give the original that it was made from")


def _refuse_unsupported(values: Mapping[str, Any], source: str) -> None:
    if values.get("use_bidirectional_attention"):
        raise UnsupportedError(f"{source}: use_bidirectional_attention is not supported; the graphs are causal")


def _without_foreign(config: dict[str, Any], raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the config without the fields that may name code, repositories or files; name them in a warning."""
    foreign = foreign_keys("config.json", config)
    if named := [*foreign, *(key for key in ("auto_map",) if key in raw)]:
        logger.warning(
            "%s: %s left out: an artifact names no code and no files; transformers' own classes are used",
            source, ", ".join(sorted(named)),
        )  # fmt: skip
    return {key: value for key, value in config.items() if key not in foreign}


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with its stored dtype (`float32`, `float16`, `bfloat16`) under both names."""
    return {**config, "dtype": dtype, "torch_dtype": dtype}


def validate(values: Mapping[str, Any], source: str, *, complete: bool = True) -> None:
    """Check types and ranges of the fields that decide shapes and loops; unless `complete`, any of them may be missing.

    Raises:
        InputError: A field is wrong or missing.
    """
    for key, limit in _INTEGERS.items():
        value = values.get(key)
        if value is None:
            if complete and key in _REQUIRED:
                raise InputError(f"{source}: {key} is missing; add it, or pass --config-set {key}=…")
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
            raise InputError(f"{source}: {key} is {value!r:.60}, expected an integer from 1 to {limit}")
    for key in _POSITIVE:
        value = values.get(key)
        if value is not None and not _is_positive(value):
            raise InputError(f"{source}: {key} is {value!r:.60}, expected a positive number")
    tied = values.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise InputError(f"{source}: tie_word_embeddings is {tied!r:.60}, expected true or false")
    for key in ("dtype", "torch_dtype"):
        if not isinstance(values.get(key, ""), str | None):
            raise InputError(f"{source}: {key} is {values[key]!r:.60}, expected a name such as float32")
    for key in ("rope_scaling", "rope_parameters"):
        value = values.get(key)
        if value is not None and not isinstance(value, dict):
            raise InputError(f"{source}: {key} is {value!r:.60}, expected an object")


def _special_tokens_outside(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the config fields whose special tokens are outside the vocabulary."""
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = config.get(key)
        ids = value if isinstance(value, list) else [value]
        limit = config["vocab_size"]  # in old configs, -1 means no token
        if not all(type(number) is int and -1 <= number < limit for number in ids if number is not None):
            yield key


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _complete(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the config with the family's defaults, after transformers has checked the fields that only it knows."""
    arguments = {key: value for key, value in values.items() if key != "model_type"}
    with rejected_by_transformers(source):
        # transformers changes rope keys in place, so give it a copy of the nested objects.
        config = AutoConfig.for_model(values["model_type"], **deepcopy(arguments))
        completed: dict[str, Any] = config.to_dict()
    head_dim = getattr(config, "head_dim", None)
    dropped = [key for key in _NOISE if key not in values]
    kept = {key: value for key, value in completed.items() if key not in dropped and not key.startswith("_")}
    return kept | {"head_dim": head_dim}


@contextmanager
def rejected_by_transformers(source: str) -> Iterator[None]:
    """Turn what transformers raises for a bad config into an `InputError` that names it."""
    try:
        yield
    except (StrictDataclassError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{source}: transformers rejects this config: {' '.join(str(error).split())[:300]}") from None


def _check_rope(parameters: Mapping[str, Any], source: str) -> None:
    """Raise if the rope parameters of a model, or of one of its layer types, are not supported."""
    for part in parameters.values() if "full_attention" in parameters else [parameters]:
        if not isinstance(part, dict):
            raise InputError(f"{source}: rope_parameters holds {part!r:.60}, expected objects by layer type")
        kind = part.get("rope_type", part.get("type", "default"))
        if kind not in _ROPE_TYPES:
            expected = ", ".join(_ROPE_TYPES)
            raise UnsupportedError(f"{source}: rope type {kind!r:.60} is not supported, expected {expected}")
        for key, value in part.items():
            numbers = value if key in ("short_factor", "long_factor") and isinstance(value, list) else [value]
            if key in _ROPE_POSITIVE and not all(map(_is_positive, numbers)):
                raise InputError(f"{source}: {key} of the rope is {value!r:.60}, expected a positive number")
            if key == "partial_rotary_factor" and value > 1:  # the rotary table would grow with this number
                raise InputError(f"{source}: {key} of the rope is {value!r:.60}, expected a share of at most 1")


def _both_dialects(config: dict[str, Any], source: str) -> dict[str, Any]:
    parameters = deepcopy(config.get("rope_parameters")) or {}
    nested = "full_attention" in parameters
    for part in parameters.values() if nested else [parameters]:
        if isinstance(part, dict):
            part.pop("type", None)  # the older spelling; rope_type is set by now
            part.setdefault("rope_theta", None)
    _check_rope(parameters, source)
    full = parameters["full_attention"] if nested else parameters
    scaling = {key: value for key, value in full.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if family_of(config).bare_longrope and scaling["rope_type"] == "longrope":
        # Version 4's config accepts only these three; the original length is a separate field.
        scaling = {"type": "longrope", "short_factor": full["short_factor"], "long_factor": full["long_factor"]}
    config["rope_parameters"] = parameters
    config["rope_theta"] = full["rope_theta"]
    config["rope_scaling"] = None if full["rope_type"] == "default" else scaling
    if nested:
        config["rope_local_base_freq"] = parameters.get("sliding_attention", full)["rope_theta"]
    if "partial_rotary_factor" in full:
        config["partial_rotary_factor"] = full["partial_rotary_factor"]
    # Drop other values, which are no supported weight dtypes. The stored tensors tell the dtype later.
    dtype = config.pop("dtype", None)
    return with_dtype(config, dtype) if dtype in DTYPE_NAMES else config
