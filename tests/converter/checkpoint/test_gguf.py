"""GGUF files give back the model that was converted into them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from curconvert.base.errors import CurConvertError, InputError, UnsupportedError
from curconvert.checkpoint import Checkpoint, open_checkpoint
from curconvert.checkpoint.gguf import unpermute
from support.families import TinyModel, make_checkpoint, split_names
from support.gguf_files import ARCHITECTURES, interleave, write_gguf

Kind = GGMLQuantizationType
# What GGUF does not carry, or carries in a form that only published sizes make unambiguous.
UNSAID: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 12},
    "gemma3_text": {"query_pre_attn_scalar": 12, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": {"no_rope_layers": [1, 0]},
}


def logits(config: dict[str, Any], tensors: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Run transformers' model on a config and tensors; fused projections are put together again."""
    values = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[config["model_type"]](**values), attn_implementation="eager"
    )
    state = {}
    for name, parameter in model.state_dict().items():
        parts = [part for part, _ in split_names(name, parameter.shape[0], config)]
        state[name] = torch.cat([tensors.get(part, tensors["model.embed_tokens.weight"]) for part in parts])
    model.load_state_dict(state)
    with torch.no_grad():
        return torch.as_tensor(model.eval()(ids).logits)


def read_all(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Read every tensor."""
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_gguf_computes_what_the_original_computes(
    family: str, tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """Names, row order, norm offsets and config together: transformers gives the original's logits."""
    model = tiny(family)
    write_gguf(tmp_path / "model.gguf", model)
    checkpoint = open_checkpoint(tmp_path / "model.gguf", config_set=UNSAID.get(family, {}))
    ids = torch.randint(0, 97, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.oracle(ids).logits
    found = logits(dict(checkpoint.config), read_all(checkpoint), ids)
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_stored_values_come_back_as_the_gguf_package_decodes_them(
    kind: GGMLQuantizationType, tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """Bit for bit: half types as they are, quantized ones as float32."""
    expected = write_gguf(tmp_path / "model.gguf", tiny("llama"), kind)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    for name, values in expected.items():
        tensor = checkpoint.read(name)
        assert torch.equal(tensor.float(), torch.from_numpy(np.asarray(values, dtype=np.float32)))
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert checkpoint.tensors[name].location is None
    dtype = {Kind.F16: "F16", Kind.BF16: "BF16"}.get(kind, "F32")
    assert checkpoint.tensors["lm_head.weight"].dtype == dtype
    assert checkpoint.read("lm_head.weight").dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(
        dtype, torch.float32
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model whose rows are as long as a block of 256."""
    shape = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "num_hidden_layers": 1}
    return make_checkpoint(tmp_path_factory.mktemp("wide"), "llama", **shape)


@pytest.mark.parametrize(
    "kind",
    [
        *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
        *(Kind.IQ1_S, Kind.IQ1_M, Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ4_NL),
        *(Kind.IQ4_XS, Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes are some scale, infinity and NaN included
def test_types_that_only_llama_cpp_writes_are_decoded(
    kind: GGMLQuantizationType, wide: TinyModel, tmp_path: Path
) -> None:
    """Random blocks come back as the gguf package decodes them, rows in order."""
    expected = write_gguf(tmp_path / "m.gguf", wide, kind)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        assert np.array_equal(checkpoint.read(name).numpy(), expected[name], equal_nan=True)


def test_a_type_that_cannot_be_decoded_is_named(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Integer tensors are no weights of a supported model."""
    numbers = np.ones((2, 2), dtype=np.int32)
    write_gguf(tmp_path / "m.gguf", tiny("llama"), finish=lambda w: w.add_tensor("blk.0.attn_q_norm.weight", numbers))
    with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q_norm\.weight is I32"):
        open_checkpoint(tmp_path / "m.gguf")


def test_unpermute_undoes_the_interleaving() -> None:
    """Two heads of width 6, written out."""
    rows = torch.arange(12)[:, None]
    stored = torch.tensor([0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11])[:, None]
    assert interleave(rows.numpy(), 2).tolist() == stored.tolist()
    assert torch.equal(unpermute(stored, 2), rows)


def test_phi3_is_split_after_decoding(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Row slices of a quantized fused projection are those of its decoded form."""
    expected = write_gguf(tmp_path / "model.gguf", tiny("phi3"), Kind.Q8_0)["model.layers.1.self_attn.qkv_proj.weight"]
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    parts = [checkpoint.read(f"model.layers.1.self_attn.{part}_proj.weight") for part in "qkv"]
    assert torch.equal(torch.cat(parts), torch.from_numpy(expected))


def test_llama3_rope_scaling_is_recovered_from_its_factors(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """GGUF keeps Llama 3's scaling only as a tensor of frequency factors; transformers' inv_freq must come out."""
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
    }
    shape = {"hidden_size": 64, "head_dim": 16, "max_position_embeddings": 131_072}
    model = make_checkpoint(tmp_path / "hf", "llama", rope_parameters=scaling, **shape)
    plain = 500_000.0 ** (-torch.arange(0, 16, 2) / 16)
    factors = (plain / model.oracle.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    write_gguf(tmp_path / "m.gguf", model, finish=lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    rope = open_checkpoint(tmp_path / "m.gguf").config["rope_parameters"]
    assert rope == {**scaling, "factor": pytest.approx(32.0)}


def test_linear_rope_scaling_is_read(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """`rope.scaling.type = linear` becomes rope_scaling."""
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write_gguf(tmp_path / "m.gguf", tiny("llama"), metadata=metadata)
    assert open_checkpoint(tmp_path / "m.gguf").config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_floats_lose_their_float32_noise(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """3e-4, stored as float32, is 3e-4 again."""
    write_gguf(tmp_path / "m.gguf", tiny("llama"))
    assert open_checkpoint(tmp_path / "m.gguf").config["rms_norm_eps"] == 3e-4


BAD: dict[str, tuple[dict[str, Any], type[CurConvertError], str]] = {
    "moe": ({"llama.expert_count": 8}, UnsupportedError, "mixtures of experts"),
    "split": ({"split.count": 2}, InputError, "part 0 of 2, counted from 0; all parts"),
    "split-text": ({"split.count": "two"}, InputError, "part 0 of 'two'"),
    "head-count-text": ({"llama.attention.key_length": "eight"}, InputError, "head_dim is 'eight'"),
    "rope-factor-zero": ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, InputError, "factor"),
    "rope": ({"llama.rope.scaling.type": "spiral"}, UnsupportedError, "'spiral'"),
}


@pytest.mark.parametrize("case", BAD)
def test_unsupported_metadata_is_refused(case: str, tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """One line that names what is not supported."""
    metadata, kind, word = BAD[case]
    write_gguf(tmp_path / "m.gguf", tiny("llama"), metadata=metadata)
    with pytest.raises(kind, match=word) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


def test_other_rope_factors_are_refused(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Frequency factors that are not Llama 3's formula are not guessed at."""
    factors = np.array([1, 2, 3, 4], dtype=np.float32)
    write_gguf(tmp_path / "m.gguf", tiny("llama"), finish=lambda w: w.add_tensor("rope_freqs.weight", factors))
    with pytest.raises(UnsupportedError, match=r"rope_freqs\.weight"):
        open_checkpoint(tmp_path / "m.gguf")


def test_an_unknown_tensor_is_refused(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """A tensor that the family does not have is named."""
    write_gguf(tmp_path / "m.gguf", tiny("llama"), finish=lambda w: w.add_tensor("blk.0.ssm.weight", np.ones(4)))
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ssm\.weight"):
        open_checkpoint(tmp_path / "m.gguf")


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    """The message lists the supported ones."""
    writer = GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="'mamba' is not supported; supported are llama, qwen2"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_missing_key_is_named(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """A file without its block count says so."""
    write_gguf(tmp_path / "m.gguf", tiny("llama"))
    content = (tmp_path / "m.gguf").read_bytes().replace(b"llama.block_count", b"llama.block_cou__")
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"llama\.block_count is missing"):
        open_checkpoint(tmp_path / "m.gguf")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(share: float, tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Cut anywhere: one line, no endless loop."""
    write_gguf(tmp_path / "m.gguf", tiny("llama"))
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"m\.gguf: (not a valid GGUF file|an empty file)") as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


def test_an_array_of_2_63_elements_ends_with_the_file(tmp_path: Path) -> None:
    """A forged count neither loops nor allocates."""
    key = b"general.architecture"
    header = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
    entry = len(key).to_bytes(8, "little") + key + (9).to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(header + entry + bytes(4) + (2**63).to_bytes(8, "little"))
    with pytest.raises(InputError, match="not a valid GGUF file"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_file_without_a_tokenizer_still_opens(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Weights are good without a tokenizer; the generation defaults are there."""
    write_gguf(tmp_path / "m.gguf", tiny("llama"), metadata={"tokenizer.ggml.eos_token_id": 2})
    written = open_checkpoint(tmp_path / "m.gguf").companions().written
    assert json.loads(written["generation_config.json"]) == {"eos_token_id": 2, "pad_token_id": 2}
    assert "tokenizer.json" not in written
