"""What only torch and the original can tell about an artifact.

`torch_parity` rebuilds the model in transformers from the artifact's own `config.json` and weights, with the same
cache, padding and steps as the graphs, and compares every answer. `check_slices` compares the stored bytes with the
checkpoint they came from.
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

from curconvert.blocks.modules import factored_linear
from curconvert.blocks.skeleton import EMBEDDING, HEAD, build_skeleton, canonical_parameters, set_tensor
from curconvert.checkpoint import Checkpoint, open_checkpoint
from curconvert.errors import IntegrityError
from curconvert.planning import bias_of
from curconvert_runtime.artifact import Artifact
from curconvert_runtime.forms import PROVENANCE, Shared, multiply, tensor_names
from curconvert_runtime.hashing import sha256
from curconvert_runtime.parity import compare, compare_with_probe, teacher_forced
from curconvert_runtime.probes import Probes
from curconvert_runtime.quantized import PARTS, part_name
from curconvert_runtime.report import Check
from curconvert_runtime.verification import VerifyOptions, graph_answers

_SAME_ERROR = 1e-4  # that sums of squares may differ by, on another machine
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "I64": torch.int64}


@dataclass(frozen=True)
class ParityResult:
    """What the comparison with torch found.

    Attributes:
        checks: Per graph: logits, first and last keys; and torch now against torch at the conversion.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True when every check passed."""
        return all(check.passed for check in self.checks)


def stored_tensor(artifact: Artifact, name: str) -> Tensor:
    """Return a stored tensor in its stored dtype, memory-mapped; writing to it does not reach the file."""
    header = artifact.tensors[name]
    if header.length == 0:
        return torch.zeros(header.shape, dtype=_DTYPES[header.dtype])
    data = np.memmap(header.file, np.uint8, "c", header.offset, (header.length,))
    return torch.from_numpy(data).view(_DTYPES[header.dtype]).reshape(header.shape)


def build_torch_model(artifact: Artifact) -> nn.Module:
    """Build transformers' model of an artifact in float32: eager attention, factors multiplied one by one.

    Raises:
        IntegrityError: A tensor that the config asks for is missing or of another shape, or one is left over.
        InputError: transformers refuses the config.
    """
    model = build_skeleton({key: value for key, value in artifact.config.items() if key != "quantization_config"})
    parts = {part_name(name, part) for name in artifact.quantised for part in PARTS}
    unused = {name for name in artifact.tensors if not name.endswith(PROVENANCE) and name not in parts}
    unused |= set(artifact.quantised)
    factored = {m["name"]: m for m in artifact.manifest["matrices"] if m["form"] != "dense"}

    def take(name: str) -> Tensor:
        if name not in artifact.tensors and name not in artifact.quantised:
            raise IntegrityError(f"{artifact.path}: config.json asks for tensor {name}, which is not stored")
        unused.discard(name)
        if name in artifact.quantised:
            return torch.from_numpy(artifact.matrix(name))
        tensor = stored_tensor(artifact, name)
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor

    for name, owner, attribute in list(canonical_parameters(model)):
        stem, _, kind = name.rpartition(".")
        wanted = tuple(getattr(owner, attribute).shape)
        matrix = factored.get(f"{stem}.weight")
        if matrix is not None:
            if kind == "weight":
                if tuple(matrix["shape"]) != wanted:
                    raise IntegrityError(
                        f"{artifact.path}: {name} has shape {matrix['shape']}, config.json asks for {wanted}"
                    )
                if owner.bias is not None:
                    take(f"{stem}.bias")
                unused.difference_update(factor_names(matrix).values())
                _replace(model, owner, linear_of_artifact(artifact, matrix))
            continue
        absent = HEAD not in artifact.tensors and HEAD not in artifact.quantised
        tied = name == HEAD and absent and artifact.config.get("tie_word_embeddings")
        value = take(EMBEDDING if tied else name)
        if tuple(value.shape) != wanted:
            raise IntegrityError(
                f"{artifact.path}: tensor {name} has shape {tuple(value.shape)}, config.json asks for {wanted}"
            )
        set_tensor(owner, attribute, value)
    if unused:
        raise IntegrityError(f"{artifact.path}: config.json has no place for tensors {', '.join(sorted(unused)[:5])}")
    return model


def linear_of_artifact(artifact: Artifact, matrix: Mapping[str, Any]) -> nn.Module:
    """Build the linear of one of the manifest's matrices, in float32.

    Args:
        artifact: Where its factors are stored, and its bias if there is one.
        matrix: The manifest's row.

    Raises:
        IntegrityError: A factor is not stored.
    """
    names = factor_names(matrix)
    missing = [name for name in names.values() if name not in artifact.tensors and name not in artifact.quantised]
    if missing:
        raise IntegrityError(f"{artifact.path}: config.json asks for tensor {missing[0]}, which is not stored")
    factors = {
        suffix: torch.from_numpy(artifact.matrix(name)) if name in artifact.quantised else stored_tensor(artifact, name)
        for suffix, name in names.items()
    }
    name = bias_of(matrix["name"])
    bias = stored_tensor(artifact, name) if name in artifact.tensors else None
    return factored_linear(matrix["form"], factors, bias)


def factor_names(matrix: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of a matrix's stored tensors, by suffix."""
    m, n = matrix["shape"]
    return tensor_names(matrix["name"], matrix["form"], (m, n), matrix["rank"], Shared.of(matrix))


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for attribute, child in parent.named_children():
            if child is old:
                setattr(parent, attribute, new)
                return


class TorchSession:
    """The torch model behind a session's `forward`: left padding, a real cache."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def allocate_cache(self, batch: int, capacity: int) -> DynamicCache:
        """Return an empty cache without a config: every layer keeps all keys, windows are a matter of the mask."""
        return DynamicCache()

    def forward(
        self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64], *, past: DynamicCache
    ) -> tuple[NDArray[Any], DynamicCache]:
        """Return float32 logits and the grown cache."""
        mask = torch.from_numpy(attention_mask)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(input_ids),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
            )
        return output.logits.numpy(), output.past_key_values


def _cache_keys(cache: DynamicCache) -> tuple[NDArray[Any], NDArray[Any]]:
    return cache.layers[0].keys.numpy(), cache.layers[-1].keys.numpy()


def torch_parity(path: str | Path, options: VerifyOptions | None = None) -> ParityResult:
    """Compare both graphs with the torch model built from the artifact: prefill, 16 decode steps, batch, padding.

    Args:
        path: The artifact's folder.
        options: `max_parity`, provider and threads are used.

    Raises:
        IntegrityError: The folder is damaged, or its tensors do not fit its config.
    """
    options = options or VerifyOptions()
    artifact = Artifact.open(path)
    probe = Probes.load(artifact).compressed
    model = TorchSession(build_torch_model(artifact))
    reference = teacher_forced(model, probe.ids, probe.lengths, "left", _cache_keys)
    limit = options.max_parity
    checks = compare_with_probe("torch.conversion", reference, probe, limit)
    for kind in sorted(artifact.graphs, reverse=True):
        answers = graph_answers(artifact, kind, probe, options)
        checks += compare(
            f"torch.{kind}", answers, reference, lengths=probe.lengths, limit=limit, against="torch",
            arithmetic=artifact.arithmetic(kind),
        )  # fmt: skip
    return ParityResult(tuple(checks))


def check_slices(path: str | Path, original: str | Path | Checkpoint) -> list[Check]:
    """Compare an artifact's tensors with the checkpoint it was made from, bit for bit after the cast to its dtype.

    Args:
        path: The artifact's folder.
        original: The checkpoint, or what `open_checkpoint` takes.

    Returns:
        Three checks: the source files' sha256; C and R as columns and rows of the original weight (R of a `subspace`
        basis is not made of them), and the kept rows of smaller MLPs and of q_proj and k_proj; every other tensor, a
        bias of kept rows too. Of a bias that the manifest calls corrected, and of what was trained, only the shape:
        their values depend on a text. With quantised tensors a fourth: what they stand for is as far from the original
        as the manifest says. Bits of theirs cannot be compared, because each rounding error moves the numbers after it.

    Raises:
        CurConvertError: Either cannot be opened.
    """
    artifact = Artifact.open(path)
    checkpoint = open_checkpoint(original) if isinstance(original, str | Path) else original
    recorded = {entry["name"]: entry["sha256"] for entry in artifact.manifest["source"]["files"]}
    found = {file.name: sha256(file) for file in checkpoint.files}
    same = recorded == found
    detail = f"{len(found)} source files have the recorded sha256"
    checks = [
        Check("source.files", same, detail if same else f"the artifact was made from other files than {original}")
    ]
    slices, others = list(_slice_faults(artifact, checkpoint)), list(_other_faults(artifact, checkpoint))
    verdicts = [
        ("source.slices", slices, "every tensor that is said to be columns or rows of the original's is"),
        ("source.tensors", others, "every other tensor equals the original's"),
    ]
    if artifact.quantised:
        far = list(_quantised_faults(artifact, checkpoint))
        verdicts.append(
            ("source.quantised", far, "every quantised matrix is as near to the original's as it is said to be")
        )
    return [*checks, *(Check(name, not faults, "; ".join(faults[:3]) or good) for name, faults, good in verdicts)]


def _quantised_faults(artifact: Artifact, checkpoint: Checkpoint) -> Iterator[str]:
    """Compare distances from the original's matrices with those in the manifest."""
    for row in artifact.manifest["quantization"]["tensors"]:
        if row["relative_frobenius_error"] is not None:
            yield from _distance_faults(row, artifact.matrix(row["name"]), checkpoint)
    for row in artifact.manifest["matrices"]:
        names = {"weight": row["name"]} if row["form"] == "dense" else factor_names(row)
        if artifact.quantised.keys() & set(names.values()):
            stored = {suffix: artifact.matrix(name) for suffix, name in names.items()}
            m, n = row["shape"]
            yield from _distance_faults(row, multiply(row["form"], (m, n), stored), checkpoint)


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
        yield f"{name} is {error:.4f} of its norm from the original, the manifest says {said}"


def _slice_faults(artifact: Artifact, checkpoint: Checkpoint) -> Iterator[str]:
    for matrix in artifact.manifest["matrices"]:
        if matrix["form"] == "dense":
            continue
        name, stem = matrix["name"], matrix["name"].removesuffix(".weight")
        info = checkpoint.tensors.get(name)
        if info is None or info.shape != tuple(matrix["shape"]):
            yield f"{name}: the original has shape {info.shape if info else 'none'}, the manifest {matrix['shape']}"
            continue
        slices = _slices(matrix)
        weight = checkpoint.read(name) if slices else torch.empty(0)
        for part, (axis, indices) in slices.items():
            if f"{stem}.{part}" in artifact.quantised:
                continue
            wanted = weight.index_select(axis, stored_tensor(artifact, f"{stem}.{indices}"))
            if not _same_bits(stored_tensor(artifact, f"{stem}.{part}"), wanted):
                yield f"{stem}.{part} is not made of the original's {'columns' if axis else 'rows'}"


def _slices(matrix: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Return the factors that are slices of the original, with the axis and the index vector of each."""
    if matrix["form"] == "cur":
        return {"C": (1, "cols"), "R": (0, "rows")}
    if matrix["form"] == "modular_rows":
        return {"weight": (0, "rows")}
    factor = "R" if matrix["form"] == "interpolative" else "weight"
    return {factor: (0, "rows")} if matrix["basis"] == "rows" else {}


def _other_faults(artifact: Artifact, checkpoint: Checkpoint) -> Iterator[str]:
    rows = [m for m in artifact.manifest["matrices"] if m["form"] != "dense"]
    factored = {m["name"] for m in rows}
    factors = {name for m in rows for name in factor_names(m).values()}
    cut = {bias_of(m["name"]) for m in rows if m["form"] == "modular_rows"}
    corrected = {bias_of(m["name"]) for m in rows if m.get("corrected_bias")}
    trained = set(artifact.manifest.get("healing", {}).get("tensors", ()))
    parts = {part_name(name, part) for name in artifact.quantised for part in PARTS}
    kept = set(artifact.tensors) - factors - parts
    for name in sorted(kept ^ (set(checkpoint.tensors) - factored - set(artifact.quantised))):
        yield f"{name} is in {'the artifact' if name in kept else 'the original'} only"
    for name in sorted(kept & set(checkpoint.tensors)):
        stored, wanted = stored_tensor(artifact, name), checkpoint.read(name)
        if name in cut:
            wanted = wanted.index_select(0, stored_tensor(artifact, f"{name.removesuffix('bias')}rows"))
        if stored.shape != wanted.shape or not (name in corrected | trained or _same_bits(stored, wanted)):
            yield f"{name} differs from the original"


def _same_bits(stored: Tensor, wanted: Tensor) -> bool:
    """Compare bits, so that −0 differs from 0 and a NaN equals itself."""
    cast = wanted.to(stored.dtype).contiguous()
    return bool(torch.equal(stored.contiguous().view(torch.uint8), cast.view(torch.uint8)))
