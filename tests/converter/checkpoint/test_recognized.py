"""What people give in the place of a checkpoint: one line names it, and doing what the line says works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from curconvert.base.errors import CurConvertError, UnsupportedError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import Checkpoint
from support.families import TinyModel
from support.recognized import GIVEN, as_printed, follow

PAGE = Path(__file__).resolve().parents[3] / "docs" / "what-can-go-in.md"
LINES = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
Tiny = Callable[[str], TinyModel]


def _opened(source: Path, **options: Any) -> Checkpoint:
    checkpoint = open_checkpoint(source, **options)
    checkpoint.companions()
    return checkpoint


@pytest.mark.parametrize("kind", GIVEN)
def test_one_line_names_what_was_given_and_its_advice_leads_to_a_model(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    """The advice is followed as it stands; what it leads to is opened, and every tensor is read."""
    given = GIVEN[kind]
    model = tiny(given.family)
    folder = Path(shutil.copytree(model.folder, tmp_path / "model"))
    source = given.make(folder, model) or folder
    with pytest.raises(CurConvertError) as caught:
        _opened(source)
    message = str(caught.value)
    assert caught.value.exit_code == given.code
    assert given.words in message
    assert "\n" not in message
    line = as_printed(message, tmp_path)
    assert line in LINES, f"add this line to {PAGE}, in the place of what it replaces:\n{line}"
    target, options = follow(message, source, model)
    checkpoint = _opened(target, **options)
    for name, info in checkpoint.tensors.items():
        assert tuple(checkpoint.read(name).shape) == info.shape


def test_the_page_shows_no_line_of_something_else() -> None:
    """Each line of the page belongs to something that the test above makes."""
    assert all(any(given.words in line for given in GIVEN.values()) for line in LINES)


def test_a_model_without_safetensors_on_the_hub_is_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the config came: the line says how to write safetensors of the other weights."""
    shutil.copy(tiny("llama").folder / "config.json", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"org/name: holds no safetensors .* give the folder name: python -c "):
        open_checkpoint("org/name")
