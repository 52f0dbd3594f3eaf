"""What transformers makes of an artifact beyond answering: training, adapters, fused families, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.blocks.linears.cur import CURLinear
from curconvert.blocks.stored import build_torch_model
from curconvert.jobs.convert import convert
from curconvert.jobs.export import export
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime import Artifact
from support.families import make_checkpoint
from support.tiny_runs import tiny_options, token_file

IDS = torch.tensor([[5, 9, 30, 7, 11, 4, 8]])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny checkpoints and their `cur` artifacts."""
    folder = tmp_path_factory.mktemp("transformers")
    tokens = token_file(folder / "ids.safetensors")
    for family in ("llama", "phi3"):
        make_checkpoint(folder / f"{family}-source", family)
        convert(SourceOptions(str(folder / f"{family}-source")), folder / family, tiny_options(tokens))
    return folder


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


def loss_after(model: Any, steps: int) -> tuple[float, float]:
    """Train what can be trained on one sequence; return the loss before and after."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_families_with_fused_projections_are_loaded(home: Path) -> None:
    """Phi-3's qkv_proj and gate_up_proj give way to the parts that are stored."""
    expected = build_torch_model(Artifact.open(home / "phi3"))(IDS).logits
    torch.testing.assert_close(load(home / "phi3")(IDS).logits, expected, rtol=0, atol=1e-4)


def test_only_u_of_a_compressed_linear_is_trained(home: Path) -> None:
    """C and R stay the original's, bit for bit, and the loss falls."""
    model = load(home / "llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name.endswith(".U"))
    first, last = loss_after(model, 8)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    linears = {name for name, module in model.named_modules() if isinstance(module, CURLinear)}
    assert linears
    assert changed == {f"{name}.U" for name in linears}
    assert last < first


def test_a_trained_model_is_written_and_read(home: Path, tmp_path: Path) -> None:
    """U is what `save_pretrained` writes, under the same names."""
    model = load(home / "llama")
    loss_after(model, 2)
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(load(tmp_path / "trained")(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    "targets", [{"target_modules": ["o_proj"]}, {"target_modules": [], "target_parameters": ["q_proj.U"]}]
)
def test_lora_attaches(home: Path, targets: dict[str, Any]) -> None:
    """To dense linears, and to U as a parameter: it learns, and merging leaves the answers as they are."""
    model: Any = get_peft_model(load(home / "llama"), LoraConfig(r=2, task_type="CAUSAL_LM", **targets))
    first, last = loss_after(model, 8)
    assert last < first
    expected = model(IDS).logits
    torch.testing.assert_close(model.merge_and_unload()(IDS).logits, expected, rtol=0, atol=1e-4)


def test_a_dense_export_is_an_ordinary_model(home: Path, tmp_path: Path) -> None:
    """It loads without this package, so it names no quantizer."""
    export(SourceOptions(str(home / "llama-source")), tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    expected = load(home / "llama-source")(IDS).logits
    torch.testing.assert_close(load(tmp_path / "dense")(IDS).logits, expected, rtol=0, atol=1e-5)


def test_a_later_layout_is_refused(home: Path, tmp_path: Path) -> None:
    """With the version that is there, the one that is known, and what to do."""
    shutil.copytree(home / "llama", tmp_path / "later")
    config = json.loads((tmp_path / "later" / "config.json").read_text())
    config["quantization_config"]["version"] = 2
    (tmp_path / "later" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"version 2: expected 1; install a newer curconvert"):
        load(tmp_path / "later")


def test_quantized_weights_are_refused(home: Path, tmp_path: Path) -> None:
    """With what can be done instead; of an export, too."""
    tokens = token_file(tmp_path / "ids.safetensors")
    source = SourceOptions(str(home / "llama-source"))
    convert(source, tmp_path / "int8", tiny_options(tokens, quantization=Quantization("int8", rounding="nearest")))
    export(source, tmp_path / "dense", quantization=Quantization("int8", rounding="nearest"))
    for name in ("int8", "dense"):
        with pytest.raises(UnsupportedError, match="quantized to int8, which transformers does not load"):
            load(tmp_path / name)


def test_a_dense_model_is_not_compressed_on_loading(home: Path) -> None:
    """`quantization_config=` cannot stand for a conversion."""
    config = AutoConfig.from_pretrained(home / "llama").quantization_config
    from curconvert.artifact.transformers_quantizer import CurConvertConfig

    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(home / "llama-source", quantization_config=CurConvertConfig(**config))


@pytest.mark.parametrize("order", ["curconvert, transformers", "transformers, curconvert"])
def test_the_order_of_imports_does_not_matter(order: str) -> None:
    """The quantizer is there as soon as both are."""
    check = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known; assert 'curconvert' in known"
    subprocess.run([sys.executable, "-c", f"import {order}; {check}"], check=True)


def test_the_package_alone_imports_no_transformers() -> None:
    """Nor torch: verify, inspect and generate run without them."""
    check = "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import sys, curconvert; {check}"], check=True)
