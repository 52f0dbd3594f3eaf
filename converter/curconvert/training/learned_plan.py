"""Makes the plan of `--method soco`: learns the ranks, and stores the kept components in the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from curconvert.base.errors import InputError
from curconvert.base.names import layer_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.base.types import Ids
from curconvert.blocks.precision import multiplies_bfloat16
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.self_text import RESIDENT_BYTES, resident_model
from curconvert.checkpoint.linears import total_parameters
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.skeleton import canonical_parameters
from curconvert.journal.store import Journal
from curconvert.linalg.gram import ridged
from curconvert.training.spectral_linear import SpectralLinear, components
from curconvert.training.spectrum import Learner, Learning
from curconvert.training.spectrum_sizes import Kept
from curconvert_runtime.checks.fidelity import Progress


def learned_plan(
    checkpoint: Checkpoint,
    plan: Plan,
    ids: Ids,
    learning: Learning,
    evidence: Evidence,
    progress: Progress,
    journal: Journal,
) -> Plan:
    """Learn the weight of each component, store the kept components in the evidence, and return the plan.

    Args:
        checkpoint: The original; memory holds it twice, once split into components.
        plan: The plan from shapes alone; the matrices that it compresses are learned.
        ids: Token ids to learn from, (sequences, tokens).
        learning: Budget, steps and seed.
        evidence: Statistics of the original; receives the components.
        progress: Called after each step.
        journal: Records the state of learning.

    Raises:
        InputError: The budget is not possible.
    """
    shapes = {matrix.name: matrix.shape for matrix in plan.matrices if matrix.rank is not None}
    budget = learning.parameters - (plan.parameters_before - sum(m * n for m, n in shapes.values()))
    student = resident_model(checkpoint)
    linears = _split(student, list(shapes), evidence, learning.ridge)
    learner = Learner(
        student, linears, resident_model(checkpoint), ids, shapes, budget, learning,
        torch.bfloat16 if multiplies_bfloat16() else torch.float32,
    )  # fmt: skip
    learned = learner.run(journal, progress)
    for name, part in learned.kept.items():
        if part is not None:
            linear = linears[name]
            evidence.save_components(name, (linear.A[:, part] * learned.scales[name]).numpy(), linear.B[part].numpy())
    matrices = [_sized(matrix, learned.kept) for matrix in plan.matrices]
    layers = sorted({layer_of(matrix.name) for matrix in matrices if matrix.is_compressed})
    return replace(plan, matrices=tuple(matrices), layers=tuple(layers), layer_total=len(layers))


def check_resident(checkpoint: Checkpoint) -> None:
    """Reject a model that is too large to learn in memory.

    Raises:
        InputError: Its float32 weights exceed `RESIDENT_BYTES`.
    """
    size = 4 * total_parameters(checkpoint)
    if size > RESIDENT_BYTES:
        raise InputError(
            f"--method soco: learns with the whole model in memory, and {size / 1e9:.1f} GB of float32 weights are "
            f"above its limit of {RESIDENT_BYTES / 1e9:.0f} GB; use --method auto"
        )


def _split(model: nn.Module, names: Sequence[str], evidence: Evidence, ridge: float) -> dict[str, SpectralLinear]:
    """Replace linears by `SpectralLinear` modules, and return these by weight name."""
    owners = {owner: name for name, owner, attribute in canonical_parameters(model) if attribute == "weight"}
    wanted, found = set(names), {}
    for parent in list(model.modules()):
        for attribute, linear in list(parent.named_children()):
            name = owners.get(linear)
            if name is None or name not in wanted:
                continue
            assert isinstance(linear, nn.Linear)
            A, B = components(linear.weight.detach().double().numpy(), ridged(evidence.statistics(name).gram, ridge))
            bias = None if linear.bias is None else linear.bias.detach()
            found[name] = SpectralLinear(torch.from_numpy(A).float(), torch.from_numpy(B).float(), bias)
            setattr(parent, attribute, found[name])
    return {name: found[name] for name in names}


def _sized(matrix: MatrixPlan, kept: Kept) -> MatrixPlan:
    part = kept.get(matrix.name)
    if part is None:
        reason = "would shrink by less than 5%" if matrix.name in kept else "not selected"
        return MatrixPlan(matrix.name, matrix.shape, "dense", reason=reason)
    return MatrixPlan(matrix.name, matrix.shape, "interpolative", len(part))
