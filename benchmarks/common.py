"""What the benchmark scripts share: the machine's description and the sections of docs/benchmarks.md."""

from __future__ import annotations

import mmap
import os
import platform
import re
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers

from curconvert_runtime.checks.metrics import Fidelity

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_NAME = "SmolLM2-135M (dequantised Q4_1)"
BROUGHT = "Before each load, no matter by whom, memory of twice the weights' size was taken and given back."
_DOCUMENT = ROOT / "docs" / "benchmarks.md"


def machine() -> str:
    """Describe what the numbers were measured on."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    cpu = found[1] if found else platform.machine()
    return (
        f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"onnxruntime {onnxruntime.__version__}, transformers {transformers.__version__}"
    )


def bring_memory(folder: Path) -> None:
    """Take memory in huge pages and give it back, so that the system has it at hand for who loads an artifact next.

    The host of a virtual machine may take free memory back within seconds. To get it again costs a process several
    milliseconds for 2 MB, and whether it has to depends on what ran before.

    Args:
        folder: The artifact; it is twice the size of its weights.
    """
    size = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:  # shared memory has no huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
        np.frombuffer(block, np.uint8)[:: mmap.PAGESIZE] = 1


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


FIDELITY = ["KL mean ± standard error", "KL median / p90 / p99 / max", "top-1", "perplexity"]
"""Header of the cells that `fidelity_cells` returns."""


def fidelity_cells(fidelity: Fidelity) -> list[str]:
    """Format the quality numbers for a table."""
    kl = fidelity.kl
    return [
        f"{kl.mean:.4f} ± {kl.standard_error or 0:.4f}",
        f"{kl.median:.3f} / {kl.p90:.3f} / {kl.p99:.3f} / {kl.max:.2f}",
        f"{fidelity.top1:.4f}",
        f"{fidelity.perplexity_original:.2f} → {fidelity.perplexity_compressed:.2f}",
    ]


def publish(section: str, text: str, document: Path = _DOCUMENT) -> None:
    """Print a section and put it in the place of the old one in a document, docs/benchmarks.md by default."""
    print(text)
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    before, _, rest = document.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    document.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
