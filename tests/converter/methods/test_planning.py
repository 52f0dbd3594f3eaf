"""Plans from shapes alone: ranks, what stays dense, totals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from curconvert.base.errors import InputError
from curconvert.base.forms import rank_for_density, traits_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.base.roles import Role
from curconvert.checkpoint import Checkpoint, open_checkpoint
from curconvert.families.family import LINEAR_PATHS
from curconvert.families.roles import by_input
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.core.sized import Sized
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.targets import LINEARS
from support.families import make_checkpoint
from support.tiny_runs import tiny_options

SIZES = st.integers(1, 20_000)
FORM = st.sampled_from(["cur", "interpolative", "two_factor"])
GATE, DOWN = ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight")
KEPT = {GATE: "modular_rows", DOWN: "modular_columns"}
TOKENS = Path("ids.safetensors")  # never opened by a plan


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Llama of five layers."""
    model = make_checkpoint(tmp_path_factory.mktemp("plan") / "model", "llama", num_hidden_layers=5)
    return open_checkpoint(model.folder)


def make_plan(checkpoint: Checkpoint, options: ConvertOptions, layers: tuple[int, ...] | None = None) -> Plan:
    return options.method.plan(checkpoint, options, layers)


def plan_matrix(name: str, shape: tuple[int, int], options: ConvertOptions) -> MatrixPlan:
    assert isinstance(options.method, Sized)
    return options.method.plan_matrix(name, shape)


def stored(form: str, m: int, n: int, r: int) -> int:
    """Numbers of a form, by the formulas of algorithms' literature rather than by the code's shapes."""
    return {"cur": r * (m + n) + r * r, "interpolative": r * (m + n - r), "two_factor": r * (m + n)}[form]


def options_of(form: str, **size: Any) -> ConvertOptions:
    """Options of a method that stores this form."""
    method = {"cur": "cur", "interpolative": "pifa", "two_factor": "svd-llm"}[form]
    return ConvertOptions.for_method(method, **size)


@given(form=FORM, m=SIZES, n=SIZES)
def test_break_even_is_the_largest_rank_that_does_not_grow(form: Any, m: int, n: int) -> None:
    """It fits, and one more would not, or is more than the matrix has."""
    rank = traits_of(form).break_even_rank((m, n))
    assert stored(form, m, n, rank) <= m * n
    assert rank == min(m, n) or stored(form, m, n, rank + 1) > m * n


@pytest.mark.parametrize(
    ("stored_as", "size", "expected"),
    [
        ("cur", {"rank": 100}, ("cur", 100)),
        ("folded", {"rank": 100}, ("two_factor", 100)),
        ("interpolative", {"rank": 100}, ("interpolative", 100)),
        ("auto", {"rank": 100}, ("interpolative", 100)),
        ("auto", {"rank": 8}, ("two_factor", 8)),  # index vectors take more than r² numbers
        ("auto", {"density": 0.5}, ("interpolative", 235)),  # the highest rank of those that keep so much
    ],
)
def test_the_form_is_the_one_asked_for_or_the_smallest(
    stored_as: str, size: dict[str, Any], expected: tuple[str, int]
) -> None:
    """C·U·R as it is, folded, or interpolative."""
    options = ConvertOptions.for_method("curing", stored=stored_as, **size)
    found = plan_matrix(GATE, (1536, 576), options)
    assert (found.form, found.rank) == expected


@given(m=SIZES, n=SIZES)
def test_break_even_is_the_papers_formula(m: int, n: int) -> None:
    """⌊(√(m² + 6mn + n²) − (m+n)) / 2⌋, with an exact integer root."""
    root = math.isqrt(m * m + 6 * m * n + n * n)
    assert traits_of("cur").break_even_rank((m, n)) == (root - (m + n)) // 2


@given(form=FORM, m=SIZES, n=SIZES, rank=st.integers(1, 30_000))
def test_no_matrix_grows_and_every_compressed_one_saves(form: Any, m: int, n: int, rank: int) -> None:
    """At least 5 % or dense with a reason; never more than asked for or than the matrix has."""
    plan = plan_matrix(GATE, (m, n), options_of(form, rank=rank))
    if plan.form == "dense":
        assert plan.rank is None
        assert plan.parameters_after == m * n
        assert f"rank {rank} would save less than 5%" in str(plan.reason)
        best = min(rank, m, n, traits_of(form).break_even_rank((m, n)))
        assert best == 0 or 20 * stored(form, m, n, best) > 19 * m * n
    else:
        assert plan.rank is not None
        assert 1 <= plan.rank <= min(rank, m, n)
        assert plan.parameters_after == stored(form, m, n, plan.rank)
        assert 20 * plan.parameters_after <= 19 * m * n
        assert plan.reason is None


@given(form=FORM, m=SIZES, n=SIZES, density=st.floats(0.01, 0.99))
@example(form="interpolative", m=670, n=670, density=0.99)  # the share is 444411 numbers, rounded once
def test_density_is_filled_to_the_last_rank(form: Any, m: int, n: int, density: float) -> None:
    """The largest rank whose numbers fit into the share."""
    rank = rank_for_density(form, (m, n), density)
    share = density * (m * n)
    assert rank == 0 or stored(form, m, n, rank) <= share
    assert rank == min(m, n) or stored(form, m, n, rank + 1) > share
    plan = plan_matrix(GATE, (m, n), options_of(form, density=density))
    assert plan.rank in (None, rank)


@given(form=st.sampled_from(["modular_rows", "modular_columns", "sparse_rows", "sparse_columns"]), m=SIZES, n=SIZES)
def test_a_form_of_kept_rows_or_columns_never_grows(form: Any, m: int, n: int) -> None:
    """It may keep every row, or every column."""
    assert traits_of(form).break_even_rank((m, n)) == (m if form.endswith("_rows") else n)


@given(hidden=SIZES, neurons=SIZES, density=st.floats(0.01, 0.99))
def test_an_mlp_keeps_the_density_of_its_neurons(hidden: int, neurons: int, density: float) -> None:
    """⌊density · neurons⌋, the same in all three, or dense in all three."""
    options = ConvertOptions.for_method("neurons", density=density)
    plans = [
        plan_matrix(name, (neurons, hidden) if form == "modular_rows" else (hidden, neurons), options)
        for name, form in KEPT.items()
    ]
    assert len({plan.rank for plan in plans}) == 1
    for plan in plans:
        if plan.form == "dense":
            assert plan.rank is None
            assert not 1 <= int(density * neurons) <= 0.94 * neurons
        else:
            assert plan.form == KEPT[plan.name]
            assert plan.rank == pytest.approx(math.floor(density * neurons), abs=1e-6 * neurons)
            assert plan.parameters_after == plan.rank * hidden


def test_a_number_of_neurons_may_exceed_the_hidden_size() -> None:
    """32 × 48: 40 neurons of 48."""
    options = ConvertOptions.for_method("neurons", rank=40)
    assert plan_matrix(GATE, (48, 32), options).rank == 40
    assert plan_matrix(DOWN, (32, 48), options).rank == 40
    assert plan_matrix(DOWN, (32, 48), ConvertOptions.for_method("neurons", rank=100)).rank is None


def test_biases_shrink_with_their_rows(tmp_path: Path) -> None:
    """Those of gate and up of the chosen layer, not that of down."""
    model = make_checkpoint(tmp_path, "llama", mlp_bias=True, attention_bias=True)
    plan = make_plan(open_checkpoint(model.folder), tiny_options(TOKENS, "neurons", rank=20, layers="1"))
    stem = "model.layers.1.mlp"
    assert plan.cut_biases == {f"{stem}.gate_proj.bias": 20, f"{stem}.up_proj.bias": 20}
    assert plan.parameters_before - plan.parameters_after == 3 * 28 * 32 + 2 * 28


def test_only_targets_of_chosen_layers_are_compressed(checkpoint: Checkpoint) -> None:
    """All others are listed as not selected."""
    plan = make_plan(checkpoint, tiny_options(TOKENS, layers="1,3", targets=("q_proj", "down_proj")))
    compressed = {m.name for m in plan.matrices if m.form == "cur"}
    assert compressed == {
        f"model.layers.{layer}.{linear}.weight" for layer in (1, 3) for linear in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert {m.reason for m in plan.matrices if m.form == "dense"} == {"not selected"}
    assert len(plan.matrices) == 5 * len(LINEARS)
    assert plan.layers == (1, 3)


def test_matrices_come_in_the_models_order(checkpoint: Checkpoint) -> None:
    """Layer by layer."""
    plan = make_plan(checkpoint, tiny_options(TOKENS))
    layers = [int(m.name.split(".")[2]) for m in plan.matrices]
    assert layers == sorted(layers)


def test_an_angular_plan_counts_before_the_layers_are_known(checkpoint: Checkpoint) -> None:
    """Every layer has the same shapes, so the totals are right whichever are chosen."""
    options = tiny_options(TOKENS, layers="angular:2")
    before, after = make_plan(checkpoint, options), make_plan(checkpoint, options, (1, 3))
    assert before.layers is None
    assert before.layer_total == 2
    assert before.parameters_after == after.parameters_after
    assert after.layers == (1, 3)


def test_one_target_stays_dense_while_others_are_compressed(checkpoint: Checkpoint) -> None:
    """q_proj (32 × 32) would save 2 % at rank 13, which is not worth three products; the plan says so."""
    plan = make_plan(checkpoint, tiny_options(TOKENS, rank=13, layers="2"))
    by_name = {m.name: m for m in plan.matrices}
    assert by_name["model.layers.2.self_attn.q_proj.weight"].reason == "rank 13 would save less than 5%"
    assert by_name["model.layers.2.mlp.gate_proj.weight"].rank == 13


def test_compressing_nothing_is_an_error(checkpoint: Checkpoint) -> None:
    """The message says which options led there."""
    with pytest.raises(InputError, match="--rank 13 with --targets q_proj,o_proj: no selected matrix"):
        make_plan(checkpoint, tiny_options(TOKENS, rank=13, targets=("q_proj", "o_proj")))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_without_inner_layers_is_an_error(tmp_path: Path, layers: int) -> None:
    """Angular choice has no candidates; the message offers --layers all, which works."""
    opened = open_checkpoint(make_checkpoint(tmp_path / "m", "llama", num_hidden_layers=layers).folder)
    with pytest.raises(InputError, match="use --layers all"):
        make_plan(opened, tiny_options(TOKENS, layers="angular"))
    assert make_plan(opened, tiny_options(TOKENS)).layer_total == layers


@pytest.mark.parametrize("spec", ["angular:4", "angular:x", "5", "0-9", "", "one"])
def test_layers_that_the_model_does_not_have_are_an_error(checkpoint: Checkpoint, spec: str) -> None:
    """Found by the plan, before any work."""
    with pytest.raises(InputError, match="--layers"):
        make_plan(checkpoint, tiny_options(TOKENS, layers=spec))


def test_sequences_longer_than_the_context_are_an_error(checkpoint: Checkpoint) -> None:
    """The graphs could not be verified on them; the message names the option."""
    calibration = CalibrationOptions(tokens_per_sequence=65)
    with pytest.raises(InputError, match="--calibration-tokens 65: the model's context is 64 tokens"):
        make_plan(checkpoint, tiny_options(TOKENS, calibration=calibration))


def test_linears_are_grouped_by_what_enters_them() -> None:
    """In the order in which a block computes it, whatever the order they come in."""
    plans = [MatrixPlan(f"model.layers.0.{LINEAR_PATHS[role]}.weight", (4, 4), "cur", 2) for role in reversed(Role)]
    assert by_input([]) == []
    for some, expected in (
        (plans, [{"q_proj", "k_proj", "v_proj"}, {"o_proj"}, {"gate_proj", "up_proj"}, {"down_proj"}]),
        (plans[1:2] + plans[5:6], [{"k_proj"}, {"up_proj"}]),
    ):
        found = by_input(some)
        assert [{plan.name.split(".")[-2] for plan in group} for group in found] == expected
