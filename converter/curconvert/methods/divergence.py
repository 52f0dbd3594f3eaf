"""How far a plan takes a model from the original, measured in memory."""

from __future__ import annotations

import torch

from curconvert.base.plan import Plan
from curconvert.base.progress import silent
from curconvert.blocks.stream import BlockStream
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.original import LOGITS, OriginalPass, embedded
from curconvert.calibration.text import CalibrationTokens
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.task import Executor
from curconvert.journal.store import UNRECORDED, Journal, State
from curconvert.methods.block import factors_of, install
from curconvert.options.convert import ConvertOptions
from curconvert.quantization.tensors import UNQUANTISED, Tables
from curconvert_runtime.checks.fidelity import Progress


def divergence(
    checkpoint: Checkpoint,
    plan: Plan,
    tokens: CalibrationTokens,
    original: OriginalPass,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
    executor: Executor,
    progress: Progress = silent,
    journal: Journal = UNRECORDED,
    stage: str = "search",
    tables: Tables = UNQUANTISED,
) -> float:
    """Compress in memory only, and return the mean KL(original ‖ compressed) on the probes, nats per token.

    Args:
        checkpoint: The original.
        plan: With sizes allocated.
        tokens: The probes are used.
        original: Its states on the probes.
        options: Method and numerics.
        dtype: Deployed dtype.
        evidence: Statistics of the original.
        executor: Factorizes.
        progress: Called after each block.
        journal: Keeps each block, and the result.
        stage: Name of this plan's trial in the journal.
        tables: Embedding and head where they are quantised.
    """
    state = journal.recall(stage)
    if state and "divergence" in state.data:
        return float(state.data["divergence"])
    stream, reference = BlockStream(checkpoint, dtype, tables=tables.quantised), BlockStream(checkpoint)
    hidden = embedded(stream, tokens.probes)
    done = 0
    if state:
        done, hidden = state.data["blocks"], state.restored("hidden")
    matrices = {m.name: m for m in plan.matrices if m.form != "dense" or options.quantization}
    for index in range(done, stream.num_layers):
        with stream.block(index) as block:
            targets = [matrices[name] for name in block.linears if name in matrices]
            known = evidence.statistics_of(target.name for target in targets)
            install(block, factors_of(executor, targets, known, checkpoint, None, options, dtype, evidence))
            block.advance(hidden)
        journal.record(stage, State({"blocks": index + 1}, {"hidden": hidden}))
        progress("search", index + 1, stream.num_layers)
    total, rows, step = 0.0, 0, max(1, LOGITS // stream.vocab_size)
    for ours, theirs in zip(hidden, original.states, strict=True):
        pairs = zip(*(torch.split(batch.flatten(0, 1), step) for batch in (ours, theirs)), strict=True)
        for mine, wanted in pairs:
            p = reference.logits(wanted[None]).log_softmax(-1)
            q = stream.logits(mine[None]).log_softmax(-1)
            total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
            rows += len(mine)
    journal.record(stage, State({"divergence": total / rows}))
    return total / rows
