"""What tools/outdated.py makes of pip's list."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from support.tools import load_tool


@pytest.fixture(scope="module")
def outdated() -> ModuleType:
    """The script as a module."""
    return load_tool("outdated")


def test_only_pins_with_a_newer_release_are_named(outdated: ModuleType) -> None:
    """Names are compared as indexes spell them; what is not pinned does not count."""
    pinned = outdated.pins("# a==0\nonnx-ir==1.1.0\nhuggingface_hub==2.4.0\ntorch==2.13.0\n")
    listed = [
        {"name": "onnx_ir", "latest_version": "1.2.0"},
        {"name": "huggingface-hub", "latest_version": "3.0"},
        {"name": "certifi", "latest_version": "9"},
    ]
    assert outdated.behind(pinned, listed) == ["onnx-ir 1.1.0 -> 1.2.0", "huggingface-hub 2.4.0 -> 3.0"]


def test_every_pin_is_read(outdated: ModuleType) -> None:
    """As many as constraints.txt has lines that are not comments."""
    text = Path(outdated.CONSTRAINTS).read_text(encoding="utf-8")
    assert len(outdated.pins(text)) == sum(1 for line in text.splitlines() if line and not line.startswith("#"))
