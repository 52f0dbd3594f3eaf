"""Measures time, memory and disk of conversions: the default one, by number of layers, and compared with `plan`.

Each plan and each conversion runs in its own process. A plan runs just before its conversion, so that both see the
same load. Peak memory is the system's figure (`VmHWM`). Temporary disk is the largest size of the working folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import Result, model_arguments, model_name, torch_threads
from benchmarks.suite.serving import span

LAYERS = (4, 16, 64)
_ALL = ("--rank", "128", "--layers", "all", "--targets", "all")
SETTINGS: dict[str, tuple[str, ...]] = {
    "cur": (),
    "curing": ("--method", "curing"),
    "pifa, all linears": ("--method", "pifa", *_ALL),
    "pifa, all linears, sequential": ("--method", "pifa", *_ALL, "--sequential"),
    "modegpt": ("--method", "modegpt"),
    "auto": ("--method", "auto", "--keep", "0.9"),
}
GENERATED = ("cur", "pifa, all linears")
ALONE = "--no-verify"
_POLL = 0.05  # seconds between looks at a process
Cost = dict[str, float]


def convert(model: Path, *options: str) -> Cost:
    """Run a conversion on the command line and return its seconds and bytes.

    Args:
        model: The checkpoint.
        *options: Options of the command line.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "out"
        command = [sys.executable, "-m", "curconvert", str(model), "-o", str(out), "--quiet", *options]
        memory, disk, start = 0, 0, time.perf_counter()
        with subprocess.Popen(command) as process:
            while process.poll() is None:
                memory, disk = max(memory, _peak(process.pid)), max(disk, _used(folder))
                time.sleep(_POLL)
            seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
        written = sum(path.stat().st_size for path in out.glob("model*.safetensors"))
    return {"seconds": seconds, "peak": memory, "temporary": disk, "written": written}


def _peak(pid: int) -> int:
    """Return a process's peak resident memory in bytes; 0 if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _used(folder: Path) -> int:
    """Return the bytes on the disk under a folder, while files appear and disappear."""
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(home) / name).lstat().st_blocks * 512
            except OSError:
                continue
    return total


def plan(model: Path, *options: str, verify: bool) -> Cost:
    """Return the seconds and bytes that `curconvert plan` estimates for a conversion."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "curconvert", "plan", str(model), "-o", folder, "--json", *options]
        done = subprocess.run(command, capture_output=True, check=True)
    found: Cost = json.loads(done.stdout)["estimate"]
    seconds, peak = found["seconds"], found["peak_memory_bytes"]
    if verify:
        seconds += found["verification_seconds"]
        peak = max(peak, found["verification_memory_bytes"])
    return {
        "seconds": seconds, "peak": peak, "temporary": found["temporary_bytes"], "written": found["output_bytes"]
    }  # fmt: skip


def generate(
    folder: Path, layers: int, hidden: int, intermediate: int, vocabulary: int, dtype: torch.dtype
) -> tuple[Path, Path]:
    """Write a random Llama and token ids as its text; return both paths."""
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        num_key_value_heads=4, head_dim=64, vocab_size=vocabulary, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder / "model")
    ids = torch.randint(3, vocabulary, (144, 128), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, folder / "ids.safetensors")
    return folder / "model", folder / "ids.safetensors"


def measure_default(model: Path, runs: int, result: Result) -> None:
    """Convert alternately with and without verification, because the machine's speed changes over time."""
    whole, alone = [], []
    for _ in range(runs):
        whole.append(convert(model))
        alone.append(convert(model, ALONE))
    for name, costs in (("with verification", whole), (f"`{ALONE}`", alone)):
        row = {"seconds": span([cost["seconds"] for cost in costs])}
        if costs is alone:
            row["peak"] = span([cost["peak"] for cost in costs])
        result.add("default", row, setting=name)


def measure_depth(result: Result) -> None:
    """Convert models with increasing numbers of layers."""
    for layers in LAYERS:
        with tempfile.TemporaryDirectory() as name:
            model, ids = generate(Path(name), layers, 512, 1536, 8192, torch.float32)
            options = ("--layers", "all", "--calibration", str(ids), "--calibration-sequences", "32", ALONE)
            result.add("depth", convert(model, *options), layers=layers)


def measure_plans(model: Path, settings: list[str], result: Result) -> None:
    """Plan and then convert each setting, and store the estimate, the cost and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        generated, ids = generate(Path(name), 8, 1024, 2816, 16_384, torch.bfloat16)
        runs = [(model_name(model), setting, model, SETTINGS[setting], False) for setting in settings]
        if "cur" in settings:
            runs.append((model_name(model), "cur, verified", model, SETTINGS["cur"], True))
        asked = [setting for setting in GENERATED if setting in settings]
        calibrated = ("--calibration", str(ids))
        runs += [("generated Llama", setting, generated, (*SETTINGS[setting], *calibrated), False) for setting in asked]
        for label, setting, source, options, verify in runs:
            expected = plan(source, *options, verify=verify)
            cost = convert(source, *options, *(() if verify else (ALONE,)))
            ratio = {name: expected[name] / value for name, value in cost.items()}
            result.add("plan", {**cost, "expected": expected, "ratio": ratio}, model=label, setting=setting)


def main() -> None:
    """Measure all three tables."""
    parser = model_arguments("conversion", __doc__)
    parser.add_argument("--runs", type=int, default=3, help="of the default conversion")
    parser.add_argument("--settings", nargs="+", default=["cur"], choices=[*SETTINGS], help="to compare with `plan`")
    given = parser.parse_args()
    setting = {
        "model": model_name(given.model), "dtype": "float32", "method": "default: rank 128",
        "calibration": "128 × 128 tokens of builtin", "runs": given.runs,
        "depth": "generated Llama, float32, hidden 512, intermediate 1536, vocabulary 8192, q/k/gate of all layers, "
        "32 × 128 tokens",
        "generated Llama": "hidden 1024, intermediate 2816, 8 layers, vocabulary 16384, bfloat16, random",
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    measure_default(given.model, given.runs, result)
    measure_depth(result)
    measure_plans(given.model, given.settings, result)


if __name__ == "__main__":
    main()
