"""How much each size of each module would cost: one pass forwards through the original, one back.

Forwards, `gathering` keeps the Gram matrix of every linear's input. Backwards, the sizes of each module are priced by
`½ E[(gᵀ Δy)²]`, the divergence to second order, token by token.
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

LEAST_NEURONS = 4  # an MLP keeps at least one neuron in so many
_SHARES = (0.03, 0.06, 0.1, 0.17, 0.26, 0.4, 0.56, 0.75)  # dropped neurons at which costs are measured
_TYPICAL = 0.75  # share of the neurons that stays where the ridge is chosen
_STEPS = 32  # neurons are dropped in so many steps, those of a step together


@dataclass(frozen=True)
class Grid:
    """Which sizes are priced, and how.

    Attributes:
        ridge: λ of `H + λ diag(H)`.
        multiple: Sizes are multiples of it.
        seed: Of the sampled gradients.
    """

    ridge: float
    multiple: int
    seed: int


class Sensitivity(BackwardPass):
    """Watches a pass over the original model, then goes back through it and prices every module.

    Args:
        checkpoint: The original.
        targets: Weight names that may be compressed.
        grid: The sizes to price, and how.
        evidence: Receives what the compression needs later.
        progress: Called after each block of the way back.
        rows: Weight names whose rows' Fisher information is wanted as well.
        journal: Keeps each block of the way back.

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
        """Go back from the logits to the first block, pricing every module."""
        super().finish(stream, hidden)
        self.curves.reverse()

    def take(self, name: str, samples: GradientSamples) -> None:
        """Price one linear, or the MLP that it ends."""
        super().take(name, samples)
        if name in self._priced:
            self._evidence.save_fisher(name, samples.fisher)
            self._price(name, samples)

    def found(self) -> dict[str, Any]:
        """Return the curves so far."""
        return {"curves": [curve.to_json() for curve in self.curves]}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Take them over."""
        self.curves = [Curve.from_json(curve) for curve in found["curves"]]

    def _price(self, name: str, samples: GradientSamples) -> None:
        statistics = self._evidence.statistics(name)
        metric = statistics
        if bias_of(name) in self._checkpoint.tensors:  # it will carry the mean
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
        """Price an MLP with fewer neurons, and keep the order in which they are dropped."""
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
    """Tell whether a linear needs no gradients: gate and up are priced by what down makes of them."""
    form = MODULAR.get(role_of(name))
    return form is not None and form_of(form).cuts_outputs


def _dots(samples: GradientSamples, weight: Matrix, columns: slice | Indices) -> NDArray[np.float32]:
    """Return `g_tᵀ W x_t[columns]` for each token."""
    products = samples.gradients @ weight.astype(samples.gradients.dtype)
    return np.asarray(np.einsum("ij,ij->i", products, samples.inputs[:, columns]))
