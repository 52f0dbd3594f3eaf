"""Checks that need nothing but the artifact: what its parts say about each other.

A resealed manifest agrees with any bytes; these relations between the bytes still hold or break. What index vectors
must be is checked when the artifact is opened.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from curconvert_runtime.checks.report import Check
from curconvert_runtime.checks.rotary import rotary_check
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.contract import unsliced_name
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Shared, factor_name, is_index
from curconvert_runtime.format.onnx_external import ExternalTensor, external_tensors
from curconvert_runtime.format.probes import CompressedProbe
from curconvert_runtime.format.quantized import part_name
from curconvert_runtime.format.tensor_file import DTYPES, TensorHeader

_BLOCK = 1 << 22  # elements looked at in one go


def structure_checks(artifact: Artifact, probe: CompressedProbe) -> Iterator[Check]:
    """Yield the checks that the artifact's own parts allow."""
    yield _config(artifact)
    rotary = rotary_check(artifact.config, probe)
    if rotary is not None:
        yield rotary
    yield _factors(artifact)
    yield _counts(artifact)
    yield _finite_weights(artifact)
    for kind in artifact.graphs:
        yield _bindings(artifact, kind)


def _verdict(name: str, faults: list[str], count: int, what: str) -> Check:
    if not faults:
        return Check(name, True, f"{count} {what}")
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return Check(name, False, f"{'; '.join(faults[:3])}{more}")


def _config(artifact: Artifact) -> Check:
    """Compare what config.json says in two dialects, and the manifest too; a field that is absent says nothing."""
    config, model = artifact.config, artifact.model
    rope: Any = config.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    rope = rope.get("full_attention", rope)
    pairs = [(key, config.get(key), model[key]) for key in model if key in config]
    pairs += [("tie_word_embeddings", config.get("tie_word_embeddings"), model["tied_embeddings"])]
    pairs += [("torch_dtype", config.get("torch_dtype"), model["dtype"])]
    pairs += [("rope_theta", config.get("rope_theta"), rope.get("rope_theta"))]
    pairs = [pair for pair in pairs if None not in pair]
    faults = [f"config.json: {key} is {ours!r}, elsewhere {theirs!r}" for key, ours, theirs in pairs if ours != theirs]
    return _verdict("structure.config", faults, len(pairs), "fields of config.json agree with the manifest")


def _factors(artifact: Artifact) -> Check:
    """Columns and rows of one matrix W, C and R, both contain the block `W[rows, cols]`, bit for bit."""
    faults, count = [], 0
    for matrix in artifact.manifest["matrices"]:
        name, slices = matrix["name"], form_of(matrix["form"]).slices
        by_axis = {axis: (suffix, index) for suffix, (axis, index) in slices.items()}
        if len(by_axis) < 2 or factor_name(name, by_axis[1][0]) in artifact.quantized:
            continue  # quantized factors are rounded one by one, and differ
        count += 1
        (C, cols), (R, rows) = by_axis[1], by_axis[0]
        stored = {suffix: artifact.tensor(factor_name(name, suffix)) for suffix in (C, cols, R, rows)}
        # Copies: indexing a memory map otherwise keeps its type and its file.
        ours, theirs = np.array(stored[C][stored[rows]]), np.array(stored[R][:, stored[cols]])
        if wrong := int(np.sum(ours != theirs)):
            stem = name.removesuffix(".weight")
            faults.append(f"{stem}: {C}[{rows}] and {R}[:, {cols}] differ in {wrong} of {ours.size} numbers")
    return _verdict("structure.factors", faults, count, "CUR matrices: C[rows] equals R[:, cols]")


def _counts(artifact: Artifact) -> Check:
    """Compare the manifest's numbers of parameters with shapes, forms and ranks, and with what is stored."""
    rows = artifact.manifest["matrices"]
    faults = []
    for row in rows:
        m, n = row["shape"]
        after = form_of(row["form"]).parameters((m, n), row["rank"], Shared.of(row), row["name"])
        if (row["parameters_before"], row["parameters_after"]) != (m * n, after):
            faults.append(f"{row['name'][:200]}: {m * n} parameters became {after}, the manifest says otherwise")
    quantized = artifact.quantized
    parts = {part_name(name, part) for name, packing in quantized.items() for part in packing.parts}
    single = [h for name, h in artifact.tensors.items() if not is_index(name) and name not in parts]
    packed = sum(packing.numbers for packing in quantized.values())
    stored = sum(math.prod(header.shape) for header in single) + packed
    if quantized:
        said = artifact.manifest["quantization"]
        found = packed, sum(artifact.tensors[part].length for part in parts)
        if (said["parameters"], said["bytes"]) != found:
            faults.append(f"{found[0]} parameters are quantized in {found[1]} bytes, the manifest says otherwise")
    if artifact.model["parameters_after"] != stored:
        faults.append(f"{stored} parameters are stored, the manifest says {artifact.model['parameters_after']}")
    return _verdict("structure.counts", faults, len(rows), "matrices and the whole model have the stated parameters")


def _finite_weights(artifact: Artifact) -> Check:
    wrong = [name for name, header in artifact.tensors.items() if not _is_finite(header)]
    faults = [f"tensor {name[:200]!r} holds NaN or infinity" for name in wrong]
    return _verdict("structure.finite", faults, len(artifact.tensors), "tensors hold neither NaN nor infinity")


def _is_finite(header: TensorHeader) -> bool:
    """Look at a tensor block by block, in its stored dtype: no wider copy of a whole embedding."""
    dtype = DTYPES[header.dtype]
    if header.length == 0 or not (dtype.kind == "f" or header.dtype == "BF16"):
        return True
    flat = np.memmap(header.file, dtype, "r", header.offset, (header.length // dtype.itemsize,))
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        # bfloat16 comes as bits: an exponent of ones means NaN or infinity.
        finite = (block & 0x7F80) != 0x7F80 if header.dtype == "BF16" else np.isfinite(block)
        if not finite.all():
            return False
    return True


def _bindings(artifact: Artifact, kind: str) -> Check:
    """Each external initializer must read the tensor that it is named after, slices of one all of its rows in turn."""
    faults = []
    bound: dict[str, list[ExternalTensor]] = {}
    for initializer in external_tensors(artifact.graphs[kind]):
        bound.setdefault(unsliced_name(initializer.name), []).append(initializer)
    for name, slices in bound.items():
        tensor = name
        if name.startswith("lm_head.weight") and name not in artifact.tensors:
            tensor = f"model.embed_tokens.weight{name.removeprefix('lm_head.weight')}"  # tied
        header = artifact.tensors.get(tensor)
        if header is None:
            faults.append(f"initializer {name[:200]!r} is named after no tensor")
            continue
        begins = list(itertools.accumulate((part.length for part in slices), initial=header.offset))
        found = [(part.location, part.offset) for part in slices]
        if found != [(header.file.name, begin) for begin in begins[:-1]] or begins[-1] != header.offset + header.length:
            faults.append(f"initializer {name!r} does not point to the bytes of tensor {tensor!r}")
    count = sum(map(len, bound.values()))
    return _verdict(f"structure.{kind}_bindings", faults, count, "initializers point to the tensors they name")
