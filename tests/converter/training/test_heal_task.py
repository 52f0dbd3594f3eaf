"""Healing on a task: completions alone count, padding does not, and bad lines are refused by their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from curconvert.base.errors import InputError
from curconvert.base.progress import silent
from curconvert.calibration.self_text import resident_model
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import Companions
from curconvert.jobs.convert import convert
from curconvert.jobs.heal import heal
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.heal import HealOptions
from curconvert.options.source import SourceOptions
from curconvert.training.examples import Data, Examples, load_data
from curconvert.training.student import cross_entropy, training_loss
from curconvert_runtime import VerifyOptions
from support.command_line import call, refused
from support.families import VOCABULARY, make_checkpoint
from support.tiny_runs import add_tokenizer, manifest_of, stored_tensors, tiny_options, token_file

LINES = [
    *({"prompt": f"{number} + {number} =", "completion": f" {2 * number}", "id": number} for number in range(40)),
    *({"text": "abc " * count} for count in range(1, 9)),
]


def write_lines(path: Path, lines: list[Any]) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of one token per character, an artifact of it, and a task."""
    folder = tmp_path_factory.mktemp("task")
    make_checkpoint(folder / "source", "llama")
    add_tokenizer(folder / "source")
    tokens = token_file(folder / "ids.safetensors")
    convert(SourceOptions(str(folder / "source")), folder / "cur", tiny_options(tokens))
    write_lines(folder / "task.jsonl", LINES)
    return folder


def options(task: Path, **values: Any) -> HealOptions:
    data = CalibrationOptions(str(task), sequences=64, tokens_per_sequence=32, probe_sequences=8)
    given = {"steps": 20, "warmup": 2, "evaluate_every": 10, "learning_rate": 1e-2, "data": data}
    return HealOptions.for_objective("ce", **{**given, **values})


def loaded(home: Path, lines: list[Any] = LINES) -> Data:
    path = write_lines(home / "lines.jsonl", lines)
    return load_data(options(path), Companions({"tokenizer.json": home / "source" / "tokenizer.json"}), VOCABULARY)


def adapted(home: Path, out: Path, **values: Any) -> Any:
    progress = values.pop("progress", silent)
    given = options(home / "task.jsonl", **values)
    return heal(home / "cur", None, out, given, verification=VerifyOptions(), progress=progress)


def codes(text: str) -> list[int]:
    """The tokens of `add_tokenizer`, spelled out."""
    return [ord(character) - 32 + 3 for character in text]


def test_the_loss_is_that_of_transformers_on_completions_alone(home: Path) -> None:
    """Over lines of unequal length, padded by hand here, with -100 wherever no completion's token stands."""
    parts = [(line.get("prompt", ""), line.get("completion", line.get("text"))) for line in LINES]
    rows = [(codes(before), codes(after)) for before, after in parts]
    longest = max(len(before) + len(after) for before, after in rows)
    ids, labels = np.zeros((len(rows), longest), np.int64), np.full((len(rows), longest), -100)
    for index, (before, after) in enumerate(rows):
        end = len(before) + len(after)
        ids[index, :end] = before + after
        labels[index, len(before) : end] = after
    oracle = AutoModelForCausalLM.from_pretrained(home / "source", dtype=torch.float64, attn_implementation="eager")
    mask = torch.from_numpy(np.arange(longest) < [[len(before) + len(after)] for before, after in rows]).long()
    with torch.no_grad():
        wanted = oracle(torch.from_numpy(ids), attention_mask=mask, labels=torch.from_numpy(labels)).loss.item()
    examples = Examples.of_lines([(before + after, len(before)) for before, after in rows])
    student = resident_model(open_checkpoint(str(home / "source")))
    loss = training_loss(student, None, examples, options(home / "task.jsonl"), torch.float32)
    assert loss(np.arange(len(rows))).item() == pytest.approx(wanted, rel=1e-5)


def test_prompts_and_padding_get_no_gradient(home: Path) -> None:
    """Only logits right before a completion's token have one."""
    data = loaded(home, [{"prompt": "abc", "completion": "de"}, {"prompt": "a", "completion": "b"}, {"text": "xyz"}])
    both = (data.training, data.held_out)
    found = {tuple(ids): targets for part in both for ids, targets in zip(part.ids, part.targets, strict=True)}
    assert set(found) == {tuple(codes("abcde")), (*codes("ab"), 0, 0, 0), (*codes("xyz"), 0, 0)}
    predicting = {"abcde": [2, 3], "ab": [0], "xyz": [0, 1]}
    for text, places in predicting.items():
        targets = torch.from_numpy(found[(*codes(text), *[0] * (5 - len(text)))])
        logits = torch.randn(1, 5, VOCABULARY, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(logits, targets[None]), logits)
        assert gradient[0].abs().sum(-1).nonzero()[:, 0].tolist() == places


def test_the_task_is_learned_and_the_artifact_verifies(home: Path, tmp_path: Path) -> None:
    """Without the original; the held-out cross-entropy falls, U alone changes, the manifest says how."""
    result = adapted(home, tmp_path / "out")
    assert result.report.passed
    start, *others = result.curves["heal"]
    assert min(point.held_out for point in others) < 0.95 * start.held_out
    before, after = stored_tensors(home / "cur"), stored_tensors(tmp_path / "out")
    assert {key.rpartition(".")[2] for key in before if not torch.equal(before[key], after[key])} == {"U"}
    healing = manifest_of(tmp_path / "out")["healing"]
    assert (healing["source"], healing["sequences"]) == ("task.jsonl", 40)
    assert {key: healing["options"][key] for key in ("objective", "hidden", "ce", "kl")} == {
        "objective": "ce", "hidden": 0.0, "ce": 1.0, "kl": 0.0
    }  # fmt: skip


def test_parts_of_a_batch_weigh_what_counts_in_them(home: Path, tmp_path: Path) -> None:
    """The loss of two halves of unequal completions is that of the batch."""
    whole, parts = (adapted(home, tmp_path / str(n), steps=1, batch=8, accumulate=n) for n in (1, 4))
    assert whole.curves["heal"][1].loss == pytest.approx(parts.curves["heal"][1].loss, rel=2e-3)  # bfloat16 products


class StoppedError(Exception):
    """Raised by a progress callback."""


def test_a_stopped_run_goes_on_to_the_same_bytes(home: Path, tmp_path: Path) -> None:
    """Stopped between two measurements."""

    def stop(_name: str, done: int, _total: int) -> None:
        if done == 15:
            raise StoppedError

    expected = adapted(home, tmp_path / "expected")
    with pytest.raises(StoppedError):
        adapted(home, tmp_path / "out", progress=stop)
    assert adapted(home, tmp_path / "out").curves == expected.curves
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "expected")]
    assert weights[0] == weights[1]


def test_the_original_is_asked_for_where_it_is_learned_from(home: Path, tmp_path: Path) -> None:
    """By the command line: distillation needs it, and so does a task with its divergence; a task alone does not."""
    given = ["heal", str(home / "cur"), "-o", str(tmp_path / "out"), "--data", str(home / "task.jsonl"), "--steps", "1"]
    for more in ([], ["--objective", "ce", "--kl", "0.1"]):
        refused(call(*given, *more), 2, "--against is missing")
    assert call(*given, "--objective", "ce", "--no-verify").exit_code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ({"prompt": "a"}, r"expected either the fields 'prompt' and 'completion' or the field 'text' \(fields: prompt"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "expected either the fields 'prompt' and"),
        ({"prompt": "a", "completion": 1}, "no string in the field 'completion'"),
        ({"prompt": "a", "completion": ""}, "nothing to learn"),
        ({"text": "a"}, "nothing to learn"),
        ({}, r"expected either .* \(fields: none\)"),
    ],
)
def test_a_bad_line_is_named(home: Path, line: Any, message: str) -> None:
    """By its number, blank lines counted, with what was expected."""
    with pytest.raises(InputError, match=rf"lines\.jsonl, line 3: .*{message}"):
        loaded(home, [LINES[0], "", line])


def test_lines_that_are_too_long_are_left_out(home: Path) -> None:
    """With a notice; where fewer than two are left there is nothing to train on."""
    data = loaded(home, [*LINES, {"text": "x" * 33}])
    assert len(data.training) + len(data.held_out) == len(LINES)
    assert data.notices == ("lines.jsonl: 1 of 49 lines left out: more than 32 tokens (--data-tokens)",)
    with pytest.raises(InputError, match="1 of 2 lines have at most 32 tokens"):
        loaded(home, [LINES[0], {"text": "x" * 33}])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "blocks"}, "--mode blocks: --objective ce trains the whole model"),
        ({"data": CalibrationOptions()}, "--data builtin: --objective ce takes a .jsonl file"),
    ],
)
def test_what_is_no_task_is_refused(home: Path, values: dict[str, Any], message: str) -> None:
    """Blocks by themselves, and running text."""
    with pytest.raises(InputError) as raised:
        options(home / "task.jsonl", **values)
    assert message in str(raised.value)
