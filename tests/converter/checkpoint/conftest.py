"""Small checkpoints for the reader tests; each test gets its own copy to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.families import TinyModel, make_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """Make (once per family) a tiny checkpoint that no test may change."""
    made: dict[str, TinyModel] = {}

    def make(family: str) -> TinyModel:
        if family not in made:
            made[family] = make_checkpoint(tmp_path_factory.mktemp(family) / "model", family)
        return made[family]

    return make


@pytest.fixture
def llama(tiny: Callable[[str], TinyModel], tmp_path: Path) -> Path:
    """A copy of a sound, untied Llama checkpoint."""
    return Path(shutil.copytree(tiny("llama").folder, tmp_path / "model"))
