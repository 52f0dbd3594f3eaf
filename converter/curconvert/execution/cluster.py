"""Runs tasks on a Ray cluster. Weights and statistics travel through its object store."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError, RayTaskError

from curconvert.base.environment import environment
from curconvert.base.errors import BackendError, CurConvertError
from curconvert.execution.threads import blas_kernels, compute, one_blas_thread
from curconvert.linalg.statistics import InputStatistics
from curconvert_runtime import __version__

if TYPE_CHECKING:
    from curconvert.execution.task import Task

_Result = TypeVar("_Result")
_ANSWER_SECONDS = 10.0
_RETRIES = 3  # for a task whose worker died, and for a connection


@contextmanager
def connected(address: str | None, workers: int) -> Iterator[RayExecutor]:
    """Yield an executor on a cluster.

    Args:
        address: `ray://HOST:PORT` of a running cluster. None starts one on this machine and stops it afterwards.
        workers: Number of CPUs of a cluster that is started here.

    Raises:
        BackendError: The cluster does not start, or does not answer.
    """
    # Turn usage reports off. Limit retries of tasks that run out of memory, which Ray would repeat forever.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(_RETRIES))
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Start Ray in a separate thread, because on the main thread it would replace the conversion's SIGTERM handler.
    # Keep the thread as long as the cluster, because its processes end with the thread that started them.
    with ThreadPoolExecutor(1, "ray") as starter:
        try:
            starter.submit(_connect, address, workers).result()
            yield RayExecutor()
        finally:
            ray.shutdown()


def _connect(address: str | None, workers: int) -> None:
    if address is not None:
        _check_listening(address)
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        settings |= {"num_cpus": workers, "include_dashboard": False}
    try:
        _init(address or "local", settings)
    except Exception as error:  # a node that starts too slowly raises a plain one
        where = address or "on this machine"
        hint = "check its address, and its token if it asks for one" if address else "see its logs in /tmp/ray"
        raise BackendError(f"no Ray cluster {where} ({_last_line(error)}); {hint}, or use --executor local") from error


def _init(address: str, settings: Mapping[str, Any]) -> None:
    """Connect to a cluster. Retry if its proxy aborts the connection, which happens when one of its processes dies."""
    for left in reversed(range(_RETRIES)):
        try:
            ray.init(address, **settings)
            return
        except ConnectionAbortedError:
            if not left:
                raise
            ray.shutdown()


def _check_listening(address: str) -> None:
    """Raise `BackendError` if no program listens at an address, because Ray itself would try for 40 seconds."""
    place = urlsplit(address)
    try:
        host, port = place.hostname, place.port
    except ValueError:  # not a port
        host, port = None, None
    if not host or not port:
        raise BackendError(f"--executor {address}: expected ray://HOST:PORT")
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise BackendError(
            f"no Ray cluster {address} ({error.strerror or error}); check its address, or use --executor local"
        ) from None


class RayExecutor:
    """Runs tasks on the connected cluster, one CPU per task."""

    def __init__(self) -> None:
        self._expected = _environment()
        self._remote: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(_compute_from)

    def map(self, tasks: Iterable[Task[_Result]]) -> list[_Result]:
        """Run tasks and return their results in order; see `Executor.map`.

        A task whose worker dies is run again, on another worker.
        """
        stored: dict[int, tuple[InputStatistics, Any]] = {}

        def passed(value: Any) -> Any:
            """Put statistics into the object store once for all tasks that share them; Ray handles other values."""
            if not isinstance(value, InputStatistics):
                return value
            if id(value) not in stored:
                stored[id(value)] = value, ray.put(value)  # keep the value, so that no other object gets its id
            return stored[id(value)][1]

        try:
            references = [
                self._remote.remote(
                    self._expected, type(task), **{name: passed(value) for name, value in vars(task).items()}
                )
                for task in tasks
            ]
            return list(ray.get(references))
        except RayTaskError as error:
            if isinstance(error.cause, CurConvertError):
                raise error.cause from None
            raise BackendError(
                f"a factorization failed on the Ray cluster ({_last_line(error.cause)}); "
                f"every node needs curconvert[convert,cluster] {__version__}, installed as here"
            ) from error
        except (RayError, ConnectionError) as error:
            raise BackendError(
                f"the Ray cluster lost a factorization, {_RETRIES} retries included ({_last_line(error)}); "
                "look for workers out of memory, or use --executor local"
            ) from error


def _compute_from(expected: Mapping[str, str], kind: Callable[..., Task[_Result]], **values: Any) -> _Result:
    """Run a task in a worker, from its class and fields.

    Raises:
        BackendError: The worker's versions or hardware would give other bytes than the driver's.
    """
    for name, found in _environment().items():
        if found != expected[name]:
            raise BackendError(
                f"a Ray worker on {os.uname().nodename} has {name} {found}, the driver has {expected[name]}: "
                "the bytes would differ; use equal versions and CPUs on all nodes, or --executor local"
            )
    with one_blas_thread():
        return compute(kind(**values))


def _last_line(error: BaseException) -> str:
    """Return an error's type and the last line of its message, because Ray's messages begin with tracebacks."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"


def _environment() -> dict[str, str]:
    """Return the versions and hardware that the bytes of a factorization depend on, besides the task."""
    packages = {name: metadata.version(name) for name in ("numpy", "scipy")}
    kept = {name: value for name, value in environment().items() if name != "threads"}
    return {"curconvert": __version__, **packages, **kept, "BLAS kernels": blas_kernels()}
