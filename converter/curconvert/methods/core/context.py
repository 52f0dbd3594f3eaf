"""The objects that a conversion passes to its jobs and methods."""

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
    """Holds the inputs and resources of one conversion.

    Attributes:
        checkpoint: The original.
        settings: Settings of the conversion.
        tokens: Calibration and probe sequences.
        dtype: Deployed dtype.
        evidence: Statistics of linears from the passes over the original.
        executor: Runs the tasks of matrices in parallel.
        store: Keeps the hidden states of the calibration tokens.
        progress: Called after each step.
        journal: Records each step.
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
    """Holds the results of the passes over the original, which serve conversions to any size.

    Attributes:
        original: The original's probe outputs, and the layers' scores if the options need them.
        curves: The cost curve of each module; empty unless a method needs them.
        tables: The quantized embedding and lm_head; empty without quantization.
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
