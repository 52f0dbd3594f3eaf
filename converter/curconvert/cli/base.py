"""Holds what the commands share: options, errors as one line with an exit code, and interruption."""

from __future__ import annotations

import functools
import importlib.util
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curconvert.base.display import one_line
from curconvert.base.errors import BackendError, CurConvertError, InputError
from curconvert.cli import render
from curconvert.cli.interruption import Interrupted, stoppable
from curconvert.cli.options import FilePath
from curconvert.cli.terminal import Formatter

if TYPE_CHECKING:
    from curconvert_runtime.checks.fidelity import Progress

MODEL_SOURCES = "a .safetensors or .gguf file, a Hugging Face folder, or a hub id"
_HEAVY = (
    "torch",
    "transformers",
    "safetensors",
    "scipy",
    "onnx",
    "onnx_ir",
    "mobius",
    "gguf",
    "huggingface_hub",
    "threadpoolctl",
)


output_option = click.option("--output", "-o", "out", required=True, type=FilePath(), help="Folder to create.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing artifact.")
resume_option = click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Resume an interrupted run of the same command, or discard its work.",
)


def common(function: Callable[..., None]) -> Callable[..., None]:
    """Add --json, --quiet and --debug, and turn errors into one line and an exit code."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("--quiet", "-q", is_flag=True, help="Print errors only: no progress, no summary.")
    @click.option("--debug", is_flag=True, help="Print log messages, and the traceback of an error.")
    @functools.wraps(function)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> None:
        log = logging.StreamHandler()
        log.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[log])
        # Let SIGTERM unwind the stack like Ctrl-C, so that temporary folders are removed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            function(*args, **kwargs)
        except CurConvertError as error:
            fail(str(error), error.exit_code, debug)
        except KeyboardInterrupt:
            fail("interrupted; nothing was written", 130, debug)
        except OSError as error:
            from curconvert.base.durable import disk_full, is_full

            if is_full(error):
                fail(str(disk_full(Path(error.filename or tempfile.gettempdir()), 0)), BackendError.exit_code, debug)
            fail(f"{error.filename or 'operating system'}: {error.strerror or error}", InputError.exit_code, debug)

    return wrapper


def fail(message: str, code: int, debug: bool) -> None:
    """Print one line on stderr and end with an exit code."""
    if debug:
        logging.getLogger(__name__).exception("traceback")
    click.echo(f"error: {one_line(' '.join(message.split()))}", err=True)
    sys.exit(code)


def require_converter(*more: str) -> None:
    """Check that the packages of a command are installed.

    Args:
        more: Packages in addition to those of every conversion.

    Raises:
        BackendError: Names the missing packages.
    """
    missing = [name for name in (*_HEAVY, *more) if importlib.util.find_spec(name) is None]
    if missing:
        # Two onnxruntimes would overwrite each other, so the extra `cpu` is only named where there is none.
        extras = "convert" if importlib.util.find_spec("onnxruntime") else "convert,cpu"
        raise BackendError(f"{', '.join(missing)} not installed; run: pip install 'curconvert[{extras}]'")


@contextmanager
def resumable(out: Path, quiet: bool) -> Iterator[Progress]:
    """Show progress; turn a signal into a message that says whether the run can be resumed."""
    from curconvert.artifact.workspace import RESUME, workspace_of

    try:
        with render.progress(quiet) as bars, stoppable(bars, announce=not quiet) as progress:
            yield progress
    except Interrupted as stop:
        kept = workspace_of(out).exists()
        message = f"interrupted; {RESUME}" if kept else "interrupted; nothing was written"
        fail(message, stop.exit_code, debug=False)
