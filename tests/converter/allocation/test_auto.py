"""`--method auto` on tiny random models: the whole road, its budgets, and its way back through every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from curconvert import convert, plan
from curconvert.base.errors import InputError
from curconvert.blocks.stream import BlockStream
from curconvert.checkpoint import open_checkpoint
from curconvert.methods.auto import Auto
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.source import SourceOptions
from curconvert_runtime.checks.verification import VerifyOptions
from support.families import VOCABULARY, make_checkpoint
from support.tiny_runs import manifest_of, stored_tensors

FAMILIES = ("llama", "qwen2", "gemma2", "gemma3_text", "phi3", "olmo2", "granite")


def auto(folder: Path, **values: Any) -> ConvertOptions:
    """Options for tiny models: multiples of 4, random token ids, enough for a batch that is held out."""
    ids = folder / "ids.safetensors"
    save_file({"input_ids": np.random.default_rng(0).integers(3, VOCABULARY, (80, 40))}, ids)
    calibration = CalibrationOptions(source=str(ids), sequences=64, tokens_per_sequence=40, probe_sequences=4)
    return ConvertOptions.for_method(calibration=calibration, **{"rank_multiple": 4, **values})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_is_compressed_to_its_budget_and_verified(tmp_path: Path, model_type: str) -> None:
    """Both graphs agree with torch, C and R style slices with the source, and the size is met."""
    make_checkpoint(tmp_path / "source", model_type)
    options = auto(tmp_path, keep=0.85)
    result = convert(SourceOptions(str(tmp_path / "source")), tmp_path / "out", options, verification=VerifyOptions())
    assert result.plan is not None
    kept = result.plan.parameters_after / result.plan.parameters_before
    assert 0.8 < kept <= 0.85
    stored = sum(t.numel() for n, t in stored_tensors(tmp_path / "out").items() if t.is_floating_point())
    assert stored == result.plan.parameters_after == manifest_of(tmp_path / "out")["model"]["parameters_after"]
    forms = {m.form for m in result.plan.matrices}
    assert forms <= {"dense", "interpolative", "modular_rows", "modular_columns"}
    assert len(forms) > 1


def test_the_gradient_is_that_of_the_whole_model(tmp_path: Path) -> None:
    """Block by block backwards gives what autograd gives for the whole model at once."""
    make_checkpoint(tmp_path, "llama")
    checkpoint = open_checkpoint(str(tmp_path))
    stream = BlockStream(checkpoint)
    ids = torch.randint(3, VOCABULARY, (2, 10), generator=torch.Generator().manual_seed(1))
    states = [stream.embed(ids).clone()]
    for index in range(stream.num_layers):
        with stream.block(index) as block:
            states.append(block.forward(states[-1]).clone())
    gradient = stream.likelihood_gradient(states[-1], torch.Generator().manual_seed(3))
    with torch.no_grad():
        drawn = torch.multinomial(
            stream.logits(states[-1]).softmax(-1).flatten(0, 1), 1, generator=torch.Generator().manual_seed(3)
        )
    for index in reversed(range(stream.num_layers)):
        with stream.block(index) as block:
            gradient = block.backward(states[index], gradient)

    from transformers import AutoModelForCausalLM

    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32)
    embedded = whole.model.embed_tokens(ids).detach().requires_grad_()
    likelihood = whole(inputs_embeds=embedded).logits.log_softmax(-1).flatten(0, 1).gather(1, drawn).sum()
    (expected,) = torch.autograd.grad(likelihood, embedded)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_sizes_by_parameters_and_by_bytes(tmp_path: Path) -> None:
    """Both are upper limits that are nearly used up."""
    make_checkpoint(tmp_path / "source", "llama")
    source = SourceOptions(str(tmp_path / "source"))
    dense = plan(source, auto(tmp_path, keep=0.9)).parameters_before
    by_number = convert(source, tmp_path / "number", auto(tmp_path, target_parameters=int(0.8 * dense)))
    assert by_number.plan is not None
    assert 0.77 * dense < by_number.plan.parameters_after <= int(0.8 * dense)
    limit = int(0.85 * 4 * dense)
    convert(source, tmp_path / "bytes", auto(tmp_path, target_bytes=limit))
    assert 0.7 * limit < (tmp_path / "bytes" / "model.safetensors").stat().st_size <= limit


def test_a_divergence_instead_of_a_size(tmp_path: Path) -> None:
    """The verified divergence stays within the limit, and a looser limit gives a smaller model."""
    make_checkpoint(tmp_path / "source", "llama")
    source, sizes = SourceOptions(str(tmp_path / "source")), []
    for limit in (0.02, 0.2):
        result = convert(
            source, tmp_path / f"{limit}", auto(tmp_path, max_kl=limit), verification=VerifyOptions(max_kl=limit)
        )
        assert result.plan is not None
        sizes.append(result.plan.parameters_after)
    assert sizes[1] < sizes[0]


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    """Sampled tokens come from the seed."""
    make_checkpoint(tmp_path / "source", "llama")
    for name in ("a", "b"):
        convert(SourceOptions(str(tmp_path / "source")), tmp_path / name, auto(tmp_path, keep=0.8))
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_nothing_but_the_artifact_is_left(tmp_path: Path) -> None:
    """The scratch folder with the statistics goes."""
    make_checkpoint(tmp_path / "source", "llama")
    options = auto(tmp_path, keep=0.8)
    before = {path.name for path in tmp_path.iterdir()}
    convert(SourceOptions(str(tmp_path / "source")), tmp_path / "out", options)
    assert {path.name for path in tmp_path.iterdir()} == before | {"out"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"keep": 1.5}, "--keep 1.5"),
        ({"keep": 0.05}, "keep more"),
        ({"target_parameters": 10**9}, "ask for fewer"),
        ({"keep": 0.9, "max_kl": 0.1}, "each is a size; give one"),
        ({"keep": 0.9, "rank_multiple": 0}, "--rank-multiple"),
        ({"keep": 0.9, "layers": "1-2"}, "--layers"),
        ({"max_kl": -1.0}, "--max-kl"),
    ],
)
def test_what_cannot_be_had_is_refused_before_any_work(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    """One line that names the option."""
    make_checkpoint(tmp_path / "source", "llama")
    with pytest.raises(InputError, match=words):
        plan(SourceOptions(str(tmp_path / "source")), auto(tmp_path, **values))


def test_a_size_of_the_model_does_not_go_with_another_method() -> None:
    """Nor the other way round."""
    for method, values in (("cur", {"keep": 0.9}), ("auto", {"rank": 8})):
        with pytest.raises(InputError, match="takes one size"):
            ConvertOptions.for_method(method, **values)  # type: ignore[arg-type]
    assert ConvertOptions.for_method().method.name == "cur"
    assert ConvertOptions.for_method(keep=0.5).method.name == "auto"
    assert ConvertOptions.for_method("auto").method == Auto(keep=0.9)
