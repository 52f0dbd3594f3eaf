"""Hub ids: what is asked for, and what is said when it cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from curconvert.base.errors import BackendError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.hub import is_hub_id


def test_a_snapshot_is_opened_without_pickles_or_code(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id and revision are passed on; only data files are asked for."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def download(hub_id: str, **options: Any) -> str:
        calls.append((hub_id, options))
        return str(llama)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("org/name", revision="v1").path == llama
    (hub_id, options) = calls[0]
    assert (hub_id, options["revision"]) == ("org/name", "v1")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in options["allow_patterns"])


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("x\ny"), OfflineModeIsEnabled("x"), OSError("x"), KeyError()]
)
def test_no_network_is_one_line_with_advice(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, unreachable or broken: a BackendError that says what to do instead."""

    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(BackendError, match=r"org/name: .*cannot be reached.* pass its folder") as caught:
        open_checkpoint("org/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", True),
        ("HuggingFaceTB/SmolLM2-135M", True),
        ("name", False),
        ("./name", False),
        ("/org/name", False),
        ("a/b/c", False),
        ("../x", False),
        ("org/file.safetensors", False),
        ("org/file.gguf", False),
        ("org/na me", False),
    ],
)
def test_only_two_plain_words_are_a_hub_id(source: str, expected: bool) -> None:
    """A path with any other form never reaches the network."""
    assert is_hub_id(source) is expected
