"""Real graphs: a row of a batch gives what it gives alone, whatever its neighbors' lengths mean to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curconvert.jobs.export import export
from curconvert.options.source import SourceOptions
from curconvert_runtime import GenerationOptions, load
from support.families import VOCABULARY, make_checkpoint

CONTEXT = 64
_ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 16}
_LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.3, 2.1, 3.4, 4.2]}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("mistral", {}),
        ("gemma3_text", {}),
        ("phi3", {"rope_parameters": {**_LONG, **_ROPE}}),
    ],
    ids=["whole context", "windows", "two kinds of layers", "two sets of frequencies"],
)
def test_a_row_of_a_batch_gives_what_it_gives_alone(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    """Both graphs; prompts on both sides of the length at which frequencies change, one near the end of the context."""
    model = make_checkpoint(tmp_path / "model", family, **settings).folder
    export(SourceOptions(str(model)), tmp_path / "out")
    rng = np.random.default_rng(0)
    for graph in ("portable", "fused"):
        session = load(tmp_path / "out", graph=graph, threads=1)  # type: ignore[arg-type]
        for _ in range(3):
            lengths = [int(rng.integers(1, 14)), int(rng.integers(20, 40)), CONTEXT - int(rng.integers(6))]
            rows = [rng.integers(3, VOCABULARY, length).tolist() for length in rng.permutation(lengths)]
            options = GenerationOptions(max_new_tokens=20, ignore_eos=True)
            alone = [session.generate(row, options) for row in rows]
            assert session.generate(rows, options) == alone
            assert {done.finish_reason for done in alone} == {"length", "context"}
            for row, found in zip(rows, session.logits(rows), strict=True):
                np.testing.assert_allclose(found, session.logits(row), rtol=1e-3, atol=1e-3)
