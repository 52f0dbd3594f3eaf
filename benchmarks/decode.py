"""Decoding beside the bytes it reads: is a compressed model as much faster as it is smaller?

The models of a group take turns step by step, in one process with one thread, and CPU seconds are counted: on a shared
machine that shows what the program costs, where the clock on the wall shows the neighbours. A read of memory stands
between the steps, as the measure of what can be reached.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common import MODEL, MODEL_NAME, machine, publish, table
from serving import FORMS, make

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions
from curconvert.options import LINEARS
from curconvert.pipeline import convert, export
from curconvert_runtime import load
from curconvert_runtime.decoding import Decoder
from curconvert_runtime.machine import MemoryReader
from curconvert_runtime.speed import Workload, step_bytes

PROMPT = 128
# Four of the sixteen layers of Llama 3.2 1B, and a quarter of its words: the two weigh as much as they do there.
_WIDE = {
    "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}  # fmt: skip


def make_wide(scratch: Path) -> dict[str, Path]:
    """Return random weights in the shape of a larger model, dense and with half of every linear's numbers."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    home = scratch / "wide"
    folders = {name: home / name for name in ("dense", "cur")}
    if not folders["cur"].exists():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(LlamaConfig(**_WIDE), dtype=torch.float32).save_pretrained(home / "src")
        save_file({"input_ids": torch.randint(3, _WIDE["vocab_size"], (8, 64))}, home / "ids.safetensors")
        source = SourceOptions(str(home / "src"))
        calibration = CalibrationOptions(
            source=str(home / "ids.safetensors"), sequences=4, tokens_per_sequence=64, probe_sequences=2
        )
        export(source, folders["dense"], overwrite=True)
        convert(
            source, folders["cur"],
            ConvertOptions.for_method(
                "curing", layers="all", rank=None, density=0.5, targets=LINEARS, calibration=calibration
            ),
        )  # fmt: skip
    return folders


def measure(group: str, folders: dict[str, Path], batch: int, steps: int) -> list[list[str]]:
    """Return a row for each model of a group; the first is what the others are compared with."""
    sessions = {name: load(folder, threads=1) for name, folder in folders.items()}
    decoders = {}
    for name, session in sessions.items():
        decoders[name] = Decoder(session, [np.arange(1000, 1000 + PROMPT)] * batch, steps + 1)
        decoders[name].prefill()
    reader, tokens = MemoryReader(1), np.full(batch, 5)
    read: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(steps):
        begin = time.process_time()
        reader.read_once()
        read.append(reader.buffer_bytes / (time.process_time() - begin))
        for name, decoder in decoders.items():
            begin = time.process_time()
            decoder.step(tokens)
            seconds[name].append(time.process_time() - begin)
    sizes = {name: step_bytes(s.artifact, "fused", Workload(batch, PROMPT, steps)) for name, s in sessions.items()}
    reached = float(np.median(read))
    first = next(iter(sessions))
    rows = []
    for name, size in sizes.items():
        own = np.array(seconds[name])
        low, middle, high = np.quantile(np.array(seconds[first]) / own, [0.25, 0.5, 0.75])
        share = size / float(np.median(own)) / reached
        predicted = sizes[first] / size
        speedup = [f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{predicted:.2f}", f"{middle / predicted:.2f}"]
        cells = [f"{size / 1e6:,.0f}", f"{np.median(own) * 1e3:.1f}", f"{100 * share:.0f} %"]
        rows.append([group, name, str(batch), *cells, *(["", "", ""] if name == first else speedup)])
    return rows


def main() -> None:
    """Measure every group and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scratch", type=Path, required=True, help="Artifacts, made where they are not there yet.")
    parser.add_argument("--steps", type=int, default=64)
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    groups = {
        "SmolLM2-135M": {form: make(form, arguments.model, arguments.scratch) for form in FORMS},
        "four layers of the 1B shape": make_wide(arguments.scratch),
    }
    rows = [
        row
        for group, folders in groups.items()
        for batch in (1, 8)
        for row in measure(group, folders, batch, arguments.steps)
    ]
    header = [
        "model", "form", "batch", "MB read per step", "ms of CPU time per step", "of the read bandwidth", "speed-up",
        "bytes say", "speed-up / bytes",
    ]  # fmt: skip
    text = (
        f"Decoding with one thread after {PROMPT} prompt tokens, float32, fused graph, half of the numbers of every "
        f"linear (`--density 0.5`): {MODEL_NAME}, and random weights. Medians of {arguments.steps} steps in turn, of "
        f"speed-ups with quartiles; CPU time, on a machine that others used too.\n{machine()}.\n\n{table(header, rows)}"
        "\n\nMade by `python benchmarks/decode.py --scratch FOLDER`."
    )
    publish("decode", text)


if __name__ == "__main__":
    main()
