"""Shared toy artifacts; every test that changes one gets its own copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import curconvert_runtime
from curconvert_runtime import Session
from support.tiny_artifact import write_toy


@pytest.fixture(scope="session")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound toy artifact that no test may change."""
    return write_toy(tmp_path_factory.mktemp("toy") / "out")


@pytest.fixture
def toy(sealed: Path, tmp_path: Path) -> Path:
    """A copy of the sound toy artifact, to be damaged."""
    return Path(shutil.copytree(sealed, tmp_path / "out"))


@pytest.fixture(scope="session", params=["portable", "fused"])
def session(request: pytest.FixtureRequest, sealed: Path) -> Session:
    """The toy, loaded with each of its graphs."""
    return curconvert_runtime.load(sealed, graph=request.param, threads=1)
