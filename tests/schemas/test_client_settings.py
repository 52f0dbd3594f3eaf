"""Settings for other programs: what conversions write passes, and what would make such a program run code does not."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from curconvert.artifact.quantization_config import quantization_config
from curconvert.base.plan import MatrixPlan
from curconvert.checkpoint.config import normalize_config, with_dtype
from curconvert.graph import genai_config
from curconvert_runtime.serve.providers import PROVIDERS
from curconvert_schemas import SchemaError, load_schema
from curconvert_schemas.client_settings import SETTINGS, check_settings, foreign_keys
from support.families import FAMILIES, tiny_config

GENAI = genai_config(tiny_config("llama").to_dict())
LIBRARY = {"provider_options": [], "custom_ops_library": "x.so"}
CODE = {"AutoModelForCausalLM": "modeling_evil.Evil"}


@pytest.mark.parametrize("name", sorted(set(SETTINGS.values())))
def test_the_schemas_are_valid(name: str) -> None:
    """They conform to draft 2020-12."""
    Draft202012Validator.check_schema(load_schema(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family: str) -> None:
    """Its completed config and its settings for genai, for each provider."""
    config = with_dtype(normalize_config(tiny_config(family).to_dict(), family), "float32")
    matrix = MatrixPlan("model.layers.0.self_attn.q_proj.weight", (32, 32), "cur", 8)
    check_settings("config.json", config | {"quantization_config": quantization_config([matrix])})
    for provider in PROVIDERS:
        check_settings("genai_config.json", genai_config(config, target=provider))


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "x_token": None}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0": {"content": "<pad>", "special": True}}}),
        ("tokenizer_config.json", {"pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": False}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["<a>"], "extra_special_tokens": {"i_token": "<i>"}}),
        ("tokenizer_config.json", {"chat_template": "{% for m in messages %}auto_map{{ m }}{% endfor %}"}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "custom_ops_library"}]}),
        ("tokenizer_config.json", {"special_tokens_map_file": "/root/x.json", "name_or_path": "a/b", "legacy": False}),
        ("tokenizer_config.json", {"model_max_length": 1e30, "sp_model_kwargs": {}, "add_bos_token": True}),
        ("generation_config.json", {"eos_token_id": [1, 2], "temperature": 0.6, "stop_strings": ["\n"]}),
        ("generation_config.json", {"cache_implementation": "hybrid", "transformers_version": "5.0.0.dev0"}),
        ("special_tokens_map.json", {"eos_token": "</s>", "additional_special_tokens": [{"content": "<a>"}]}),
        ("chat_template.json", {"chat_template": "{{ messages }}"}),
    ],
)  # fmt: skip
def test_usual_settings_pass(file: str, settings: dict[str, Any]) -> None:
    """A chat template may say what it likes: it runs in a sandbox."""
    check_settings(file, settings)
    assert foreign_keys(file, settings) == []


def genai(**decoder: Any) -> dict[str, Any]:
    return {**GENAI, "model": {**GENAI["model"], "decoder": {**GENAI["model"]["decoder"], **decoder}}}


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config.json", {"auto_map": CODE}, "auto_map: not allowed here"),
        ("config.json", {"auto_map": {}}, "auto_map: not allowed here"),
        ("config.json", {"custom_pipelines": {"x": {"impl": "x.Y"}}}, "custom_pipelines: not allowed here"),
        ("config.json", {"trust_remote_code": True}, "trust_remote_code: not allowed here"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "attn_implementation"),
        ("config.json", {"_attn_implementation": {"": "someone/kernel"}}, "_attn_implementation"),
        ("config.json", {"experts_implementation": "someone/kernel"}, "experts_implementation"),
        ("config.json", {"text_config": {"auto_map": CODE}}, "text_config"),
        ("config.json", {"architectures": ["../../evil"]}, "architectures"),
        ("config.json", {"hidden_act": "someone/activation"}, "hidden_act"),
        ("config.json", {"quantization_config": {"quant_method": "other"}}, "quant_method"),
        ("config.json", {"quantization_config": {"quant_method": "curconvert", "modules": "x"}}, "modules"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "auto_map: not allowed here"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "vocab_file"),
        ("tokenizer_config.json", {"tokenizer_file": "../x.json"}, "tokenizer_file"),
        ("tokenizer_config.json", {"tokenizer_class": "evil.Tokenizer/x"}, "tokenizer_class"),
        ("generation_config.json", {"custom_generate": "someone/generate"}, "custom_generate: not allowed here"),
        ("generation_config.json", {"constraints": ["evil.Constraint"]}, "constraints"),
        ("special_tokens_map.json", {"vocab_file": "/etc/passwd"}, "vocab_file"),
        ("genai_config.json", genai(session_options=LIBRARY), "custom_ops_library"),
        ("genai_config.json", genai(session_options={"provider_options": [{"qnn": {"backend_path": "x.so"}}]}), "qnn"),
        ("genai_config.json", genai(session_options={"provider_options": [{"cuda": {"path": "x.so"}}]}), "path"),
        ("genai_config.json", genai(filename="../other.onnx"), "filename"),
        ("genai_config.json", genai(adapters="x"), "adapters"),
        ("genai_config.json", GENAI | {"model": GENAI["model"] | {"vision": {"filename": "v.onnx"}}}, "vision"),
        ("genai_config.json", GENAI | {"search": {"custom_library": "x.so"}}, "custom_library"),
        ("genai_config.json", GENAI | {"engine": {}}, "engine"),
    ],
)  # fmt: skip
def test_what_names_code_a_library_or_a_file_is_refused(file: str, settings: dict[str, Any], message: str) -> None:
    """By the setting's name, in one line."""
    with pytest.raises(SchemaError) as caught:
        check_settings(file, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
