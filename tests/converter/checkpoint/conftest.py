"""Small checkpoints for the reader tests; each test gets its own copy to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.families import TinyModel


@pytest.fixture
def llama(tiny: Callable[[str], TinyModel], tmp_path: Path) -> Path:
    """A copy of a sound, untied Llama checkpoint."""
    return Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
