"""The main job: checkpoint in, verified artifact out."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from curconvert.allocation.evidence import Evidence
from curconvert.allocation.plans import uniform_plan
from curconvert.allocation.search import allocate_plan
from curconvert.artifact.folder import atomic_folder, check_output
from curconvert.artifact.manifest import build_manifest, seal
from curconvert.artifact.safetensors_writer import SafetensorsWriter, TensorSpec, save_tensors
from curconvert.blocks.skeleton import EMBEDDING
from curconvert.calibration.text import BUILTIN, load_tokens
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.config import with_dtype
from curconvert.checkpoint.types import Checkpoint, Companions, TensorInfo
from curconvert.compress import Progress, compress, factor_name, run_original, silent
from curconvert.errors import InputError
from curconvert.graph import build_graphs, genai_config, save_graphs
from curconvert.options import DTYPES, ConvertOptions, SourceOptions, check_choice
from curconvert.planning import Plan, make_plan
from curconvert.report.card import write_reports
from curconvert.selection.layers import needs_distances, select_layers
from curconvert.verification import verify_artifact
from curconvert_runtime.forms import factor_shapes, index_lengths
from curconvert_runtime.probes import pack_probes, parity_batch
from curconvert_runtime.report import VerificationReport
from curconvert_runtime.verification import VerifyOptions

_STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Conversion:
    """A published artifact.

    Attributes:
        path: The folder.
        plan: What was compressed; None for an export.
        notices: What the user should know, one sentence each.
        report: The verification; None if it was not asked for.
        peak_memory_bytes: Most resident memory of this process before the verification; None where the system
            does not tell.
    """

    path: Path
    plan: Plan | None
    notices: tuple[str, ...]
    report: VerificationReport | None
    peak_memory_bytes: int | None


def plan(source: SourceOptions, options: ConvertOptions) -> Plan:
    """Show what `convert` would do, reading headers only.

    Raises:
        CurConvertError: Whatever `convert` would refuse before it starts.
    """
    checkpoint = _open(source)
    return _first_plan(checkpoint, options, getattr(torch, options.dtype or _stored_dtype(checkpoint)))


def convert(
    source: SourceOptions,
    out: Path,
    options: ConvertOptions,
    *,
    overwrite: bool = False,
    verification: VerifyOptions | None = None,
    progress: Progress = silent,
) -> Conversion:
    """Compress a checkpoint into a verified artifact.

    Args:
        source: The checkpoint.
        out: The folder to publish; it appears complete, or not at all.
        options: What to do.
        overwrite: Replace an existing artifact.
        verification: Gates that the artifact must pass before it is published; None leaves verification out.
        progress: Called as work goes on.

    Raises:
        CurConvertError: Its subclass says whose fault it is; `out` is then untouched.
    """
    checkpoint = _open(source)
    text = () if options.calibration.source == BUILTIN else (Path(options.calibration.source),)
    check_output(out, overwrite, (checkpoint.path, *checkpoint.files, *text))
    dtype = options.dtype or _stored_dtype(checkpoint)
    companions = checkpoint.companions()
    torch_dtype = getattr(torch, dtype)
    first = _first_plan(checkpoint, options, torch_dtype)  # refuses what cannot work before any tensor is read
    tokens = load_tokens(options.calibration, _tokenizer(companions), vocab_size=checkpoint.tensors[EMBEDDING].shape[0])
    parity_batch(tokens.probes)  # refuses sequences too short to verify on
    with atomic_folder(out, overwrite) as work, _scratch(work) as scratch:
        if options.form == "auto":
            evidence = Evidence(scratch)
            decided, original = allocate_plan(checkpoint, first, tokens, options, torch_dtype, evidence, progress)
        else:
            evidence = None
            original = run_original(checkpoint, tokens, distances=needs_distances(options.layers), progress=progress)
            num_layers = int(checkpoint.config["num_hidden_layers"])
            decided = make_plan(checkpoint, options, select_layers(options.layers, num_layers, original.distances))
        with SafetensorsWriter(work, _specs(checkpoint, decided, torch_dtype)) as writer:
            reports, parity = compress(checkpoint, decided, tokens, options, torch_dtype, writer, progress, evidence)
            writer.finish()
        probes = pack_probes(tokens.probes, original.outputs, parity)
        save_tensors(work / "probes.safetensors", {name: torch.from_numpy(v) for name, v in probes.items()})
        forms = {m.name: m.form for m in decided.matrices if m.form != "dense"}
        _write_model_files(work, checkpoint, companions, dtype, writer.tensors, forms)
        manifest = build_manifest(checkpoint, dtype, decided, reports, options, tokens)
        peak = _peak_memory()
        report = _verify_and_seal(work, manifest, verification, progress)
    return Conversion(out, decided, tokens.notices, report, peak)


def export(
    source: SourceOptions,
    out: Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Write the same graphs and files for an uncompressed checkpoint: the baseline of every comparison.

    Raises:
        CurConvertError: As for `convert`.
    """
    if dtype is not None:
        check_choice("--dtype", dtype, DTYPES)
    checkpoint = _open(source)
    check_output(out, overwrite, (checkpoint.path, *checkpoint.files))
    dtype = dtype or _stored_dtype(checkpoint)
    torch_dtype = getattr(torch, dtype)
    companions = checkpoint.companions()
    with atomic_folder(out, overwrite) as work:
        with SafetensorsWriter(work, _specs(checkpoint, None, torch_dtype)) as writer:
            for done, name in enumerate(checkpoint.tensors, 1):
                writer.write(name, checkpoint.read(name))
                progress("export", done, len(checkpoint.tensors))
            writer.finish()
        _write_model_files(work, checkpoint, companions, dtype, writer.tensors, {})
        manifest = build_manifest(checkpoint, dtype)
        write_reports(work, manifest)
        seal(work, manifest)
    return Conversion(out, None, (), None, _peak_memory())


def _first_plan(checkpoint: Checkpoint, options: ConvertOptions, dtype: torch.dtype) -> Plan:
    """Plan what shapes alone can tell."""
    return (
        uniform_plan(checkpoint, options, dtype.itemsize) if options.form == "auto" else make_plan(checkpoint, options)
    )


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    """Yield a folder beside the output, on the same disk, that goes when the work is done."""
    with tempfile.TemporaryDirectory(prefix=f"{work.name}.", dir=work.parent) as folder:
        yield Path(folder)


def _open(source: SourceOptions) -> Checkpoint:
    return open_checkpoint(source.model, config=source.config, config_set=source.config_set, revision=source.revision)


def _stored_dtype(checkpoint: Checkpoint) -> str:
    return _STORED_DTYPES[checkpoint.tensors[EMBEDDING].dtype]


def _tokenizer(companions: Companions) -> Path | bytes | None:
    return companions.written.get(TOKENIZER) or companions.copied.get(TOKENIZER)


def _specs(checkpoint: Checkpoint, decided: Plan | None, dtype: torch.dtype) -> list[TensorSpec]:
    """List every tensor of the artifact: shapes are known before any factor is."""
    matrices = {m.name: m for m in decided.matrices if m.rank is not None} if decided else {}
    cut = decided.cut_biases if decided else {}
    specs = []
    for name, info in checkpoint.tensors.items():
        if name not in matrices:
            specs.append(TensorSpec(name, dtype, (cut[name],) if name in cut else info.shape))
            continue
        matrix, rank = matrices[name], matrices[name].rank
        assert rank is not None
        factors = factor_shapes(matrix.form, matrix.shape, rank)
        indices = index_lengths(matrix.form, matrix.shape, rank)
        specs += [TensorSpec(factor_name(name, suffix), dtype, shape) for suffix, shape in factors.items()]
        specs += [TensorSpec(factor_name(name, suffix), torch.int32, (size,)) for suffix, size in indices.items()]
    return specs


def _write_model_files(
    work: Path,
    checkpoint: Checkpoint,
    companions: Companions,
    dtype: str,
    tensors: Mapping[str, TensorInfo],
    forms: Mapping[str, str],
) -> None:
    config = with_dtype(checkpoint.config, dtype)
    _write_json(work / "config.json", config)
    for name, source in companions.copied.items():
        shutil.copyfile(source, work / name)
    for name, content in companions.written.items():
        (work / name).write_bytes(content)
    save_graphs(build_graphs(config, tensors, forms), work)
    generation = work / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    _write_json(work / "genai_config.json", genai_config({**config, **settings}))


def _verify_and_seal(
    work: Path, manifest: dict[str, Any], verification: VerifyOptions | None, progress: Progress
) -> VerificationReport | None:
    """Verify the artifact as it will be published, and put what was measured into it."""
    write_reports(work, manifest)
    seal(work, manifest)
    if verification is None:
        return None
    report = verify_artifact(work, verification, progress=progress)
    report.raise_for_failures()
    measured = report.to_json()["fidelity"]
    write_reports(work, manifest | {"metrics": measured})
    seal(work, manifest | {"metrics": measured})
    return report


def _peak_memory() -> int | None:
    """Most resident memory so far, in bytes. Linux only: elsewhere the number is another or in other units."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return None if found is None else 1024 * int(found[1])


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path.name}: a value is not finite ({error})") from error
    path.write_text(text + "\n", encoding="utf-8")
