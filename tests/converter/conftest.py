"""What tests of the converter have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.families import TinyModel, make_checkpoint
from support.tiny_runs import token_file


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random token ids to calibrate on."""
    return token_file(tmp_path_factory.mktemp("tokens") / "ids.safetensors")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """Make (once per family) a tiny checkpoint that no test may change."""
    made: dict[str, TinyModel] = {}

    def make(family: str) -> TinyModel:
        if family not in made:
            made[family] = make_checkpoint(tmp_path_factory.mktemp(family) / "model", family)
        return made[family]

    return make
