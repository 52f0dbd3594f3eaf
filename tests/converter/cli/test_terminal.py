"""What the command line shows of a hostile artifact: no escape sequence reaches the terminal, pipes stay exact."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from curconvert.cli import main, render, terminal
from curconvert.cli.terminal import Console, Formatter, Table
from curconvert_runtime.checks.report import Check, VerificationReport
from support.command_line import call
from support.tiny_artifact import VOCAB, manifest_of, reseal, write_toy

ATTACK = "a\x1b[2J\x1b]52;c;eA==\a\r\x9b1m\u202eb\nverified"
OURS = re.compile("\r\x1b\\[2K|\x1b\\[(\\?25[lh]|[0-9;]*m)")
"""What rich writes itself: colors, and the progress bar's cursor."""
MODULES = ("base", "interruption", "make", "options", "render", "terminal", "use")


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], str]:
    """Call a function whose standard streams are a real terminal; return what the terminal got."""

    def shown(function: Callable[[], object]) -> str:
        master, slave = os.openpty()
        got = bytearray()

        def read() -> None:
            with suppress(OSError):  # how the end of a terminal is told
                while piece := os.read(master, 4096):
                    got.extend(piece)

        reader = Thread(target=read)
        reader.start()
        with os.fdopen(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            function()
        reader.join()
        os.close(master)
        text = got.decode("utf-8")
        text = text.replace("\r\n", "\n")  # a terminal device writes each line end like this
        return OURS.sub("", text)

    return shown


def is_harmless(text: str) -> bool:
    return all(character in "\n\t" or character.isprintable() for character in text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose manifest has attacks in its free texts, and all of whose tokens are attacks."""
    folder = write_toy(tmp_path_factory.mktemp("hostile") / f"out {ATTACK.replace('/', '')[:12]}")
    words = {f"{ATTACK}{number}": number for number in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=f"{ATTACK}0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ raise_exception('" + ATTACK.replace("\n", " ") + "') }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    def change(manifest: dict[str, Any]) -> None:
        manifest["source"]["name"] = manifest["model"]["model_type"] = ATTACK

    reseal(folder, change)
    return folder


def test_inspect_shows_a_hostile_manifest_harmlessly(hostile: Path, on_terminal: Callable[..., str]) -> None:
    """Neither controls, nor a line of its own that looks like a verdict."""
    text = on_terminal(lambda: main(["inspect", str(hostile)], standalone_mode=False))
    assert is_harmless(text)
    assert "a�[2J�]52;c;eA==" in text
    assert "verified" not in text.splitlines()


def generated(hostile: Path) -> Callable[[], object]:
    return lambda: main(["generate", str(hostile), "-p", "x", "--max-new-tokens", "3"], standalone_mode=False)


def test_generated_text_is_harmless_on_a_terminal(hostile: Path, on_terminal: Callable[..., str]) -> None:
    """Its lines stay lines."""
    text = on_terminal(generated(hostile))
    assert is_harmless(text)
    assert text.count("�[2J�]52;c;eA==") == 3
    assert text.count("\nverified") == 3


def test_generated_text_is_exact_in_a_pipe(hostile: Path) -> None:
    """Byte for byte what the tokens say, for one prompt and for several."""
    one = call("generate", hostile, "-p", "x", "--max-new-tokens", "3").stdout_bytes.decode()
    assert one.count(ATTACK) == 3
    assert call("generate", hostile, "-p", "x", "-p", "x", "--max-new-tokens", "3").stdout_bytes.decode() == one + one


def test_json_is_plain_ascii(hostile: Path) -> None:
    """Its escapes are harmless anywhere and decode to the exact text."""
    output = call("generate", hostile, "-p", "x", "--max-new-tokens", "1", "--json").stdout
    assert output.isascii()
    assert is_harmless(output)
    assert ATTACK in json.loads(output)[0]["text"]
    assert json.loads(call("inspect", hostile, "--json").stdout) == manifest_of(hostile)


def test_errors_are_one_harmless_line(hostile: Path, tmp_path: Path, on_terminal: Callable[..., str]) -> None:
    """With the name of the folder, a template's own message, and an unlisted file."""
    listed = Path(shutil.copytree(hostile, tmp_path / hostile.name))
    (listed / f"x{ATTACK}.so").write_text("x")

    def run(*arguments: str | Path) -> None:
        with pytest.raises(SystemExit):
            main([str(argument) for argument in arguments], standalone_mode=False)

    for arguments in (
        ("generate", hostile, "-p", "x", "--chat"), ("inspect", listed), ("verify", tmp_path / ATTACK)
    ):  # fmt: skip
        text = on_terminal(lambda arguments=arguments: run(*arguments))
        assert text.startswith("error: ")
        assert text.count("\n") == 1
        assert is_harmless(text)


def test_reports_and_tables_are_harmless(on_terminal: Callable[..., str]) -> None:
    """A check's detail, a notice and a cell hold names from files."""
    report = VerificationReport("out", (Check("source.tensors", False, ATTACK),))

    def show() -> None:
        render.verification(report)
        table = Table("name", box=None)
        table.add_row(ATTACK)
        console = Console(markup=False)
        console.print(f"note: {ATTACK}")
        console.print(table)

    text = on_terminal(show)
    assert is_harmless(text)
    assert text.count("�[2J") == 3
    assert [line.strip() for line in text.splitlines()].count("verified") == 0


def test_log_messages_and_tracebacks_are_harmless() -> None:
    """A message is one line; a traceback keeps its lines."""
    try:
        raise ValueError(ATTACK)
    except ValueError:
        record = logging.LogRecord("name", logging.WARNING, "x.py", 1, "about %s", (ATTACK,), sys.exc_info())
    text = Formatter("%(levelname)s %(message)s").format(record)
    assert is_harmless(text)
    assert text.startswith("WARNING about a�[2J")
    assert "Traceback (most recent call last):\n" in text


@pytest.mark.parametrize("module", MODULES)
def test_nothing_in_the_command_line_prints_around_it(module: str) -> None:
    """Only one module takes rich's own console and table."""
    source = Path(str(terminal.__file__)).with_name(f"{module}.py").read_text(encoding="utf-8")
    around = [name for name in ("rich.console", "rich.table", "print(") if name in source.replace("console.print(", "")]
    assert around == [] or module == "terminal"
