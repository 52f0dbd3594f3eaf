"""Hostile inputs to the real command line: a documented exit code and one line, in seconds and within a gigabyte."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.bad_checkpoints import BAD
from support.families import make_checkpoint
from support.foreign_graphs import FOREIGN
from support.fuzzing import mutated_json, mutated_safetensors
from support.limits import CODES, Outcome, limited_calls
from support.template_bombs import BOMBS as TEMPLATES
from support.tiny_artifact import reseal, write_toy
from support.tokenizer_bombs import BOMBS as TOKENIZERS
from support.tokenizer_bombs import content
from support.wire import Damage

LEAST = 300
"""How many hostile inputs one run of these tests must have given to the command line."""
PLAN = ("plan", "--rank", "8", "--layers", "all", "--calibration-tokens", "24", "--probe-sequences", "2", "--quiet")
EXPORT = ("export", "-o", "OUT", "--quiet")
GENERATE = ("--prompt", "a", "--max-new-tokens", "1", "--threads", "1", "--quiet")


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        name: What it is.
        damage: Changes a copy of a sound toy artifact, or of a sound checkpoint where the command takes one.
        command: The command and its options, without the input; `OUT` is a folder for the output.
        codes: Exit codes that are right.
    """

    name: str
    damage: Callable[[Path], object]
    command: tuple[str, ...]
    codes: frozenset[int] = CODES


def sealed(file: str, data: bytes) -> Callable[[Path], None]:
    """Replace a file and its hash."""

    def damage(folder: Path) -> None:
        (folder / file).write_bytes(data)
        reseal(folder)

    return damage


def written(file: str, data: bytes) -> Callable[[Path], object]:
    """Replace a file, but no hash."""
    return lambda folder: (folder / file).write_bytes(data)


def drawn(strategy: st.SearchStrategy[bytes], count: int) -> list[bytes]:
    """Return the same damaged files in each run."""
    found: list[bytes] = []

    @settings(max_examples=count, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(data: bytes) -> None:
        found.append(data)

    run()
    return found[:count]


def graphs() -> list[Case]:
    """Foreign operators, hidden code and data, and damaged bytes."""
    damage, four = Damage(seed=1), frozenset((4,))
    found = [
        Case(name, sealed("model.fused.onnx", data), ("generate", *GENERATE), four)
        for name, (data, _) in FOREIGN.items()
    ]
    return found + [
        Case(f"graph {number}", sealed("model.onnx", damage.draw()), ("inspect",), frozenset((0, 4)))
        for number in range(40)
    ]


def tokenizers() -> list[Case]:
    """At load, and at a conversion."""
    found = [
        Case(name, sealed("tokenizer.json", content(name)), ("generate", *GENERATE), frozenset((4,)))
        for name in TOKENIZERS
    ]
    return found + [
        Case(f"{name}, converted", written("tokenizer.json", content(name)), EXPORT, frozenset((2,)))
        for name in list(TOKENIZERS)[::4]
    ]


def templates(names: list[str]) -> list[Case]:
    """Of an artifact."""
    return [
        Case(
            f"template: {name}", sealed("chat_template.jinja", TEMPLATES[name].encode()),
            ("generate", "--chat", *GENERATE), frozenset((2,)),
        )
        for name in names
    ]  # fmt: skip


def artifacts(sound: Path, count: int) -> list[Case]:
    """Damaged manifests, headers, configs and tokenizers of an artifact."""
    read = {name: (sound / name).read_bytes() for name in ("curconvert.json", "model.safetensors", "tokenizer.json")}
    manifests = drawn(mutated_json(json.loads(read["curconvert.json"])), count)
    weights = drawn(mutated_safetensors(read["model.safetensors"]), count)
    configs = drawn(mutated_json(json.loads(read["tokenizer.json"])), count // 2)
    return [
        *(Case(f"manifest {n}", written("curconvert.json", data), ("inspect",)) for n, data in enumerate(manifests)),
        *(Case(f"weights {n}", sealed("model.safetensors", data), ("inspect",)) for n, data in enumerate(weights)),
        *(
            Case(f"tokenizer {n}", sealed("tokenizer.json", data), ("generate", *GENERATE))
            for n, data in enumerate(configs)
        ),
    ]


def checkpoints() -> list[Case]:
    """Malformed checkpoints, planned."""
    return [Case(name, damage, PLAN, frozenset((0, code))) for name, (damage, code, _) in BAD.items()]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A toy artifact, and for the commands that take one a checkpoint."""
    home = tmp_path_factory.mktemp("sound")
    model = make_checkpoint(home / "model", "llama").folder
    return {"artifact": write_toy(home / "artifact"), "plan": model, "export": model}


def complaints(cases: list[Case], sound: dict[str, Path], home: Path) -> list[str]:
    """Run cases and return what was wrong, one line for each."""
    commands = []
    for number, case in enumerate(cases):
        folder = home / f"{number:03}" / "input"
        shutil.copytree(sound.get(case.command[0], sound["artifact"]), folder)
        case.damage(folder)
        out = str(folder.with_name("out"))
        commands.append((case.command[0], folder, *(out if word == "OUT" else word for word in case.command[1:])))
    outcomes = limited_calls(commands)
    pairs = zip(cases, outcomes, strict=True)
    logging.info("%d inputs, %.0f s of CPU time", len(cases), sum(outcome.cpu_seconds for outcome in outcomes))
    return [f"{case.name}: {said}" for case, outcome in pairs if (said := outcome.complaint(case.codes))]


def test_hostile_inputs_end_in_one_line(sound: dict[str, Path], tmp_path: Path) -> None:
    """Graphs, tokenizers, templates, manifests, weights, checkpoints: no traceback, no hang, no other exit code."""
    cases = [*graphs(), *tokenizers(), *templates(list(TEMPLATES)[::4]), *artifacts(sound["artifact"], 40)]
    cases += checkpoints()
    assert complaints(cases, sound, tmp_path) == []
    assert len({case.name for case in cases}) == len(cases) >= LEAST


@pytest.mark.slow
def test_every_template_bomb_and_many_damaged_files_end_in_one_line(sound: dict[str, Path], tmp_path: Path) -> None:
    """The rest of the bombs, and ten times as many draws."""
    cases = [*templates(list(TEMPLATES)), *artifacts(sound["artifact"], 400)]
    assert complaints(cases, sound, tmp_path) == []


def test_sound_inputs_pass_the_same_way(sound: dict[str, Path], tmp_path: Path) -> None:
    """The harness runs the commands: without damage they succeed."""
    ok = frozenset((0,))
    cases = [
        Case("inspect", lambda _: None, ("inspect",), ok),
        Case("generate", lambda _: None, ("generate", *GENERATE), ok),
        Case("generate --chat", lambda _: None, ("generate", "--chat", *GENERATE), ok),
        Case("plan", lambda _: None, PLAN, ok),
        Case("export", lambda _: None, EXPORT, ok),
    ]
    assert complaints(cases, sound, tmp_path) == []


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Outcome(-9), "exit code -9"),
        (Outcome(1, "error: x"), "exit code 1"),
        (Outcome(2, "error: x", "Traceback …"), "traceback"),
        (Outcome(2, "error: x\nTraceback …"), "traceback"),
        (Outcome(2, "error: x\nmore"), "not one short line"),
        (Outcome(2, "error: " + "x" * 1000), "not one short line"),
        (Outcome(2, "error: x", cpu_seconds=6), "6.0 s of CPU time"),
        (Outcome(0, memory=2 * 10**9), "2000 MB"),
        (Outcome(2, "error: x"), ""),
    ],
)
def test_the_harness_complains(outcome: Outcome, words: str) -> None:
    """About each thing that a hostile input must not do to a command."""
    assert words in outcome.complaint()
    assert bool(words) == bool(outcome.complaint())
