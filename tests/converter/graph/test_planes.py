"""Every stored width in both graphs, against transformers with weights that NumPy dequantizes bit by bit in float64."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from curconvert.jobs.export import export
from curconvert.options.quantization import TYPES, Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime import CpuOptions, load
from curconvert_runtime.format.quantized import BLOCK_SIZES
from support.families import make_checkpoint
from support.tiny_runs import manifest_of

IDS = np.array([[5, 9, 30, 7, 61, 2, 44]])
PLANES = {3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
JOINING = {"BitShift", "BitwiseAnd", "BitwiseOr", "Concat"}
CASES = list(itertools.product(TYPES, BLOCK_SIZES))


def bits_of(stored: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bits of bytes, (…, bytes, 8), the lowest first."""
    return np.unpackbits(stored[..., None], axis=-1, bitorder="little")


def integers(tensors: dict[str, NDArray[Any]], name: str, bits: int) -> NDArray[np.float64]:
    """Return the operator's integers, (m, blocks, block_size), each a sum of powers of two."""
    served, place = (4 if bits < 5 else 8), (4 if bits < 5 else 8)
    whole: Any = 0.0
    for number, size in enumerate(PLANES[bits]):
        place -= size
        found = bits_of(tensors[f"{name}.q{number or ''}"])  # (m, blocks, bytes, 8)
        found = found.reshape(*found.shape[:-1], 8 // served, served // size, size)  # half of a byte, piece, bit
        values = found @ 2.0 ** (place + np.arange(size))  # (m, blocks, bytes, half, piece)
        whole = whole + values.transpose(0, 1, 4, 2, 3).reshape(*values.shape[:2], -1)
    return np.asarray(whole)


def dequantized(tensors: dict[str, NDArray[Any]], row: dict[str, Any], said: dict[str, Any]) -> NDArray[np.float64]:
    """Return `s·(q − z)` of one matrix."""
    name, scales = row["name"], tensors[f"{row['name']}.scales"].astype(np.float64)
    served = 4 if said["bits"] < 5 else 8
    z: Any = 2.0 ** (served - 1)
    if not said["symmetric"]:
        halves = bits_of(tensors[f"{name}.zeros"]).reshape(len(scales), -1, served) @ 2.0 ** np.arange(served)
        z = halves[:, : scales.shape[1], None]
    wide = (integers(tensors, name, said["bits"]) - z) * scales[..., None]
    return np.asarray(wide.reshape(len(scales), -1)[:, : row["shape"][1]])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose widths 64 and 128 do not divide, with a separate embedding and with biases."""
    folder = tmp_path_factory.mktemp("planes") / "model"
    return make_checkpoint(folder, "qwen2", hidden_size=96, intermediate_size=160, num_hidden_layers=1).folder


@pytest.fixture(scope="module")
def made(source: Path) -> Callable[[str, int], Path]:
    """Export once by type and block size: odd widths with zero points, one block size with scales of 32 bits."""

    def get(kind: str, size: int) -> Path:
        out = source.parent / f"{kind}-{size}"
        if not out.exists():
            scales = "float32" if size == 64 else "float16"
            zeros = int(kind[3:]) % 2 == 1
            asked = Quantization(kind, size, asymmetric=zeros, rounding="nearest", scale_dtype=scales)
            export(SourceOptions(str(source)), out, quantization=asked)
        return out

    return get


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_both_graphs_compute_what_the_planes_say(
    source: Path, made: Callable[[str, int], Path], kind: str, size: int
) -> None:
    """Embedding, linears and head."""
    out = made(kind, size)
    said, tensors = manifest_of(out)["quantization"], load_file(out / "model.safetensors")
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64, attn_implementation="eager").eval()
    weights = {row["name"]: torch.from_numpy(dequantized(tensors, row, said)) for row in said["tensors"]}
    assert {"model.embed_tokens.weight", "lm_head.weight"} < weights.keys()
    model.load_state_dict(weights, strict=False)
    expected = model(torch.from_numpy(IDS)).logits.detach().numpy()
    for graph in ("portable", "fused"):
        found, _ = load(out, graph=graph, options=CpuOptions(round_activations=False)).forward(IDS)
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_the_file_has_the_bits_of_the_width(made: Callable[[str, int], Path], kind: str, size: int) -> None:
    """For each number of a padded row; and each block has a scale, and a zero point if they are stored."""
    out = made(kind, size)
    bits, odd = int(kind[3:]), int(kind[3:]) % 2 == 1
    served = 4 if bits < 5 else 8
    expected = 0
    for row in manifest_of(out)["quantization"]["tensors"]:
        rows, columns = row["shape"]
        blocks = -(-columns // size)
        expected += rows * (blocks * (size * bits // 8 + (4 if size == 64 else 2)) + odd * -(-blocks * served // 8))
    assert manifest_of(out)["quantization"]["bytes"] == expected
    rest = sum(t.nbytes for name, t in load_file(out / "model.safetensors").items() if "norm" in name or "bias" in name)
    header = int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little") + 8
    assert (out / "model.safetensors").stat().st_size == header + expected + rest


@pytest.mark.parametrize("kind", TYPES)
def test_onnxruntime_joins_planes_at_load(made: Callable[[str, int], Path], tmp_path: Path, kind: str) -> None:
    """One product for each linear and the head, one look-up, and nothing that joins planes or casts scales."""
    out = made(kind, 32)
    written = Counter(node.op_type for node in onnx.load(out / "model.fused.onnx", load_external_data=False).graph.node)
    assert (written["BitwiseOr"] > 0) == (kind in ("int3", "int5", "int6", "int7"))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # it warns that an optimized graph is for this machine
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(out / "model.fused.onnx", settings, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    found = Counter(node.op_type for node in nodes)
    assert (found["MatMulNBits"], found["GatherBlockQuantized"]) == (8, 1)
    assert not JOINING & found.keys()
    bits = {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "bits"}
    assert bits == {4 if kind in ("int3", "int4") else 8}
