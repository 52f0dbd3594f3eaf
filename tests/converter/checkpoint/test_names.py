"""Names that training programs put around a model's are recognized, or refused if they are ambiguous."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from curconvert.base.errors import InputError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.names import canonical_names
from support.checkpoints import edit_tensors
from support.families import TinyModel

HEAD = "lm_head.weight"
Rename = Callable[[str], str]
# Each foreign way to name a tensor, and the words of its notice.
FOREIGN: dict[str, tuple[Rename, str]] = {
    "torch.compile": (lambda name: f"_orig_mod.{name}", "without '_orig_mod.'"),
    "DataParallel": (lambda name: f"module.{name}", "without 'module.'"),
    "PEFT": (lambda name: f"base_model.model.{name}", "without 'base_model.model.'"),
    "Lightning": (lambda name: f"model.{name}", "without 'model.'"),
    "compiled and parallel": (lambda name: f"_orig_mod.module.{name}", "without 'module.'"),
    "compiled blocks": (
        lambda name: name.replace("layers.0.", "layers.0._orig_mod.").replace("layers.1.", "layers.1._orig_mod."),
        "without '_orig_mod.'",
    ),
    "FSDP": (
        lambda name: f"_fsdp_wrapped_module.{name.replace('.mlp.', '._checkpoint_wrapped_module.mlp.')}",
        "without '_fsdp_wrapped_module.'",
    ),
    "TRL": (lambda name: f"pretrained_model.{name}", "without 'pretrained_model.'"),
    "base model": (lambda name: name.removeprefix("model."), "with 'model.' before them"),
    "backbone": (lambda name: name.replace("model.", "backbone."), "with 'model.' in the place of 'backbone.'"),
}


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Store other tensors."""
    stored = load_file(folder / "model.safetensors")
    save_file({name: tensor.clone() for name, tensor in change(stored).items()}, folder / "model.safetensors")


@pytest.mark.parametrize("way", FOREIGN)
def test_foreign_names_are_read(way: str, llama: Path) -> None:
    """The same tensors under their own names, and a notice."""
    change, notice = FOREIGN[way]
    expected = {name: tensor.clone() for name, tensor in load_file(llama / "model.safetensors").items()}
    rewrite(llama, lambda stored: {change(name): tensor for name, tensor in stored.items()})
    checkpoint = open_checkpoint(llama)
    assert checkpoint.tensors.keys() == expected.keys()
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in expected.items())
    assert all(info.name == name for name, info in checkpoint.tensors.items())
    assert any(notice in found for found in checkpoint.notices)


def test_usual_names_give_no_notice(llama: Path) -> None:
    """Nothing was changed, so nothing is said."""
    assert open_checkpoint(llama).notices == ()


def test_fused_projections_are_split_under_foreign_names(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Row slices are those of the usual names."""
    folder = Path(shutil.copytree(tiny("phi3").folder, tmp_path / "model"))
    usual = open_checkpoint(tiny("phi3").folder)
    rewrite(folder, lambda stored: {f"module.{name}": tensor for name, tensor in stored.items()})
    foreign = open_checkpoint(folder)
    assert all(torch.equal(foreign.read(name), usual.read(name)) for name in usual.tensors)


# Two models in one file; the pattern that the message advises leaves one of them out.
TWO: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "student and teacher": lambda s: {f"{who}.{name}": t for name, t in s.items() for who in ("student", "teacher")},
    "a second one within": lambda s: s | {f"model.draft.{name}": t for name, t in s.items() if name != HEAD},
    "two names of one": lambda s: s | {f"_orig_mod.{name}": t for name, t in s.items()},
    "two heads": lambda s: {f"module.{name}": t for name, t in s.items()} | {HEAD: s[HEAD]},
}


@pytest.mark.parametrize("case", TWO)
def test_the_advice_for_ambiguous_names_works(case: str, llama: Path) -> None:
    """One line that names a pattern, and with it the model opens."""
    rewrite(llama, TWO[case])
    with pytest.raises(InputError, match=r"--ignore '") as caught:
        open_checkpoint(llama)
    assert "\n" not in str(caught.value)
    pattern = str(caught.value).rpartition("--ignore '")[2].removesuffix("'")
    assert len(open_checkpoint(llama, ignore=[pattern]).tensors) == 21


def test_a_name_that_only_contains_a_wrapper_is_left_alone() -> None:
    """`my_orig_mod` is no wrapper of torch."""
    names = ["model.embed_tokens.weight", "model.layers.0.my_orig_mod.weight"]
    assert canonical_names(names, "m").canonical == {name: name for name in names}


@pytest.mark.parametrize("pattern", ["mtp.*", "v_head.summary.weight", "*extra*"])
def test_ignored_tensors_are_left_out_and_named(pattern: str, llama: Path) -> None:
    """A tensor that the model does not know, integers included, is left out on request."""
    extra = {"mtp.*": "mtp.0.weight", "*extra*": "model.layers.0.extra.weight"}.get(pattern, pattern)
    edit_tensors(llama, lambda tensors: tensors.update({extra: torch.ones(2, dtype=torch.int32)}))
    checkpoint = open_checkpoint(llama, ignore=[pattern])
    assert extra not in checkpoint.tensors
    assert checkpoint.notices == (f"--ignore leaves out tensor {extra}",)
    assert checkpoint.ignore == (pattern,)


def test_a_pattern_that_matches_nothing_is_said(llama: Path) -> None:
    """It may be a typing error."""
    assert open_checkpoint(llama, ignore=["mpt.*"]).notices == ("--ignore 'mpt.*' matches no tensor",)


@pytest.mark.parametrize("pattern", ["*", "model.layers.1.*", "model.norm.weight"])
def test_a_pattern_for_tensors_that_the_model_needs_is_refused(pattern: str, llama: Path) -> None:
    """The message about what is missing says why."""
    with pytest.raises(InputError, match=r"missing.*--ignore leaves out"):
        open_checkpoint(llama, ignore=[pattern])
