"""The product with the vocabulary in slices: the same logits, every row of the stored matrix once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from curconvert.graph import Graphs, build_graphs, save_graphs
from curconvert.graph.lm_head import split_head
from curconvert_runtime.format.onnx_external import external_tensors
from support.families import VOCABULARY, TinyModel, make_checkpoint
from support.parity import right_padded_logits, tokens

FUSED = "model.fused.onnx"


def _split(model: TinyModel, most_bytes: int) -> Graphs:
    graphs = build_graphs(model.config, model.tensors, model.forms)
    split_head(graphs.fused.graph, most_bytes)
    save_graphs(graphs, model.folder)
    return graphs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])  # nothing, soft-capping, scaling behind the product
def test_slices_give_the_same_logits(family: str, tied: bool, tmp_path: Path) -> None:
    """Bit for bit those of one product, and a caller may still ask for the last ones only."""
    model = make_checkpoint(tmp_path, family, tie_word_embeddings=tied)
    rows, found = tokens(VOCABULARY), []
    for most_bytes in (2**25, 4000):
        _split(model, most_bytes)
        found.append(right_padded_logits(tmp_path / FUSED, rows))
    for one, several in zip(*found, strict=True):
        np.testing.assert_array_equal(one, several)
    onnx.checker.check_model(tmp_path / "model.onnx")
    nodes = [node.op_type for node in onnx.load(tmp_path / FUSED, load_external_data=False).graph.node]
    assert nodes.count("Slice") == 1


@pytest.mark.parametrize("tied", [True, False])
def test_slices_are_the_rows_in_turn(tied: bool, tmp_path: Path) -> None:
    """97 rows of 128 bytes in slices of about 4,000: whole panels of 16, and what is left."""
    model = make_checkpoint(tmp_path, "llama", tie_word_embeddings=tied)
    _split(model, 4000)
    found = {tensor.name: tensor for tensor in external_tensors(tmp_path / FUSED)}
    location = model.tensors["model.embed_tokens.weight" if tied else "lm_head.weight"].location
    assert location is not None
    slices = [found[f"lm_head.weight.slice.{number}"] for number in range(4)]
    assert [part.length for part in slices] == [32 * 128, 32 * 128, 32 * 128, 128]
    assert [part.offset - location.offset for part in slices] == [0, 32 * 128, 64 * 128, 96 * 128]
    assert "lm_head.weight" not in found
    assert "model.embed_tokens.weight" in found


@pytest.mark.parametrize(
    ("dtype", "change"), [(torch.float16, lambda most: most), (torch.float32, lambda most: 2 * most)]
)
def test_what_becomes_float32_at_load_or_is_small_stays_whole(
    dtype: torch.dtype, change: Callable[[int], int], tmp_path: Path
) -> None:
    """Slices of 16 bits would all be widened before the first one is copied."""
    model = make_checkpoint(tmp_path, "llama", dtype=dtype)
    _split(model, change(VOCABULARY * 32 * 2))
    assert "lm_head.weight" in {tensor.name for tensor in external_tensors(tmp_path / FUSED)}
