"""Checks an artifact's folder before anything in it is used, cheap checks first.

Entries whose name begins with a dot (`.git`, `.cache`) are ignored, because no loaded file has such a name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curconvert_runtime.errors import InputError, IntegrityError, UnsupportedError, reading, unsound
from curconvert_runtime.format import strict_json
from curconvert_runtime.format.files import MANIFEST, WEIGHTS, WEIGHTS_INDEX
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Shared, factor_name
from curconvert_runtime.format.hashing import cached_sha256, check_once, sha256
from curconvert_runtime.format.onnx_external import external_tensors
from curconvert_runtime.format.quantized import PARTS, Packing, packings, part_name
from curconvert_runtime.format.tensor_file import STORED_DTYPE, TensorHeader, read_headers
from curconvert_runtime.format.vectors import check_vectors
from curconvert_schemas import SchemaError, schema_text, validate
from curconvert_schemas.client_settings import SETTINGS, check_settings
from curconvert_schemas.folder import is_for_people, regular_size

_FORMAT_VERSION = (1, 0)
_SCHEMA = "manifest-1.0"
# Names of the rules of `_check_graph` and `check_vectors`. Change a name when its rules change: then files that passed
# the old rules are checked again.
_GRAPH_RULES, _VECTOR_RULES = "graph references 2", "index vectors 1"


def read_checked(path: str | Path, full: bool) -> tuple[Path, dict[str, Any], dict[str, TensorHeader]]:
    """Check a folder as `Artifact.open` does; return its absolute path, manifest, and weight headers by name."""
    folder = _resolve(path)
    if not (folder / MANIFEST).exists():
        if (folder / "model.onnx").exists():
            raise IntegrityError(f"{folder / MANIFEST}: missing; the folder is not a complete curconvert artifact")
        model = (folder / "config.json").exists() and f"this is a model: run curconvert convert {folder} -o OUT"
        raise InputError(f"{folder / MANIFEST}: missing; {model or 'give the folder of an artifact'}")
    _size(folder / MANIFEST)
    manifest, text = _read_manifest(folder / MANIFEST, full)
    _check_listing(folder, manifest["files"])
    tensors = _read_weights(folder, manifest["files"])
    names = [matrix["name"] for matrix in manifest["matrices"]]
    if len(set(names)) != len(names):
        raise unsound(folder / MANIFEST, "a matrix is listed twice")
    quantized = _check_quantized(manifest, tensors)
    for matrix in manifest["matrices"]:
        _check_matrix(matrix, tensors, STORED_DTYPE[manifest["model"]["dtype"]], quantized)
    for graph in manifest["graphs"].values():
        _check_graph(folder, graph["file"], manifest["files"], tensors, full)
    for name, expected in manifest["files"].items():
        _check_content(folder / name, expected["sha256"], full)
    # The manifest holds the weights' digests, checked above. So its text alone decides what the index vectors hold.
    check_once(lambda: check_vectors(manifest["matrices"], tensors), _VECTOR_RULES, text, fresh=full)
    return folder, manifest, tensors


def _resolve(path: str | Path) -> Path:
    try:
        folder = Path(path).expanduser().resolve()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError):  # ~nobody, a symlink loop, a NUL in the name
        pass
    found = "a file" if os.path.isfile(path) else "no such folder"  # noqa: PTH113 - takes any text for a path
    raise InputError(f"{path}: {found}; give the folder that curconvert wrote")


def _read_manifest(path: Path, full: bool) -> tuple[dict[str, Any], str]:
    """Return the manifest after checking it against its schema, and its text as JSON with sorted keys."""
    manifest = strict_json.read(path)
    version = manifest.get("format_version")
    major_minor = str(version).split(".")
    if len(major_minor) == 2 and all(part.isascii() and part.isdecimal() and len(part) < 6 for part in major_minor):
        found = tuple(map(int, major_minor))
        if found > _FORMAT_VERSION:
            known = ".".join(map(str, _FORMAT_VERSION))
            raise UnsupportedError(f"{path}: format {version} is newer than {known}; upgrade curconvert")
    text = json.dumps(manifest, sort_keys=True)
    try:
        # Importing the validator takes several times as long as all other steps here.
        check_once(lambda: validate(manifest, _SCHEMA), schema_text(_SCHEMA), text, fresh=full)
    except SchemaError as error:
        raise unsound(path, str(error)) from None
    files = {name: entry for name, entry in manifest["files"].items() if not is_for_people(name)}
    return manifest | {"files": files}, text


def _check_listing(folder: Path, files: Mapping[str, Any]) -> None:
    for entry in sorted(folder.iterdir()):
        ours = entry.name == MANIFEST or entry.name in files or entry.name.startswith(".")
        if not ours and not (is_for_people(entry.name) and entry.is_file()):
            raise IntegrityError(f"{entry}: not listed in {MANIFEST}; remove it or convert the model again")
    for name, expected in files.items():
        size = _size(folder / name)
        if size != expected["size"]:
            raise IntegrityError(f"{folder / name}: {size} bytes, {MANIFEST} says {expected['size']}; copy it again")


def _size(path: Path) -> int:
    try:
        return regular_size(path)
    except ValueError as error:
        raise IntegrityError(f"{path}: {error}") from None


def _read_weights(folder: Path, files: Mapping[str, Any]) -> dict[str, TensorHeader]:
    if (WEIGHTS in files) == (WEIGHTS_INDEX in files):
        raise unsound(folder, f"expected either {WEIGHTS} or {WEIGHTS_INDEX}")
    if WEIGHTS in files:
        return read_headers(folder / WEIGHTS)
    index = folder / WEIGHTS_INDEX
    weight_map = strict_json.read(index, limit=2**28).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise unsound(index, "no weight_map")
    tensors: dict[str, TensorHeader] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if shard not in files:
            raise unsound(index, f"shard {shard[:200]!r} is not listed in {MANIFEST}")
        for name, header in read_headers(folder / shard).items():
            if weight_map.get(name) != shard:
                raise IntegrityError(f"{folder / shard}: tensor {name[:200]!r} is not in the index for this shard")
            tensors[name] = header
    for name in weight_map:
        if name not in tensors:
            raise IntegrityError(f"{folder / str(weight_map[name])}: tensor {name[:200]!r} of the index is absent")
    return tensors


def _check_quantized(manifest: Mapping[str, Any], tensors: Mapping[str, TensorHeader]) -> Mapping[str, Packing]:
    """Compare the manifest's quantized matrices with their stored parts; return shape and layout of each, by name."""
    found = packings(manifest)
    if not found:
        return {}
    if len(found) != len(manifest["quantization"]["tensors"]):
        raise unsound(MANIFEST, "a quantized tensor is listed twice")
    for name, packing in found.items():
        if name in tensors:
            raise unsound(tensors[name].file, f"{name!r} is stored beside its quantized parts")
        parts = packing.parts
        for suffix in set(PARTS) - parts.keys():
            if part_name(name, suffix) in tensors:
                raise IntegrityError(f"{MANIFEST}: {name!r} has a stored part {suffix!r} that its layout does not have")
        for suffix, expected in parts.items():
            header = tensors.get(part_name(name, suffix))
            if header is None:
                raise IntegrityError(f"{MANIFEST}: {name!r} is quantized, but its part {suffix!r} is missing")
            if (header.dtype, header.shape) != expected:
                seen = f"tensor {header.name!r} is {header.dtype} {list(header.shape)}"
                raise unsound(header.file, f"{seen}, {MANIFEST} says {expected[0]} {list(expected[1])}")
    return found


def _check_matrix(
    matrix: Mapping[str, Any], tensors: Mapping[str, TensorHeader], dtype: str, quantized: Mapping[str, Packing]
) -> None:
    """Compare one manifest row with the stored tensors' names, shapes and dtypes."""
    name, (m, n), form = matrix["name"], matrix["shape"], form_of(matrix["form"])
    r, shared = matrix["rank"], Shared.of(matrix)
    if not form.fits((m, n), r, shared):
        raise IntegrityError(f"{MANIFEST}: {name!r} of shape {[m, n]} cannot be {form.name} of rank {r}")
    names = form.tensor_names(name, shared)
    of_factors = dtype if form.is_compressed else None  # a dense matrix may keep a different dtype
    expected: dict[str, tuple[tuple[int, ...], str | None]]
    expected = {names[suffix]: (shape, of_factors) for suffix, shape in form.shapes((m, n), r, shared).items()}
    expected |= {names[suffix]: ((size,), "I32") for suffix, size in form.index_lengths((m, n), r, shared).items()}
    bias = factor_name(name, "bias")
    if form.cuts_outputs and bias in tensors:
        expected[bias] = ((r,), dtype)
    if name in tensors and name not in expected:
        raise IntegrityError(f"{tensors[name].file}: {name!r} is stored beside its factors; convert the model again")
    for tensor, (shape, stored) in expected.items():
        if tensor in quantized:
            found = quantized[tensor].shape
            if found != shape:
                raise IntegrityError(
                    f"{MANIFEST}: quantized {tensor!r} is {list(found)}, its matrix needs {list(shape)}"
                )
            continue
        header = tensors.get(tensor)
        if header is None:
            raise IntegrityError(f"{MANIFEST}: {name!r} is {matrix['form']}, but tensor {tensor!r} is missing")
        if header.shape != shape or (stored is not None and header.dtype != stored):
            seen = f"{header.dtype} {list(header.shape)}"
            raise unsound(header.file, f"tensor {tensor!r} is {seen}, {MANIFEST} says {stored or ''} {list(shape)}")


def _check_graph(
    folder: Path, name: str, files: Mapping[str, Any], tensors: Mapping[str, TensorHeader], full: bool
) -> None:
    """Check that every external byte range of a graph is within the tensor bytes of a listed weight file."""
    path = folder / name
    if name not in files:
        raise IntegrityError(f"{path}: a graph that {MANIFEST} does not list among its files")
    regions: dict[str, tuple[int, int]] = {}
    for header in tensors.values():
        begin, end = regions.get(header.file.name, (header.offset, header.offset))
        regions[header.file.name] = min(begin, header.offset), max(end, header.offset + header.length)

    def check() -> None:
        for tensor in external_tensors(path):
            what = f"{path}: {tensor.name[:200]!r} points"
            if tensor.location not in regions:
                raise IntegrityError(f"{what} to {tensor.location[:200]!r}, not a weight file of this folder")
            begin, end = regions[tensor.location]
            if not begin <= tensor.offset <= tensor.offset + tensor.length <= end:
                raise IntegrityError(f"{what} outside the tensors of {tensor.location!r}")

    # Hash the graph's present bytes, not the manifest's digest: a damaged graph must not pass as one checked before.
    with reading(path):
        digest = sha256(path)
    check_once(check, _GRAPH_RULES, digest, json.dumps(regions, sort_keys=True), fresh=full)


def _check_content(path: Path, expected: str, full: bool) -> None:
    with reading(path):
        found = cached_sha256(path, fresh=full)
    if found != expected:
        raise IntegrityError(f"{path}: sha256 {found[:12]}…, {MANIFEST} says {expected[:12]}…; copy the file again")
    if path.name in SETTINGS:  # other programs would run code or a library that these name
        schema = schema_text(SETTINGS[path.name])
        try:
            check_once(lambda: check_settings(path.name, strict_json.read(path)), path.name, schema, found, fresh=full)
        except SchemaError as error:
            raise unsound(path, str(error)) from None
