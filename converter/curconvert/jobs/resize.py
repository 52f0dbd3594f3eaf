"""Resizes a scored artifact: cuts it to a smaller one without calibration or training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curconvert.artifact.folder import atomic_folder, check_output
from curconvert.artifact.manifest import UNKNOWN_ERRORS, generator
from curconvert.artifact.model_files import tensor_specs, write_model_files
from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.base.dtypes import torch_dtype
from curconvert.base.environment import environment
from curconvert.base.names import bias_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.base.progress import silent
from curconvert.blocks.linears import factored_linear
from curconvert.blocks.stored import stored_tensor
from curconvert.blocks.stream import Block, BlockStream
from curconvert.calibration.parity_probe import ParityProbe
from curconvert.checkpoint.types import ByteRange, TensorInfo
from curconvert.estimate.disk import artifact_bytes, check_space
from curconvert.execution.executor import executing
from curconvert.execution.task import Executor
from curconvert.jobs.seal import verify_and_seal
from curconvert.options.execution import ExecutionOptions
from curconvert.options.resize import ResizeOptions
from curconvert.resizing.cut import Tensors, cuts
from curconvert.resizing.scored import Scored
from curconvert.training.rewrite import write_probes
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.checks.report import VerificationReport
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import MANIFEST
from curconvert_runtime.format.forms.form import factor_name
from curconvert_runtime.format.hashing import sha256
from curconvert_runtime.format.probes import CompressedProbe, Probes
from curconvert_runtime.serve.providers import PROVIDERS

_LOCAL = ExecutionOptions()


@dataclass(frozen=True)
class Resizing:
    """The result of `resize`: a published artifact.

    Attributes:
        path: The artifact folder.
        plan: Form and size of each matrix.
        report: The verification report; None without verification.
    """

    path: Path
    plan: Plan
    report: VerificationReport | None


def resize(
    path: str | Path,
    out: Path,
    options: ResizeOptions,
    *,
    overwrite: bool = False,
    verification: VerifyOptions | None = None,
    execution: ExecutionOptions = _LOCAL,
    progress: Progress = silent,
) -> Resizing:
    """Cut a scored artifact to a smaller size, without its checkpoint.

    Args:
        path: An artifact that `convert` made with the option `scored`.
        out: Folder to create. It appears when it is complete. The result is not scored.
        options: The new size.
        overwrite: Replace an existing artifact.
        verification: Limits that the result must meet before it is published; None skips verification.
        execution: Where to cut matrices. It does not change the result.
        progress: Called with (stage, done, total) after each block.

    Returns:
        The published artifact and its plan.

    Raises:
        CurConvertError: The subclass says what is wrong. `out` is then unchanged.
    """
    execution.check_installed()
    artifact = Artifact.open(path)
    check_output(out, overwrite, (artifact.path,))
    scored, probes = Scored.open(artifact), Probes.load(artifact)
    decided = scored.smaller(options.target(scored.plan.parameters_before), options.asked)
    source, dtype = scored.source, torch_dtype(artifact.model["dtype"])
    needed = artifact_bytes(artifact) * decided.parameters_after // scored.plan.parameters_after
    check_space(out, needed)
    with atomic_folder(out, overwrite, needed=needed) as work, executing(execution) as executor:
        with SafetensorsWriter(work, tensor_specs(source, decided, dtype)) as writer:
            answers = _write(artifact, scored, decided, dtype, probes.compressed, writer, executor, progress)
            writer.finish()
        write_probes(work, probes.original, answers)
        write_model_files(
            work, source, source.companions(), artifact.model["dtype"], writer.tensors, decided.matrices,
            target=_target(artifact),
        )  # fmt: skip
        manifest = _manifest(artifact, scored, decided, options)
        report = verify_and_seal(work, manifest, verification, progress)
    return Resizing(out, decided, report)


def _write(
    artifact: Artifact,
    scored: Scored,
    decided: Plan,
    dtype: torch.dtype,
    asked: CompressedProbe,
    writer: SafetensorsWriter,
    executor: Executor,
    progress: Progress,
) -> CompressedProbe:
    """Write every tensor, block by block; return the smaller model's outputs on the parity sequences."""
    stream = BlockStream(scored.source)
    probe = ParityProbe(stream, asked.ids, asked.lengths)
    matrices = {matrix.name: matrix for matrix in decided.matrices if matrix.rank is not None}
    for index in range(stream.num_layers):
        with stream.block(index) as block:
            found = _block(block, scored, matrices, dtype, executor)
            for name, tensors in found.items():
                bias = tensors.get("bias", scored.source.bias(name))
                block.replace(name, factored_linear(matrices[name].form, tensors, bias))
                for suffix, tensor in tensors.items():
                    writer.write(factor_name(name, suffix), tensor)
            probe.advance(block, stream.num_layers)
        progress("resize", index + 1, stream.num_layers)
    written = set(writer.written)
    for name, header in artifact.tensors.items():
        if name in writer.tensors and name not in written:
            location = ByteRange(header.file, header.offset, header.length)
            info = TensorInfo(name, header.dtype, header.shape, location)
            writer.copy(name, stored_tensor(artifact, name), info)
    return probe.result(stream)


def _block(
    block: Block, scored: Scored, matrices: Mapping[str, MatrixPlan], dtype: torch.dtype, executor: Executor
) -> Tensors:
    """Return the tensors of a block's compressed matrices: unchanged if the rank stays, otherwise cut."""
    found: dict[str, dict[str, Tensor]] = {}
    smaller = []
    for name in block.linears:
        if name not in matrices:
            continue
        if matrices[name].rank == scored.source.rows[name]["rank"]:
            found[name] = scored.source.stored(name)
        else:
            smaller.append(matrices[name])
    for part in executor.map(cuts(smaller, scored, dtype)):
        found |= part
    return found


def _manifest(artifact: Artifact, scored: Scored, decided: Plan, options: ResizeOptions) -> dict[str, Any]:
    """Return the manifest of the smaller artifact. Errors of cut matrices are null, because nothing measured them."""
    kept = {name: value for name, value in artifact.manifest.items() if name != "files"}
    return {
        **kept,
        "generator": generator(),
        "model": {**artifact.model, "parameters_after": decided.parameters_after},
        "environment": environment(),
        "matrices": [_row(scored, matrix) for matrix in decided.matrices],
        "metrics": None,
        "resized": {
            "manifest_sha256": sha256(artifact.path / MANIFEST),
            "parameters": scored.plan.parameters_after,
            **asdict(options),
        },
    }


def _target(artifact: Artifact) -> str:
    """Return the provider that an artifact's fused graph was made for; its arithmetic counts, not only the options."""
    fitting = [name for name, entry in PROVIDERS.items() if entry.arithmetic == artifact.arithmetic("fused")]
    recorded = artifact.manifest["options"].get("target")
    return recorded if recorded in fitting else fitting[0]


def _row(scored: Scored, matrix: MatrixPlan) -> dict[str, Any]:
    row = scored.source.rows[matrix.name]
    if matrix.rank == row["rank"]:
        return dict(row)
    biased = bias_of(matrix.name) in scored.plan.biases
    return {
        **row,
        **UNKNOWN_ERRORS,
        "form": matrix.form,
        "rank": matrix.rank,
        "basis": "subspace" if matrix.traits.has_basis else None,
        "parameters_after": matrix.parameters_after,
        "corrected_bias": biased and matrix.traits.corrects_bias,
        "reason": None,
    }
