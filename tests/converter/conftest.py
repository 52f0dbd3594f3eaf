"""What tests of the converter have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.tiny_runs import token_file


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random token ids to calibrate on."""
    return token_file(tmp_path_factory.mktemp("tokens") / "ids.safetensors")
