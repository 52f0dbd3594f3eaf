"""Holds the plan of a conversion: form and rank of each linear."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from curconvert.base.forms import Traits, traits_of
from curconvert.base.names import bias_of
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Form, Shared


@dataclass(frozen=True)
class MatrixPlan:
    """The plan for one matrix.

    Attributes:
        name: Weight name.
        shape: (out_features, in_features).
        form: Form in which it is stored.
        rank: Rank of the factors; None if it stays dense.
        reason: Why it stays dense; None if it is compressed.
        shared: The basis that it shares with another layer, if any.

    Raises:
        ValueError: The form is unknown.
    """

    name: str
    shape: tuple[int, int]
    form: str
    rank: int | None = None
    reason: str | None = None
    shared: Shared | None = None

    def __post_init__(self) -> None:
        form_of(self.form)

    @property
    def entry(self) -> Form:
        """The runtime's description of the form."""
        return form_of(self.form)

    @property
    def traits(self) -> Traits:
        """What a conversion must know about the form."""
        return traits_of(self.form)

    @property
    def is_compressed(self) -> bool:
        """Whether the form compresses the matrix."""
        return self.entry.is_compressed

    @property
    def parameters_before(self) -> int:
        """Number of weights of the dense matrix."""
        return math.prod(self.shape)

    @property
    def parameters_after(self) -> int:
        """Number of weights that the form stores; a shared R counts for its owner."""
        if self.rank is None:
            return self.parameters_before
        return self.entry.parameters(self.shape, self.rank, self.shared, self.name)

    @property
    def index_numbers(self) -> int:
        """Numbers in the form's index vectors."""
        return sum(self.entry.index_lengths(self.shape, self.rank, self.shared).values()) if self.rank else 0

    @property
    def sharing(self) -> dict[str, Any] | None:
        """The manifest's entry `shared` of this matrix; None if it shares no factor."""
        return None if self.shared is None else {"matrices": list(self.shared.matrices), "rows": self.shared.rows}

    def stores(self, suffix: str) -> bool:
        """Tell whether a factor is stored under this matrix's name; a common factor only has its owner's name."""
        mine = self.shared is None or self.shared.matrices[0] == self.name
        return mine or suffix.split(".", maxsplit=1)[0] != self.entry.common


@dataclass(frozen=True)
class Plan:
    """What a conversion does to each matrix.

    Attributes:
        matrices: Every matrix of every decoder block, in the order of the model.
        layers: Layers to compress; None if calibration still has to choose them.
        layer_total: Number of layers to compress.
        other_parameters: Parameters of embedding, norms, biases and an untied lm_head.
        biases: Names of the biases in the decoder blocks.
        notices: What was left out of the checkpoint or renamed, one sentence each.
    """

    matrices: tuple[MatrixPlan, ...]
    layers: tuple[int, ...] | None
    layer_total: int
    other_parameters: int
    biases: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()

    @property
    def cut_biases(self) -> dict[str, int]:
        """New length of each bias that loses entries, by name; its linear's form drops outputs."""
        cut = {bias_of(m.name): m.rank for m in self.matrices if m.entry.cuts_outputs}
        return {name: rank for name, rank in cut.items() if rank is not None and name in self.biases}

    @property
    def parameters_before(self) -> int:
        """Parameters of the checkpoint. A tied lm_head counts once."""
        return self.other_parameters + sum(m.parameters_before for m in self.matrices)

    @property
    def parameters_after(self) -> int:
        """Parameters of the artifact."""
        before = {bias_of(m.name): m.shape[0] for m in self.matrices}
        dropped = sum(before[name] - length for name, length in self.cut_biases.items())
        return self.other_parameters - dropped + sum(m.parameters_after for m in self.matrices)
