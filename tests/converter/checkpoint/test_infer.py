"""A lone file without a config: shapes tell what they can, the error asks for exactly the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from curconvert.base.errors import InputError
from curconvert.checkpoint import open_checkpoint
from support.checkpoints import edit_tensors
from support.families import FAMILIES, TinyModel, make_checkpoint

COMMON = {"rope_theta": "10000.0", "rms_norm_eps": "3e-4", "max_position_embeddings": "64"}
# What each family must be told on top of COMMON, and what the error must not ask for.
ANSWERS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": "8"},
    "mistral": {"model_type": "mistral", "head_dim": "8", "sliding_window": "6"},
    "qwen2": {"num_attention_heads": "4"},
    "qwen3": {},
    "smollm3": {"model_type": "smollm3", "head_dim": "8", "no_rope_layer_interval": "2"},
    "gemma2": {"head_dim": "8", "sliding_window": "6", "query_pre_attn_scalar": "12"},
    "gemma3_text": {"sliding_window": "6", "query_pre_attn_scalar": "12", "rope_local_base_freq": "10000.0"},
    "granite": {
        "model_type": "granite",
        "head_dim": "8",
        "attention_multiplier": "0.2",
        "embedding_multiplier": "3.0",
        "residual_multiplier": "0.7",
        "logits_scaling": "0.5",
    },
    "olmo2": {"model_type": "olmo2", "head_dim": "8"},
    "olmo3": {"model_type": "olmo3", "head_dim": "8", "sliding_window": "6"},
    "phi3": {"head_dim": "8", "sliding_window": "6"},
}
INFERRED = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


def lone(folder: Path, target: Path) -> Path:
    """Copy only the weights."""
    target.mkdir()
    return Path(shutil.copy(folder / "model.safetensors", target / "weights.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_answers_the_config_is_complete(family: str, tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Sizes, heads and tying are those of the model that wrote the file."""
    model = tiny(family)
    checkpoint = open_checkpoint(lone(model.folder, tmp_path / "lone"), config_set=COMMON | ANSWERS[family])
    truth = model.oracle.config
    assert {key: checkpoint.config[key] for key in INFERRED if key != "head_dim"} == {
        key: getattr(truth, key) for key in INFERRED if key != "head_dim"
    }
    assert checkpoint.config["head_dim"] == (getattr(truth, "head_dim", None) or 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_error_asks_for_exactly_what_is_missing(
    family: str, tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """Told the family and nothing else, it asks for each open key and for none that shapes answer."""
    file = lone(tiny(family).folder, tmp_path / "lone")
    with pytest.raises(InputError) as caught:
        open_checkpoint(file, config_set={"model_type": family})
    asked = str(caught.value).partition("cannot tell ")[2].partition(" (nor")[0]
    expected = [*COMMON, *(key for key in ANSWERS[family] if key not in ("model_type", "head_dim"))]
    if family not in ("qwen3", "gemma3_text"):  # their head norms show head_dim
        expected.append("head_dim or num_attention_heads")
    found = set(asked.split(", "))
    assert found == set(expected) - ({"num_attention_heads"} if family == "qwen2" else set())
    assert "--config-set key=value" in str(caught.value)


def test_an_ambiguous_family_is_asked_for(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Llama, Mistral, Granite and SmolLM3 have the same tensors."""
    with pytest.raises(InputError, match=r"model_type \(one of llama, mistral, granite, smollm3\)"):
        open_checkpoint(lone(tiny("llama").folder, tmp_path / "lone"))


def test_biases_are_seen(tmp_path: Path) -> None:
    """Attention and MLP biases are read off the names."""
    make_checkpoint(tmp_path / "model", "llama", attention_bias=True, mlp_bias=True)
    file = lone(tmp_path / "model", tmp_path / "lone")
    config = open_checkpoint(file, config_set=COMMON | ANSWERS["llama"]).config
    assert config["attention_bias"] is True
    assert config["mlp_bias"] is True


@pytest.mark.parametrize("heads", ["5", "0", "-8", "true", "eight"])
def test_a_head_width_that_does_not_divide_is_refused(
    heads: str, tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """The message names the rows that it must divide."""
    with pytest.raises(InputError, match="q_proj's 32 rows"):
        open_checkpoint(
            lone(tiny("llama").folder, tmp_path / "lone"),
            config_set=COMMON | {"model_type": "llama", "head_dim": heads},
        )


def test_null_is_no_answer(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """`head_dim=null` leaves the width to be derived from the heads."""
    settings = COMMON | {"model_type": "llama", "head_dim": "null", "num_attention_heads": "4"}
    assert open_checkpoint(lone(tiny("llama").folder, tmp_path / "lone"), config_set=settings).config["head_dim"] == 8


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    ],
)
def test_a_file_of_something_else_is_refused(name: str, llama: Path) -> None:
    """A file without the tensors that sizes come from is named as such."""
    edit_tensors(llama, lambda tensors: tensors.pop(name))
    (llama / "config.json").unlink()
    with pytest.raises(InputError, match=f"tensor {name}, from which sizes are inferred, is missing"):
        open_checkpoint(llama / "model.safetensors")


def test_a_layer_number_that_is_no_number_is_refused(llama: Path) -> None:
    """A name that only looks like a layer is an unexpected tensor, not a crash."""
    edit_tensors(llama, lambda tensors: tensors.update({"model.layers.x.weight": torch.ones(1)}))
    (llama / "config.json").unlink()
    with pytest.raises(InputError, match=r"tensor model\.layers\.x\.weight is unexpected"):
        open_checkpoint(llama / "model.safetensors", config_set=COMMON | ANSWERS["llama"])
