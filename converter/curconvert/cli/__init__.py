"""Turns arguments into one options object, runs one job, shows its result and sets the exit code."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from curconvert.cli import make as cli_make
from curconvert.cli import use as cli_use
from curconvert.cli.streams import safe_streams
from curconvert_runtime import __version__


class _DefaultGroup(click.Group):
    """A bare `curconvert MODEL …` means `curconvert convert MODEL …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            close = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.7)
            if close and not Path(args[0]).exists():
                raise click.UsageError(f"no command or file {args[0]!r}; did you mean {close[0]!r}?", ctx)
            args = ["convert", *args]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; its output may be lost or need another encoding, at `--help` too."""
        with safe_streams():
            return super().main(*args, **kwargs)


@click.group(cls=_DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="curconvert")
def main() -> None:
    """Compress transformer checkpoints with CUR factors, export ONNX graphs, and verify the result.

    `curconvert MODEL -o OUT` is short for `curconvert convert MODEL -o OUT`.
    """


for _command in (
    cli_make.convert,
    cli_make.sweep,
    cli_make.plan,
    cli_make.export,
    cli_make.heal,
    cli_make.resize,
    cli_use.bench,
    cli_use.verify,
    cli_use.inspect,
    cli_use.generate,
):
    main.add_command(_command)
