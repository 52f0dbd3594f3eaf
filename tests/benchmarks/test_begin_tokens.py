"""A model that is trained with begin tokens, here, is measured and compressed better with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.experiments import begin_tokens


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model, its export and the texts."""
    folder = tmp_path_factory.mktemp("begin_tokens")
    begin_tokens.trained(folder, 400)
    return folder


def test_perplexity_is_lower_with_the_begin_token(home: Path) -> None:
    """By far more than the windows differ."""
    found = begin_tokens.perplexities(home / "original", home / "held_out.txt")
    assert found["begin"] == "id 0"
    assert found["with"] < 0.95 * found["without"]


@pytest.mark.parametrize("method", ["auto", "svd-llm"])
def test_a_model_calibrated_with_the_begin_token_is_closer(home: Path, method: str) -> None:
    """KL on windows as the model is served; the two conversions differ in the calibration only."""
    found = begin_tokens.divergences(home, method)
    assert 0 < found["with"] < 0.98 * found["without"]
