"""Measures the divergence of a planned model from the original, without writing an artifact."""

from __future__ import annotations

import torch

from curconvert.base.plan import Plan
from curconvert.blocks.stream import BlockStream
from curconvert.calibration.original import LOGITS, embedded
from curconvert.journal.store import State
from curconvert.methods.core.block import compressed, install
from curconvert.methods.core.context import Context, Measured
from curconvert.methods.core.method import Method


def divergence(method: Method, plan: Plan, context: Context, measured: Measured, stage: str) -> float:
    """Compress in memory, and return the mean KL(original ‖ compressed) on the probes, nats per token.

    Args:
        method: The compression method.
        plan: The plan to measure.
        context: The conversion; its journal records each block and the result.
        measured: The original's states on the probes, and quantized tables.
        stage: Name of this plan's trial in the journal.
    """
    journal = context.journal
    state = journal.recall(stage)
    if state and "divergence" in state.data:
        return float(state.data["divergence"])
    stream = BlockStream(context.checkpoint, context.dtype, tables=measured.tables.quantized)
    reference = BlockStream(context.checkpoint)
    hidden = embedded(stream, context.tokens.probes)
    done = 0
    if state:
        done, hidden = state.data["blocks"], state.restored("hidden")
    matrices = {m.name: m for m in plan.matrices if m.is_compressed or context.settings.quantization}
    for index in range(done, stream.num_layers):
        with stream.block(index) as block:
            targets = [matrices[name] for name in block.linears if name in matrices]
            install(block, compressed(method, targets, None, context))
            block.advance(hidden)
        journal.record(stage, State({"blocks": index + 1}, {"hidden": hidden}))
        context.progress("search", index + 1, stream.num_layers)
    total, rows, step = 0.0, 0, max(1, LOGITS // stream.vocab_size)
    for ours, theirs in zip(hidden, measured.original.states, strict=True):
        pairs = zip(*(torch.split(batch.flatten(0, 1), step) for batch in (ours, theirs)), strict=True)
        for mine, wanted in pairs:
            p = reference.logits(wanted[None]).log_softmax(-1)
            q = stream.logits(mine[None]).log_softmax(-1)
            total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
            rows += len(mine)
    journal.record(stage, State({"divergence": total / rows}))
    return total / rows
