"""Output that nobody can take: other encodings, closed or full streams, readers that leave; text as it was typed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest

from curconvert.base.errors import InputError
from curconvert.cli import streams
from curconvert.cli.streams import CLOSED_PIPE, echo, lost, safe_streams, typed, typed_input
from support.tiny_artifact import write_toy

SHOWN = "✓ 2 × 3 → 6 … ‖ 中 é"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that `inspect` can show."""
    return write_toy(tmp_path_factory.mktemp("toy") / "out")


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put a stream on a descriptor in the place of stdout."""
    opened: list[TextIO] = []

    def put(handle: int, encoding: str = "utf-8", errors: str = "strict", buffering: int = -1) -> None:
        binary = open(handle, "wb", buffering)  # noqa: SIM115 - closed below
        stream = io.TextIOWrapper(binary, encoding, errors, write_through=buffering == 0)  # type: ignore[type-var]
        opened.append(stream)
        monkeypatch.setattr(sys, "stdout", stream)

    yield put
    for stream in opened:
        with contextlib.suppress(OSError):
            stream.close()


def written(put: Callable[..., None], tmp_path: Path, *arguments: object) -> bytes:
    put(os.open(tmp_path / "output", os.O_CREAT | os.O_RDWR), *arguments)
    with safe_streams():
        echo(SHOWN)
    return (tmp_path / "output").read_bytes()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", SHOWN),
        ("ascii", r"ok 2 x 3 -> 6 ... || \u4e2d \xe9"),
        ("latin-1", r"ok 2 × 3 -> 6 ... || \u4e2d é"),
        ("cp1252", r"ok 2 × 3 -> 6 … || \u4e2d é"),
        ("koi8-r", r"ok 2 x 3 -> 6 ... || \u4e2d \xe9"),
    ],
)
def test_every_encoding_gets_what_it_can_hold(
    stdout: Callable[..., None], tmp_path: Path, encoding: str, expected: str, errors: str, buffering: int
) -> None:
    """Plain characters for the signs of our own, escape sequences for others; nothing fails, nothing is lost."""
    assert written(stdout, tmp_path, encoding, errors, buffering) == f"{expected}\n".encode(encoding)


def test_a_handler_that_was_asked_for_stays(stdout: Callable[..., None], tmp_path: Path) -> None:
    """`PYTHONIOENCODING=ascii:replace` means it."""
    assert written(stdout, tmp_path, "ascii", "replace") == b"? 2 ? 3 ? 6 ? ? ? ?\n"


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def read_only() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def unread() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


LOST = [(full, 6, "No space left on device"), (read_only, 6, "Bad file descriptor"), (unread, CLOSED_PIPE, "")]


@pytest.mark.parametrize(("handle", "code", "reason"), LOST)
@pytest.mark.parametrize("end", [None, 0])
def test_a_success_whose_report_is_lost_is_none(
    stdout: Callable[..., None], capsys: pytest.CaptureFixture[str], handle: Callable[[], int], code: int, reason: str,
    end: int | None,
) -> None:  # fmt: skip
    """One line on stderr, or none if the reader of a pipe left; nothing is raised where it was written."""
    stdout(handle())
    with pytest.raises(SystemExit) as stopped, safe_streams():
        echo("report")
        echo("more")
        assert lost()
        if end is not None:
            sys.exit(end)
    assert stopped.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(reason)
    assert all(line.startswith("error: standard output") and reason in line for line in lines)


@pytest.mark.parametrize(("handle", "code", "reason"), LOST)
@pytest.mark.parametrize("verdict", [2, 3, 130])
def test_the_verdict_counts_more_than_its_report(
    stdout: Callable[..., None], handle: Callable[[], int], code: int, reason: str, verdict: int
) -> None:
    """A failed verification is exit code 3, whoever reads it."""
    stdout(handle())
    with pytest.raises(SystemExit) as stopped, safe_streams():
        echo("report")
        sys.exit(verdict)
    assert stopped.value.code == verdict


@pytest.mark.parametrize("text", ["é → ü", "中文", "plain", "\N{PILE OF POO}"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_text_is_what_was_typed(monkeypatch: pytest.MonkeyPatch, text: str, encoding: str) -> None:
    """Python decodes the command line of a POSIX locale as ASCII, and escapes the rest."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    assert typed(text.encode().decode("ascii", "surrogateescape")) == text
    assert typed(text) == text


def test_what_is_no_text_stays_as_it_is() -> None:
    """Whoever needs text refuses it."""
    assert typed("\udcff\udcfe") == "\udcff\udcfe"


@pytest.mark.parametrize(
    ("encoding", "errors"), [("utf-8", "strict"), ("ascii", "surrogateescape"), ("utf-8", "surrogateescape")]
)
def test_standard_input_is_text(monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str) -> None:
    """The same text from every locale; other bytes are refused in one line."""
    for content, expected in (("é → ü".encode(), "é → ü"), (b"\xff\xfe", None)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding, errors))
        if expected is None:
            with pytest.raises(InputError, match=r"standard input: not .* text"):
                typed_input()
        else:
            assert typed_input() == expected


def test_a_closed_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`<&-` leaves Python without the stream."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed; pass the text with --prompt"):
        typed_input()


def test_a_signal_whose_notice_nobody_reads_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed stderr does not stop the work at a random place."""
    from curconvert.cli.interruption import Interrupted, stoppable

    def closed(*_: object) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(streams.os, "write", closed)
    with pytest.raises(Interrupted), stoppable(lambda *_: None, announce=True) as report:
        os.kill(os.getpid(), 15)
        report("stage", 1, 2)


COMMAND = 'exec "$0" -c "import sys; from curconvert.cli import main; sys.exit(main())" inspect "$1" '


@pytest.mark.parametrize(
    ("redirections", "code", "error"),
    [
        (">&-", 6, "standard output: cannot be written (Bad file descriptor)"),
        (">&- 2>&-", 6, ""),
        ("2>&- <&-", 0, ""),
        ("--json 2>/dev/full >/dev/full", 6, ""),
    ],
)
def test_a_process_with_closed_streams_is_quiet(artifact: Path, redirections: str, code: int, error: str) -> None:
    """No traceback, and no complaint of Python's at the end of the process."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["sh", "-c", COMMAND + redirections, sys.executable, artifact],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == bool(error)
    assert error in done.stderr
