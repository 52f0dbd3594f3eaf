"""A form that is not there, written as docs/guides/add-a-form.md says: it is stored, and served."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear

from curconvert.base.forms import rank_for_density, traits_of
from curconvert.base.plan import MatrixPlan
from curconvert.blocks.linears import LINEARS, factored_linear
from curconvert.blocks.linears.factored import FactoredLinear
from curconvert.graph import build_graphs, save_graphs
from curconvert.graph.dialect import Dialect
from curconvert.graph.forms import EMITTERS
from curconvert.graph.forms.stored import Stored
from curconvert_runtime.format.forms import FORMS, form_of
from curconvert_runtime.format.forms.form import Fault, Form, Matrix, Shape, Shared, Tensors, wide
from support.families import VOCABULARY, make_checkpoint, open_tiny, replace_weights
from support.parity import largest_difference, left_padded_logits, oracle_logits, right_padded_logits, tokens

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "add-a-form.md"
M, N, R = 7, 5, 3


class RepeatedRows(Form):
    """`y = (W' x)[order]`: r different rows, each of which may be several outputs."""

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Only rows that there are."""
        order = indices["order"]
        return ("order", f"must hold rows below {rank}") if order.min() < 0 or order.max() >= rank else None

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """The rows, repeated."""
        return wide(tensors)["weight"][tensors["order"]]


FORM = RepeatedRows("repeated_rows", {"weight": "rn"}, {"order": "m"})


class RepeatedRowsLinear(FactoredLinear):
    """`y = (W' x)[order] + b`."""

    form = FORM
    weight: Tensor
    order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        y = linear(x, self.weight).index_select(-1, self.order)
        return y if self.bias is None else y + self.bias


def product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply once, and repeat outputs."""
    return dialect.ordered(dialect.linear(x, [stored.matrix("weight")]), stored.index("order"))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form is there for the length of a test."""
    monkeypatch.setitem(FORMS, "repeated_rows", FORM)
    monkeypatch.setitem(LINEARS, "repeated_rows", RepeatedRowsLinear)
    monkeypatch.setitem(EMITTERS, "repeated_rows", product)


def tensors_of(m: int = M, n: int = N, rank: int = R) -> dict[str, np.ndarray]:
    """Draw a matrix: every row is used, most of them more than once."""
    rng = np.random.default_rng(0)
    order = rng.permutation(np.arange(m) % rank).astype(np.int32)
    return {"weight": rng.standard_normal((rank, n)).astype(np.float32), "order": order}


def repeated(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The matrix, row by row."""
    return np.stack([tensors["weight"][row] for row in tensors["order"].tolist()])


def test_the_guide_shows_this_code() -> None:
    """Each of its blocks is here, in full."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    assert all(block in Path(__file__).read_text(encoding="utf-8") for block in blocks)


def test_the_guide_is_short() -> None:
    """Three kilobytes."""
    assert len(GUIDE.read_bytes()) <= 3000


def test_the_registry_derives_the_rest() -> None:
    """Names, numbers, ranks and the plan's parameters follow from shapes."""
    form, tensors = form_of("repeated_rows"), tensors_of()
    assert form.tensor_names("a.weight") == {"weight": "a.weight", "order": "a.order"}
    assert form.shapes((M, N), R) == {"weight": tensors["weight"].shape}
    assert form.index_lengths((M, N), R) == {"order": len(tensors["order"])}
    assert traits_of("repeated_rows").break_even_rank((M, N)) == 5
    assert rank_for_density("repeated_rows", (M, N), 0.5) == 3
    assert MatrixPlan("a.weight", (M, N), "repeated_rows", R).parameters_after == 15
    assert form.index_fault((M, N), R, tensors) is None
    assert form.index_fault((M, N), R, {"order": tensors["order"] + 1}) == ("order", "must hold rows below 3")


def test_the_product_is_the_matrix() -> None:
    """In NumPy, and in torch with a bias."""
    tensors = tensors_of()
    np.testing.assert_array_equal(FORM.multiply((M, N), tensors), repeated(tensors))
    rng = np.random.default_rng(1)
    x, bias = rng.standard_normal((2, 4, N)).astype(np.float32), rng.standard_normal(M).astype(np.float32)
    module = factored_linear("repeated_rows", {s: torch.from_numpy(t) for s, t in tensors.items()}, torch.tensor(bias))
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), x @ repeated(tensors).T + bias, atol=1e-5)


def test_both_graphs_answer_as_transformers_does(tmp_path: Path) -> None:
    """onnxruntime on a model with such a matrix, transformers on one that has the rows repeated."""
    model, name = make_checkpoint(tmp_path / "dense", "llama"), "model.layers.1.self_attn.q_proj.weight"
    stored = load_file(model.folder / "model.safetensors")
    tensors = tensors_of(*stored.pop(name).shape, rank=20)
    stored |= {key: torch.from_numpy(tensors[suffix]) for suffix, key in FORM.tensor_names(name).items()}
    replace_weights(model, {name: torch.from_numpy(repeated(tensors))})
    (tmp_path / "smaller").mkdir()
    save_file(stored, tmp_path / "smaller" / "model.safetensors")
    (tmp_path / "smaller" / "config.json").write_bytes((model.folder / "config.json").read_bytes())
    model = replace(open_tiny(tmp_path / "smaller", model.oracle), forms={name: "repeated_rows"})
    save_graphs(build_graphs(model.config, model.tensors, model.forms), model.folder)
    rows = tokens(VOCABULARY)
    expected = oracle_logits(model.oracle, rows)
    assert largest_difference(left_padded_logits(model.folder / "model.onnx", rows), expected) < 1e-4
    assert largest_difference(right_padded_logits(model.folder / "model.fused.onnx", rows), expected) < 1e-4
