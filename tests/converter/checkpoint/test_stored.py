"""Quantized checkpoints: the weights by the definition of each format; what is refused, and how it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.safetensors_file import map_tensor, read_header
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.stored.plain import REFUSED, plain_weights
from curconvert.jobs.export import export
from curconvert.jobs.parity import check_slices
from curconvert.options.source import SourceOptions
from support.checkpoints import edit_config, edit_tensors
from support.families import TinyModel
from support.quantized_checkpoints import FORMATS, quantize_checkpoint

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_quantized_weight_is_what_its_format_says(
    kind: str, tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """Bit for bit: the float64 value of the definition, rounded once."""
    expected = quantize_checkpoint(tiny("llama").folder, tmp_path / "model", FORMATS[kind])
    checkpoint = open_checkpoint(tmp_path / "model")
    for name, wanted in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name).numpy(), wanted.astype(np.float32), err_msg=name)


def test_weights_get_the_dtype_that_the_config_names(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """As transformers dequantizes: rounded to bfloat16, if that is the model's dtype."""
    expected = quantize_checkpoint(tiny("llama").folder, tmp_path / "model", FORMATS["fp8-blocks"])
    edit_config(tmp_path / "model", dtype="bfloat16")
    checkpoint = open_checkpoint(tmp_path / "model")
    wanted = torch.from_numpy(expected[f"{Q_PROJ}.weight"]).to(torch.bfloat16)
    assert torch.equal(checkpoint.read(f"{Q_PROJ}.weight"), wanted)
    assert checkpoint.tensors[f"{Q_PROJ}.weight"].dtype == "BF16"


def test_a_fused_projection_is_sliced_after_dequantization(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Phi-3's q_proj is the first rows of what is stored in blocks that do not end there."""
    expected = quantize_checkpoint(tiny("phi3").folder, tmp_path / "model", FORMATS["fp8-blocks-that-end-early"])
    rows = expected["model.layers.0.self_attn.qkv_proj.weight"][:32].astype(np.float32)
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "model").read(f"{Q_PROJ}.weight").numpy(), rows)


@pytest.mark.parametrize("kind", ["fp8-blocks", "ct-packed-int4-groups-with-zeros"])
def test_an_export_of_a_quantized_checkpoint_equals_it(
    kind: str, tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """The source's files have the recorded hashes, and every tensor is the dequantized one."""
    quantize_checkpoint(tiny("llama").folder, tmp_path / "model", FORMATS[kind])
    export(SourceOptions(str(tmp_path / "model")), tmp_path / "out")
    assert all(check.passed for check in check_slices(tmp_path / "out", tmp_path / "model"))


def test_a_notice_says_that_weights_are_dequantized_and_scales_left_out(
    tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """How many, in which format, to which dtype; and the scales of activations."""
    quantize_checkpoint(tiny("llama").folder, tmp_path / "model", FORMATS["fp8-tensor-of-autofp8"])
    edit_tensors(tmp_path / "model", lambda stored: stored.update({f"{Q_PROJ}.input_scale": torch.ones(())}))
    notices = open_checkpoint(tmp_path / "model").notices
    assert "14 weights are quantized (fp8); they are dequantized to float32" in notices
    assert "1 scales of activations and caches are left out" in notices


def test_mxfp4_experts_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    """As gpt-oss stores them: 3 experts of 6 outputs and 64 inputs; transposed like transformers' parameter."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 6, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(115, 130, (3, 6, 2), generator=generator, dtype=torch.uint8)
    save_file({"experts.up_blocks": blocks, "experts.up_scales": scales}, tmp_path / "x.safetensors")
    stored, files = read_header(tmp_path / "x.safetensors"), SourceFiles([tmp_path / "x.safetensors"])
    config = {"quantization_config": {"quant_method": "mxfp4"}, "dtype": "bfloat16"}
    plain = plain_weights(stored, lambda info: map_tensor(info, files), config, "x")
    assert list(plain.tensors) == ["experts.up"]
    assert plain.tensors["experts.up"].shape == (3, 64, 6)
    assert torch.equal(plain.read(plain.tensors["experts.up"]), convert_moe_packed_tensors(blocks, scales))


Damage = Callable[[dict[str, torch.Tensor]], Any]


def _without(end: str) -> Damage:
    return lambda stored: stored.pop(f"{Q_PROJ}.{end}")


def _with(end: str, value: torch.Tensor) -> Damage:
    return lambda stored: stored.update({f"{Q_PROJ}.{end}": value})


@pytest.mark.parametrize(
    ("kind", "damage", "words"),
    [
        ("fp8-blocks", _without("weight_scale_inv"), "q_proj.weight_scale_inv, which it needs, is missing"),
        ("fp8-blocks", _with("weight_scale_inv", torch.ones(3, 3)), r"is \[3, 3\], expected"),
        ("fp8-blocks", _with("weight_scale_inv", torch.ones(2, 2, dtype=torch.float64)), "dtype F64, expected one of"),
        ("fp8-blocks", _with("weight", torch.ones(4, 4, 4).to(torch.float8_e4m3fn)), "expected a matrix"),
        ("ct-packed-int4-groups", _without("weight_shape"), "weight_shape, which it needs, is missing"),
        ("ct-packed-int4-groups", _with("weight_shape", torch.tensor([32, 320])), r"is \[32, 4\], expected \[32, 40\]"),
        ("ct-packed-int4-groups", _with("weight_shape", torch.tensor([-1, 32])), r"expected \[-1, 4\]"),
        ("ct-packed-int4-groups", _with("weight", torch.ones(32, 32)), "both quantized and as it is"),
        ("ct-packed-int4-groups-with-zeros", _without("weight_zero_point"), "weight_zero_point, which it needs"),
        ("ct-packed-int4-in-another-order", _with("weight_g_idx", torch.full((32,), 9)), "names a group outside"),
        ("ct-nvfp4", _without("weight_global_scale"), "weight_global_scale, which it needs, is missing"),
    ],
)
def test_quantized_tensors_that_contradict_each_other_are_refused(
    kind: str,
    damage: Callable[[dict[str, torch.Tensor]], Any],
    words: str,
    tiny: Callable[[str], TinyModel],
    tmp_path: Path,
) -> None:
    """A part that is missing, of another shape or dtype, or that points outside: one line that names it."""
    quantize_checkpoint(tiny("llama").folder, tmp_path / "model", FORMATS[kind])
    edit_tensors(tmp_path / "model", damage)
    with pytest.raises(InputError, match=words):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"config_groups": {}}, "no config_groups"),
        ({"config_groups": {"group_0": {"weights": None}}}, "no group of quantization_config"),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": -7}}}}, "expected two positive"),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 5}}}}, "num_bits 5, which is not read; give the unq"),
        ({"format": "marlin-24"}, "format 'marlin-24', which is not read; give the unquantized"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config .* is not read; give the unquantized"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config .* is not read; give the unquantized"),
    ],
)  # fmt: skip
def test_configurations_that_are_not_read_are_named(
    settings: dict[str, Any], words: str, tiny: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """Malformed ones, other widths and layouts, sparse and rotated weights."""
    kind = FORMATS["ct-packed-int4-groups"]
    quantize_checkpoint(tiny("llama").folder, tmp_path / "model", replace(kind, config={**kind.config, **settings}))
    with pytest.raises((InputError, UnsupportedError), match=words):
        open_checkpoint(tmp_path / "model")


@pytest.mark.parametrize("method", [*REFUSED, "another"])
def test_other_formats_are_refused_by_name(method: str, llama: Path) -> None:
    """GPTQ, AWQ, bitsandbytes and the rest: what it is, and what to give."""
    edit_config(llama, quantization_config={"quant_method": method})
    edit_tensors(llama, lambda stored: stored.update({f"{Q_PROJ}.qweight": torch.ones(4, 4, dtype=torch.int32)}))
    with pytest.raises(UnsupportedError, match="not read; give the unquantized model") as caught:
        open_checkpoint(llama)
    assert REFUSED.get(method, repr(method)) in str(caught.value)


def test_old_bitsandbytes_configs_name_no_method(llama: Path) -> None:
    """Early versions wrote only `load_in_4bit`."""
    edit_config(llama, quantization_config={"load_in_4bit": True})
    edit_tensors(llama, lambda stored: stored.update({f"{Q_PROJ}.weight": torch.ones(512, 1, dtype=torch.uint8)}))
    with pytest.raises(UnsupportedError, match="quantized with bitsandbytes"):
        open_checkpoint(llama)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "torchao"])
def test_plain_weights_with_a_quantized_config_are_read_on_request(method: str, llama: Path) -> None:
    """The message says how, and it works."""
    edit_config(llama, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedError, match="--config-set quantization_config=null") as caught:
        open_checkpoint(llama)
    key, _, value = str(caught.value).rpartition("--config-set ")[2].partition("=")
    opened = open_checkpoint(llama, config_set={key: value})
    assert "quantization_config" not in opened.config
    assert json.loads((llama / "config.json").read_text())["quantization_config"] == {"quant_method": method}
