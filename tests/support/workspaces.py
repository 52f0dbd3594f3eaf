"""Runs that share an output, in processes of their own: a process imports its function by the name of this module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from curconvert.artifact.workspace import workspace
from curconvert.base.errors import InputError

TURNS = 30


def take_turns(out: Path, results: Any) -> None:
    """Make the output `TURNS` times, and send how often another run was making it at the same time."""
    turns, met = 0, 0
    while turns < TURNS:
        try:
            with workspace(out, {}, resume=False):
                try:
                    os.close(os.open(out, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    met += 1
                else:
                    out.unlink()
                turns += 1
        except InputError as error:
            assert "another conversion is writing it" in str(error)
    results.send(met)
