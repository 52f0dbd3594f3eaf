"""Artifacts of random numbers are artifacts: they open, and both of their graphs compute."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.suite import scale
from benchmarks.suite.random_artifacts import FORMS, QUANTIZED_FORMS, hollow, make_random
from curconvert_runtime import Artifact, load


@pytest.mark.parametrize("form", sorted({*FORMS, *itertools.chain(*QUANTIZED_FORMS.values())}))
def test_a_random_artifact_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Half of the layers and of the vocabulary, finite answers, and the numbers that its form asks for."""
    monkeypatch.setitem(scale.SHAPES, "tiny", (64, 160, 4, 4, 2, 16, True))
    monkeypatch.setattr(scale, "VOCABULARY", 1000)
    checkpoint = hollow(tmp_path / "source", "tiny", 2)
    out = make_random(form, checkpoint, tmp_path / "out")
    artifact = Artifact.open(out)
    assert (artifact.model["num_hidden_layers"], artifact.model["vocab_size"]) == (2, 500)
    smaller = artifact.model["parameters_after"] < artifact.model["parameters_before"]
    assert smaller == form.startswith(("cur", "interpolative"))
    kind = form.removeprefix("cur-").removeprefix("interpolative-")
    layouts = {(packing.layout.bits, packing.layout.block_size) for packing in artifact.quantized.values()}
    assert layouts == {"int8": {(8, 32)}, "int4": {(4, 64)}, "int4-128": {(4, 128)}}.get(kind, set())
    for graph in ("portable", "fused"):
        assert np.isfinite(load(out, graph=graph).logits([3, 5, 8])).all()  # type: ignore[arg-type]
    assert make_random(form, checkpoint, out) == out
    stored = load_file(out / "model.safetensors")
    drawn = [numbers.tobytes() for numbers in stored.values() if numbers.dtype != np.int32]
    assert len(set(drawn)) == len(drawn), "onnxruntime keeps matrices of the same numbers once"
