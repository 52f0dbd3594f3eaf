"""Makes artifacts of random numbers in the shape of a real model. They open and run as fast as real ones.

Nothing is converted. The plan of a conversion lists the tensors, and each is filled with random numbers. The graphs are
built as for any artifact. The plan's checkpoint is a sparse file without data.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.suite.scale import config_of, shapes_of
from curconvert import ConvertOptions, SourceOptions
from curconvert.artifact.folder import atomic_folder
from curconvert.artifact.manifest import build_manifest, seal
from curconvert.artifact.model_files import tensor_specs, write_model_files
from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.base.layout import TensorSpec
from curconvert.checkpoint.types import Checkpoint
from curconvert.jobs.plan import plan
from curconvert.jobs.source import open_source
from curconvert.options.quantization import TYPES, Quantization
from curconvert.options.targets import LINEARS
from curconvert.quantization.tensors import quantization_json, quantized_tensors
from curconvert.selection.indices import tensor_rng

# Compressed forms keep half of the numbers of every linear. `int4-128` has blocks of 128.
FORMS = ("dense", "cur", "interpolative", "int8", "int4", "int4-128")
QUANTIZED_FORMS = {kind: (kind, f"cur-{kind}", f"interpolative-{kind}") for kind in FORMS if kind.startswith(TYPES)}
_METHODS = {"cur": "curing", "interpolative": "row-id"}
_DRAWN = 2**20  # numbers; longer tensors repeat them


def hollow(folder: Path, shape: str, layers: int) -> Checkpoint:
    """Return a checkpoint with names and shapes but no data; its sparse file needs no disk space.

    Args:
        folder: Folder of the checkpoint; made if it does not exist.
        shape: A key of `scale.SHAPES`.
        layers: Number of decoder layers. The vocabulary is cut in the same proportion, to keep the ratio of weights.
    """
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config_of(shape, layers)), encoding="utf-8")
        shapes = shapes_of(shape, layers)
        with SafetensorsWriter(folder, [TensorSpec(name, torch.bfloat16, size) for name, size in shapes.items()]) as w:
            w.resume(shapes)
            w.finish()
    return open_source(SourceOptions(str(folder)))


def make_random(form: str, checkpoint: Checkpoint, out: Path) -> Path:
    """Return the folder of an artifact of random numbers; make the artifact if it does not exist.

    Args:
        form: One of `FORMS` or of `QUANTIZED_FORMS`.
        checkpoint: Names and shapes of the model's tensors.
        out: The artifact's folder.
    """
    if out.exists():
        return out
    method, quantization = _asked(form)
    decided = None
    if method:
        options = ConvertOptions.for_method(method, layers="all", rank=None, density=0.5, targets=LINEARS)
        decided = plan(SourceOptions(str(checkpoint.path)), options)
    quantized = quantized_tensors(checkpoint, decided, quantization) if quantization else {}
    with atomic_folder(out, overwrite=False) as work:
        with SafetensorsWriter(work, tensor_specs(checkpoint, decided, torch.float32, quantization)) as writer:
            for name, info in writer.tensors.items():
                writer.write(name, _drawn(name, info.shape, info.dtype))
            writer.finish()
        matrices = decided.matrices if decided else ()
        write_model_files(work, checkpoint, checkpoint.companions(), "float32", writer.tensors, matrices, quantized)
        described = quantization_json(quantization, quantized, {}) if quantization else None
        manifest = build_manifest(checkpoint, "float32", decided, quantization=described)
        for row in manifest["matrices"]:
            row["basis"] = "subspace" if row["form"] == "interpolative" else None
        seal(work, manifest)
    return out


def _asked(form: str) -> tuple[str | None, Quantization | None]:
    parts = form.split("-")
    method, width = _METHODS.get(parts[0]), next((part for part in parts if part in TYPES), None)
    block_size = int(parts[-1]) if parts[-1].isdigit() else None
    return method, Quantization(width, block_size, rounding="nearest") if width else None


def _drawn(name: str, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    size = torch.Size(shape).numel()
    if dtype == "I32":  # rows, columns and orders count up from 0
        return torch.arange(size, dtype=torch.int32)
    # Seed by name: onnxruntime stores equal matrices only once, and a step would then read fewer bytes than counted.
    random, count = tensor_rng(0, name), min(size, _DRAWN)
    drawn: np.ndarray
    if dtype == "U8":
        drawn = random.integers(0, 256, count, dtype=np.uint8)
    elif name.endswith(".scales"):
        drawn = random.uniform(1e-4, 3e-4, count).astype(np.float32)
    else:
        drawn = np.float32(0.02) * random.standard_normal(count, dtype=np.float32)
    return torch.from_numpy(np.resize(drawn, shape))
