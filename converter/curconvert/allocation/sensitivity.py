"""Measures the cost of each size of each module with one forward and one backward pass through the original model.

In the forward pass, `gathering` stores the Gram matrix of every linear's input. In the backward pass, each size costs
`½ E[(gᵀ Δy)²]`: the divergence to second order, token by token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curconvert.allocation.curves import Curve, interpolated
from curconvert.base.names import bias_of
from curconvert.base.roles import MODULAR, Role
from curconvert.base.types import Indices, Matrix
from curconvert.blocks.stream import BlockStream
from curconvert.calibration.backward import BackwardPass
from curconvert.calibration.batches import Batches
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.gradients import GradientSamples
from curconvert.checkpoint.types import Checkpoint
from curconvert.factorization.modular import ModularOptions, held_out_ridge
from curconvert.factorization.pruning import drop_neurons
from curconvert.factorization.two_sided import DAMPING, damped, two_sided
from curconvert.families.roles import role_of, with_role
from curconvert.journal.store import UNRECORDED, Journal
from curconvert.linalg.gram import ridged
from curconvert.linalg.statistics import InputStatistics
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.format.forms import form_of

LEAST_NEURONS = 4  # an MLP keeps at least 1 / LEAST_NEURONS of its neurons
_SHARES = (0.03, 0.06, 0.1, 0.17, 0.26, 0.4, 0.56, 0.75)  # costs are measured at these shares of dropped neurons
_TYPICAL = 0.75  # share of the neurons kept when the ridge is chosen
_STEPS = 32  # number of steps in which neurons are dropped, several per step


@dataclass(frozen=True)
class Grid:
    """Says which sizes to measure, and how.

    Attributes:
        ridge: λ of `H + λ diag(H)`.
        multiple: Sizes are multiples of it.
        seed: Seed of the sampled gradients.
    """

    ridge: float
    multiple: int
    seed: int


class Sensitivity(BackwardPass):
    """Measures the cost curve of every module, with a backward pass after the pass over the original model.

    Args:
        checkpoint: The original.
        targets: Names of the weights that may be compressed.
        grid: The sizes to measure, and how.
        evidence: Receives the results that compression needs later.
        progress: Called after each block of the backward pass.
        rows: Names of the weights whose rows' Fisher information is measured as well.
        journal: Records each block of the backward pass.

    Attributes:
        curves: One per module, after `finish`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        targets: Collection[str],
        grid: Grid,
        evidence: Evidence,
        progress: Progress,
        rows: Collection[str] = (),
        journal: Journal = UNRECORDED,
    ) -> None:
        super().__init__(rows, grid.seed, evidence, progress, journal)
        self._checkpoint, self._targets, self._grid = checkpoint, frozenset(targets), grid
        self._priced = frozenset(name for name in targets if not _is_wide(name))
        self.curves: list[Curve] = []

    def wanted(self) -> Collection[str]:
        """Return the weight names whose linears need gradients."""
        return self._priced | self._rows

    def finish(self, stream: BlockStream, hidden: Batches) -> None:
        """Run the backward pass, and measure every module's curve."""
        super().finish(stream, hidden)
        self.curves.reverse()

    def take(self, name: str, samples: GradientSamples) -> None:
        """Measure the curve of one linear; for a down linear, of its whole MLP."""
        super().take(name, samples)
        if name in self._priced:
            self._evidence.save_fisher(name, samples.fisher)
            self._price(name, samples)

    def found(self) -> dict[str, Any]:
        """Return the curves so far."""
        return {"curves": [curve.to_json() for curve in self.curves]}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Restore the curves that `found` returned."""
        self.curves = [Curve.from_json(curve) for curve in found["curves"]]

    def _price(self, name: str, samples: GradientSamples) -> None:
        statistics = self._evidence.statistics(name)
        metric = statistics
        if bias_of(name) in self._checkpoint.tensors:  # the corrected bias will absorb the mean
            samples, metric = samples.centered(statistics.mean), statistics.centered
        if role_of(name) is not Role.DOWN:
            self.curves.append(self._matrix_curve(name, samples, metric.gram))
            return
        names = {role: with_role(name, role) for role in MODULAR}
        if self._targets.issuperset(names.values()):
            self.curves.append(self._mlp_curve(names, samples, metric.gram, statistics))

    def _matrix_curve(self, name: str, samples: GradientSamples, gram: Matrix) -> Curve:
        weight = self._checkpoint.read(name).to(torch.float64).numpy()
        gram = ridged(gram, self._grid.ridge)
        costs = two_sided(weight, gram, damped(samples.fisher, DAMPING)).costs(samples.inputs, samples.gradients)
        multiple = self._grid.multiple
        shape = (weight.shape[0], weight.shape[1])
        sizes = range(multiple, min(shape), multiple)
        return Curve.of({name: "interpolative"}, [shape], {size: float(costs[size]) for size in sizes})

    def _mlp_curve(
        self, names: Mapping[Role, str], samples: GradientSamples, gram: Matrix, statistics: InputStatistics
    ) -> Curve:
        """Measure the curve of an MLP, and store the order in which its neurons are dropped."""
        down = names[Role.DOWN]
        weight = self._checkpoint.read(down).to(torch.float64).numpy()
        total, multiple = weight.shape[1], self._grid.multiple
        fisher = damped(samples.fisher, DAMPING)
        usual = ModularOptions(self._grid.ridge, self._grid.ridge)
        typical = max(1, int(_TYPICAL * total))
        ridge = held_out_ridge(weight, statistics, typical, usual)
        self._evidence.save_ridge(down, ridge)
        least = min(total, max(1, total // LEAST_NEURONS // multiple * multiple))
        pending = [share * total for share in _SHARES]
        whole = _dots(samples, weight, slice(None))
        alive: Indices = np.arange(total, dtype=np.int32)
        order, costs = [], {}
        for kept, refitted in drop_neurons(weight, gram, fisher, ridge, step=max(1, total // _STEPS), least=least):
            order.append(np.setdiff1d(alive, kept))
            alive = kept
            dropped = total - len(kept)
            if dropped >= pending[0] or len(kept) == least:
                pending = [share for share in pending if share > dropped] or [np.inf]
                costs[len(kept)] = float(0.5 * np.mean((_dots(samples, refitted, kept) - whole) ** 2))
        self._evidence.save_order(down, np.concatenate([*order, alive]).astype(np.int32))
        sizes = {size: cost for size, cost in interpolated(costs, total, multiple).items() if size % multiple == 0}
        shapes = [tuple(self._checkpoint.tensors[names[role]].shape) for role in MODULAR]
        forms = {names[role]: form for role, form in MODULAR.items()}
        return Curve.of(forms, [(m, n) for m, n in shapes], sizes)


def _is_wide(name: str) -> bool:
    """Return whether a linear is gate or up, which need no gradients: down's outputs give the MLP's cost."""
    form = MODULAR.get(role_of(name))
    return form is not None and form_of(form).cuts_outputs


def _dots(samples: GradientSamples, weight: Matrix, columns: slice | Indices) -> NDArray[np.float32]:
    """Return `g_tᵀ W x_t[columns]` for each token."""
    products = samples.gradients @ weight.astype(samples.gradients.dtype)
    return np.asarray(np.einsum("ij,ij->i", products, samples.inputs[:, columns]))
