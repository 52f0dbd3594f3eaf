"""A multimodal checkpoint is read as its language model, which computes what the whole computes on text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.calibration.self_text import resident_model
from curconvert.checkpoint import open_checkpoint
from support.checkpoints import edit_config
from support.wrappers import WRAPPER_TYPES, save_wrapper, text_logits, tiny_wrapper

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
Rename = Callable[[str], str]


def read_logits(folder: Path, **options: Any) -> torch.Tensor:
    """Return the logits of the language model that is read."""
    return text_logits(resident_model(open_checkpoint(folder, **options)), IDS)


def rename(folder: Path, change: Rename) -> None:
    """Give all tensors other names."""
    stored = load_file(folder / "model.safetensors")
    save_file({change(name): tensor for name, tensor in stored.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("model_type", WRAPPER_TYPES)
def test_the_language_model_computes_what_the_whole_computes_on_text(model_type: str, tmp_path: Path) -> None:
    """transformers' own multimodal class gives the same logits, bit for bit, as saved by transformers."""
    model = tiny_wrapper(model_type)
    assert torch.equal(read_logits(save_wrapper(model, tmp_path)), text_logits(model, IDS))


def _inner(name: str) -> str:
    return name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")


LAYOUTS: dict[str, tuple[str, Rename]] = {
    "language_model.model": ("gemma3", lambda name: name),
    "model.language_model": ("gemma3", _inner),
    "model.language_model-mistral3": ("mistral3", _inner),
    "model": ("qwen2_5_vl", lambda name: name),
    "model.text_model": ("smolvlm", lambda name: name),
    "compiled": ("llava", lambda name: f"_orig_mod.{name}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_names_is_read(layout: str, tmp_path: Path) -> None:
    """Old and new versions of transformers put the language model in different places."""
    model_type, change = LAYOUTS[layout]
    model = tiny_wrapper(model_type)
    rename(save_wrapper(model, tmp_path), change)
    assert torch.equal(read_logits(tmp_path), text_logits(model, IDS))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_an_old_config_holds_the_text_fields_itself(model_type: str, tmp_path: Path) -> None:
    """The first Qwen-VL configs have no text_config, and call the rotary type mrope."""
    model = tiny_wrapper(model_type)
    config = json.loads((save_wrapper(model, tmp_path) / "config.json").read_text())
    text = config.pop("text_config")
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    flat = {**text, **config, "rope_theta": 1e4, "rope_scaling": rope}
    del flat["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert torch.equal(read_logits(tmp_path), text_logits(model, IDS))


def test_missing_fields_have_the_defaults_of_the_multimodal_type(tmp_path: Path) -> None:
    """Published Gemma 3 configs leave out the numbers of heads and the vocabulary."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    model = tiny_wrapper("gemma3", num_attention_heads=8, num_key_value_heads=4, layer_types=None, **sizes)
    edit_config(save_wrapper(model, tmp_path), text_config={"model_type": "gemma3_text", "vocab_size": 97, **sizes})
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.config["num_attention_heads"], checkpoint.config["num_key_value_heads"]) == (8, 4)


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    """The notice names the language model's family and the other towers, whose buffers may be integers."""
    save_wrapper(tiny_wrapper("llava"), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(4)
    save_file(stored, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert not any("vision" in name for name in checkpoint.tensors)
    assert checkpoint.notices == (
        "llava: only the language model (llama) is read; left out: multi_modal_projector (4 tensors), "
        "vision_tower (24 tensors)",
    )


def test_the_config_is_the_language_models(tmp_path: Path) -> None:
    """Nothing of the multimodal config is left, and its special tokens are taken over."""
    save_wrapper(tiny_wrapper("qwen2_5_vl"), tmp_path)
    edit_config(tmp_path, eos_token_id=7, dtype="float32")
    config = open_checkpoint(tmp_path).config
    assert (config["model_type"], config["architectures"]) == ("qwen2", ["Qwen2ForCausalLM"])
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e4}
    assert not [key for key in config if "vision" in key or "image" in key or key == "text_config"]


def test_a_text_config_beside_multimodal_names_is_enough(tmp_path: Path) -> None:
    """`--config` may name the language model's own config."""
    model = tiny_wrapper("gemma3")
    save_wrapper(model, tmp_path / "model")
    text = json.loads((tmp_path / "model" / "config.json").read_text())["text_config"]
    (tmp_path / "text.json").write_text(json.dumps(text))
    assert torch.equal(read_logits(tmp_path / "model", config=tmp_path / "text.json"), text_logits(model, IDS))


def test_settings_apply_to_the_language_model(tmp_path: Path) -> None:
    """`--config-set` changes fields of the text config."""
    save_wrapper(tiny_wrapper("mistral3"), tmp_path)
    config = open_checkpoint(tmp_path, config_set={"rope_theta": "5e5", "sliding_window": "null"}).config
    assert config["rope_theta"] == 5e5
    assert config["sliding_window"] is None


@pytest.mark.parametrize("stated", [True, None])
def test_a_tied_head_is_found_wherever_the_config_states_it(stated: bool | None, tmp_path: Path) -> None:
    """In the text config, or nowhere: then the multimodal type's default holds."""
    save_wrapper(tiny_wrapper("gemma3", tie_word_embeddings=True), tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    text["tie_word_embeddings"] = stated
    edit_config(tmp_path, tie_word_embeddings=..., text_config={k: v for k, v in text.items() if v is not None})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in checkpoint.tensors


def test_a_stored_head_needs_no_statement(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A config that says nothing about tying, with a head in the file, is no contradiction."""
    model = tiny_wrapper("mistral3")
    save_wrapper(model, tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    del text["tie_word_embeddings"]
    edit_config(tmp_path, tie_word_embeddings=..., text_config=text)
    assert torch.equal(read_logits(tmp_path), text_logits(model, IDS))
    assert not caplog.records


def test_a_language_model_of_another_family_is_named(tmp_path: Path) -> None:
    """The multimodal type is supported, but not with every language model."""
    save_wrapper(tiny_wrapper("llava"), tmp_path)
    edit_config(tmp_path, text_config={"model_type": "cohere2", "hidden_size": 32})
    with pytest.raises(UnsupportedError, match="the language model of this llava model is a 'cohere2'"):
        open_checkpoint(tmp_path)


def test_the_advice_for_an_old_transformers_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version without the multimodal type still reads its language model, whose config is given."""
    model = tiny_wrapper("llava")
    save_wrapper(model, tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    (tmp_path / "text.json").write_text(json.dumps(text))
    known = {name: CONFIG_MAPPING[name] for name in ("llama",)}
    monkeypatch.setattr("curconvert.checkpoint.text_part.CONFIG_MAPPING", known)
    with pytest.raises(UnsupportedError, match="does not know llava; upgrade transformers, or pass --config"):
        open_checkpoint(tmp_path)
    assert torch.equal(read_logits(tmp_path, config=tmp_path / "text.json"), text_logits(model, IDS))


@pytest.mark.parametrize("text", [None, [], "llama", 3])
def test_a_malformed_text_config_is_refused(text: Any, tmp_path: Path) -> None:
    """With the advice to give the language model's own config."""
    save_wrapper(tiny_wrapper("llava"), tmp_path)
    edit_config(tmp_path, text_config=text)
    with pytest.raises(InputError, match=r"text_config is .*; pass --config"):
        open_checkpoint(tmp_path)


def test_a_quantized_multimodal_model_is_refused(tmp_path: Path) -> None:
    """The outer config says it."""
    save_wrapper(tiny_wrapper("llava"), tmp_path)
    edit_config(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedError, match="quantized"):
        open_checkpoint(tmp_path)
