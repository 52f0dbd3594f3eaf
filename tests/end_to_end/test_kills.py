"""Commands, killed at random instants and called again: the same files, byte for byte, and nothing beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from curconvert.artifact.workspace import workspace_of
from support.commands import Commands
from support.families import make_checkpoint
from support.folders import files_of
from support.killed import command_in_a_process, job_in_a_process
from support.tiny_runs import LENGTH, add_tokenizer, token_file

KILLS = 20


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Make the inputs once."""
    return Commands.with_inputs(tmp_path_factory.mktemp("home"))


def same_bytes(folder: Path) -> dict[str, bytes]:
    """Return the files that do not depend on the clock; the table and the plot of a sweep hold speeds."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stem != "sweep"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def kill_and_repeat(commands: Commands, name: str, folder: Path, kills: int) -> None:
    """Kill a command at calls spread over its run; after each kill, the same command again makes the same output."""
    whole, out = folder / "whole", folder / "out"
    calls = job_in_a_process(commands.job(name, whole))
    assert calls is not None
    expected = same_bytes(whole)
    rng = np.random.default_rng(0)
    for part in rng.permutation(kills):
        at = max(1, int((part + rng.random()) / kills * calls))
        killed = job_in_a_process(commands.job(name, out), at) is None
        assert killed or at > 0.9 * calls  # threads may order a few calls in another way
        assert not out.exists() or same_bytes(out) == expected
        assert job_in_a_process(commands.job(name, out)) is not None
        assert same_bytes(out) == expected
        assert {path.name for path in folder.iterdir()} == {"whole", "out"}
        if part % 2:  # half of the runs replace an output, half make one
            shutil.rmtree(out)


@pytest.mark.parametrize(("name", "kills"), [("export", 2), ("resize", 2), ("heal", 1), ("convert", 1)])
def test_a_command_after_a_kill_makes_the_same_output(
    commands: Commands, tmp_path: Path, name: str, kills: int
) -> None:
    """The same bytes as an undisturbed run, and nothing beside them."""
    kill_and_repeat(commands, name, tmp_path, kills)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"), [("export", 14), ("resize", 14), ("heal", 12), ("convert", 12), ("sweep", 8)]
)
def test_60_kills_over_all_commands(commands: Commands, tmp_path: Path, name: str, kills: int) -> None:
    """As above, at many more instants."""
    kill_and_repeat(commands, name, tmp_path, kills)
