"""Runs the measuring process, `python -m curconvert.jobs.bench.worker`: one JSON object per line in and out.

`{"load": {…}}` loads an artifact (arguments of `load`) and answers a prompt. `{"measure": {…}}` runs a `Workload`.
`{"read": {"threads": …}}` measures the memory bandwidth. The process ends when its input ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from curconvert.base.machine import MemoryReader, peak_memory, resident_memory
from curconvert.jobs.bench.speed import measure
from curconvert.options.bench import Workload
from curconvert_runtime.errors import CurConvertError
from curconvert_runtime.serve.session import Session, load


class _Worker:
    """Answers requests one at a time."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._reader: MemoryReader | None = None
        self.requests: Mapping[str, Callable[..., dict[str, Any]]] = {
            "load": self._load,
            "measure": self._measure,
            "read": self._read,
        }

    def _load(self, path: str, prompt_tokens: int, **arguments: Any) -> dict[str, Any]:
        begin = time.perf_counter()
        self._session = load(path, **arguments)
        seconds, resident = time.perf_counter() - begin, resident_memory()
        measure(self._session, Workload(1, prompt_tokens, 0))
        return {"graph": self._session.graph, "load_seconds": seconds, "resident_bytes": resident}

    def _measure(self, **workload: int) -> dict[str, Any]:
        assert self._session is not None
        timing = measure(self._session, Workload(**workload))
        return {**asdict(timing), "peak_bytes": peak_memory()}

    def _read(self, threads: int | None) -> dict[str, Any]:
        self._reader = self._reader or MemoryReader(threads)
        return {"bytes_per_second": self._reader.bytes_per_second()}


def main() -> None:
    """Answer requests from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # keeps the output of libraries out of the answers
    worker = _Worker()
    for line in sys.stdin:
        ((name, arguments),) = json.loads(line).items()
        try:
            answer = worker.requests[name](**arguments)
        except CurConvertError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
