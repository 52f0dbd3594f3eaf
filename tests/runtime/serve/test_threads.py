"""Loading changes nothing of the process, so threads may load while others work."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from curconvert_runtime import load


def test_threads_load_while_another_one_prints(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of the host arrives, nothing else does, and stdout is the host's afterwards."""
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    stop, lines = Event(), []

    def write() -> None:
        while not stop.is_set() or len(lines) < 100:
            lines.append(f"line {len(lines)}")
            print(lines[-1])  # noqa: T201

    with ThreadPoolExecutor(6) as pool:
        writer = pool.submit(write)
        loads = [
            pool.submit(load, sealed, graph=graph, threads=1) for graph in ("portable", "fused") for _ in range(10)
        ]
        for done in loads:
            done.result()
        stop.set()
        writer.result()
    assert sys.stdout is mine
    assert mine.getvalue().splitlines() == lines
