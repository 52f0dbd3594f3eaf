"""Learned spectra: components, the order they are kept in, and what learning makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curconvert import SourceOptions, convert
from curconvert.base.errors import InputError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.methods.core.options import ConvertOptions, options_for_size
from curconvert.training import learned_plan as spectrum_plan
from curconvert.training.spectral_linear import SpectralLinear, components
from curconvert.training.spectrum_sizes import Kept, choose, numbers
from curconvert_runtime.checks.verification import VerifyOptions
from support.families import make_checkpoint
from support.matrices import correlated, error_in, random_weight
from support.tiny_runs import manifest_of, stored_tensors, tiny_options, token_file

SHAPES = {"a": (24, 18), "b": (18, 18), "c": (12, 18)}


@pytest.mark.parametrize("m", [24, 18, 12])
def test_components_are_the_matrix_and_their_first_ones_its_best_approximations(m: int) -> None:
    """A·B = W with orthonormal A, and every cut has the error of the truncated SVD of W·H^½."""
    W, gram = random_weight(0, m, 18).double().numpy(), correlated(0).gram
    A, B = components(W, gram)
    np.testing.assert_allclose(A @ B, W, atol=1e-12)
    np.testing.assert_allclose(A.T @ A, np.eye(min(m, 18)), atol=1e-12)
    values, vectors = np.linalg.eigh(gram)
    sigma = np.linalg.svd(W @ (vectors * np.sqrt(np.maximum(values, 0))), compute_uv=False)
    for rank in (1, 5, 11):
        error = error_in(gram, W - A[:, :rank] @ B[:rank])
        assert error == pytest.approx(np.sqrt((sigma[rank:] ** 2).sum()), rel=1e-8)


def test_a_spectral_linear_is_the_linear_until_its_weights_change() -> None:
    """Its output is Σ s g a (b x) + bias."""
    A, B, bias, x = torch.randn(7, 4), torch.randn(4, 5), torch.randn(7), torch.randn(3, 5)
    linear = SpectralLinear(A, B, bias)
    torch.testing.assert_close(linear(x), x @ (A @ B).T + bias)
    with torch.no_grad():
        linear.s[2], linear.gate[1] = 3.0, 0.5
    torch.testing.assert_close(linear(x), x @ (A @ torch.diag(torch.tensor([1, 0.5, 3, 1])) @ B).T + bias)


def stored(kept: Kept) -> int:
    return sum(numbers(SHAPES[name], None if part is None else len(part)) for name, part in kept.items())


@given(seed=st.integers(0, 99), share=st.floats(0.25, 0.95), multiple=st.sampled_from([1, 4]))
@settings(max_examples=60)
def test_what_is_kept_fits_and_is_the_best_of_one_order(seed: int, share: float, multiple: int) -> None:
    """Within the budget; of each matrix the highest scores; and the next level of the order would not fit."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(min(shape), generator=generator) for name, shape in SHAPES.items()}
    budget = share * sum(numbers(shape, None) for shape in SHAPES.values())
    try:
        found = choose(scores, SHAPES, budget, multiple)
    except ValueError:
        assert stored({name: torch.arange(multiple) for name in SHAPES}) > budget
        return
    assert stored(found) <= budget
    for name, kept in found.items():
        if kept is None:
            continue
        assert len(kept) % multiple == 0
        rest = np.setdiff1d(np.arange(len(scores[name])), kept.numpy())
        assert scores[name][kept].min() >= scores[name][torch.from_numpy(rest)].max()
        assert numbers(SHAPES[name], len(kept)) <= 0.95 * numbers(SHAPES[name], None)


def test_a_larger_budget_keeps_no_less() -> None:
    """One order over all matrices: what is kept at one size is kept at every larger one."""
    scores = {
        name: torch.rand(min(shape), generator=torch.Generator().manual_seed(1)) for name, shape in SHAPES.items()
    }
    whole = sum(numbers(shape, None) for shape in SHAPES.values())
    small, large = (choose(scores, SHAPES, share * whole, 1) for share in (0.5, 0.8))
    for name, kept in small.items():
        larger = large[name]
        assert larger is None or (kept is not None and set(kept.tolist()) <= set(larger.tolist()))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("soco") / "source", "qwen2", num_hidden_layers=3).folder


def converted(source: Path, out: Path, options: ConvertOptions) -> float:
    """Convert, and return the mean KL that verification found on the probes."""
    report = convert(SourceOptions(str(source)), out, options, verification=VerifyOptions()).report
    assert report is not None
    assert report.passed
    assert report.fidelity is not None
    return report.fidelity.kl.mean


def test_learning_does_better_than_one_density_of_the_same_size(source: Path, tmp_path: Path) -> None:
    """Within the budget and verified, so the graphs agree with torch; `pifa` has as many numbers."""
    tokens, checkpoint = token_file(tmp_path / "ids.safetensors", sequences=40), open_checkpoint(str(source))
    learned = tiny_options(tokens, "soco", rank=None, rank_multiple=1, keep=0.75, steps=80)
    kl = converted(source, tmp_path / "soco", learned)
    matrices = manifest_of(tmp_path / "soco")["matrices"]
    assert {matrix["form"] for matrix in matrices} <= {"interpolative", "dense"}
    total = sum(t.numel() for t in stored_tensors(tmp_path / "soco").values() if t.is_floating_point())
    assert 0.7 * total_parameters(checkpoint) < total <= 0.75 * total_parameters(checkpoint)
    uniform = options_for_size(
        checkpoint, "pifa", int(0.75 * total_parameters(checkpoint)), rank_multiple=1, calibration=learned.calibration
    )
    assert kl < converted(source, tmp_path / "pifa", uniform)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps 0: expected an integer of at least 1"),
        ({"rank": 4}, "--method soco takes one size of --keep, --target-params, --target-bytes; found --rank"),
        ({"max_kl": 0.1}, "takes one size"),
        ({"layers": "2"}, "--layers and --sequential: --method soco chooses among all layers; leave them out"),
        ({"device": "cuda"}, "--device cuda: --method auto, soco"),
        ({"method": "pifa", "steps": 5}, "--steps 5: belongs to --method soco, not to pifa"),
    ],
)
def test_options_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    """One clear line."""
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        ConvertOptions.for_method(**{"method": "soco", **values})


def test_a_model_that_does_not_fit_in_memory_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any work, with another way to go."""
    monkeypatch.setattr(spectrum_plan, "RESIDENT_BYTES", 1000.0)
    options = tiny_options(token_file(tmp_path / "ids.safetensors"), "soco", rank=None, keep=0.75)
    with pytest.raises(InputError, match=r"--method soco: learns with the whole model in memory.*use --method auto"):
        convert(SourceOptions(str(source)), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
