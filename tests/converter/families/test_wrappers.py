"""The registry of multimodal model types."""

from __future__ import annotations

import re
from pathlib import Path

from curconvert.families.family import SUPPORTED_FAMILIES
from curconvert.families.wrappers import TEXT_FAMILIES, WRAPPERS

PAGE = Path(__file__).parents[3] / "docs" / "families.md"


def test_the_page_lists_every_type() -> None:
    """In the order of the registry, and no other."""
    listed = next(line for line in PAGE.read_text().splitlines() if line.startswith("These `model_type`s"))
    assert re.findall(r"`(\w+)`[,. ]", listed) == list(WRAPPERS) == sorted(WRAPPERS)


def test_language_models_are_of_supported_families() -> None:
    """A name that differs from a family's leads to one."""
    assert set(TEXT_FAMILIES.values()) <= SUPPORTED_FAMILIES.keys()
    assert not TEXT_FAMILIES.keys() & SUPPORTED_FAMILIES.keys()
    assert not WRAPPERS.keys() & SUPPORTED_FAMILIES.keys()
