"""Heals an artifact: trains some of its tensors and publishes an artifact of the same size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from curconvert.artifact.fingerprint import common
from curconvert.artifact.folder import check_output, publish
from curconvert.artifact.manifest import UNKNOWN_ERRORS, made_from, seal
from curconvert.artifact.workspace import workspace
from curconvert.base.errors import InputError, UnsupportedError
from curconvert.base.forms import traits_of
from curconvert.base.progress import silent
from curconvert.blocks.precision import multiplies_bfloat16
from curconvert.blocks.stored import build_torch_model
from curconvert.calibration.self_text import resident_model
from curconvert.checkpoint.companions import artifact_companions
from curconvert.checkpoint.types import Checkpoint
from curconvert.estimate.disk import check_space, healed_bytes
from curconvert.jobs.seal import verify_and_seal
from curconvert.jobs.source import open_source
from curconvert.journal.store import Journal
from curconvert.options.calibration import BUILTIN
from curconvert.options.heal import HealOptions
from curconvert.options.source import SourceOptions
from curconvert.training.examples import Data, load_data
from curconvert.training.heal_blocks import heal_blocks
from curconvert.training.loop import Point, train
from curconvert.training.rewrite import copy_with, outputs_by_blocks, outputs_of_model, write_probes
from curconvert.training.student import held_out_measure, keep_few_activations, trainable, training_loss
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.checks.report import VerificationReport
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import MANIFEST
from curconvert_runtime.format.hashing import sha256
from curconvert_runtime.format.probes import Probes


@dataclass(frozen=True)
class Healing:
    """The result of `heal`: a published artifact.

    Attributes:
        path: The artifact folder.
        curves: Evaluations during training, by stage: one stage for the whole model, or one for each block.
        parameters: Number of trained parameters.
        notices: Notices about the training text, one sentence each.
        report: The verification report; None without verification.
    """

    path: Path
    curves: dict[str, list[Point]]
    parameters: int
    notices: tuple[str, ...]
    report: VerificationReport | None


def heal(
    path: str | Path,
    original: SourceOptions | None,
    out: Path,
    options: HealOptions,
    *,
    overwrite: bool = False,
    resume: bool = True,
    verification: VerifyOptions | None = None,
    progress: Progress = silent,
) -> Healing:
    """Train the linking factors of an artifact to match the original, or to learn a task.

    The size, the graphs and all other tensors do not change.

    Args:
        path: The artifact folder.
        original: The checkpoint that the artifact was made from; None if `options.needs_original` is False.
        out: Folder to create. It appears when it is complete.
        options: What to train, on which data, and for how long.
        overwrite: Replace an existing artifact.
        resume: Resume an interrupted run of the same call. False discards its work.
        verification: Limits that the result must meet before it is published; None skips verification.
        progress: Called with (stage, done, total) after each step.

    Returns:
        The published artifact and the training curves.

    Raises:
        CurConvertError: The subclass says what is wrong. `out` is then unchanged.
    """
    artifact = Artifact.open(path)
    _check_forms(artifact, options)
    checkpoint = _original(artifact, original, options)
    text = () if options.data.source == BUILTIN else (Path(options.data.source),)
    source = () if checkpoint is None else (checkpoint.path, *checkpoint.files)
    check_output(out, overwrite, (artifact.path, *source, *text))
    data = load_data(options, artifact_companions(artifact), artifact.model["vocab_size"])
    probes = Probes.load(artifact)
    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    identity = {
        "artifact": sha256(artifact.path / MANIFEST),
        **common(artifact.manifest["source"]["files"], data.sha256, data.begin, options.to_json()),
    }
    needed = healed_bytes(artifact)
    check_space(out, needed)
    with workspace(out, identity, resume=resume, needed=needed) as space:
        healed: dict[str, torch.Tensor] = {}
        curves: dict[str, list[Point]] = {}
        if checkpoint and (options.mode == "blocks" or options.start == "als"):
            healed, curves = heal_blocks(artifact, checkpoint, data, options, dtype, space.journal, progress)
        if options.mode == "whole":
            teacher = resident_model(checkpoint) if checkpoint and options.needs_original else None
            healed, curves = heal_whole(artifact, teacher, data, options, dtype, space.journal, progress, healed)
        manifest = _manifest(artifact, data, options, curves, healed)
        for left in space.artifact.iterdir():  # of a run that was stopped while it wrote
            left.unlink()
        copy_with(artifact, space.artifact, healed)
        seal(space.artifact, manifest)
        made = Artifact.open(space.artifact)
        if checkpoint and options.mode == "blocks":
            answers = outputs_by_blocks(probes.compressed, made, checkpoint)
        else:
            answers = outputs_of_model(probes.compressed, build_torch_model(made))
        write_probes(space.artifact, probes.original, answers)
        if checkpoint:
            checkpoint.files.check()
        report = verify_and_seal(space.artifact, manifest, verification, progress)
        publish(space.artifact, out, overwrite)
    notices = (*(checkpoint.notices if checkpoint else ()), *data.notices)
    return Healing(out, curves, sum(value.numel() for value in healed.values()), notices, report)


def heal_whole(
    artifact: Artifact,
    teacher: torch.nn.Module | None,
    data: Data,
    options: HealOptions,
    dtype: torch.dtype,
    journal: Journal,
    progress: Progress,
    start: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, list[Point]]]:
    """Train the whole model at once.

    Args:
        artifact: The compressed model.
        teacher: The original; None if the options do not need it.
        data: Training and held-out sequences.
        options: Losses, steps and rates.
        dtype: Dtype of products while training.
        journal: Records the state of training.
        progress: Called after each step.
        start: Initial values of some tensors, by stored name.

    Returns:
        The trained tensors by stored name, and the curve.
    """
    student = build_torch_model(artifact)
    if options.checkpointing:
        keep_few_activations(student)
    parameters = trainable(student, options.train)
    with torch.no_grad():
        for name, value in start.items():
            parameters[name].copy_(value)
    curve = train(
        list(parameters.values()), training_loss(student, teacher, data.training, options, dtype),
        held_out_measure(student, teacher, data.held_out, options), data.training.counts, options, journal, "heal",
        progress,
    )  # fmt: skip
    return {name: parameter.detach() for name, parameter in parameters.items()}, {"heal": curve}


def _original(artifact: Artifact, source: SourceOptions | None, options: HealOptions) -> Checkpoint | None:
    if source is None:
        if options.needs_original:
            raise InputError(
                "--against is missing: give the original; only --objective ce without --hidden and --kl works "
                "without it"
            )
        return None
    checkpoint = open_source(replace(source, ignore=tuple(artifact.manifest["source"].get("ignore", ()))))
    if not made_from(artifact.manifest, checkpoint):
        raise InputError(f"{source.model}: {artifact.path} was made from other weights; give its own original")
    return checkpoint


def _check_forms(artifact: Artifact, options: HealOptions) -> None:
    if artifact.quantized:
        raise UnsupportedError(f"{artifact.path}: its weights are quantized; heal an artifact made without --quantize")
    forms = {matrix["form"] for matrix in artifact.manifest["matrices"]}
    if (options.train == "u" or options.start == "als") and not any(traits_of(form).linking for form in forms):
        raise InputError(
            f"{artifact.path}: nothing to train in the forms {', '.join(sorted(forms)) or 'of an export'}; heal an "
            "artifact of form cur or interpolative, or pass --train u+norms without --start als"
        )


def _manifest(
    artifact: Artifact,
    data: Data,
    options: HealOptions,
    curves: dict[str, list[Point]],
    healed: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """Return the manifest; the errors of trained matrices are null, because they were those of the old factors."""
    trained = {name.rpartition(".")[0] for name in healed}
    matrices = [
        matrix | (UNKNOWN_ERRORS if matrix["name"].removesuffix(".weight") in trained else {})
        for matrix in artifact.manifest["matrices"]
    ]
    earlier = artifact.manifest.get("healing")
    healing = {
        "source": data.source,
        "token_sha256": data.sha256,
        "sequences": len(data.training),
        "tokens_per_sequence": data.training.ids.shape[1],
        "begin": data.begin,
        "options": options.to_json(),
        "tensors": sorted({*healed, *(earlier or {}).get("tensors", ())}),
        "trained_parameters": sum(value.numel() for value in healed.values()),
        "curves": {stage: [asdict(point) for point in curve] for stage, curve in curves.items()},
        **({"earlier": earlier} if earlier else {}),
    }
    kept = {name: value for name, value in artifact.manifest.items() if name != "files"}
    return {**kept, "matrices": matrices, "metrics": None, "healing": healing}
