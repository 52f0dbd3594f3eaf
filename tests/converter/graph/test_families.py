"""Every family's two graphs compute what transformers computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from curconvert.graph import build_graphs, save_graphs
from curconvert.options.targets import LINEARS
from support.cases import CASES
from support.families import FAMILIES, MIXED, SPARSE, VOCABULARY, TinyModel, compress, drop_neurons, make_checkpoint
from support.parity import left_padded_logits, oracle_logits, right_padded_logits, tokens

# Cases whose MLP differs from its family's: in its biases or its activation.
MLPS = ("llama-biases", "smollm3-biases", "llama-gelu", "gemma2-silu", "gemma3-exact-gelu")
# Relative to logits whose largest is between 5 and 60.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Built:
    """A model with saved graphs and the logits that they must give."""

    model: TinyModel
    rows: list[np.ndarray]
    expected: list[np.ndarray]

    def error(self, run: Callable[[Path, list[np.ndarray]], list[np.ndarray]], graph: str) -> float:
        """Return the largest difference to transformers, relative to the largest logit."""
        found = run(self.model.folder / graph, self.rows)
        # A scale far from this would hide mistakes, or be nothing but rounding.
        scale = max(float(np.abs(row).max()) for row in self.expected)
        assert 5.0 < scale < 60.0
        return max(float(np.abs(a - b).max()) for a, b in zip(found, self.expected, strict=True)) / scale


@pytest.fixture(
    scope="module",
    params=[f"{case}/{form}" for case in CASES for form in ("dense", "cur")]
    + [f"{case}/{form}" for case in FAMILIES for form in ("mixed", "neurons", "sparse")]
    + [f"{case}/{form}" for case in MLPS for form in ("neurons", "sparse")],
)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A model of each case, dense and with CUR projections; of each family with every form, and with smaller MLPs."""
    case, form = request.param.split("/")
    family, settings = CASES[case]
    folder = tmp_path_factory.mktemp("model")
    model = make_checkpoint(folder / "dense", family, **settings)
    if form == "cur":
        model = compress(model, folder / "cur")
    if form == "mixed":
        # Biased and fused projections too, with an odd count of targets, so that each meets several forms.
        targets = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
        model = compress(model, folder / "mixed", targets=targets, forms=MIXED)
    if form == "sparse":
        model = compress(model, folder / "sparse", targets=LINEARS, rank=20, forms=SPARSE)
    if form == "neurons":
        model = drop_neurons(compress(model, folder / "cur", targets=("o_proj",)), folder / "neurons")
    save_graphs(build_graphs(model.config, model.tensors, model.forms), model.folder)
    rows = tokens(VOCABULARY)
    return Built(model, rows, oracle_logits(model.oracle, rows))


def test_portable_graph_equals_transformers_with_left_padding(built: Built) -> None:
    """Prefill and cached decode of a left-padded batch give transformers' logits at every real token."""
    assert built.error(left_padded_logits, "model.onnx") < TOLERANCE


def test_fused_graph_equals_transformers_with_right_padding(built: Built) -> None:
    """Prefill and cached decode of a right-padded batch give transformers' logits at every real token."""
    assert built.error(right_padded_logits, "model.fused.onnx") < TOLERANCE
