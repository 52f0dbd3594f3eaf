"""Tasks on a real local Ray cluster of two worker processes: the same bytes, also when one of them is killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._private import services

from curconvert.base.errors import BackendError, InputError
from curconvert.execution import cluster as cluster_module
from curconvert.execution.executor import executing
from curconvert.execution.task import Executor
from curconvert.jobs import convert as pipeline
from curconvert.jobs.convert import convert
from curconvert.methods.cur import CUR
from curconvert.options.execution import ExecutionOptions
from curconvert.options.source import SourceOptions
from support.families import TinyModel, make_checkpoint
from support.folders import files_of
from support.limits import HANG_SECONDS
from support.tasks import Dies, Fails, Sleeps, Threads, WaitsForItsDeath, kill_the_first
from support.tiny_runs import LENGTH, tiny_options

SETTINGS: dict[str, dict[str, Any]] = {
    "cur": {},
    "pifa": {"sequential": True},
    "fwsvd": {},
    "modegpt": {"rank": None, "density": 0.6},
    "auto": {"rank": None, "max_kl": 0.2, "rank_multiple": 4, "self_text": 0.0},
}


# How long Ray waits for its own processes before it gives up, by its setting and the setting's unit in a second.
PATIENCE = {
    "agent_register_timeout_ms": 1000, "gcs_rpc_server_connect_timeout_s": 1, "gcs_server_port_wait_time_s": 1,
    "gcs_server_request_timeout_seconds": 1, "health_check_initial_delay_ms": 1000, "health_check_timeout_ms": 1000,
    "raylet_client_connect_timeout_milliseconds": 1000, "worker_register_timeout_seconds": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """Workers import the tests' own tasks, and a busy machine may be as slow as it is."""
    real = services.get_node

    def patient(*arguments: Any) -> Any:
        for _ in range(HANG_SECONDS):
            with contextlib.suppress(RuntimeError):
                return real(*arguments)
            time.sleep(1)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        for name, unit in PATIENCE.items():
            patch.setenv(f"RAY_{name}", str(HANG_SECONDS * unit))
        patch.setattr(services, "get_node", patient)  # Ray gives a node 30 seconds, and no setting changes that
        yield


@pytest.fixture(scope="module")
def cluster(environment: None) -> Iterator[Executor]:
    """Two workers."""
    with executing(ExecutionOptions("ray", 2)) as executor:
        yield executor


@pytest.fixture
def on_the_cluster(cluster: Executor, monkeypatch: pytest.MonkeyPatch) -> ExecutionOptions:
    """What makes a conversion use the cluster that is there."""

    @contextmanager
    def there(_options: ExecutionOptions) -> Iterator[Executor]:
        yield cluster

    monkeypatch.setattr(pipeline, "executing", there)
    return ExecutionOptions("ray")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Two layers with biases; no test may change it."""
    return make_checkpoint(tmp_path_factory.mktemp("qwen2") / "model", "qwen2", num_hidden_layers=2)


def test_a_cluster_of_ones_own_goes_with_an_error(environment: None) -> None:
    """All of its processes; and the handler of SIGTERM is what it was. First here: a process has one cluster."""
    this, handler = psutil.Process(), signal.getsignal(signal.SIGTERM)
    before = set(this.children(recursive=True))
    started: set[psutil.Process] = set()
    with pytest.raises(InputError, match="bad"), executing(ExecutionOptions("ray", 1)) as executor:
        started = set(this.children(recursive=True)) - before
        assert any("raylet" in process.name() for process in started)
        assert signal.getsignal(signal.SIGTERM) is handler
        executor.map([Fails(InputError("bad"))])
    _, alive = psutil.wait_procs(started, HANG_SECONDS)
    assert not alive
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("method", SETTINGS)
def test_the_cluster_changes_no_byte(
    tmp_path: Path, model: TinyModel, tokens: Path, on_the_cluster: ExecutionOptions, method: str
) -> None:
    """Of any file."""
    options, source = tiny_options(tokens, method, **SETTINGS[method]), SourceOptions(str(model.folder))
    convert(source, tmp_path / "ray", options, execution=on_the_cluster)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "executing", executing)
        convert(source, tmp_path / "local", options)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")


def test_a_worker_that_is_killed_changes_no_byte(
    tmp_path: Path, model: TinyModel, tokens: Path, on_the_cluster: ExecutionOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle of a matrix: it is factorized again, elsewhere."""
    options, source, pid_file = tiny_options(tokens), SourceOptions(str(model.folder)), tmp_path / "pid"
    real = CUR.tasks

    def tasks(*arguments: Any) -> Iterator[Any]:
        for number, task in enumerate(real(*arguments)):
            yield WaitsForItsDeath(task, pid_file) if number == 1 else task

    with ThreadPoolExecutor(1) as killer, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CUR, "tasks", tasks)
        killed = killer.submit(kill_the_first, pid_file)
        convert(source, tmp_path / "ray", options, execution=on_the_cluster)
        assert killed.result() != os.getpid()
        assert not psutil.pid_exists(killed.result())
    monkeypatch.undo()
    convert(source, tmp_path / "local", options)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")


def test_each_task_has_one_thread(cluster: Executor) -> None:
    """Of each BLAS library and of torch."""
    found = cluster.map([Threads(), Threads()])
    assert len(found[0]) >= 3
    assert found == [[1] * len(found[0])] * 2


def test_results_are_in_the_order_of_the_tasks(cluster: Executor) -> None:
    """Although the later one is finished first."""
    assert cluster.map([Sleeps(0.5), Sleeps(0.0)]) == [0.5, 0.0]


def test_an_error_of_a_task_comes_back_as_it_is(cluster: Executor) -> None:
    """Class and message: what was wrong does not depend on where it was found."""
    with pytest.raises(InputError) as raised:
        cluster.map([Sleeps(0.0), Fails(InputError("x.weight: U does not fit float16"))])
    assert type(raised.value) is InputError
    assert str(raised.value) == "x.weight: U does not fit float16"


@pytest.mark.parametrize("error", [Exception("the node timed out"), RuntimeError("x"), TimeoutError("late")])
def test_a_cluster_that_does_not_start_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Ray raises: it has a plain exception for a machine that is too busy."""

    def init(_address: str, **_settings: Any) -> None:
        raise error

    monkeypatch.setattr(cluster_module.ray, "init", init)
    with pytest.raises(BackendError, match=rf"no Ray cluster on this machine \(\w+: {error}\); .*use --executor local"):
        cluster_module._connect(None, 1)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_proxy_that_gives_up_is_asked_again(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Twice: Ray's proxy sometimes ends a connection while it starts the server for it."""
    calls: list[str] = []

    def init(address: str, **_settings: Any) -> None:
        calls.append(address)
        if len(calls) <= failures:
            raise ConnectionAbortedError("Initialization failure from server:\npsutil.ZombieProcess")

    monkeypatch.setattr(cluster_module.ray, "init", init)
    monkeypatch.setattr(cluster_module.ray, "shutdown", lambda: None)  # the cluster of other tests goes on
    if failures < 3:
        cluster_module._connect(None, 1)
    else:
        with pytest.raises(BackendError, match=r"no Ray cluster on this machine \(.*ZombieProcess\)"):
            cluster_module._connect(None, 1)
    assert len(calls) == 3


@pytest.mark.parametrize("error", [ValueError("boom"), ModuleNotFoundError("No module named 'curconvert'")])
def test_a_fault_of_a_worker_says_what_a_node_needs(cluster: Executor, error: Exception) -> None:
    """In one line."""
    with pytest.raises(BackendError, match=rf"{error}.*every node needs curconvert\[convert,cluster\]") as raised:
        cluster.map([Fails(error)])
    assert "\n" not in str(raised.value)


def test_a_worker_of_another_kind_is_refused(cluster: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version, or another CPU, would give other bytes."""
    here = cluster_module._environment()
    assert {"curconvert", "numpy", "scipy", "torch", "BLAS kernels"} <= here.keys()
    monkeypatch.setattr(cluster_module, "_environment", lambda: here | {"numpy": "0.1"})
    with pytest.raises(BackendError, match=rf"has numpy {here['numpy']}, the driver has 0\.1"):
        cluster_module.RayExecutor().map([Sleeps(0.0)])


def test_a_task_that_kills_its_workers_is_given_up(cluster: Executor) -> None:
    """After its retries, with one line."""
    with pytest.raises(
        BackendError, match=r"lost a factorization, 3 retries included .*use --executor local"
    ) as raised:
        cluster.map([Dies()])
    assert "\n" not in str(raised.value)


@pytest.fixture
def running_cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster that somebody has started, as Ray's manual says: its address, and the environment of its users."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(path for path in sys.path if path)
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    settings = {**os.environ, "PYTHONPATH": path, **token}
    ray = Path(sys.executable).with_name("ray")
    start = [ray, "start", "--head", "--port=0", "--num-cpus=2", "--include-dashboard=false", "--block"]
    head = subprocess.Popen([*start, f"--ray-client-server-port={port}"], env=settings, stdout=subprocess.DEVNULL)
    try:
        for _ in range(HANG_SECONDS):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert head.poll() is None
            time.sleep(1)
        yield f"ray://127.0.0.1:{port}", settings
    finally:
        head.terminate()
        head.wait(HANG_SECONDS)


@pytest.mark.slow
def test_a_running_cluster_changes_no_byte(
    tmp_path: Path, model: TinyModel, tokens: Path, running_cluster: tuple[str, dict[str, str]]
) -> None:
    """By its address, from the command line."""
    address, settings = running_cluster
    options = ("--rank", "8", "--layers", "all", "--calibration", tokens, "--calibration-sequences", "12")
    sizes = ("--calibration-tokens", str(LENGTH), "--probe-sequences", "2", "--no-verify", "--quiet")
    runs = {
        executor: subprocess.Popen(
            [sys.executable, "-m", "curconvert", model.folder, "-o", tmp_path / name, *options, *sizes,
             "--executor", executor],
            env=settings,
        )
        for name, executor in (("ray", address), ("local", "local"))
    }  # fmt: skip
    assert {executor: run.wait(HANG_SECONDS) for executor, run in runs.items()} == {address: 0, "local": 0}
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")


@pytest.mark.parametrize(
    ("address", "words"),
    [("ray://127.0.0.1:9", "no Ray cluster ray://127.0.0.1:9"), ("ray://host", "expected ray://HOST:PORT"),
     ("ray://host:many", "expected ray://HOST:PORT")],
)  # fmt: skip
def test_an_address_where_nobody_listens_is_refused_at_once(
    address: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is not asked: alone it would try for 40 seconds."""
    asked: list[str] = []
    monkeypatch.setattr(cluster_module.ray, "init", lambda address, **_settings: asked.append(address))
    monkeypatch.setattr(cluster_module.ray, "shutdown", lambda: None)  # the cluster of other tests goes on
    with pytest.raises(BackendError, match=words), executing(ExecutionOptions(address)):
        pass
    assert asked == []
