"""Estimates the disk space of a conversion, and checks that it is free."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from curconvert.allocation.plans import targets_of
from curconvert.artifact.workspace import workspace_of
from curconvert.base.durable import room, used_bytes
from curconvert.base.errors import BackendError
from curconvert.base.forms import traits_of
from curconvert.base.plan import Plan
from curconvert.base.roles import Role
from curconvert.calibration.backward import GRADIENT_TOKENS
from curconvert.calibration.probes import TOP_TOKENS
from curconvert.checkpoint.linears import decoder_linears
from curconvert.checkpoint.types import Checkpoint, Companions
from curconvert.families.roles import distinct_inputs, role_of
from curconvert.families.skeleton import EMBEDDING
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.core.planning import bytes_per_number, keeps_inputs
from curconvert.options.quantization import Quantization, stored_bytes
from curconvert.resizing.components import components_bytes
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import COMPONENTS
from curconvert_runtime.format.forms.form import factor_name

_GRAPHS = 20_000  # bytes of both graphs, for each layer; and of the other small files
_REST = 64 * 10**6  # graphs, reports, index vectors: far more than any measured model needs


def needed_bytes(
    checkpoint: Checkpoint,
    plan: Plan,
    options: ConvertOptions,
) -> int:
    """Return an estimate of the most bytes that a conversion has on disk at once, the artifact included.

    Args:
        checkpoint: The original.
        plan: The plan from shapes alone.
        options: Method and calibration.
    """
    hidden, layers = int(checkpoint.config["hidden_size"]), int(checkpoint.config["num_hidden_layers"])
    length = options.calibration.tokens_per_sequence
    probes = options.calibration.probe_sequences * length
    calibration = options.calibration.sequences * length
    # While a record replaces the previous one, both exist; the last record of another stage also stays.
    records = 3 * (4 * hidden * probes + states_bytes(checkpoint, options))
    method, targets = options.method, targets_of(checkpoint, options.roles)
    stored = plan.parameters_before if method.searches else plan.parameters_after
    answers = probes * 8 * min(TOP_TOKENS, checkpoint.tensors[EMBEDDING].shape[0])
    states = 4 * hidden * layers * min(calibration, GRADIENT_TOKENS + 8 * length) if options.needs.gradients else 0
    matrices = _auto_bytes(targets) if options.needs.curves else 0
    if options.mixes_bits and not matrices:
        matrices = 8 * sum(n * n for n in distinct_inputs(decoder_linears(checkpoint)).values())
    inputs = 4 * calibration * sum(distinct_inputs(targets).values()) if keeps_inputs(checkpoint, options) else 0
    components = components_bytes(targets) if method.writes_components else 0
    return (
        int(stored * bytes_per_number(checkpoint, options))
        + records
        + answers
        + states
        + matrices
        + inputs
        + components
        + _REST
    )


def states_bytes(checkpoint: Checkpoint, options: ConvertOptions) -> int:
    """Return the bytes of the hidden states of the calibration tokens."""
    text = options.calibration
    tokens = text.sequences * text.tokens_per_sequence * (2 if options.compares_inputs else 1)
    return 4 * int(checkpoint.config["hidden_size"]) * tokens


def _auto_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the bytes of the matrices that `auto` stores for linears: Gram and Fisher matrices, in float64."""
    inputs = sum(
        8 * n * n * (2 if role_of(name) is Role.DOWN else 1)  # twice: for the held-out part
        for name, n in distinct_inputs(shapes).items()
    )
    return inputs + sum(8 * m * m for name, (m, _) in shapes.items() if role_of(name) not in (Role.GATE, Role.UP))


def exported_bytes(
    checkpoint: Checkpoint, companions: Companions, dtype: torch.dtype, quantization: Quantization | None
) -> int:
    """Return about how many bytes the files of an uncompressed checkpoint take."""
    numbers = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
    copied = sum(path.stat().st_size for path in companions.copied.values())
    written = sum(map(len, companions.written.values()))
    graphs = _GRAPHS * (2 + int(checkpoint.config["num_hidden_layers"]))
    return int(numbers * stored_bytes(dtype.itemsize, quantization)) + copied + written + graphs


def artifact_bytes(artifact: Artifact) -> int:
    """Return the bytes of an artifact without what only `resize` reads."""
    return sum(entry["size"] for name, entry in artifact.manifest["files"].items() if name != COMPONENTS)


def healed_bytes(artifact: Artifact) -> int:
    """Return about how many bytes healing has on disk at once: the artifact, and two records of the training."""
    trained = 0
    for row in artifact.manifest["matrices"]:
        header = artifact.tensors.get(factor_name(row["name"], traits_of(row["form"]).linking or ""))
        trained += math.prod(header.shape) if header else 0
    # A record holds the factors, the best ones so far and two moments, in float32.
    return artifact_bytes(artifact) + 2 * 4 * 4 * trained


def check_space(out: Path, needed: int) -> None:
    """Reject a job that needs more disk space than is free; the space of an unfinished one counts as free.

    Args:
        out: The output.
        needed: Bytes.

    Raises:
        BackendError: The disk is too full; the message says how much is free.
    """
    folder = workspace_of(out)
    place = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(place).free + used_bytes(folder)
    if free < needed:
        raise BackendError(
            f"{place}: {room(free)} free, about {room(needed)} needed, so {room(needed - free)} are missing; free "
            "some, or choose another output"
        )
