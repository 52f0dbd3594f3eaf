"""Reads the settings of a PEFT adapter, and refuses by name what they ask and a merge cannot give."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.adapters.changes import scale_of
from curconvert.checkpoint.files import load_json_object

CONFIG_NAME = "adapter_config.json"
MERGE_WITH_PEFT = (
    "merge it with PEFT (merge_and_unload, then save_pretrained of the model and its tokenizer) and give that folder"
)
# They decide what is trained or how training goes. The stored tensors show the result.
_INERT = {
    "_custom_modules", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "lora_bias", "lora_dropout",
    "loftq_config", "corda_config", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}  # fmt: skip
_READ = {
    "alpha_pattern", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "r", "rank_pattern",
    "trainable_token_indices", "use_dora", "use_rslora",
}  # fmt: skip
# Other values change the base model before the training begins.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
_PROMPTS = (
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "CPT",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
)


@dataclass(frozen=True)
class LoraSettings:
    """How the tensors of a LoRA adapter are meant.

    Attributes:
        rank: Rank of modules that `ranks` does not name.
        alpha: Alpha of modules that `alphas` does not name.
        ranks: Ranks by the end of a module's path.
        alphas: Alphas by the end of a module's path.
        normalized: Whether each output has a trained length (DoRA).
        stabilized: Whether the scale is divided by the root of the rank.
        transposed: Whether the linears of the base store (inputs, outputs).
        trained_tokens: Rows of trained tokens, by module.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    normalized: bool
    stabilized: bool
    transposed: bool
    trained_tokens: Mapping[str, Sequence[int]]

    def rank_of(self, module: str) -> int:
        """Return the rank of a module."""
        return int(_matching(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return the factor of a module's product."""
        return scale_of(_matching(self.alphas, module, self.alpha), self.rank_of(module), stabilized=self.stabilized)


def read_settings(path: Path) -> LoraSettings:
    """Return the settings in an `adapter_config.json`.

    Raises:
        InputError: A value is malformed.
        UnsupportedError: The adapter is of another kind, or uses what is not read.
    """
    raw = load_json_object(path)
    kind = raw.get("peft_type")
    if kind in _PROMPTS:
        raise UnsupportedError(
            f"{path}: peft_type {kind} trains inputs beside the model, which no weights can hold; give the base model "
            "itself"
        )
    if kind != "LORA":
        raise UnsupportedError(f"{path}: peft_type {kind!r:.60} is not read, only LORA; {MERGE_WITH_PEFT}")
    for key, value in raw.items():
        if value and key not in _INERT | _READ:
            raise UnsupportedError(f"{path}: {key:.60} is {value!r:.60}, which is not read; {MERGE_WITH_PEFT}")
    start = raw.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise UnsupportedError(
            f"{path}: init_lora_weights {start!r:.60} changed the base before the training; {MERGE_WITH_PEFT}"
        )
    return LoraSettings(
        rank=_count(raw.get("r"), "r", path),
        alpha=_number(raw.get("lora_alpha"), "lora_alpha", path),
        ranks={
            key: _count(value, f"rank_pattern[{key!r:.60}]", path) for key, value in _table(raw, "rank_pattern", path)
        },
        alphas={
            key: _number(value, f"alpha_pattern[{key!r:.60}]", path)
            for key, value in _table(raw, "alpha_pattern", path)
        },
        normalized=bool(raw.get("use_dora")),
        stabilized=bool(raw.get("use_rslora")),
        transposed=bool(raw.get("fan_in_fan_out")),
        trained_tokens=_tokens(raw.get("trainable_token_indices"), path),
    )


def base_name(path: Path) -> str | None:
    """Return what an `adapter_config.json` calls the base model, if it says so."""
    name = load_json_object(path).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def _table(raw: Mapping[str, Any], key: str, path: Path) -> Sequence[tuple[str, Any]]:
    """Return the entries of a pattern, checked to be names of modules.

    PEFT takes them as regular expressions. One of an unknown author could run for hours, so only what names modules is
    read: words and dots.
    """
    table = raw.get(key) or {}
    if not isinstance(table, dict):
        raise InputError(f"{path}: {key} is {table!r:.60}, expected an object")
    for name in table:
        if re.fullmatch(r"\^?(\w|\.|\\\.)+\$?", name) is None:
            raise UnsupportedError(
                f"{path}: {key} has {name!r:.60}, expected the end of a module's path; {MERGE_WITH_PEFT}"
            )
    return list(table.items())


def _matching(table: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first entry that names a module or the end of its path, as PEFT chooses it."""
    for key, value in table.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _count(value: Any, key: str, path: Path) -> int:
    if type(value) is not int or not 0 < value < 2**20:
        raise InputError(f"{path}: {key} is {value!r:.60}, expected a positive integer")
    return value


def _number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise InputError(f"{path}: {key} is {value!r:.60}, expected a number")
    return float(value)


def _tokens(value: Any, path: Path) -> Mapping[str, Sequence[int]]:
    """Return the trained rows by module; a list means the embedding's."""
    table = {"embed_tokens": value} if isinstance(value, list) else value or {}
    for indices in table.values() if isinstance(table, dict) else [None]:
        if not isinstance(indices, list) or not all(type(index) is int for index in indices):
            raise InputError(f"{path}: trainable_token_indices is {value!r:.60}, expected lists of token ids")
    return dict(table)
