"""The block loop: stream the model, compressing as it goes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from curconvert.allocation.evidence import Evidence
from curconvert.artifact.journal import UNRECORDED, Journal, State
from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.blocks.heads import Heads, attention_heads
from curconvert.blocks.modules import factored_linear
from curconvert.blocks.precision import calibration_dtype
from curconvert.blocks.stream import Block, BlockStream
from curconvert.calibration.batches import Keeping
from curconvert.calibration.statistics import InputStatistics
from curconvert.calibration.text import CalibrationTokens
from curconvert.calibration_states import CalibrationStates
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.executor import Executor
from curconvert.factorization.checked import FactorTask, allocated_tasks, block_tasks, learned_tasks
from curconvert.factorization.types import Factorization
from curconvert.options import ConvertOptions
from curconvert.original_pass import LOGITS, OriginalPass, embedded, silent
from curconvert.parity_probe import ParityProbe
from curconvert.planning import MatrixPlan, Plan, bias_of, layer_of
from curconvert.quantization.block import quantisation_tasks
from curconvert.quantization.tensors import Tables
from curconvert_runtime.fidelity import Progress
from curconvert_runtime.forms import SPARSE, factor_name
from curconvert_runtime.probes import (
    CompressedProbe,
    parity_batch,
)
from curconvert_runtime.quantized import part_name

UNQUANTISED = Tables()


def compress(
    checkpoint: Checkpoint,
    plan: Plan,
    tokens: CalibrationTokens,
    options: ConvertOptions,
    dtype: torch.dtype,
    writer: SafetensorsWriter,
    evidence: Evidence,
    executor: Executor,
    progress: Progress = silent,
    journal: Journal = UNRECORDED,
    tables: Tables = UNQUANTISED,
    keeping: Keeping = list,
) -> tuple[dict[str, Factorization], CompressedProbe]:
    """Factorize the planned matrices block by block and write every tensor of the artifact's decoder blocks.

    Args:
        checkpoint: The original.
        plan: With its layers decided.
        tokens: Calibration and probe sequences.
        options: Method and numerics.
        dtype: Deployed dtype.
        writer: Receives each tensor as soon as it is final.
        evidence: What the original gave. Statistics that it does not hold are collected here, and so are those of
            inputs that come from compressed blocks.
        executor: Factorizes.
        progress: Called after each block.
        journal: Keeps each block.
        tables: Embedding and head where they are quantised.
        keeping: Where hidden states on the calibration tokens are kept.

    Returns:
        Reports of the factorized and quantised matrices (their tensors released), and the compressed model's parity
        probe.
    """
    stream = BlockStream(checkpoint, dtype, torch.device(options.device), tables.quantised)
    matrices = {m.name: m for m in plan.matrices if m.form != "dense" or options.quantization}
    later = set(matrices)
    if options.full_metric:
        later |= {bias_of(name) for name, m in matrices.items() if m.form not in ("dense", *SPARSE.values())}
    last_layer = max(layer_of(name) for name in matrices) if matrices else -1
    known = evidence.has_statistics(matrices) and not options.sequential
    calibration = tokens.calibration[:0] if known else tokens.calibration
    states = CalibrationStates(embedded(stream, calibration, keeping), options, keeping)
    probe = ParityProbe(stream, *parity_batch(tokens.probes))
    heads = attention_heads(checkpoint.config) if any(m.form in SPARSE.values() for m in plan.matrices) else None
    reports: dict[str, Factorization] = {}
    done = 0
    if state := journal.recall("compress"):
        done = state.data["blocks"]
        states.restore(state)
        states.products = getattr(torch, state.data["products"])
        reports = {name: Factorization.from_json(report) for name, report in state.data["reports"].items()}
        probe.restore(state)
        writer.resume(state.data["written"])
    # First, because a value that cannot be stored is named here; in the block loop it would only be felt.
    stream.release_table()  # it is read again to be written
    _write_tables(tables, writer)
    _write_all_but(later.union(writer.written, tables.quantised), checkpoint, writer)
    for index in range(done, stream.num_layers):
        with stream.block(index) as block:
            if index == 0 and states.first is not None:
                states.products = calibration_dtype(checkpoint, block, states.first)
            targets = [matrices[name] for name in block.linears if name in matrices]
            if targets:
                own = heads[index] if heads else None
                for part, inputs in [(targets, None)] if known else states.stages(block, targets):
                    found = _factors(executor, part, inputs, checkpoint, own, options, dtype, evidence)
                    _install(block, found)
                    for name, factors in found.items():
                        _write_factors(matrices[name], factors, writer)
                        reports[name] = replace(factors, tensors={})
                states.leave_compressed(block)
            elif index < last_layer:
                states.leave_dense(block)
            else:
                states.release()
            probe.advance(block, stream.num_layers)
        rows = {name: report.to_json() for name, report in reports.items()}
        data = {"blocks": index + 1, "reports": rows, "written": writer.written, "products": str(states.products)[6:]}
        journal.record("compress", State(data, {**states.tensors(), **probe.state()}), [writer.flush])
        progress("compress", index + 1, stream.num_layers)
    return reports, probe.result(stream)


def _write_all_but(names: Collection[str], checkpoint: Checkpoint, writer: SafetensorsWriter) -> None:
    for name in checkpoint.tensors:
        if name not in names:
            writer.copy(name, checkpoint.read(name), checkpoint.tensors[name])


def _write_tables(tables: Tables, writer: SafetensorsWriter) -> None:
    for name, table in tables.quantised.items():
        for suffix, part in table.parts.items():
            if part_name(name, suffix) not in writer.written:
                writer.write(part_name(name, suffix), part)


def _write_factors(matrix: MatrixPlan, factors: Factorization, writer: SafetensorsWriter) -> None:
    for suffix, tensor in factors.tensors.items():
        quantised = part_name(suffix, "scales") in factors.tensors  # its parts are stored instead
        if matrix.stores(suffix) and not quantised:
            writer.write(factor_name(matrix.name, suffix), tensor)


def _factors(
    executor: Executor,
    plans: Sequence[MatrixPlan],
    collected: Mapping[str, InputStatistics] | None,
    checkpoint: Checkpoint,
    heads: Heads | None,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
) -> dict[str, Factorization]:
    """Factorize some of a block's matrices and then, where that is asked for, quantise them and its dense ones."""
    if collected is None:  # auto's own tasks read what they need
        needless = options.form == "auto" and not options.quantization
        collected = {} if needless else evidence.statistics_of(plan.name for plan in plans)
    found = factorized(executor, plans, collected, checkpoint, heads, options, dtype, evidence)
    if options.quantization:
        found = _run(executor, quantisation_tasks(plans, found, collected, checkpoint, options, dtype, evidence))
    return found


def factorized(
    executor: Executor,
    plans: Sequence[MatrixPlan],
    collected: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    heads: Heads | None,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
) -> dict[str, Factorization]:
    """Factorize some of a block's matrices.

    Args:
        executor: Works on them side by side.
        plans: Of linears; the dense ones are left out.
        collected: Statistics of their inputs by name; `auto` reads its own.
        checkpoint: Weights and biases.
        heads: The layer's; None where no form is sparse.
        options: Method and numerics.
        dtype: Deployed dtype.
        evidence: What the passes over the original found.
    """
    factored = [plan for plan in plans if plan.form != "dense"]
    if not factored:
        return {}
    if options.form == "auto":
        return _run(executor, allocated_tasks(factored, evidence, checkpoint, options, dtype))
    if options.form == "learned":
        return _run(executor, learned_tasks(factored, evidence, checkpoint, dtype))
    return _run(executor, block_tasks(factored, collected, checkpoint, heads, options, dtype, evidence))


def _run(executor: Executor, tasks: Iterable[FactorTask]) -> dict[str, Factorization]:
    """Work on one block's matrices side by side."""
    return {name: factors for found in executor.map(tasks) for name, factors in found.items()}


def _install(block: Block, found: Mapping[str, Factorization]) -> None:
    """Put factored linears in the place of a block's dense ones."""
    for name, factors in found.items():
        linear = block.linears[name]
        assert isinstance(linear, nn.Linear)
        tensors = {suffix: tensor.to(linear.weight.device) for suffix, tensor in factors.tensors.items()}
        block.replace(name, factored_linear(factors.form, tensors, tensors.get("bias", linear.bias)))


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
            _install(block, _factors(executor, targets, known, checkpoint, None, options, dtype, evidence))
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
