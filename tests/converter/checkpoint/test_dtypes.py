"""The dtype of a checkpoint is the narrowest that holds every stored weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize

from curconvert.checkpoint import Checkpoint, open_checkpoint
from curconvert.checkpoint.dtypes import deployed_dtype, stored_dtype
from support.checkpoints import edit_tensors
from support.families import TinyModel, make_checkpoint
from support.gguf_files import write_gguf

Kind = GGMLQuantizationType
Tensors = dict[str, torch.Tensor]
EMBEDDING = "model.embed_tokens.weight"
_KINDS = {torch.float32: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}


def holds_everything(checkpoint: Checkpoint) -> bool:
    """Tell whether rounding to the checkpoint's dtype changes no weight."""
    dtype = getattr(torch, stored_dtype(checkpoint))
    tensors = [checkpoint.read(name) for name in checkpoint.tensors]
    return all(torch.equal(tensor.to(dtype).double(), tensor.double()) for tensor in tensors)


def cast(matrices: torch.dtype, vectors: torch.dtype, embedding: torch.dtype) -> Callable[[Tensors], None]:
    """Change the dtypes of a file's tensors."""

    def change(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            dtype = embedding if name == EMBEDDING else matrices if tensor.ndim > 1 else vectors
            tensors[name] = tensor.to(dtype)

    return change


half, brain, full = torch.float16, torch.bfloat16, torch.float32
# dtypes of matrices, vectors and embedding → the dtype that holds all
MIXED = {
    "embedding narrower": ((full, full, brain), "float32"),
    "embedding wider": ((brain, brain, full), "float32"),
    "norms wider": ((brain, full, brain), "float32"),
    "norms wider than half": ((half, full, half), "float32"),
    "two halves": ((half, half, brain), "float32"),
    "norms of the other half": ((half, brain, half), "float16"),
    "norms narrower": ((full, half, full), "float32"),
    "all alike": ((half, half, half), "float16"),
}


@pytest.mark.parametrize("case", MIXED)
def test_the_dtype_holds_every_weight(case: str, llama: Path) -> None:
    """Also where the config states another one; a notice says so if weights become wider."""
    dtypes, expected = MIXED[case]
    edit_tensors(llama, cast(*dtypes))
    checkpoint = open_checkpoint(llama)
    assert stored_dtype(checkpoint) == deployed_dtype(checkpoint, None, "float32") == expected
    assert holds_everything(checkpoint)
    assert bool(checkpoint.notices) == (expected == "float32" and {dtypes[0], dtypes[2]} != {full})
    assert deployed_dtype(checkpoint, "bfloat16", "float32") == "bfloat16"


@pytest.mark.parametrize("dtype", [half, brain])
def test_float32_vectors_of_16_bit_numbers_need_no_float32(dtype: torch.dtype, llama: Path) -> None:
    """So are the GGUF files and checkpoints of 16-bit models whose norms are kept in float32."""
    edit_tensors(llama, cast(dtype, dtype, dtype))
    edit_tensors(llama, cast(dtype, full, dtype))
    checkpoint = open_checkpoint(llama)
    assert stored_dtype(checkpoint) == str(dtype).removeprefix("torch.")
    assert holds_everything(checkpoint)
    assert checkpoint.notices == ()


def mixed_gguf(path: Path, model: TinyModel, kinds: Callable[[str], Kind]) -> Path:
    """Write a GGUF whose matrices have different types."""
    write_gguf(path.with_suffix(".plain"), model)
    reader = GGUFReader(path.with_suffix(".plain"))
    writer = GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        kind = kinds(tensor.name) if len(tensor.shape) > 1 else Kind.F32
        writer.add_tensor(tensor.name, quantize(np.asarray(tensor.data), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF: dict[str, tuple[Callable[[str], Kind], str]] = {
    "quantized, embedding BF16": (lambda n: Kind.BF16 if n == "token_embd.weight" else Kind.Q8_0, "float32"),
    "quantized, embedding F16": (lambda n: Kind.F16 if n == "token_embd.weight" else Kind.Q4_0, "float32"),
    "F16, head F32": (lambda n: Kind.F32 if n == "output.weight" else Kind.F16, "float32"),
    "F16 and BF16": (lambda n: Kind.BF16 if "ffn" in n else Kind.F16, "float32"),
    "BF16, norms F32": (lambda _: Kind.BF16, "float32"),
}


@pytest.mark.parametrize("case", GGUF)
def test_a_gguf_of_mixed_types_is_not_rounded(case: str, tmp_path: Path) -> None:
    """The embedding's type does not decide for the others."""
    kinds, expected = GGUF[case]
    model = make_checkpoint(tmp_path / "model", "llama", intermediate_size=64)  # rows are whole blocks of 32
    checkpoint = open_checkpoint(mixed_gguf(tmp_path / "m.gguf", model, kinds))
    assert stored_dtype(checkpoint) == expected
    assert holds_everything(checkpoint)
    assert any("dtypes of weights differ" in notice for notice in checkpoint.notices)


@pytest.mark.parametrize("dtype", [half, brain])
def test_a_16_bit_gguf_stays_16_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    """llama.cpp stores the norms of every model in float32."""
    model = make_checkpoint(tmp_path / "model", "llama", dtype=dtype)
    checkpoint = open_checkpoint(mixed_gguf(tmp_path / "m.gguf", model, lambda _: _KINDS[dtype]))
    assert stored_dtype(checkpoint) == str(dtype).removeprefix("torch.")
    assert holds_everything(checkpoint)
