"""Runs the cases of `golden_cases.py` in one process and hashes their outputs; `golden.py` starts it.

Cases call `curconvert.cli.main`, as `python -m curconvert` does, so that imports happen only once. One case also runs
`python -m curconvert` in a separate process, to show differences between the two.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from click.testing import CliRunner
from golden_cases import model_cases, tiny_cases
from golden_models import make_inputs
from transformers import AutoModelForCausalLM

from curconvert.cli import main as command_line

_OUT = "out"
_TRANSFORMERS = ("form-cur", "form-folded", "method-auto", "bias-modegpt", "bias-pifa", "dtype-float16")
_PROCESS = "form-cur"
"""The case that also runs through `python -m curconvert`."""

# Values that differ between two equal runs: times, memory and speeds.
_MEASURED = re.compile(r"estimate|peak_memory_bytes|decode_\w+|seconds|bandwidth\w*")
_MEASURED_LINES = re.compile(r"^(peak memory|Estimate for this machine)")
_INTERRUPTED = (130, 143)  # exit codes after Ctrl-C and SIGTERM
_HIDDEN = re.compile(r"\.\w+\.partial\b")
_SPEED = re.compile(r"[\d.]+ tokens/s.*")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


class Golden:
    """Runs each case once and collects a line for each file and output.

    Attributes:
        lines: Hash by name.
        surprises: Cases that did not end as expected.
    """

    def __init__(self, cases: dict[str, str]) -> None:
        self._cases = cases
        self._made: set[str] = set()
        self.lines: dict[str, str] = {}
        self.surprises: list[str] = []

    def run(self, name: str, *, listed: bool = True) -> None:
        """Run a case, after the cases that it needs, and list its outputs.

        Args:
            name: Name of the case.
            listed: Whether to list its outputs; False if only another case needs it.
        """
        if name not in self._made:
            self._made.add(name)
            arguments = shlex.split(self._cases[name])
            for needed in (part[1:] for part in arguments if part.startswith("@") and part != "@"):
                self.run(needed, listed=False)
            self._call(name, [f"{_OUT}/{part[1:] or name}" if part.startswith("@") else part for part in arguments])
        if listed:
            self.lines |= _files(name, Path(_OUT, name)) | _texts(name)

    def run_others(self, pattern: re.Pattern[str]) -> None:
        """List results that need no command in this process: public names, transformers, and `-m curconvert`."""
        if pattern.search("public"):
            self.lines |= _public_names()
        if pattern.search("process"):
            self.lines |= _in_a_process(self._cases[_PROCESS])
        for artifact in _TRANSFORMERS:
            if pattern.search(name := f"transformers-{artifact}"):
                self.run(artifact, listed=False)
                self.lines[name] = _transformers_logits(artifact)

    def _call(self, name: str, arguments: list[str]) -> None:
        start = time.perf_counter()
        result = CliRunner().invoke(command_line, arguments)
        _say(f"{name}: {time.perf_counter() - start:.1f} s")
        if result.exit_code in _INTERRUPTED:
            sys.exit(result.exit_code)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            _say("".join(traceback.format_exception(result.exception)))
        fails = name.startswith("refuse-") or name == "verify-gated"
        if (result.exit_code != 0) != fails:
            self.surprises.append(name)
            _say(f"{name}: exit code {result.exit_code}: {result.stderr}")
        Path("printed", f"{name}.stdout").write_text(_without_measurements(name, result.stdout), encoding="utf-8")
        # If nothing fails, stderr only has progress, so leave it out.
        error = f"{result.exit_code}\n{result.stderr if fails else ''}"
        Path("printed", f"{name}.exit").write_text(_without_place(error), encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _texts(name: str) -> dict[str, str]:
    """Return the lines for a case's printed texts: stdout, and its exit code with the error."""
    kinds = ("exit", "stdout")
    return {f"{name}!{kind}": _hash(Path("printed", f"{name}.{kind}").read_bytes()) for kind in kinds}


def _without_place(text: str) -> str:
    """Return a text without this run's folder, and without the random part of hidden folder names."""
    return _HIDDEN.sub(".partial", text.replace(str(Path.cwd()), "WORK"))


def _without_measurements(name: str, printed: str) -> str:
    """Return a command's output without measured values, and without the folder in which it runs."""
    text = _without_place(printed)
    if name == "bench":  # all values are measured, so compare only the fields
        return _NUMBER.sub("0", text)
    if text.startswith(("{", "[")):
        return json.dumps(_unmeasured(json.loads(text)), indent=1)
    lines = [_SPEED.sub("tokens/s", line).rstrip() for line in text.splitlines() if not _MEASURED_LINES.match(line)]
    return "\n".join(lines)


def _unmeasured(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmeasured(item) for key, item in value.items() if not _MEASURED.fullmatch(key)}
    return [_unmeasured(item) for item in value] if isinstance(value, list) else value


def _files(name: str, folder: Path) -> dict[str, str]:
    """Return a line for each file of a folder, and for each graph a second one that ignores the initializers' order."""
    lines = {}
    paths = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        line = f"{name}/{path.name if path == folder else path.relative_to(folder).as_posix()}"
        content = _without_speeds(path)
        if content is not None:
            lines[line] = _hash(content)
        if path.suffix == ".onnx":
            lines[f"{line}#nodes"] = _hash(_sorted_graph(path))
    return lines


def _without_speeds(path: Path) -> bytes | None:
    """Return a file's bytes; without speeds for a sweep's tables; None for its plot, which shows speeds."""
    if path.name == "sweep.png":
        return None
    if path.name == "sweep.json":
        return json.dumps(_unmeasured(json.loads(path.read_text(encoding="utf-8")))).encode()
    if path.name == "sweep.csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return json.dumps([_unmeasured(row) for row in rows]).encode()
    return path.read_bytes()


def _sorted_graph(path: Path) -> bytes:
    model = onnx.load(path, load_external_data=False)
    for field in (model.graph.initializer, model.graph.input, model.graph.value_info):
        ordered = sorted(field, key=lambda entry: entry.name)
        del field[:]
        field.extend(ordered)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _public_names() -> Iterator[tuple[str, str]]:
    """Yield a line for each public name, with the names of its parameters if it is callable."""
    for package in ("curconvert", "curconvert_runtime"):
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            value = getattr(module, name)
            try:
                parameters = [str(part).partition(":")[0] for part in inspect.signature(value).parameters.values()]
            except (TypeError, ValueError):
                parameters = []
            yield f"public/{package}.{name}", _hash(" ".join(parameters).encode())


def _transformers_logits(artifact: str) -> str:
    """Return the hash of transformers' logits for an artifact, loaded through curconvert's quantizer."""
    model = AutoModelForCausalLM.from_pretrained(Path(_OUT, artifact))
    with torch.no_grad():
        logits = model(torch.arange(3, 27)[None]).logits
    return _hash(logits.float().numpy().tobytes())


def _in_a_process(arguments: str) -> dict[str, str]:
    """Run a conversion through `python -m curconvert`; return lines as for the same case in this process."""
    command = [sys.executable, "-m", "curconvert", *shlex.split(arguments.replace("@", f"{_OUT}/process"))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - a fixed command, no shell
    return _files("process", Path(_OUT, "process"))


def main() -> int:
    """Run the cases in the current folder; arguments are PATTERN LIST [MODEL]."""
    pattern, target = re.compile(sys.argv[1]), Path(sys.argv[2])
    _say(f"curconvert from {inspect.getfile(importlib.import_module('curconvert'))}")
    Path("printed").mkdir()
    if model := "".join(sys.argv[3:]):
        cases = model_cases(model)
    else:
        cases = tiny_cases()
        make_inputs(Path())
    golden = Golden(cases)
    try:
        for name in filter(pattern.search, cases):
            golden.run(name)
        if not model:
            golden.run_others(pattern)
    finally:  # write the list even after an error, to show where the run stopped
        lines = golden.lines
        target.write_text("".join(f"{name}  {lines[name]}\n" for name in sorted(lines)), encoding="utf-8")
    if golden.surprises:
        _say(f"ended in another way than expected: {', '.join(golden.surprises)}")
    return 1 if golden.surprises else 0


if __name__ == "__main__":
    sys.exit(main())
