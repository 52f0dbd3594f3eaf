"""Configs of both dialects become one that both versions of transformers read alike."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from curconvert.checkpoint.config import merge_overrides, normalize_config, parse_overrides
from curconvert.families.family import SUPPORTED_FAMILIES, family_of
from support.families import FAMILIES

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
DIALECTS: dict[str, dict[str, Any]] = {
    **{family: {"model_type": family} for family in FAMILIES},
    "v4-llama3": {"model_type": "llama", "rope_scaling": LLAMA3, "rope_theta": 5e5},
    "v5-llama3": {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
    "v4-linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
    "v4-yarn": {"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 2.0}},
    "v4-gemma3": {
        "model_type": "gemma3_text",
        "rope_theta": 2e6,
        "rope_local_base_freq": 3e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "v4-phi3": {"model_type": "phi3", "rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
    "v4-phi3-su": {
        "model_type": "phi3",
        "rope_scaling": {**LONGROPE, "type": "su"},
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("case", DIALECTS)
def test_normalizing_again_changes_nothing(case: str) -> None:
    """A normalized config is a fixed point: our own artifacts can be opened again."""
    config = normalize_config({**SIZES, **DIALECTS[case]}, "config.json")
    assert normalize_config(config, "config.json") == config


@pytest.mark.parametrize("case", DIALECTS)
def test_both_dialects_are_present_and_agree(case: str) -> None:
    """rope_theta and rope_scaling say what rope_parameters say, and head_dim and tying are explicit."""
    config = normalize_config({**SIZES, **DIALECTS[case], "torch_dtype": "bfloat16"}, "config.json")
    full = config["rope_parameters"].get("full_attention", config["rope_parameters"])
    assert config["rope_theta"] == full["rope_theta"]
    assert (config["rope_scaling"] is None) == (full["rope_type"] == "default")
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert isinstance(config["head_dim"], int)
    assert isinstance(config["tie_word_embeddings"], bool)
    assert config["architectures"] == [SUPPORTED_FAMILIES[config["model_type"]].architecture]


@pytest.mark.parametrize("case", DIALECTS)
def test_transformers_reads_the_same_rope_from_either_form(case: str) -> None:
    """What transformers makes of the normalized config is what it makes of the source."""
    source = {**SIZES, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **DIALECTS[case]}
    if case == "v4-phi3-su":  # transformers 5 no longer knows the old name
        source["rope_scaling"] = LONGROPE
    config = normalize_config(source, "config.json")
    family = CONFIG_MAPPING[config["model_type"]]
    expected = family(**{key: value for key, value in source.items() if key != "model_type"}).to_dict()
    found = family(**{key: value for key, value in config.items() if key != "model_type"}).to_dict()
    for rope in (expected["rope_parameters"], found["rope_parameters"]):
        rope.pop("type", None)
    ignored = {"architectures", "head_dim", "rope_theta", "rope_scaling", "rope_local_base_freq", "rope_parameters"}
    assert found["rope_parameters"] == expected["rope_parameters"]
    assert {key: found[key] for key in expected if key not in ignored} == {
        key: value for key, value in expected.items() if key not in ignored
    }


def test_gemma3_keeps_two_bases() -> None:
    """The base of the sliding layers is rope_local_base_freq in version 4."""
    config = normalize_config({**SIZES, **DIALECTS["v4-gemma3"]}, "config.json")
    assert config["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 3e4}
    assert config["rope_parameters"]["full_attention"]["factor"] == 8.0
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (2e6, 3e4)


def test_olmo3_has_one_base_for_all_layers() -> None:
    """A version 4 rope_theta, stored or set, reaches sliding and full layers (transformers 5 forgets the former)."""
    stored = normalize_config({**SIZES, "model_type": "olmo3", "rope_theta": 2e4}, "config.json")
    changed = normalize_config(merge_overrides(stored, {"rope_theta": 3e4}), "config.json")
    assert [part["rope_theta"] for part in stored["rope_parameters"].values()] == [2e4, 2e4]
    assert [part["rope_theta"] for part in changed["rope_parameters"].values()] == [3e4, 3e4]


@pytest.mark.parametrize(
    "field",
    [
        {"auto_map": {"AutoConfig": "x.y"}},
        {"custom_pipelines": {"x": {"impl": "x.Y"}}},
        {"trust_remote_code": True},
        {"some_path": "/home/someone/model"},
        {"kernels": {"attention": "someone/kernel"}},
    ],
)
def test_fields_that_name_code_or_files_are_left_out(field: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A warning names the field; nothing else of the config changes."""
    usual = {**SIZES, "model_type": "phi3"}
    config = normalize_config({**usual, **field}, "config.json")
    assert config == normalize_config(usual, "config.json")
    (message,) = [message for message in caplog.messages if message.startswith("config.json")]
    assert message.startswith(f"config.json: {next(iter(field))} left out: ")


def test_a_usual_config_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers that only some model knows stay."""
    config = normalize_config({**SIZES, "model_type": "llama", "some_number": 3}, "config.json")
    assert config["some_number"] == 3
    assert caplog.messages == []


def test_default_special_tokens_outside_the_vocabulary_are_dropped() -> None:
    """A family's default ids mean nothing in a smaller vocabulary."""
    assert normalize_config({**SIZES, "model_type": "smollm3"}, "config.json")["pad_token_id"] is None


def test_overrides_are_json_where_they_can_be() -> None:
    """Numbers, booleans, null and objects are parsed; anything else is text."""
    parsed = parse_overrides({"a": "8", "b": "true", "c": "null", "d": '{"x": 1}', "e": "silu", "f": 1.5})
    assert parsed == {"a": 8, "b": True, "c": None, "d": {"x": 1}, "e": "silu", "f": 1.5}


def test_a_rope_scaling_override_replaces_the_stored_one() -> None:
    """`--config-set rope_scaling=…` wins over rope_parameters and keeps the base."""
    raw = {**SIZES, **DIALECTS["v5-llama3"]}
    linear = normalize_config(merge_overrides(raw, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}), "c")
    assert linear["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    plain = normalize_config(merge_overrides(raw, {"rope_scaling": None}), "c")
    assert plain["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}


def test_phi3_parts_have_the_rows_of_its_heads() -> None:
    """q rows are heads · head_dim, k and v rows kv heads · head_dim, gate and up the intermediate size."""
    config = normalize_config({**SIZES, "model_type": "phi3"}, "config.json")
    family = family_of(config)
    assert family.parts(config, "self_attn.qkv_proj") == {"q_proj": 32, "k_proj": 16, "v_proj": 16}
    assert family.parts(config, "mlp.gate_up_proj") == {"gate_proj": 48, "up_proj": 48}
