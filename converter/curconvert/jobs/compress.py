"""Compresses a model block by block while it streams through memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.base.names import bias_of, layer_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.blocks.stream import BlockStream
from curconvert.calibration.original import embedded
from curconvert.calibration.parity_probe import ParityProbe
from curconvert.calibration.probes import parity_batch
from curconvert.calibration.states import CalibrationStates
from curconvert.checkpoint.types import Checkpoint
from curconvert.factorization.types import Factorization
from curconvert.journal.store import State
from curconvert.methods.core.block import compressed, install
from curconvert.methods.core.context import Context
from curconvert.methods.core.options import ConvertOptions
from curconvert.quantization.tensors import Tables
from curconvert_runtime.format.forms.form import factor_name
from curconvert_runtime.format.probes import CompressedProbe
from curconvert_runtime.format.quantized import part_name


def compress(
    options: ConvertOptions, plan: Plan, context: Context, writer: SafetensorsWriter, tables: Tables
) -> tuple[dict[str, Factorization], CompressedProbe]:
    """Factorize the planned matrices block by block and write every tensor of the artifact's decoder blocks.

    Args:
        options: Method and settings.
        plan: The plan, with its layers chosen.
        context: The conversion. This function collects the statistics that its evidence lacks, and those of inputs
            that come from compressed blocks.
        writer: Receives each tensor as soon as it is final.
        tables: Quantized embedding and lm_head, if they are quantized.

    Returns:
        Reports of the factorized and quantized matrices (their tensors released), and the compressed model's parity
        probe.
    """
    method, checkpoint, tokens, journal = options.method, context.checkpoint, context.tokens, context.journal
    stream = BlockStream(checkpoint, context.dtype, torch.device(options.device), tables.quantized)
    matrices = {m.name: m for m in plan.matrices if m.is_compressed or options.quantization}
    later = set(matrices)
    if method.full_metric:
        later |= {bias_of(name) for name, m in matrices.items() if m.traits.corrects_bias or m.entry.cuts_outputs}
    last_layer = max(layer_of(name) for name in matrices) if matrices else -1
    known = context.evidence.has_statistics(matrices) and not options.sequential
    hidden = embedded(stream, tokens.calibration[:0] if known else tokens.calibration, context.store)
    states = CalibrationStates(
        hidden, sequential=options.sequential, compared=options.compares_inputs, store=context.store
    )
    probe = ParityProbe(stream, *parity_batch(tokens.probes))
    reports: dict[str, Factorization] = {}
    done = 0
    if state := journal.recall("compress"):
        done = state.data["blocks"]
        states.restore(state)
        reports = {name: Factorization.from_json(report) for name, report in state.data["reports"].items()}
        probe.restore(state)
        writer.resume(state.data["written"])
    # Write these first: an infinite value is reported here by name, and would only cause strange errors in the loop.
    stream.release_table()  # the writer reads it again
    _write_tables(tables, writer)
    _write_all_but(later.union(writer.written, tables.quantized), checkpoint, writer)
    for index in range(done, stream.num_layers):
        with stream.block(index) as block:
            if index == 0:
                states.choose_dtype(checkpoint, block)
            targets = [matrices[name] for name in block.linears if name in matrices]
            if targets:
                for part, inputs in [(targets, None)] if known else states.stages(block, targets):
                    found = compressed(method, part, inputs, context)
                    install(block, found)
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
        data = {"blocks": index + 1, "reports": rows, "written": writer.written, "products": states.products}
        journal.record("compress", State(data, {**states.tensors(), **probe.state()}), [writer.flush])
        context.progress("compress", index + 1, stream.num_layers)
    return reports, probe.result(stream)


def _write_all_but(names: Collection[str], checkpoint: Checkpoint, writer: SafetensorsWriter) -> None:
    for name in checkpoint.tensors:
        if name not in names:
            writer.copy(name, checkpoint.read(name), checkpoint.tensors[name])


def _write_tables(tables: Tables, writer: SafetensorsWriter) -> None:
    for name, table in tables.quantized.items():
        for suffix, part in table.parts.items():
            if part_name(name, suffix) not in writer.written:
                writer.write(part_name(name, suffix), part)


def _write_factors(matrix: MatrixPlan, factors: Factorization, writer: SafetensorsWriter) -> None:
    for suffix, tensor in factors.tensors.items():
        quantized = part_name(suffix, "scales") in factors.tensors  # then only its parts are stored
        if matrix.stores(suffix) and not quantized:
            writer.write(factor_name(matrix.name, suffix), tensor)
