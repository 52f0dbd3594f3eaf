"""What `curconvert plan` expects of conversions, beside what they then take: memory, time and disk.

Each plan and each conversion is a process of its own, and the plan runs just before its conversion: both see the same
load. A conversion is watched from outside: its peak memory is the system's figure (`VmHWM`), its temporary disk the
most that lies in the folder it works in.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import MODEL, MODEL_NAME, ROOT, machine, publish, table
from conversion import plan
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

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
_GENERATED_NAME = "generated Llama"
_VOCABULARY = 16_384
_POLL = 0.05  # seconds between looks at a process
_FIELDS = ("seconds", "peak_memory_bytes", "temporary_bytes", "output_bytes")


def convert(model: Path, folder: Path, *options: str) -> dict[str, float]:
    """Convert into a folder that nothing else is in; return what it took.

    Args:
        model: The checkpoint.
        folder: Empty.
        options: Of the command line.
    """
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
    weights = sum(path.stat().st_size for path in out.glob("model*.safetensors"))
    return dict(zip(_FIELDS, (seconds, memory, disk, weights), strict=True))


def _peak(pid: int) -> int:
    """Return a process's peak resident memory; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def _used(folder: Path) -> int:
    """Return the bytes on the disk under a folder whose files come and go."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:
            continue
    return total


def generate(folder: Path) -> tuple[Path, Path]:
    """Write a random Llama of another shape than the demo model's, in bfloat16, and a text for it as token ids."""
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=4, head_dim=64, vocab_size=_VOCABULARY, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    ids = torch.randint(3, _VOCABULARY, (144, 128), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, folder / "ids.safetensors")
    return folder / "model", folder / "ids.safetensors"


def compare(model: Path, *options: str, verify: bool) -> dict[str, dict[str, float]]:
    """Plan, then convert."""
    with tempfile.TemporaryDirectory() as name:
        expected = plan(model, Path(name), *options)
        measured = convert(model, Path(name), *options, *(() if verify else ("--no-verify",)))
    if verify:
        expected["seconds"] += expected["verification_seconds"]
        expected["peak_memory_bytes"] = max(expected["peak_memory_bytes"], expected["verification_memory_bytes"])
    return {"expected": expected, "measured": measured}


def row(point: dict[str, Any]) -> list[str]:
    """Format a result: expected / measured, and their ratio."""
    cells = [point["model"], point["setting"]]
    for field, unit, digits in zip(_FIELDS, (1, 1e9, 1e9, 1e9), (0, 2, 2, 3), strict=True):
        expected, measured = point["expected"][field], point["measured"][field]
        cells += [f"{expected / unit:.{digits}f} / {measured / unit:.{digits}f}", f"{expected / measured:.2f}"]
    return cells


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / "estimates.jsonl")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md from --results")
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        generated, ids = generate(Path(name))
        runs = [(MODEL_NAME, setting, MODEL, SETTINGS[setting], False) for setting in given.settings]
        if "cur" in given.settings:
            runs.insert(1, (MODEL_NAME, "cur, verified", MODEL, SETTINGS["cur"], True))
        runs += [
            (_GENERATED_NAME, setting, generated, (*SETTINGS[setting], "--calibration", str(ids)), False)
            for setting in GENERATED if setting in given.settings
        ]  # fmt: skip
        for label, setting, model, options, verify in runs:
            point = {"model": label, "setting": setting, **compare(model, *options, verify=verify)}
            print(" | ".join(row(point)), file=sys.stderr)
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
    if given.publish:
        report([json.loads(line) for line in given.results.read_text(encoding="utf-8").splitlines()])


def report(points: list[dict[str, Any]]) -> None:
    """Write the section: the latest result of each model and setting."""
    latest = {(point["model"], point["setting"]): point for point in points}
    header = ["model", "setting"]
    for column in ("seconds", "peak memory, GB", "temporary disk, GB", "weights written, GB"):
        header += [column, "ratio"]
    publish(
        "estimates",
        f"""`curconvert plan`, run just before each conversion / the conversion itself, start of the process included;
without verification except where it is named. {_GENERATED_NAME}: hidden 1024, intermediate 2816, 8 layers, bfloat16,
vocabulary {_VOCABULARY}, random. {machine()}.

{table(header, [row(point) for point in latest.values()])}

Made by `python benchmarks/estimates.py --publish`.
""",
    )


if __name__ == "__main__":
    main()
