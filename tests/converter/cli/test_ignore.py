"""`--ignore` on the command line: recorded, shown, and applied again when the artifact meets its original."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from curconvert_runtime.format.files import MANIFEST
from support.checkpoints import edit_tensors
from support.command_line import call
from support.families import TinyModel

NOTICE = "--ignore leaves out 2 tensors (mtp.norm.weight, v_head.summary.weight)"
IGNORE = ("--ignore", "mtp.*", "--ignore", "v_head.*")


@pytest.fixture(scope="module")
def home(tiny: Callable[[str], TinyModel], tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with foreign tensors, and an artifact of it."""
    folder = tmp_path_factory.mktemp("ignore")
    (folder / "model").mkdir()
    for path in tiny("llama").folder.iterdir():
        (folder / "model" / path.name).write_bytes(path.read_bytes())
    extra = {"mtp.norm.weight": torch.ones(4), "v_head.summary.weight": torch.ones(4, dtype=torch.int8)}
    edit_tensors(folder / "model", lambda tensors: tensors.update(extra))
    result = call(
        "convert", folder / "model", "-o", folder / "out", *IGNORE, "--rank", 8, "--layers", "all", "--calibration",
        tokens, "--calibration-tokens", 24, "--probe-sequences", 4, "--no-verify",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"note: {NOTICE}" in result.stdout
    return folder


def test_the_manifest_records_the_patterns(home: Path) -> None:
    """Whoever reads the artifact knows that tensors of the source are not in it."""
    assert json.loads((home / "out" / MANIFEST).read_text())["source"]["ignore"] == ["mtp.*", "v_head.*"]


# Names of tensors that the model does not know, and how many options the advice has.
FOREIGN: dict[str, tuple[list[str], int]] = {
    "two": (["mtp.norm.weight", "v_head.summary.weight"], 2),
    "many of two modules": ([f"{part}.{n}.weight" for part in ("mtp", "model.layers.7") for n in range(9)], 2),
    "beside known ones": ([f"model.layers.0.extra.{n}" for n in range(5)], 1),
    "brackets": (["head[0].weight", "head[1].weight"], 2),
    "a quote and a space": (["it's a head.weight"], 1),
    "control characters": (["head\x1b[2J\n.weight", "head\u202e.weight"], 2),
    "a star": (["*.weight"], 1),
    "a long name": (["x" * 200], 1),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_the_advice_of_the_refusal_works(tiny: Callable[[str], TinyModel], tmp_path: Path, case: str) -> None:
    """Its options, pasted into a shell, leave out all of them and nothing else."""
    names, count = FOREIGN[case]
    llama = Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
    edit_tensors(llama, lambda tensors: tensors.update({name: torch.ones(2) for name in names}))
    refusal = call("export", llama, "-o", tmp_path / "out").stderr
    options = shlex.split(refusal[refusal.index("--ignore ") :])
    assert len(options) == 2 * count
    result = call("export", llama, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output


def test_a_plan_shows_what_is_left_out(home: Path) -> None:
    """Before anything is converted."""
    size = ("--rank", 8, "--layers", "all", "--calibration-tokens", 24)
    assert json.loads(call("plan", home / "model", *IGNORE, "-o", home, *size, "--json").stdout)["notices"] == [NOTICE]


def test_the_original_is_compared_without_the_ignored_tensors(home: Path) -> None:
    """`verify --against` takes the patterns from the manifest."""
    result = call("verify", home / "out", "--against", home / "model", "--json", "--no-torch")
    assert result.exit_code == 0, result.output
    assert {"source.files", "source.slices", "source.tensors"} <= {
        c["name"] for c in json.loads(result.stdout)["checks"]
    }


def test_healing_reads_the_original_without_the_ignored_tensors(home: Path, tokens: Path, tmp_path: Path) -> None:
    """`heal --against` takes the patterns from the manifest, and says so."""
    result = call(
        "heal", home / "out", "--against", home / "model", "-o", tmp_path / "healed", "--data", tokens,
        "--data-sequences", 8, "--data-tokens", 24, "--probe-sequences", 4, "--steps", 1, "--warmup", 0, "--batch", 4,
        "--no-verify", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert NOTICE in json.loads(result.stdout)["notices"]
