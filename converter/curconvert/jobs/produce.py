"""Turns a plan into a verified artifact folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from curconvert.artifact.manifest import build_manifest
from curconvert.artifact.model_files import tensor_specs, write_model_files
from curconvert.artifact.safetensors_writer import SafetensorsWriter, save_tensors
from curconvert.base.dtypes import dtype_name
from curconvert.base.machine import peak_memory
from curconvert.base.plan import Plan
from curconvert.calibration.probes import pack_probes
from curconvert.checkpoint.types import Companions
from curconvert.factorization.projections import read_projections
from curconvert.jobs.bits import check_bits, measured_costs, with_bits
from curconvert.jobs.compress import compress
from curconvert.jobs.seal import verify_and_seal
from curconvert.methods.core.context import Context, Measured
from curconvert.methods.core.options import ConvertOptions
from curconvert.quantization.bits import RoundingCost
from curconvert.quantization.tensors import Tables, quantization_json, quantized_tables, quantized_tensors
from curconvert.resizing.components import write_components
from curconvert_runtime.checks.report import VerificationReport
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_runtime.format.files import PROBES


def produce(
    work: Path,
    context: Context,
    companions: Companions,
    measured: Measured,
    decided: Plan,
    options: ConvertOptions,
    verification: VerifyOptions | None,
) -> tuple[VerificationReport | None, int | None]:
    """Write the artifact into a folder, and verify it.

    Args:
        work: The folder; empty, or left by an interrupted run.
        context: The conversion.
        companions: The original's other files, which the artifact gets.
        measured: Results of the passes over the original.
        decided: Form and rank of every matrix.
        options: Method and settings.
        verification: Thresholds that the artifact must meet; None skips verification.

    Returns:
        The verification report, and the peak resident memory before the verification, in bytes.

    Raises:
        CurConvertError: A tensor cannot be stored, or the verification fails.
    """
    checkpoint, tokens, dtype = context.checkpoint, context.tokens, context.dtype
    tables, costs = measured.tables, list[RoundingCost]()
    if options.mixes_bits:
        context, tables, costs = _with_bits(context, measured, decided, options)
        options = replace(options, quantization=context.settings.quantization)
    quantization = options.quantization
    with SafetensorsWriter(work, tensor_specs(checkpoint, decided, dtype, quantization)) as writer:
        reports, parity = compress(options, decided, context, writer, tables)
        writer.finish()
    if options.method.writes_components:
        _write_components(work, context, measured, decided)
    probes = pack_probes(tokens.probes, measured.original.outputs, parity)
    save_tensors(work / PROBES, {name: torch.from_numpy(v) for name, v in probes.items()})
    name = dtype_name(dtype)
    quantized = quantized_tensors(checkpoint, decided, quantization) if quantization else {}
    write_model_files(work, checkpoint, companions, name, writer.tensors, decided.matrices, quantized, options.target)
    described = quantization_json(quantization, quantized, tables.errors, costs) if quantization else None
    manifest = build_manifest(
        checkpoint, name, decided, reports, options.to_json(), tokens, described, options.arithmetic
    )
    peak = peak_memory()
    return verify_and_seal(work, manifest, verification, context.progress), peak


def _with_bits(
    context: Context, measured: Measured, decided: Plan, options: ConvertOptions
) -> tuple[Context, Tables, list[RoundingCost]]:
    """Choose the bits of each matrix; return the new context, the quantized tables and the measured costs."""
    assert options.quantization is not None
    assert measured.original.head is not None
    check_bits(options.quantization, context.checkpoint, decided)
    costs = measured_costs(options.method, decided, measured.original.head, options.quantization, context)
    chosen = with_bits(options.quantization, context.checkpoint, decided, costs)
    tables = quantized_tables(context.checkpoint, chosen, measured.original.head)
    return replace(context, settings=replace(context.settings, quantization=chosen)), tables, costs


def _write_components(work: Path, context: Context, measured: Measured, decided: Plan) -> None:
    evidence = context.evidence

    def read(names: Any) -> Mapping[str, Any]:
        return read_projections(names, evidence.statistics_of(names), context.checkpoint, context.dtype)

    write_components(
        work, decided, measured.curves, evidence, read, context.settings.ridge, context.executor, context.progress
    )  # fmt: skip
