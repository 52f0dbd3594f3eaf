"""The command line: exit codes, one line per error, JSON alone on stdout, and every command on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from curconvert.cli import main
from curconvert.jobs import convert as pipeline
from curconvert.jobs import produce
from curconvert.journal.store import Journal
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_schemas import validate
from support.checkpoints import edit_config, edit_tensors
from support.command_line import call, refused
from support.families import make_checkpoint
from support.folders import files_of
from support.limits import HANG_SECONDS
from support.tiny_runs import add_tokenizer, token_file

COMMON = ("--rank", "8", "--layers", "all", "--calibration-tokens", "24", "--probe-sequences", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a checkpoint that has a tokenizer, its token ids, and an artifact of it; no test may change them."""
    folder = tmp_path_factory.mktemp("home")
    make_checkpoint(folder / "model", "llama", num_hidden_layers=3)
    add_tokenizer(folder / "model")
    ids = token_file(folder / "ids.safetensors")
    done = call("convert", folder / "model", "-o", folder / "out", *COMMON, "--calibration", ids)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def model(home: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint."""
    return Path(shutil.copytree(home / "model", tmp_path / "model"))


@pytest.fixture
def artifact(home: Path, tmp_path: Path) -> Path:
    """A copy of the artifact."""
    return Path(shutil.copytree(home / "out", tmp_path / "artifact"))


def convert(model: Path, out: Path, *arguments: str | Path) -> Result:
    ids = token_file(model.parent / "ids.safetensors")
    return call("convert", model, "-o", out, *COMMON, "--calibration", ids, "--quiet", *arguments)


def test_convert_verifies_and_says_what_it_did(model: Path, tmp_path: Path) -> None:
    """The summary fits one screen and names the folder."""
    ids = token_file(tmp_path / "ids.safetensors")
    result = call("convert", model, "-o", tmp_path / "out", *COMMON, "--calibration", ids)
    assert result.exit_code == 0, result.output
    assert "verified" in result.stdout
    assert "9 matrices compressed in layers 0, 1, 2" in result.stdout
    assert str(tmp_path / "out") in result.stdout
    assert len(result.stdout.splitlines()) <= 40
    assert json.loads((tmp_path / "out" / "curconvert.json").read_text())["metrics"] is not None


def test_a_bare_model_means_convert(model: Path, tmp_path: Path) -> None:
    """Options may come first as little as with any command; the artifact is the same."""
    ids = token_file(tmp_path / "ids.safetensors")
    result = call(model, "-o", tmp_path / "out", *COMMON, "--calibration", ids, "--no-verify", "--quiet")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "curconvert.json").is_file()


def test_quiet_prints_nothing(model: Path, tmp_path: Path) -> None:
    """Neither stream."""
    result = convert(model, tmp_path / "out")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_json_of_convert_is_all_that_stdout_holds(model: Path, tmp_path: Path) -> None:
    """Machines parse it; its verification meets the schema."""
    ids = token_file(tmp_path / "ids.safetensors")
    result = call("convert", model, "-o", tmp_path / "out", *COMMON, "--calibration", ids, "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["verification"]["passed"]
    validate(value["verification"], "verification-1.0")
    assert value["plan"]["parameters_after"] < value["plan"]["parameters_before"]


def test_no_verify_publishes_without_metrics(model: Path, tmp_path: Path) -> None:
    """The manifest says that nothing was measured."""
    assert convert(model, tmp_path / "out", "--no-verify").exit_code == 0
    assert json.loads((tmp_path / "out" / "curconvert.json").read_text())["metrics"] is None


def test_options_reach_the_conversion(model: Path, tmp_path: Path) -> None:
    """What was asked for is in the manifest."""
    given = {
        "--method": "curing", "--select": "leverage", "--importance": "weight", "--link": "diagonal", "--ridge": "0.5",
        "--seed": "7", "--dtype": "float16", "--targets": "down_proj", "--layers": "1",
    }  # fmt: skip
    result = convert(
        model, tmp_path / "out", "--no-verify", "--sequential", *[x for pair in given.items() for x in pair]
    )
    assert result.exit_code == 0, result.output
    options = json.loads((tmp_path / "out" / "curconvert.json").read_text())["options"]
    assert options | {
        "method": "curing", "selector": "leverage", "importance": "weight", "link": "diagonal", "ridge": 0.5, "seed": 7,
        "dtype": "float16", "targets": ["down_proj"], "layers": "1", "sequential": True,
    } == options  # fmt: skip
    assert options["calibration"]["seed"] == 7


@pytest.mark.parametrize("command", ["verfy", "convrt", "inspct", "plna", "exprot"])
def test_a_mistyped_command_is_guessed(command: str) -> None:
    """It is not taken for a model."""
    result = call(command, "out")
    assert result.exit_code == 2
    assert "did you mean" in result.stderr


def test_a_file_named_like_a_mistyped_command_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists is meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "verfy").write_text("x")
    refused(call("verfy", "-o", "out", "--quiet"), 2, "expected a .safetensors or .gguf file")


def test_a_missing_model_exits_2(tmp_path: Path) -> None:
    """Named in the message."""
    refused(call("convert", tmp_path / "none.gguf", "-o", tmp_path / "out", "--quiet"), 2, "none.gguf")


def test_an_unsupported_family_exits_5(model: Path, tmp_path: Path) -> None:
    """With the list of supported ones."""
    edit_config(model, model_type="mixtral")
    refused(convert(model, tmp_path / "out"), 5, "mixtral", "llama")


def test_a_pickle_exits_5(tmp_path: Path) -> None:
    """It is not opened."""
    torch.save({}, tmp_path / "model.bin")
    refused(call("convert", tmp_path / "model.bin", "-o", tmp_path / "out", "--quiet"), 5, "pickle")


def test_an_existing_output_exits_2(model: Path, artifact: Path) -> None:
    """And is left alone; --overwrite replaces it."""
    before = (artifact / "curconvert.json").read_bytes()
    refused(convert(model, artifact), 2, "--overwrite")
    assert (artifact / "curconvert.json").read_bytes() == before
    assert convert(model, artifact, "--overwrite", "--no-verify", "--rank", "4").exit_code == 0
    assert (artifact / "curconvert.json").read_bytes() != before


@pytest.mark.parametrize("place", [".", "inside", ".."])
@pytest.mark.parametrize("command", ["convert", "export"])
def test_an_output_that_overlaps_the_input_exits_2(model: Path, command: str, place: str) -> None:
    """Also with --overwrite."""
    result = call(command, model, "-o", model / place, "--overwrite", "--quiet")
    refused(result, 2, "overlap")
    assert (model / "model.safetensors").is_file()


def test_a_failed_gate_exits_3_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """The artifact of a failed conversion does not appear."""
    refused(convert(model, tmp_path / "out", "--max-kl", "1e-9"), 3, "kl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.safetensors", "model"]


def test_a_damaged_checkpoint_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """One line names the tensor, after the work has begun."""
    name = "model.layers.2.mlp.gate_proj.weight"
    edit_tensors(model, lambda tensors: tensors[name].fill_(float("nan")))
    refused(convert(model, tmp_path / "out"), 2, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.safetensors", "model"]


_WAITING = """
import signal, sys
# A job in the background of a script is started with SIGINT ignored, and Python then leaves it so.
signal.signal(signal.SIGINT, signal.default_int_handler)
from curconvert.journal.store import Journal
from curconvert.cli import main
real = Journal.record
def record(journal, stage, *rest):
    real(journal, stage, *rest)
    if stage == "compress":
        print("waiting", flush=True)
        sys.stdin.readline()
Journal.record = record
main(sys.argv[1:])
"""


def waiting_conversion(home: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start a real process that waits for a line after each compressed block, and return when it does so first."""
    arguments = [home / "model", "-o", out, *COMMON, "--calibration", home / "ids.safetensors", *more]
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    return process


@pytest.mark.parametrize(
    "number, code", [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_stops_after_the_block_in_work(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """A real process: nothing is published, one line says how to go on, and the same command does."""
    out = tmp_path / "out"
    process = waiting_conversion(home, out, "--quiet")
    process.send_signal(number)
    stdout, errors = process.communicate(b"\n" * 3, timeout=HANG_SECONDS)
    assert process.returncode == code, errors
    assert errors == b"error: interrupted; run the same command again to continue\n"
    assert stdout == b""  # it did not come to the second block
    assert {path.name for path in tmp_path.iterdir()} == {".out.curconvert"}
    stages: list[str] = []
    real = Journal.record
    monkeypatch.setattr(
        Journal, "record", lambda journal, stage, *rest: (real(journal, stage, *rest), stages.append(stage))[0]
    )
    again = call(home / "model", "-o", out, *COMMON, "--calibration", home / "ids.safetensors")
    assert again.exit_code == 0, again.output
    assert stages.count("compress") == 2  # blocks of three
    assert files_of(out) == files_of(home / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_second_signal_stops_at_once(home: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """In the middle of a step, which here would wait for ever; meanwhile no other run gets at the output."""
    process = waiting_conversion(home, tmp_path / "out")
    arguments = (home / "model", "-o", tmp_path / "out", *COMMON, "--calibration", home / "ids.safetensors")
    refused(call(*arguments, "--quiet"), 2, f"another conversion is writing it (process {process.pid})")
    process.send_signal(number)
    assert process.stderr is not None
    while b"a second signal stops at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(HANG_SECONDS) == code
    _, errors = process.communicate()
    assert b"Traceback" not in errors
    assert b"error: interrupted; run the same command again to continue\n" in errors
    refused(call(*arguments, "--quiet", "--seed", "3"), 2, "another option", "seed", "--no-resume")
    assert call(*arguments, "--quiet", "--seed", "3", "--no-resume").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_signal_before_there_is_work_to_keep(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was written, and the line says so."""
    monkeypatch.setattr(pipeline, "fingerprint", lambda *_: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)])
    result = call(
        "convert", home / "model", "-o", tmp_path / "out", *COMMON, "--calibration", home / "ids.safetensors", "-q"
    )
    refused(result, 143, "interrupted; nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to go on."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(produce, "compress", full)
    refused(convert(model, tmp_path / "out"), 6, "no space left on the disk", "run the same command again")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """For reports of faults."""
    result = call("convert", tmp_path / "none.gguf", "-o", tmp_path / "out", "--debug")
    assert result.exit_code == 2
    assert "error: " in result.stderr


def test_verify_passes_and_fails(home: Path) -> None:
    """Exit 0 and a list of checks; exit 3 under a gate that cannot be met."""
    good = call("verify", home / "out")
    assert good.exit_code == 0, good.output
    assert "verified" in good.stdout
    bad = call("verify", home / "out", "--quiet", "--max-kl", "1e-9")
    refused(bad, 3, "kl")


def test_json_of_a_failed_verify_still_parses(home: Path) -> None:
    """The report goes to stdout, the reason to stderr."""
    result = call("verify", home / "out", "--json", "--max-kl", "1e-9", "--no-torch")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    validate(report, "verification-1.0")
    assert report["passed"] is False


def test_verify_writes_no_junit_into_the_artifact(home: Path) -> None:
    """A file more would break the seal of the folder that was just verified."""
    before = sorted((home / "out").iterdir())
    result = call("verify", home / "out", "--junit", home / "out" / "report.xml")
    assert result.exit_code == 2
    assert "sealed" in result.stderr
    assert sorted((home / "out").iterdir()) == before


def test_verify_writes_junit(home: Path, tmp_path: Path) -> None:
    """For the CI server, also when a check fails."""
    from xml.etree import ElementTree

    result = call(
        "verify", home / "out", "--quiet", "--no-torch", "--max-kl", "1e-9", "--junit", tmp_path / "report.xml"
    )
    assert result.exit_code == 3
    suite = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert int(suite.attrib["failures"]) == 1
    assert int(suite.attrib["tests"]) > 3


@pytest.mark.parametrize("command", ["convert", "verify"])
def test_defaults_of_verification_are_the_runtimes(command: str) -> None:
    """The command line imports nothing heavy, so it repeats numbers; they are the same."""
    defaults = {parameter.name: parameter.default for parameter in main.commands[command].params}
    expected = VerifyOptions()
    for name in {"max_parity", "window", "max_tokens"} & defaults.keys():
        assert defaults[name] == getattr(expected, name)
    assert "max_parity" in defaults


def test_verify_against_the_checkpoint(home: Path) -> None:
    """Rows and columns are compared with the original's, fidelity is exact."""
    result = call("verify", home / "out", "--against", home / "model", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {"source.files", "source.slices", "source.tensors"} <= {check["name"] for check in report["checks"]}


def test_verify_against_a_bfloat16_checkpoint(tmp_path: Path) -> None:
    """The artifact stays bfloat16; the original is run in float32, which holds it exactly."""
    make_checkpoint(tmp_path / "model", "llama", dtype=torch.bfloat16)
    assert convert(tmp_path / "model", tmp_path / "out").exit_code == 0
    result = call("verify", tmp_path / "out", "--against", tmp_path / "model", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["passed"]


def test_verify_against_an_export_on_a_text(home: Path, tmp_path: Path) -> None:
    """Exact KL on any text, without torch."""
    assert call("export", home / "model", "-o", tmp_path / "dense", "--quiet").exit_code == 0
    (tmp_path / "text.txt").write_text("The bridge was safe, and everybody crossed it twice. " * 20)
    result = call(
        "verify", home / "out", "--against", tmp_path / "dense", "--text", tmp_path / "text.txt", "--window", "64",
        "--no-torch", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fidelity"]["kl"]["mean"] > 0


def test_a_flipped_bit_exits_4(artifact: Path) -> None:
    """In every command that opens the artifact."""
    path = artifact / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    for command in (("verify",), ("generate", "--prompt", "a")):
        refused(call(command[0], artifact, *command[1:], "--quiet"), 4, "model.safetensors")


@pytest.mark.parametrize("command", ["verify", "inspect", "generate"])
def test_a_folder_that_is_no_artifact(tmp_path: Path, command: str) -> None:
    """One line, no traceback."""
    result = call(command, tmp_path, *(("--prompt", "a") if command == "generate" else ()))
    refused(result, result.exit_code, "curconvert.json")
    assert result.exit_code in (2, 4)


def test_inspect_shows_and_prints_the_manifest(home: Path) -> None:
    """A table for people, the manifest for machines."""
    shown = call("inspect", home / "out")
    assert shown.exit_code == 0
    assert "model.layers.1.self_attn.q_proj" in shown.stdout
    printed = call("inspect", home / "out", "--json")
    assert json.loads(printed.stdout) == json.loads((home / "out" / "curconvert.json").read_text())


def test_brackets_in_a_path_are_printed(model: Path, tmp_path: Path) -> None:
    """They are no markup."""
    result = call("export", model, "-o", tmp_path / "a[red]b[/c]")
    assert result.exit_code == 0, result.output
    assert "a[red]b[/c]" in result.stdout


def test_plan_writes_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of every matrix, or JSON; the same numbers as the conversion's."""
    monkeypatch.chdir(tmp_path)
    shown = call("plan", home / "model", *COMMON)
    assert shown.exit_code == 0, shown.output
    assert "model.layers.2.mlp.down_proj.weight" in shown.stdout
    value = json.loads(call("plan", home / "model", *COMMON, "--json").stdout)
    manifest = json.loads((home / "out" / "curconvert.json").read_text())
    assert value["parameters_after"] == manifest["model"]["parameters_after"]
    assert list(tmp_path.iterdir()) == []


def test_export_writes_an_artifact(home: Path, tmp_path: Path) -> None:
    """It can be inspected and generates the original's tokens."""
    result = call("export", home / "model", "-o", tmp_path / "dense", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["plan"] is None
    assert call("inspect", tmp_path / "dense").exit_code == 0
    answer = call("generate", tmp_path / "dense", "--prompt", "hello", "--max-new-tokens", "5", "--json")
    assert len(json.loads(answer.stdout)[0]["ids"]) <= 5


def test_an_unknown_dtype_of_an_export_exits_2(home: Path, tmp_path: Path) -> None:
    """The same line as for a conversion."""
    refused(call("export", home / "model", "-o", tmp_path / "o", "--dtype", "int4", "-q"), 2, "--dtype 'int4'")


def heal(home: Path, out: Path, *arguments: str | Path) -> Result:
    data = ("--data", home / "ids.safetensors", "--data-tokens", "24", "--probe-sequences", "2")
    return call("heal", home / "out", "--against", home / "model", "-o", out, *data, "--warmup", "0", *arguments)


def test_heal_trains_and_says_what_it_did(home: Path, tmp_path: Path) -> None:
    """The curve as a summary or as JSON, and a verified artifact."""
    done = heal(home, tmp_path / "out", "--steps", "4", "--batch", "4")
    assert done.exit_code == 0, done.output
    assert "parameters trained" in done.stdout
    done = heal(home, tmp_path / "out", "--steps", "4", "--batch", "4", "--mode", "blocks", "--overwrite", "--json")
    result = json.loads(done.stdout)
    assert set(result["curves"]) == {"block-0", "block-1", "block-2"}
    assert result["verification"]["passed"]
    assert call("verify", tmp_path / "out", "--against", home / "model", "--quiet").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "0"), "--steps 0: expected at least 1"),
        (("--train", "all"), "--train 'all': expected one of u, u+norms"),
        (("--data", "no/such/file.txt"), "no/such/file.txt"),
    ],
)
def test_bad_options_of_heal_exit_2(home: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """One line, and no output."""
    refused(heal(home, tmp_path / "out", "--quiet", *arguments), 2, message)
    assert not (tmp_path / "out").exists()


def test_generate_prints_text_or_json(home: Path) -> None:
    """One prompt streams, several come in order; greedy is repeatable; a prompt may come from standard input."""
    arguments = ("--max-new-tokens", "6")
    first = call("generate", home / "out", "--prompt", "hello", *arguments)
    assert first.exit_code == 0, first.output
    piped = call("generate", home / "out", *arguments, text="hello")
    assert piped.stdout == first.stdout
    batch = call("generate", home / "out", "-p", "hello", "-p", "a", *arguments, "--json")
    answers = json.loads(batch.stdout)
    assert len(answers) == 2
    assert answers[0]["text"] == first.stdout.removesuffix("\n")


@pytest.mark.parametrize(
    "arguments, part",
    [
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "2"), "top_p"),
        (("--graph", "magic"), "magic"),
        (("--provider", "tpu"), "tpu"),
        (("--max-new-tokens", "0"), "max_new_tokens"),
    ],
)
def test_bad_requests_are_one_line(home: Path, arguments: tuple[str, ...], part: str) -> None:
    """Exit code 2 and the option's name."""
    refused(call("generate", home / "out", "--prompt", "a", *arguments), 2, part)


def test_help_lists_the_commands_without_torch() -> None:
    """It must be instant: heavy imports stay inside the commands."""
    code = (
        "import sys\nfrom curconvert.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("convert", "plan", "heal", "export", "verify", "inspect", "generate"):
        assert command in done.stdout
