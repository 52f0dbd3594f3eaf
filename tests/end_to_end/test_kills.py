"""The command line, killed at random instants and called again: the same files, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from curconvert.artifact.workspace import workspace_of
from support.families import make_checkpoint
from support.folders import files_of
from support.killed import command_in_a_process
from support.tiny_runs import LENGTH, add_tokenizer, token_file

KILLS = 20


def test_kills_at_random_instants_change_no_byte(tmp_path: Path) -> None:
    """Killed at 20 instants spread over a whole conversion, verification included; each time the same command again.

    A run that goes on with another one's journal may come to its end before its instant: then its files are compared,
    and the next run starts from nothing.
    """
    model = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=4).folder
    add_tokenizer(model)
    tokens = token_file(tmp_path / "ids.safetensors")
    command = [
        "convert", model, "--rank", "8", "--layers", "all", "--calibration", tokens, "--calibration-sequences", "12",
        "--calibration-tokens", str(LENGTH), "--probe-sequences", "2", "--workers", "2", "--quiet",
    ]  # fmt: skip
    whole = command_in_a_process([*command, "-o", tmp_path / "whole"])
    assert whole is not None
    expected, out = files_of(tmp_path / "whole"), tmp_path / "out"
    rng = np.random.default_rng(0)
    instants = list((rng.permutation(KILLS) + rng.random(KILLS)) / KILLS * whole)
    resumed, more = 0, 2 * KILLS
    while instants:
        fresh = not workspace_of(out).exists()
        killed = command_in_a_process([*command, "-o", out], instants[-1]) is None
        if out.exists():  # complete, also when it was killed while it cleaned up
            assert files_of(out) == expected
            shutil.rmtree(out)
        if killed:
            instants.pop()
            resumed += not fresh
        elif fresh:  # it was faster than the one that was timed
            instants[-1] *= 0.9
        if not instants and resumed < KILLS // 4 and more:  # most may have come too early
            instants, more = [rng.uniform(0.5, 1.0) * whole], more - 1
    command_in_a_process([*command, "-o", out])
    assert files_of(out) == expected
    assert resumed >= KILLS // 4
