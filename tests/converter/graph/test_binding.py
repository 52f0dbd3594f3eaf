"""A graph and a tensor table that do not fit each other are an error that names the tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from curconvert.base.errors import CurConvertError, InputError, UnsupportedError
from curconvert.checkpoint.types import TensorInfo
from curconvert.graph import build_graphs
from support.families import TinyModel, compress, drop_neurons, make_checkpoint

NORM = "model.layers.1.input_layernorm.weight"
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A compressed Llama."""
    folder = tmp_path_factory.mktemp("model")
    return compress(make_checkpoint(folder / "dense", "llama"), folder / "cur")


def build(model: TinyModel, change: dict[str, TensorInfo | None], forms: dict[str, str] | None = None) -> None:
    """Build with some tensors replaced, added, or (None) taken away."""
    tensors = {name: info for name, info in {**model.tensors, **change}.items() if info is not None}
    build_graphs(model.config, tensors, {**model.forms, **(forms or {})})


def check(model: TinyModel, change: dict[str, TensorInfo | None], error: type[CurConvertError], message: str) -> None:
    """Expect one error with a message."""
    with pytest.raises(error, match=message):
        build(model, change)


def test_a_missing_weight_is_named(model: TinyModel) -> None:
    """A weight of the graph that is not stored."""
    check(model, {NORM: None}, InputError, f"{NORM} is not among the stored tensors")


@pytest.mark.parametrize("factor", "CUR")
def test_a_missing_factor_is_named(model: TinyModel, factor: str) -> None:
    """A compressed matrix of which one factor is gone."""
    check(model, {f"{QUERY}.{factor}": None}, InputError, rf"{QUERY}\.{factor} is missing")


@pytest.mark.parametrize(
    ("form", "suffix"),
    [
        ("interpolative", "R"),
        ("interpolative", "T"),
        ("interpolative", "order"),
        ("two_factor", "A"),
        ("two_factor", "B"),
        ("sparse_rows", "weight"),
        ("sparse_rows", "order"),
        ("sparse_columns", "order"),
    ],
)
def test_a_missing_tensor_of_another_form_is_named(tmp_path: Path, form: str, suffix: str) -> None:
    """Every tensor that a product needs must be stored, the order of outputs too."""
    other = compress(make_checkpoint(tmp_path / "dense", "llama"), tmp_path / form, forms=(form,))
    check(other, {f"{QUERY}.{suffix}": None}, InputError, rf"{QUERY}\.{suffix} is missing, .* has form {form}")


@pytest.mark.parametrize("linear", ["gate_proj", "down_proj"])
def test_a_missing_weight_of_a_smaller_mlp_is_named(tmp_path: Path, linear: str) -> None:
    """It has the name of the dense weight, and the manifest gives its form."""
    other = drop_neurons(make_checkpoint(tmp_path / "dense", "llama"), tmp_path / "neurons")
    name = f"model.layers.1.mlp.{linear}.weight"
    check(other, {name: None}, InputError, rf"{name} is missing, .* has form modular")


def test_a_smaller_mlp_that_is_said_to_be_dense_is_refused(tmp_path: Path) -> None:
    """Its stored weights do not have the config's shapes."""
    other = drop_neurons(make_checkpoint(tmp_path / "dense", "llama"), tmp_path / "neurons")
    with pytest.raises(InputError, match=r"has shape \(20, 32\), the config needs \(48, 32\)"):
        build_graphs(other.config, other.tensors, {})


def test_an_order_of_another_type_is_refused(tmp_path: Path) -> None:
    """Indices are int32 wherever they are stored."""
    other = compress(make_checkpoint(tmp_path / "dense", "llama"), tmp_path / "other", forms=("interpolative",))
    wrong = replace(other.tensors[f"{QUERY}.order"], dtype="I64")
    check(other, {wrong.name: wrong}, InputError, rf"{QUERY}\.order is I64, expected I32")


def test_an_unused_tensor_is_named(model: TinyModel) -> None:
    """A stored tensor that no node reads."""
    extra = replace(model.tensors[NORM], name="model.layers.2.extra.weight")
    check(model, {extra.name: extra}, InputError, "does not use: model.layers.2.extra.weight")


def test_a_dense_weight_beside_its_factors_is_unused(model: TinyModel) -> None:
    """A matrix is stored dense or as factors, never both."""
    extra = replace(model.tensors[f"{QUERY}.C"], name=f"{QUERY}.weight")
    check(model, {extra.name: extra}, InputError, f"does not use: {QUERY}.weight")


def test_a_wrong_shape_is_refused(model: TinyModel) -> None:
    """The stored shape must be the config's."""
    wrong = replace(model.tensors[NORM], shape=(16, 2))
    check(model, {NORM: wrong}, InputError, rf"{NORM} has shape \(16, 2\), the config needs \(32,\)")


def test_a_byte_range_of_the_wrong_length_is_refused(model: TinyModel) -> None:
    """A range must hold exactly the tensor's elements: the runtime would read beyond it otherwise."""
    info = model.tensors[NORM]
    assert info.location is not None
    wrong = replace(info, location=replace(info.location, length=64))
    check(model, {NORM: wrong}, InputError, f"{NORM} has 64 bytes, its shape needs 128")


def test_a_tensor_without_bytes_is_refused(model: TinyModel) -> None:
    """A dequantized tensor has to be written to a file first."""
    check(model, {NORM: replace(model.tensors[NORM], location=None)}, InputError, f"{NORM} has no raw bytes")


def test_mixed_dtypes_are_refused(model: TinyModel) -> None:
    """A graph has one element type."""
    mixed = replace(model.tensors[NORM], dtype="F16")
    check(model, {NORM: mixed}, InputError, r"must have one dtype, found F16 .*, F32")


def test_a_dtype_without_graphs_is_refused(model: TinyModel) -> None:
    """float64 weights are not for serving."""
    with pytest.raises(InputError, match="is F64, expected one of F32, F16, BF16"):
        build_graphs(model.config, {NORM: replace(model.tensors[NORM], dtype="F64")}, {})


def test_an_unknown_form_is_refused(model: TinyModel) -> None:
    """A form that has no graph is refused by name."""
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(UnsupportedError, match=f"{name}: form 'tucker' has no graph"):
        build(model, {}, {name: "tucker"})


def test_a_form_for_an_unknown_weight_is_refused(model: TinyModel) -> None:
    """A form that names no weight of the graph is a mistake, not a wish to be ignored."""
    with pytest.raises(InputError, match=r"model\.layers\.9\.mlp\.up_proj\.weight"):
        build(model, {}, {"model.layers.9.mlp.up_proj.weight": "cur"})
