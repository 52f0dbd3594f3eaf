"""Checks an artifact with torch and with the checkpoint it was made from.

`torch_parity` rebuilds the model in transformers from the artifact's own `config.json` and weights. It uses the same
cache, padding and steps as the graphs, and compares all outputs. `check_slices` compares the stored tensors with the
source checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from curconvert.base.forms import traits_of
from curconvert.base.names import bias_of
from curconvert.base.types import Ids
from curconvert.blocks.cache import cache_argument
from curconvert.blocks.stored import build_torch_model, factor_names, stored_matrix, stored_tensor
from curconvert.checkpoint import Checkpoint, open_checkpoint
from curconvert_runtime.checks.parity import compare, compare_with_probe, limit_of, teacher_forced
from curconvert_runtime.checks.report import Check
from curconvert_runtime.checks.verification import VerifyOptions, graph_outputs
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.hashing import sha256
from curconvert_runtime.format.probes import Probes
from curconvert_runtime.format.quantized import PARTS, part_name

_SAME_ERROR = 1e-4  # accepted difference of a relative error, because sums of squares differ between machines


@dataclass(frozen=True)
class ParityResult:
    """Result of the comparison with torch.

    Attributes:
        checks: Logits, first and last keys of each graph; and torch now against torch at the conversion.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when every check passed."""
        return all(check.passed for check in self.checks)


class TorchSession:
    """Wraps the torch model with a session's `forward`: left padding, and a key/value cache."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def allocate_cache(self, batch: int, capacity: int) -> DynamicCache:
        """Return an empty cache. Without a config, every layer keeps all keys, and only the mask applies windows."""
        return DynamicCache()

    def forward(
        self, input_ids: Ids, attention_mask: NDArray[np.int64], *, past: DynamicCache
    ) -> tuple[NDArray[Any], DynamicCache]:
        """Return float32 logits and the grown cache."""
        mask = torch.from_numpy(attention_mask)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(input_ids),
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{cache_argument(self._model): past},
            )
        return output.logits.numpy(), past


def _cache_keys(cache: DynamicCache) -> tuple[NDArray[Any], NDArray[Any]]:
    return cache.layers[0].keys.numpy(), cache.layers[-1].keys.numpy()


def torch_parity(path: str | Path, options: VerifyOptions | None = None) -> ParityResult:
    """Compare each graph with the torch model built from the artifact: padded batch, prefill, 16 decoding steps.

    Args:
        path: The artifact's folder.
        options: Only `max_parity`, provider and threads are used.

    Raises:
        IntegrityError: The folder is damaged, or its tensors do not fit its config.
    """
    options = options or VerifyOptions()
    artifact = Artifact.open(path)
    probe = Probes.load(artifact).compressed
    model = TorchSession(build_torch_model(artifact))
    reference = teacher_forced(model, probe.ids, probe.lengths, "left", _cache_keys)
    checks = compare_with_probe("torch.conversion", reference, probe, options.max_parity)
    for kind in sorted(artifact.graphs, reverse=True):
        answers = graph_outputs(artifact, kind, probe, options)
        limit = limit_of(artifact.arithmetic(kind), options.max_parity)
        checks += compare(f"torch.{kind}", answers, reference, lengths=probe.lengths, limit=limit, against="torch")
    return ParityResult(tuple(checks))


def check_slices(path: str | Path, original: str | Path | Checkpoint) -> list[Check]:
    """Compare an artifact's tensors with the checkpoint it was made from, bit for bit after the cast to its dtype.

    Args:
        path: The artifact's folder.
        original: The checkpoint, or what `open_checkpoint` takes.

    Returns:
        `source.files` compares the sha256 of the source files. `source.slices` compares all factors that must be
        columns or rows of the original (not R of a `subspace` basis). `source.tensors` compares every other tensor; of
        corrected biases and trained tensors only the shape, because their values depend on a text.
        `source.quantized`, if tensors are quantized, checks that each matrix is as far from the original as the
        manifest says. Bits cannot be compared, because each rounding error changes the numbers after it.

    Raises:
        CurConvertError: The artifact or the checkpoint cannot be opened.
    """
    artifact = Artifact.open(path)
    ignore = artifact.manifest["source"].get("ignore", ())
    checkpoint = open_checkpoint(original, ignore=ignore) if isinstance(original, str | Path) else original
    recorded = sorted(entry["sha256"] for entry in artifact.manifest["source"]["files"])
    same = recorded == sorted(map(sha256, checkpoint.files))  # whatever their names are
    detail = f"{len(recorded)} source files have the recorded sha256"
    checks = [
        Check(
            "source.files", same, detail if same else f"the artifact was not made from the files of {checkpoint.path}"
        )
    ]
    slices, others = list(_slice_faults(artifact, checkpoint)), list(_other_faults(artifact, checkpoint))
    verdicts = [
        ("source.slices", slices, "all factors that must be columns or rows of the original are"),
        ("source.tensors", others, "all other tensors equal the original's"),
    ]
    if artifact.quantized:
        far = list(_quantized_faults(artifact, checkpoint))
        verdicts.append(
            ("source.quantized", far, "quantized matrices are as close to the original as the manifest says")
        )
    return [*checks, *(Check(name, not faults, "; ".join(faults[:3]) or good) for name, faults, good in verdicts)]


def _quantized_faults(artifact: Artifact, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the matrices whose distance from the original differs from the manifest's."""
    measured = {name for row in artifact.manifest["matrices"] for name in factor_names(row).values()}
    for row in artifact.manifest["quantization"]["tensors"]:
        if row["name"] not in measured:
            yield from _distance_faults(row, stored_matrix(artifact, row["name"]), checkpoint)
    for row in artifact.manifest["matrices"]:
        names = factor_names(row)
        if artifact.quantized.keys() & set(names.values()):
            stored = {suffix: stored_matrix(artifact, name) for suffix, name in names.items()}
            m, n = row["shape"]
            yield from _distance_faults(row, form_of(row["form"]).multiply((m, n), stored), checkpoint)


def _distance_faults(row: Mapping[str, Any], stored: NDArray[Any], checkpoint: Checkpoint) -> Iterator[str]:
    name, said = row["name"], row["relative_frobenius_error"]
    info = checkpoint.tensors.get(name)
    if info is None or info.shape != tuple(row["shape"]):
        yield f"{name}: the original has shape {info.shape if info else 'none'}, the manifest {row['shape']}"
        return
    weight = checkpoint.read(name).to(torch.float64).numpy()
    whole = float(np.linalg.norm(weight))
    error = float(np.linalg.norm(weight - stored)) / whole if whole > 0 else 0.0
    if said is None or not math.isclose(error, said, rel_tol=_SAME_ERROR, abs_tol=_SAME_ERROR):
        yield f"{name} has a relative error of {error:.4f} to the original, the manifest says {said}"


def _slice_faults(artifact: Artifact, checkpoint: Checkpoint) -> Iterator[str]:
    for matrix in artifact.manifest["matrices"]:
        if not form_of(matrix["form"]).is_compressed:
            continue
        name, stem = matrix["name"], matrix["name"].removesuffix(".weight")
        info = checkpoint.tensors.get(name)
        if info is None or info.shape != tuple(matrix["shape"]):
            yield f"{name}: the original has shape {info.shape if info else 'none'}, the manifest {matrix['shape']}"
            continue
        slices = traits_of(matrix["form"]).slices(matrix["basis"])
        weight = checkpoint.read(name) if slices else torch.empty(0)
        for part, (axis, indices) in slices.items():
            if f"{stem}.{part}" in artifact.quantized:
                continue
            wanted = weight.index_select(axis, stored_tensor(artifact, f"{stem}.{indices}"))
            if not _same_bits(stored_tensor(artifact, f"{stem}.{part}"), wanted):
                yield f"{stem}.{part} is not made of the original's {'columns' if axis else 'rows'}"


def _other_faults(artifact: Artifact, checkpoint: Checkpoint) -> Iterator[str]:
    rows = [m for m in artifact.manifest["matrices"] if form_of(m["form"]).is_compressed]
    factored = {m["name"] for m in rows}
    factors = {name for m in rows for name in factor_names(m).values()}
    cut = {bias_of(m["name"]) for m in rows if form_of(m["form"]).cuts_outputs}
    corrected = {bias_of(m["name"]) for m in rows if m.get("corrected_bias")}
    trained = set(artifact.manifest.get("healing", {}).get("tensors", ()))
    parts = {part_name(name, part) for name in artifact.quantized for part in PARTS}
    kept = set(artifact.tensors) - factors - parts
    for name in sorted(kept ^ (set(checkpoint.tensors) - factored - set(artifact.quantized))):
        yield f"{name} is in {'the artifact' if name in kept else 'the original'} only"
    linking = {factor_names(m).get(traits_of(m["form"]).linking or "") for m in rows}
    norms = {name for name in kept if name.endswith(".weight") and len(artifact.tensors[name].shape) == 1}
    for name in sorted(trained - linking - norms):
        yield f"{name} is listed as healed, which only linking factors and norms can be"
    for name in sorted(kept & set(checkpoint.tensors)):
        stored, wanted = stored_tensor(artifact, name), checkpoint.read(name)
        if name in cut:
            wanted = wanted.index_select(0, stored_tensor(artifact, f"{name.removesuffix('bias')}rows"))
        if stored.shape != wanted.shape or not (name in corrected | trained & norms or _same_bits(stored, wanted)):
            yield f"{name} differs from the original"


def _same_bits(stored: Tensor, wanted: Tensor) -> bool:
    """Tell whether two tensors have the same bits: −0 differs from 0, and a NaN equals itself."""
    cast = wanted.to(stored.dtype).contiguous()
    return bool(torch.equal(stored.contiguous().view(torch.uint8), cast.view(torch.uint8)))
