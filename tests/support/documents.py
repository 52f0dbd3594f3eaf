"""The commands of a page, and a run of them in order: each must exit and print as the page says.

A bash block of a page is a step. The fence that follows it, `text` or `console`, is what the step prints. Comments
before the block say more: `<!-- exit: 3 -->`; `<!-- not run: why -->` for what a test must not do; before an output
`<!-- not compared: why -->`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import curconvert
import curconvert_runtime
import curconvert_schemas

ROOT = Path(__file__).resolve().parents[2]
# The packages of this project, wherever they are installed.
PACKAGES = os.pathsep.join(
    str(Path(p.__path__[0]).parent) for p in (curconvert, curconvert_runtime, curconvert_schemas)
)
_FENCE = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"\d[\d,.]*(?:e[+-]?\d+)?\b")
_HASH = re.compile(r"\b[0-9a-f]{12,16}(?=…)")


@dataclass(frozen=True)
class Step:
    """One bash block of a page: its script, exit code and, where the page shows it, what it prints."""

    line: int
    script: str
    exit_code: int
    printed: str | None


def steps(page: Path) -> list[Step]:
    """Return the bash blocks of a page in order, except those marked `not run`."""
    text = page.read_text(encoding="utf-8")
    fences = list(_FENCE.finditer(text))
    found = []
    for number, fence in enumerate(fences):
        comments, language, script = fence.groups()
        if language != "bash" or "<!-- not run:" in comments:
            continue
        shown = _output(fences[number + 1]) if number + 1 < len(fences) else None
        code = re.search(r"<!-- exit: (\d+) -->", comments)
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Step(line, script, int(code[1]) if code else 0, shown))
    return found


def _output(fence: re.Match[str]) -> str | None:
    is_compared = fence[2] in ("text", "console") and "<!-- not compared:" not in fence[1]
    return fence[3] if is_compared else None


def run_step(step: Step, folder: Path) -> str:
    """Run a step in a folder, with `curconvert` from this project, and compare its exit code and what it prints.

    Returns:
        Standard output and standard error, without progress bars.
    """
    binaries = folder / ".bin"
    binaries.mkdir(exist_ok=True)
    command = binaries / "curconvert"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m curconvert "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": PACKAGES,
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step.script], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", check=False,
    )  # fmt: skip
    printed = "\n".join(line for line in done.stdout.splitlines() if "━" not in line)
    assert done.returncode == step.exit_code, f"line {step.line}: {step.script}\n{printed}"
    if step.printed is not None:
        missing = first_difference(step.printed, printed)
        assert missing is None, f"line {step.line}: not printed: {missing}\n{printed}"
    return printed


def first_difference(shown: str, printed: str) -> str | None:
    """Return the first line of a page's output that a run did not print, or None.

    Numbers, hashes and spaces may differ. `…` stands for any text; on a line of its own, for any lines.
    """
    lines = [_normalized(line) for line in printed.splitlines() if line.strip()]
    place, skipping = 0, False
    for line in filter(str.strip, shown.splitlines()):
        if line.strip() == "…":
            skipping = True
            continue
        pattern = ".*".join(re.escape(_normalized(part)) for part in _HASH.sub("", line).split("…"))
        candidates: Sequence[int] = range(place, len(lines)) if skipping else range(place, min(place + 1, len(lines)))
        match = next((number for number in candidates if re.fullmatch(pattern, lines[number])), None)
        if match is None:
            return line
        place, skipping = match + 1, False
    return None if skipping or place == len(lines) else f"the end, but: {lines[place]}"


def _normalized(line: str) -> str:
    return re.sub(r"\s+", "", _NUMBER.sub("#", line))


def block(name: str, document: str = "README.md") -> str:
    """Return the Python block behind the marker `test: name` in a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = re.findall(rf"<!-- test: {name} -->\n```python\n(.*?)```", text, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def commands(path: Path) -> list[str]:
    """Return the curconvert commands of a document's shell blocks, lines that continue joined."""
    blocks = re.findall(r"```(?:bash|yaml)\n(.*?)```|((?:^    .*\n)+)", path.read_text(encoding="utf-8"), re.M | re.S)
    text = "\n".join(part for pair in blocks for part in pair).replace("\\\n", " ")
    lines = (re.sub(r"^(- )?(run: )?", "", line.strip()) for line in text.splitlines())
    return [line for line in lines if line.startswith("curconvert ")]


def pages() -> Iterator[Path]:
    """Yield the README and every page of the site."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))
