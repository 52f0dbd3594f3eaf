"""Checks that the parts of an artifact agree with each other.

If somebody changes bytes and updates the manifest's digests, the integrity check passes. These checks still find
contradictions between the bytes. Index vectors are checked when the artifact is opened.
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

_BLOCK = 1 << 22  # elements read at a time


def structure_checks(artifact: Artifact, probe: CompressedProbe) -> Iterator[Check]:
    """Yield the results of all checks in this module."""
    yield _config(artifact)
    rotary = rotary_check(artifact.config, probe)
    if rotary is not None:
        yield rotary
    yield from _factors(artifact)
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
    """Check config.json against the manifest, and its two spellings of `rope_theta`; skip absent fields."""
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


def _factors(artifact: Artifact) -> Iterator[Check]:
    """Check that C[rows] equals R[:, cols] bit for bit: both are the block `W[rows, cols]` of the matrix W, if any."""
    faults, count = [], 0
    for matrix in artifact.manifest["matrices"]:
        name, slices = matrix["name"], form_of(matrix["form"]).slices
        by_axis = {axis: (suffix, index) for suffix, (axis, index) in slices.items()}
        if len(by_axis) < 2 or factor_name(name, by_axis[1][0]) in artifact.quantized:
            continue  # C and R are quantized separately, so their blocks differ
        count += 1
        (C, cols), (R, rows) = by_axis[1], by_axis[0]
        stored = {suffix: artifact.tensor(factor_name(name, suffix)) for suffix in (C, cols, R, rows)}
        # Copy, because an indexed memory map stays a memory map and keeps its file open.
        ours, theirs = np.array(stored[C][stored[rows]]), np.array(stored[R][:, stored[cols]])
        if wrong := int(np.sum(ours != theirs)):
            stem = name.removesuffix(".weight")
            faults.append(f"{stem}: {C}[{rows}] and {R}[:, {cols}] differ in {wrong} of {ours.size} numbers")
    if count:
        what = f"CUR matri{'x' if count == 1 else 'ces'}: C[rows] equals R[:, cols]"
        yield _verdict("structure.factors", faults, count, what)


def _counts(artifact: Artifact) -> Check:
    """Check the manifest's numbers of parameters against shapes, forms, ranks and the stored tensors."""
    rows = artifact.manifest["matrices"]
    faults = []
    for row in rows:
        m, n = row["shape"]
        after = form_of(row["form"]).parameters((m, n), row["rank"], Shared.of(row), row["name"])
        if (row["parameters_before"], row["parameters_after"]) != (m * n, after):
            faults.append(f"{row['name'][:200]}: {m * n} → {after} parameters; the manifest has other numbers")
    quantized = artifact.quantized
    parts = {part_name(name, part) for name, packing in quantized.items() for part in packing.parts}
    single = [h for name, h in artifact.tensors.items() if not is_index(name) and name not in parts]
    packed = sum(packing.numbers for packing in quantized.values())
    stored = sum(math.prod(header.shape) for header in single) + packed
    if quantized:
        said = artifact.manifest["quantization"]
        found = packed, sum(artifact.tensors[part].length for part in parts)
        if (said["parameters"], said["bytes"]) != found:
            faults.append(f"{found[0]} parameters in {found[1]} bytes are quantized; the manifest has other numbers")
    if artifact.model["parameters_after"] != stored:
        faults.append(f"{stored} parameters are stored, the manifest says {artifact.model['parameters_after']}")
    what = f"matri{'x' if len(rows) == 1 else 'ces'} and the whole model have the stated parameters"
    return _verdict("structure.counts", faults, len(rows), what)


def _finite_weights(artifact: Artifact) -> Check:
    wrong = [name for name, header in artifact.tensors.items() if not _is_finite(header)]
    faults = [f"tensor {name[:200]!r} holds NaN or infinity" for name in wrong]
    return _verdict("structure.finite", faults, len(artifact.tensors), "tensors hold neither NaN nor infinity")


def _is_finite(header: TensorHeader) -> bool:
    """Tell whether a tensor has no NaN or infinity. Read it in blocks, to avoid a wide copy of a large embedding."""
    dtype = DTYPES[header.dtype]
    if header.length == 0 or not (dtype.kind == "f" or header.dtype == "BF16"):
        return True
    flat = np.memmap(header.file, dtype, "r", header.offset, (header.length // dtype.itemsize,))
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK]
        # bfloat16 is read as bits; an exponent of all ones means NaN or infinity.
        finite = (block & 0x7F80) != 0x7F80 if header.dtype == "BF16" else np.isfinite(block)
        if not finite.all():
            return False
    return True


def _bindings(artifact: Artifact, kind: str) -> Check:
    """Check that each external initializer reads the tensor in its name; slices must cover the tensor in order."""
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
