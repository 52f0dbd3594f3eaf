"""Take a Llama-like checkpoint off its quantization grid, without changing what it computes.

`python tools/rescale.py SOURCE OUT` reads a checkpoint (safetensors or GGUF) and writes a folder in bfloat16.
Weights from a 4-bit file are on its grid already, so every comparison at 4 bits on them is biased.
Here each channel gets a random factor, and its counterpart the inverse:

- gains of a norm, and the columns of the linears that read it;
- rows of `v_proj`, and the columns of `o_proj` that read them (per channel of each key-value head);
- rows of `up_proj`, and the columns of `down_proj`.

Factors are exp(U(-0.15, 0.15)) from (seed, tensor name). Products are in float64 and rounded once.
The result is a new original: compare with it, not with SOURCE, because bfloat16 rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import Checkpoint
from curconvert.selection.indices import tensor_rng

SPREAD = 0.15
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Each norm is a plain gain, and only the linears below read it."""

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def rescaled(checkpoint: Checkpoint, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the values of each tensor, rescaled.

    Args:
        checkpoint: A model of one of `MODEL_TYPES`.
        seed: Seed of the factors.
        dtype: Dtype of the result.
    """
    config = checkpoint.config
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    rows, columns = {}, {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm, readers in READERS.items():
            gains = _factors(seed, f"{prefix}{norm}", config["hidden_size"])
            rows[f"{prefix}{norm}"] = gains
            columns.update({f"{prefix}{reader}": 1 / gains for reader in readers})
        values = _factors(seed, f"{prefix}self_attn.v_proj", groups * width)
        rows[f"{prefix}self_attn.v_proj"] = values
        of_heads = values.view(groups, width).repeat_interleave(heads // groups, dim=0)
        columns[f"{prefix}self_attn.o_proj"] = 1 / of_heads.reshape(-1)
        neurons = _factors(seed, f"{prefix}mlp.up_proj", config["intermediate_size"])
        rows[f"{prefix}mlp.up_proj"] = neurons
        columns[f"{prefix}mlp.down_proj"] = 1 / neurons
    for name in checkpoint.tensors:
        module, _, kind = name.rpartition(".")
        values = checkpoint.read(name).double()
        if module in rows:
            values = values * (rows[module][:, None] if values.ndim == 2 else rows[module])
        if module in columns and kind == "weight":
            values = values * columns[module]
        yield name, values.to(dtype).contiguous()


def _factors(seed: int, name: str, count: int) -> torch.Tensor:
    return torch.from_numpy(tensor_rng(seed, name).uniform(-SPREAD, SPREAD, count)).exp()


def main() -> None:
    """Parse the arguments, read the checkpoint and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder, .safetensors or .gguf file")
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--seed", type=int, default=0, help="seed of the factors [0]")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.source)
    if checkpoint.config["model_type"] not in MODEL_TYPES:
        sys.exit(f"{arguments.source}: a {checkpoint.config['model_type']}; this script knows {', '.join(MODEL_TYPES)}")
    arguments.out.mkdir(parents=True)
    weights = dict(rescaled(checkpoint, arguments.seed, torch.bfloat16))
    save_file(weights, arguments.out / "model.safetensors", metadata={"format": "pt"})
    config = {**checkpoint.config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    (arguments.out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    companions = checkpoint.companions()
    for name in (*companions.copied, *companions.written):
        (arguments.out / name).write_bytes(companions.content(name) or b"")


if __name__ == "__main__":
    main()
