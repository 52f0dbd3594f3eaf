"""Prepares a conversion: its plan from shapes, the calibration text, and the context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from curconvert.base.device import find_device
from curconvert.base.dtypes import torch_dtype
from curconvert.base.plan import Plan
from curconvert.calibration.batches import IN_MEMORY, StateStore
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.probes import parity_batch
from curconvert.calibration.self_text import with_self_text
from curconvert.calibration.text import CalibrationTokens, digest, load_tokens
from curconvert.checkpoint.dtypes import deployed_dtype
from curconvert.checkpoint.types import Checkpoint, Companions
from curconvert.execution.task import Executor
from curconvert.families.skeleton import EMBEDDING
from curconvert.jobs.bits import check_bits
from curconvert.journal.store import UNRECORDED, Journal, State
from curconvert.methods.core.context import Context
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import BUILTIN
from curconvert.options.settings import Settings
from curconvert.selection.layers import score_of
from curconvert_runtime.checks.fidelity import Progress


@dataclass(frozen=True)
class Prepared:
    """Model and calibration text, shared by every conversion of one model on one text.

    Attributes:
        checkpoint: The original.
        companions: Its other files, which the artifact gets.
        tokens: Calibration and probe sequences.
        dtype: Name of the deployed dtype.
        store: Holds hidden states on the calibration tokens.
    """

    checkpoint: Checkpoint
    companions: Companions
    tokens: CalibrationTokens
    dtype: str
    store: StateStore = IN_MEMORY

    def context(
        self, settings: Settings, scratch: Path, executor: Executor, progress: Progress, journal: Journal = UNRECORDED
    ) -> Context:
        """Return the context of a conversion.

        Args:
            settings: Settings of the conversion.
            scratch: Folder for the results of the passes over the original; empty, or left by an interrupted run.
            executor: Factorizes several matrices at a time.
            progress: Called after each step.
            journal: Records finished steps.
        """
        return Context(
            checkpoint=self.checkpoint,
            settings=settings,
            tokens=self.tokens,
            dtype=torch_dtype(self.dtype),
            evidence=Evidence(scratch),
            executor=executor,
            store=self.store,
            progress=progress,
            journal=journal,
        )


def first_plan(checkpoint: Checkpoint, options: ConvertOptions) -> Plan:
    """Return the plan that follows from the tensors' shapes.

    Raises:
        InputError: The method cannot reach the size.
    """
    plan = options.method.plan(checkpoint, options)
    chosen = options.method.sizes_whole or score_of(options.layers)  # the compressed matrices are only known later
    if options.quantization and options.mixes_bits and not chosen:
        check_bits(options.quantization, checkpoint, plan)
    return plan


def prepare(checkpoint: Checkpoint, settings: Settings) -> Prepared:
    """Read the calibration text, and check the device.

    Args:
        checkpoint: The original.
        settings: Settings that name the text, the deployed dtype and the device.

    Raises:
        CurConvertError: Text or tokenizer is unusable, or the device does not exist.
    """
    find_device(settings.device)
    companions = checkpoint.companions()
    tokens = load_tokens(settings.calibration, companions, vocab_size=checkpoint.tensors[EMBEDDING].shape[0])
    parity_batch(tokens.probes)  # rejects sequences that are too short for the verification
    return Prepared(checkpoint, companions, tokens, deployed_dtype(checkpoint, settings.dtype, settings.arithmetic))


def sampled(prepared: Prepared, settings: Settings, progress: Progress, journal: Journal = UNRECORDED) -> Prepared:
    """Return `prepared` with calibration text that includes the model's own samples.

    Args:
        prepared: The model and the given text.
        settings: Share of sampled text, and the seed.
        progress: Called after each sampled token.
        journal: Records the text.
    """
    if state := journal.recall("sample"):
        calibration, probes = (ids.numpy() for ids in state.restored("ids"))
        tokens = replace(
            prepared.tokens, calibration=calibration, probes=probes, sha256=digest(calibration, probes),
            notices=tuple(state.data["notices"]),
        )  # fmt: skip
    else:
        tokens = with_self_text(prepared.checkpoint, prepared.tokens, settings.self_text, settings.seed, progress)
        ids = [torch.from_numpy(part) for part in (tokens.calibration, tokens.probes)]
        journal.record("sample", State({"notices": tokens.notices}, {"ids": ids}))
    return replace(prepared, tokens=tokens)


def inputs(checkpoint: Checkpoint, settings: Settings) -> tuple[Path, ...]:
    """Return every path that a conversion reads. Its output must not overlap with them."""
    text = () if settings.calibration.source == BUILTIN else (Path(settings.calibration.source),)
    return (checkpoint.path, *checkpoint.files, *text)
