"""What travels together through a conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from curconvert.base.progress import silent
from curconvert.calibration.batches import IN_MEMORY, StateStore
from curconvert.journal.store import UNRECORDED, Journal
from curconvert.options.settings import Settings
from curconvert.quantization.tensors import UNQUANTIZED, Tables
from curconvert.selection.layers import score_of, select_layers
from curconvert_runtime.checks.fidelity import Progress

if TYPE_CHECKING:
    import torch

    from curconvert.allocation.curves import Curve
    from curconvert.calibration.evidence import Evidence
    from curconvert.calibration.original import OriginalPass
    from curconvert.calibration.text import CalibrationTokens
    from curconvert.checkpoint.types import Checkpoint
    from curconvert.execution.task import Executor
    from curconvert.families.heads import Heads


@dataclass(frozen=True)
class Context:
    """One conversion.

    Attributes:
        checkpoint: The original.
        settings: Of the conversion.
        tokens: Calibration and probe sequences.
        dtype: Deployed dtype.
        evidence: Statistics of linears that the passes over the original have found.
        executor: Works on matrices side by side.
        store: Takes hidden states on the calibration tokens.
        progress: Called as work goes on.
        journal: Keeps each step.
    """

    checkpoint: Checkpoint
    settings: Settings
    tokens: CalibrationTokens
    dtype: torch.dtype
    evidence: Evidence
    executor: Executor
    store: StateStore = IN_MEMORY
    progress: Progress = silent
    journal: Journal = UNRECORDED

    @cached_property
    def heads(self) -> tuple[Heads, ...]:
        """The heads of each layer's attention."""
        from curconvert.families.heads import attention_heads

        return attention_heads(self.checkpoint.config)


@dataclass(frozen=True)
class Measured:
    """What the passes over the original gave; it serves conversions of any size.

    Attributes:
        original: Its answers, and the layers' scores where the options asked for them.
        curves: What each size of each module costs; empty unless a method asked for them.
        tables: Embedding and head where they are quantized.
    """

    original: OriginalPass
    curves: Sequence[Curve] = ()
    tables: Tables = UNQUANTIZED

    def layers(self, context: Context) -> tuple[int, ...]:
        """Return the layers that the settings choose."""
        spec = context.settings.layers
        score = score_of(spec)
        scores = self.original.scores[score] if score else None
        return select_layers(spec, int(context.checkpoint.config["num_hidden_layers"]), scores)
