"""Writes graphs and files of an uncompressed checkpoint."""

from __future__ import annotations

from pathlib import Path

from curconvert.artifact.card import write_reports
from curconvert.artifact.folder import atomic_folder, check_output
from curconvert.artifact.manifest import build_manifest, seal
from curconvert.artifact.model_files import tensor_specs, write_model_files
from curconvert.artifact.quantized import write_quantized
from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.base.checks import one_of
from curconvert.base.dtypes import torch_dtype
from curconvert.base.errors import InputError
from curconvert.base.machine import peak_memory
from curconvert.base.progress import silent
from curconvert.checkpoint.dtypes import deployed_dtype
from curconvert.estimate.disk import check_space, exported_bytes
from curconvert.jobs.bits import check_bits, exported_costs, with_bits
from curconvert.jobs.conversion import Conversion
from curconvert.jobs.source import open_source
from curconvert.options.quantization import Quantization
from curconvert.options.settings import DTYPES, arithmetic_of
from curconvert.options.source import SourceOptions
from curconvert.quantization.bits import RoundingCost
from curconvert.quantization.tensors import quantization_json, quantized_tensors
from curconvert_runtime.checks.fidelity import Progress


def export(
    source: SourceOptions,
    out: Path,
    *,
    dtype: str | None = None,
    target: str = "cpu",
    quantization: Quantization | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Write the same files and graphs for a checkpoint without compression, as a baseline.

    Args:
        source: The checkpoint.
        out: Folder to create. It appears when it is complete.
        dtype: Stored dtype; None keeps the dtype of the checkpoint, or takes float16 for `cuda`.
        target: Where the artifact will run: `cpu`, or `cuda` with float16 weights and products.
        quantization: How to quantize; the rounding must be `nearest`. To quantize with a calibration text, use
            `convert` with the method `dense`.
        overwrite: Replace an existing artifact.
        progress: Called with (stage, done, total) after each tensor.

    Returns:
        The published artifact, without plan and report.

    Raises:
        CurConvertError: The subclass says what is wrong. `out` is then unchanged.
    """
    if quantization is not None and quantization.uses_statistics:
        raise InputError("--rounding gptq: export reads no calibration text; use convert --method dense")
    if dtype is not None:
        one_of("--dtype", dtype, DTYPES)
    arithmetic = arithmetic_of(target, dtype, quantization)
    checkpoint = open_source(source)
    check_output(out, overwrite, (checkpoint.path, *checkpoint.files))
    dtype = deployed_dtype(checkpoint, dtype, arithmetic)
    companions = checkpoint.companions()
    if quantization is not None and quantization.mixed:
        check_bits(quantization, checkpoint, None)
    needed = exported_bytes(checkpoint, companions, torch_dtype(dtype), quantization)
    check_space(out, needed)
    with atomic_folder(out, overwrite, needed=needed) as work:
        costs: list[RoundingCost] = []
        if quantization is not None and quantization.mixed:
            costs = exported_costs(checkpoint, quantization, progress)
            quantization = with_bits(quantization, checkpoint, None, costs)
        quantized = quantized_tensors(checkpoint, None, quantization) if quantization else {}
        errors: dict[str, float] = {}
        with SafetensorsWriter(work, tensor_specs(checkpoint, None, torch_dtype(dtype), quantization)) as writer:
            for done, name in enumerate(checkpoint.tensors, 1):
                if quantization and name in quantized:
                    errors[name] = write_quantized(name, checkpoint.read(name), quantization, writer)
                else:
                    writer.copy(name, checkpoint.read(name), checkpoint.tensors[name])
                progress("export", done, len(checkpoint.tensors))
            writer.finish()
        write_model_files(work, checkpoint, companions, dtype, writer.tensors, (), quantized, target)
        described = quantization_json(quantization, quantized, errors, costs) if quantization else None
        manifest = build_manifest(checkpoint, dtype, quantization=described, arithmetic=arithmetic)
        write_reports(work, manifest)
        seal(work, manifest)
    return Conversion(out, None, (*checkpoint.notices, *companions.notices), None, peak_memory())
