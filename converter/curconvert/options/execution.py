"""Options for where and with how much memory a conversion runs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from curconvert.base.checks import at_least
from curconvert.base.errors import BackendError, InputError
from curconvert.base.machine import available_cpus


@dataclass(frozen=True)
class ExecutionOptions:
    """Where to factorize, and how much memory to use. The result does not depend on it.

    Attributes:
        executor: `local`, `ray` (a cluster on this machine, for this run) or `ray://HOST:PORT` (the client server of a
            running cluster).
        workers: Tasks at the same time; None is the number of available cores. Not for a running cluster.
        memory_limit: Limit of the estimated resident memory, in bytes. Hidden states move to disk if needed. None is
            no limit.

    Raises:
        InputError: A value is out of range or unknown.
    """

    executor: str = "local"
    workers: int | None = None
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.executor not in ("local", "ray") and not (self.address and self.address != _REMOTE):
            raise InputError(f"--executor {self.executor!r}: expected local, ray or ray://HOST:PORT")
        if self.workers is not None:
            at_least("--workers", self.workers, 1)
            if self.address:
                raise InputError(f"--workers {self.workers}: a running cluster chooses the number itself; leave it out")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise InputError(f"--memory-limit {self.memory_limit}: expected bytes, above 0")

    @property
    def tasks_at_once(self) -> int:
        """Number of tasks that this machine runs at the same time."""
        return self.workers or available_cpus()

    @property
    def address(self) -> str | None:
        """Address of a running cluster; None for the other executors."""
        return self.executor if self.executor.startswith(_REMOTE) else None

    def check_installed(self) -> None:
        """Reject an executor whose packages are not installed, before any work.

        Raises:
            BackendError: Ray, or a package that its client needs, is missing.
        """
        needed = ["ray"] * (self.executor != "local") + ["grpc"] * (self.address is not None)
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise BackendError(
                f"--executor {self.executor}: {' and '.join(missing)} not installed; "
                "run: pip install 'curconvert[cluster]'"
            )


_REMOTE = "ray://"
