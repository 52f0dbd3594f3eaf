"""Lists an artifact's tensors and writes the files beside its weights: config, tokenizer, graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from curconvert.artifact.quantization_config import quantization_config
from curconvert.base.errors import InputError
from curconvert.base.layout import TensorSpec
from curconvert.base.names import CPU
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.checkpoint.config import with_dtype
from curconvert.checkpoint.types import Checkpoint, Companions, TensorInfo
from curconvert.graph import build_graphs, genai_config, save_graphs
from curconvert.options.quantization import Quantization
from curconvert.quantization.tensors import quantized_tensors
from curconvert_runtime.format.files import GENERATION_CONFIG
from curconvert_runtime.format.forms.form import factor_name
from curconvert_runtime.format.quantized import Packing, part_name
from curconvert_runtime.serve.providers import provider_named

_PART_DTYPES = {"U8": torch.uint8, "F32": torch.float32, "F16": torch.float16}


def tensor_specs(
    checkpoint: Checkpoint, decided: Plan | None, dtype: torch.dtype, quantization: Quantization | None = None
) -> list[TensorSpec]:
    """Return dtype and shape of every tensor of the artifact, before any factor is computed."""
    specs = _float_specs(checkpoint, decided, dtype)
    if quantization is None:
        return specs
    quantized = quantized_tensors(checkpoint, decided, quantization)
    packed = [
        TensorSpec(part_name(name, part), _PART_DTYPES[kind], size)
        for name, packing in quantized.items()
        for part, (kind, size) in packing.parts.items()
    ]
    return [spec for spec in specs if spec.name not in quantized] + packed


def _float_specs(checkpoint: Checkpoint, decided: Plan | None, dtype: torch.dtype) -> list[TensorSpec]:
    matrices = {m.name: m for m in decided.matrices if m.rank is not None} if decided else {}
    cut = decided.cut_biases if decided else {}
    specs = []
    for name, info in checkpoint.tensors.items():
        if name not in matrices:
            specs.append(TensorSpec(name, dtype, (cut[name],) if name in cut else info.shape))
            continue
        matrix, rank = matrices[name], matrices[name].rank
        assert rank is not None
        factors = matrix.entry.shapes(matrix.shape, rank, matrix.shared)
        indices = matrix.entry.index_lengths(matrix.shape, rank, matrix.shared)
        stored = {suffix: shape for suffix, shape in factors.items() if matrix.stores(suffix)}
        specs += [TensorSpec(factor_name(name, suffix), dtype, shape) for suffix, shape in stored.items()]
        specs += [TensorSpec(factor_name(name, suffix), torch.int32, (size,)) for suffix, size in indices.items()]
    return specs


def write_model_files(
    work: Path,
    checkpoint: Checkpoint,
    companions: Companions,
    dtype: str,
    tensors: Mapping[str, TensorInfo],
    matrices: Iterable[MatrixPlan] = (),
    quantized: Mapping[str, Packing] | None = None,
    target: str = CPU,
) -> None:
    """Write the files beside the weights: config, tokenizer, graphs, onnxruntime-genai's settings.

    Args:
        work: The artifact's folder, with its weights.
        checkpoint: The original.
        companions: The original's other files, which are copied or written.
        dtype: Deployed dtype.
        tensors: Location of each stored tensor.
        matrices: Matrices of the final plan.
        quantized: Shape and layout of each quantized tensor.
        target: Execution provider that the fused graph is made for.
    """
    arithmetic = provider_named(target).arithmetic
    config = with_dtype({**checkpoint.config, **companions.special_tokens.fields()}, dtype)
    compressed = [m for m in matrices if m.rank is not None]
    forms = {m.name: m.form for m in compressed}
    owners = {m.name: m.shared.matrices[0] for m in compressed if m.shared}
    loading = quantization_config(compressed, (quantized or {}).values())
    _write_json(work / "config.json", {**config, "quantization_config": loading} if loading else config)
    for name, source in companions.copied.items():
        shutil.copyfile(source, work / name)
    for name, content in companions.written.items():
        (work / name).write_bytes(content)
    save_graphs(build_graphs(config, tensors, forms, owners, quantized or {}, arithmetic), work)
    generation = companions.content(GENERATION_CONFIG)
    settings = {} if generation is None else json.loads(generation)
    _write_json(work / "genai_config.json", genai_config(config, generation_config=settings, target=target))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    try:
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path.name}: a value is not finite ({error})") from error
    path.write_text(text + "\n", encoding="utf-8")
