"""Providers that are not there, registered by the code of docs/guides/add-a-provider.md: one runs, one is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from curconvert_runtime import BackendError, CpuOptions, InputError, load
from curconvert_runtime.serve import providers
from curconvert_runtime.serve.session import Session

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "add-a-provider.md"


@pytest.fixture
def added() -> Iterator[dict[str, Any]]:
    """The guide's names, and its providers in the registry for one test."""
    before = dict(providers.PROVIDERS)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {**vars(providers)}
    exec(compile("\n".join(blocks), str(GUIDE), "exec", dont_inherit=False), names)
    yield names
    providers.PROVIDERS.clear()
    providers.PROVIDERS.update(before)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What onnxruntime is asked for, and with which settings."""
    found: list[dict[str, Any]] = []
    original = onnxruntime.InferenceSession

    def recorded(graph: bytes, settings: Any, **arguments: Any) -> Any:
        spinning = settings.get_session_config_entry("session.intra_op.allow_spinning")
        found.append({"arena": settings.enable_cpu_mem_arena, "spinning": spinning, **arguments})
        return original(graph, settings, **arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    return found


@pytest.mark.parametrize("arena", [None, True])
def test_a_session_uses_the_new_provider(
    sealed: Path, added: dict[str, Any], sessions: list[dict[str, Any]], arena: bool | None
) -> None:
    """Its name in onnxruntime, its options or their defaults, its graph; the answers are those of `cpu`."""
    options = None if arena is None else added["SharedOptions"](arena=arena)
    session = load(sealed, provider="shared", options=options)
    assert sessions == [
        {"arena": bool(arena), "spinning": "0", "providers": [("CPUExecutionProvider", {})], "enable_fallback": 0}
    ]
    assert (session.provider, session.graph, session.memory) == ("shared", "portable", "cpu")
    usual = load(sealed, graph="portable")
    assert sessions[1]["arena"] is True
    assert sessions[1]["spinning"] == "1"
    np.testing.assert_array_equal(session.logits([1, 2, 3]), usual.logits([1, 2, 3]))
    fused = load(sealed, provider="shared", graph="fused")
    assert tokens(fused) == tokens(load(sealed))


def tokens(session: Session) -> list[int]:
    found = session.generate("Hi")
    assert not isinstance(found, list)
    return list(found.ids)


def test_a_provider_that_is_not_installed_is_missing(sealed: Path, added: dict[str, Any]) -> None:
    """The error names it and its package."""
    message = r"DmlExecutionProvider is not available.*pip install 'onnxruntime-directml'"
    with pytest.raises(BackendError, match=message):
        load(sealed, provider="dml", options=added["DmlOptions"](device_id=1))


def test_options_belong_to_their_provider(sealed: Path, added: dict[str, Any]) -> None:
    """As for those that are there already; after the test the new ones are gone."""
    with pytest.raises(InputError, match="provider shared takes SharedOptions"):
        load(sealed, provider="shared", options=CpuOptions())


def test_a_provider_that_is_not_registered_is_refused(sealed: Path) -> None:
    """The message lists those that are."""
    with pytest.raises(InputError, match="provider 'shared': expected one of cpu, cuda"):
        load(sealed, provider="shared")
