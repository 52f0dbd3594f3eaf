"""How much room on the disk a conversion takes, and whether it is there."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from curconvert.allocation.backward import GRADIENT_TOKENS
from curconvert.artifact.workspace import workspace_of
from curconvert.blocks.skeleton import EMBEDDING
from curconvert.checkpoint.types import Checkpoint
from curconvert.errors import BackendError
from curconvert.options import ConvertOptions
from curconvert.planning import Plan, keeps_inputs, layer_of, linear_of
from curconvert_runtime.probes import TOP_TOKENS

_REST = 64 * 10**6  # graphs, reports, index vectors: far less for any model seen
_COMMON_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}  # linears of one input


def needed_bytes(
    checkpoint: Checkpoint, plan: Plan, options: ConvertOptions, itemsize: int, targets: Collection[str]
) -> int:
    """Estimate the most bytes that a conversion has on the disk at once, the artifact included.

    Args:
        checkpoint: The original.
        plan: What shapes alone can tell.
        options: Method and calibration.
        itemsize: Bytes of a deployed number.
        targets: Weights that may be compressed.
    """
    hidden, layers = int(checkpoint.config["hidden_size"]), int(checkpoint.config["num_hidden_layers"])
    length = options.calibration.tokens_per_sequence
    probes = options.calibration.probe_sequences * length
    calibration = options.calibration.sequences * length
    # While a record replaces the one before it, both are there; another stage's last one stays.
    records = 3 * 4 * hidden * (probes + calibration)
    stored = plan.parameters_before if options.max_kl is not None else plan.parameters_after
    answers = probes * 8 * min(TOP_TOKENS, checkpoint.tensors[EMBEDDING].shape[0])
    backward = options.form == "auto" or options.approximation == "fwsvd"
    states = 4 * hidden * layers * min(calibration, GRADIENT_TOKENS + 8 * length) if backward else 0
    shapes = {name: checkpoint.tensors[name].shape for name in targets}
    matrices = _auto_bytes({name: (m, n) for name, (m, n) in shapes.items()}) if options.form == "auto" else 0
    inputs = 0
    if keeps_inputs(checkpoint, options):
        distinct = {
            (layer_of(name), _COMMON_INPUT.get(linear_of(name), linear_of(name))): n for name, (_, n) in shapes.items()
        }
        inputs = 4 * calibration * sum(distinct.values())
    return stored * itemsize + records + answers + states + matrices + inputs + _REST


def _auto_bytes(shapes: Mapping[str, tuple[int, int]]) -> int:
    """Return the bytes of the matrices that `auto` keeps of every linear: of inputs and of gradients, in float64."""
    total = 0
    for name, (m, n) in shapes.items():
        linear = linear_of(name)
        if linear not in _COMMON_INPUT:
            total += 8 * n * n * (2 if linear == "down_proj" else 1)  # twice: a part is held out
        if linear not in ("gate_proj", "up_proj"):
            total += 8 * m * m
    return total


def check_space(out: Path, needed: int) -> None:
    """Refuse a conversion that the disk has no room for; what an unfinished one has taken counts as there.

    Args:
        out: The output.
        needed: Bytes.

    Raises:
        BackendError: Says how much is there.
    """
    folder = workspace_of(out)
    place = next(parent for parent in folder.parents if parent.exists())
    used = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    free = shutil.disk_usage(place).free + used
    if free < needed:
        raise BackendError(
            f"{place}: {free / 1e9:.2f} GB free, about {needed / 1e9:.2f} GB needed; free some, "
            "or choose another output"
        )
