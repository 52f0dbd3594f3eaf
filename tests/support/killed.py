"""Jobs in processes of their own, which may be killed at any instant at which they touch the disk."""

from __future__ import annotations

import functools
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from curconvert.cli import main
from curconvert.jobs.convert import convert
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.source import SourceOptions
from support.limits import HANG_SECONDS, warm

_CALLS = ("fsync", "pwrite", "replace", "unlink", "rename", "rmdir", "mkdir")


def _run(job: Callable[[], Any], kill_at: int, report: Any) -> None:
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
    job()
    report.send(count)


def _in_a_process(target: Callable[..., None], *arguments: Any) -> tuple[int | None, Any]:
    """Call a function in a warm process; return the exit code, and the connection that was its last argument."""
    context = warm()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, sender), daemon=True)
    process.start()
    sender.close()
    process.join(HANG_SECONDS)
    return process.exitcode, receiver


def job_in_a_process(job: Callable[[], Any], kill_at: int = 0) -> int | None:
    """Run a job, or kill it by SIGKILL before the given call that changes the disk.

    Args:
        job: A function that another process can import, with its arguments.
        kill_at: Number of the call, from 1 on; 0 lets it come to its end.

    Returns:
        How many such calls there were; None if the process was killed.
    """
    code, report = _in_a_process(_run, job, kill_at)
    assert code in (0, -signal.SIGKILL), code
    return report.recv() if code == 0 else None


def _limited(job: Callable[[], Any], limit: int, report: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        job()
    except Exception as error:  # noqa: BLE001 - the parent tells what it may be
        report.send((type(error).__name__, str(error)))
    else:
        report.send(None)


def job_with_small_files(job: Callable[[], Any], limit: int) -> tuple[str, str] | None:
    """Run a job in a process that can write no file larger than a number of bytes.

    Returns:
        Class and message of the job's error; None if it came to its end.
    """
    code, report = _in_a_process(_limited, job, limit)
    assert code == 0, code
    found: tuple[str, str] | None = report.recv()
    return found


def convert_in_a_process(source: Path, out: Path, options: ConvertOptions, kill_at: int = 0) -> int | None:
    """Convert as a job in a process; see `job_in_a_process`."""
    return job_in_a_process(functools.partial(convert, SourceOptions(str(source)), out, options), kill_at)


def _command(arguments: Sequence[str], seconds: float, report: Any) -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    # Nothing handles SIGPROF: the system ends the process at once, as by SIGKILL.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        main(arguments)
    finally:
        report.send(time.process_time() - start)


def command_in_a_process(arguments: Sequence[str | Path], seconds: float = 0.0) -> float | None:
    """Run the command line, or let the system kill it after some CPU time: other load does not move that instant.

    Args:
        arguments: Arguments of the command.
        seconds: From its first line of code on; 0 lets it come to its end.

    Returns:
        Seconds of CPU time that it took; None if it was killed.
    """
    code, report = _in_a_process(_command, [str(argument) for argument in arguments], seconds)
    assert code in (0, -signal.SIGPROF), code
    return float(report.recv()) if code == 0 else None
