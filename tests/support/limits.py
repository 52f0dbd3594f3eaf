"""Limits for tests: how long to wait for what hangs, and what a command may take for a hostile input."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import resource
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner

from curconvert.cli import main

HANG_SECONDS = 3600
"""Nothing takes an hour, even on a very busy machine; what takes longer hangs."""
CPU_SECONDS = 5
MEMORY = 10**9
CODES = frozenset((0, 2, 3, 4, 5, 6))
"""Documented exit codes of a command that nobody interrupts."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Its exit code; negative for the signal that ended the process.
        stderr: What it wrote there.
        raised: Traceback of an exception that nobody caught, or an empty text.
        cpu_seconds: CPU time of all its threads.
        memory: Most resident bytes above those that it began with.
    """

    code: int
    stderr: str = ""
    raised: str = ""
    cpu_seconds: float = 0.0
    memory: int = 0

    def complaint(self, codes: Collection[int] = CODES) -> str:
        """Return what a hostile input must not do to a command and did, or an empty text."""
        lines = self.stderr.strip().splitlines()
        if self.raised or "Traceback" in self.stderr:
            return f"traceback: {(self.raised or self.stderr)[-300:]}"
        if self.code not in codes:
            return f"exit code {self.code}: {self.stderr[-300:]}"
        if self.code and (len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 1000):
            return f"stderr is not one short line: {self.stderr[-300:]}"
        if self.cpu_seconds > CPU_SECONDS or self.memory > MEMORY:
            return f"{self.cpu_seconds:.1f} s of CPU time, {self.memory / 1e6:.0f} MB"
        return ""


def warm() -> multiprocessing.context.ForkServerContext:
    """Return a server that has imported everything and computed nothing: a fork of it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["curconvert.jobs.convert", "curconvert.jobs.parity", "mobius", "jsonschema", "onnxruntime"]
    )
    return context


def limited_calls(commands: Sequence[Sequence[str | Path]]) -> list[Outcome]:
    """Run command lines one after the other in a process that the system ends far beyond the limits.

    After a command that ended the process, another one goes on with the next command.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(commands):
        receiver, sender = warm().Pipe(duplex=False)
        left = [[str(argument) for argument in command] for command in commands[len(outcomes) :]]
        process = warm().Process(target=_calls, args=(left, sender), daemon=True)
        process.start()
        sender.close()
        try:
            while len(outcomes) < len(commands):
                outcomes.append(Outcome(*receiver.recv()))
        except EOFError:
            process.join(HANG_SECONDS)
            outcomes.append(Outcome(process.exitcode or 0, raised="the process ended without a report"))
        process.join(HANG_SECONDS)
    return outcomes


def _calls(commands: Sequence[Sequence[str]], report: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + 3 * MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for arguments in commands:
        begin = _cpu_seconds()
        resource.setrlimit(resource.RLIMIT_CPU, (int(begin) + 4 * CPU_SECONDS, resource.RLIM_INFINITY))
        Path("/proc/self/clear_refs").write_text("5")
        memory = _status("VmHWM")
        result = CliRunner().invoke(main, list(arguments))
        raised = ""
        if result.exc_info and not isinstance(result.exception, SystemExit | None):
            raised = "".join(traceback.format_exception(*result.exc_info))
        used, grown = _cpu_seconds() - begin, _status("VmHWM") - memory
        report.send((result.exit_code, result.stderr, raised, used, grown))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status(name: str) -> int:
    """Return a size of this process in bytes, from the system's table."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
