"""Conversions in processes of their own, which may be killed at any instant at which they touch the disk."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from curconvert.cli import main
from curconvert.jobs.convert import convert
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.source import SourceOptions

_CALLS = ("fsync", "pwrite", "replace", "unlink", "rename", "rmdir", "mkdir")


def _run(source: str, out: Path, options: ConvertOptions, kill_at: int, report: Any) -> None:
    torch.set_num_threads(1)
    count = 0

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))
    convert(SourceOptions(source), out, options)
    report.send(count)


def convert_in_a_process(source: Path, out: Path, options: ConvertOptions, kill_at: int = 0) -> int | None:
    """Convert, or be killed by SIGKILL before the given call that changes the disk.

    Returns:
        How many such calls there were; None if the process was killed.
    """
    context = _warm()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(str(source), out, options, kill_at, sender))
    process.start()
    sender.close()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return receiver.recv() if process.exitcode == 0 else None


def _command(arguments: Sequence[str], started: Any) -> None:
    torch.set_num_threads(1)
    started.send(None)
    main(arguments)


def command_in_a_process(arguments: Sequence[str | Path], seconds: float | None = None) -> float | None:
    """Run the command line, or kill it by SIGKILL after some time.

    Args:
        arguments: Of the command.
        seconds: From its first line of code on; None lets it come to its end.

    Returns:
        Seconds that it took; None if it was killed.
    """
    context = _warm()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_command, args=([str(argument) for argument in arguments], sender))
    process.start()
    receiver.recv()
    start = time.monotonic()
    process.join(120 if seconds is None else seconds)
    took = time.monotonic() - start
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return took if process.exitcode == 0 else None


def _warm() -> multiprocessing.context.ForkServerContext:
    """Return a server that has imported everything and computed nothing: a fork of it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["curconvert.jobs.convert", "curconvert.jobs.parity", "mobius", "jsonschema", "onnxruntime"]
    )
    return context
