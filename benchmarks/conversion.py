"""Cost of a conversion: time and peak memory of the default conversion, and peak memory over the number of layers."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MODEL, MODEL_NAME, machine, publish, table
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS = (4, 16, 64)


def convert(model: Path, out: Path, *options: str) -> tuple[float, dict[str, Any]]:
    """Run the command line; return wall seconds and its JSON."""
    command = [sys.executable, "-m", "curconvert", str(model), "-o", str(out), "--overwrite", "--json", *options]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return time.perf_counter() - start, json.loads(done.stdout)


def plan(model: Path, folder: Path, *options: str) -> dict[str, float]:
    """Return what `curconvert plan` expects of a conversion."""
    command = [sys.executable, "-m", "curconvert", "plan", str(model), "-o", str(folder), "--json", *options]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["estimate"]
    return found


def generate(folder: Path, layers: int) -> Path:
    """Write a random Llama of a given depth, with the demo model's vocabulary size."""
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, vocab_size=8192, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, alone, peaks = [], [], []
        expected = plan(options.model, folder)
        for _ in range(options.runs):  # interleaved: the machine's speed drifts
            seconds, _ = convert(options.model, folder / "out")
            whole.append(seconds)
            seconds, result = convert(options.model, folder / "out", "--no-verify")
            alone.append(seconds)
            peaks.append(result["peak_memory_bytes"])
        deep = []
        for layers in LAYERS:
            model = generate(folder / f"model{layers}", layers)
            tokens = _token_file(folder / "ids.safetensors")
            seconds, result = convert(
                model, folder / f"out{layers}", "--no-verify", "--layers", "all", "--calibration", str(tokens),
                "--calibration-sequences", "32",
            )  # fmt: skip
            size = (folder / f"out{layers}" / "model.safetensors").stat().st_size
            deep.append([
                str(layers), f"{size / 1e6:.0f} MB", f"{result['peak_memory_bytes'] / 1e6:.0f} MB", f"{seconds:.0f}"
            ])  # fmt: skip
    for label, values in (("with verification", whole), ("without (`--no-verify`)", alone)):
        rows.append([label, f"{statistics.median(values):.0f}", f"{min(values):.0f}-{max(values):.0f}"])
    publish(
        "conversion",
        f"""Default conversion of {MODEL_NAME} (rank 128, 128 × 128 calibration tokens, float32), {options.runs}
interleaved runs of the command line. {machine()}.

{table(["default conversion", "median, s", "range, s"], rows)}

Peak resident memory before the verification, torch included: {statistics.median(peaks) / 1e6:.0f} MB
(range {min(peaks) / 1e6:.0f}-{max(peaks) / 1e6:.0f}).
`curconvert plan` expected {expected["seconds"]:.0f} s without verification, and
{expected["peak_memory_bytes"] / 1e6:.0f} MB.

Generated Llama models (hidden 512, intermediate 1536, vocabulary 8192, all layers, q/k/gate, 32 × 128 tokens):

{table(["layers", "weights written", "peak memory", "seconds"], deep)}

Made by `python benchmarks/conversion.py`.
""",
    )


def _token_file(path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    ids = torch.randint(3, 8192, (64, 128), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, path)
    return path


if __name__ == "__main__":
    main()
