"""Downloads models from the Hugging Face hub, only the files that curconvert reads."""

from __future__ import annotations

import re
from pathlib import Path

from curconvert.base.errors import BackendError, InputError, UnsupportedError
from curconvert.checkpoint.commands import save_pretrained
from curconvert.checkpoint.companions import COMPANION_NAMES

# They tell what a model is for that is refused.
_MARKS = ("model_index.json", "modules.json", "config_sentence_transformers.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(source: str) -> bool:
    """Tell whether a name has the form `organization/name`."""
    return _HUB_ID.fullmatch(source) is not None and not source.endswith((".safetensors", ".gguf", ".json"))


def fetch_snapshot(hub_id: str, revision: str | None = None) -> Path:
    """Download a model's safetensors, config and tokenizer files (never pickles or code) and return the snapshot.

    Raises:
        InputError: The hub has no such model or revision, or requires a login.
        BackendError: The hub is not reachable and the model is not cached.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - loads an HTTP client that local files do not need
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415

    patterns = [
        "model*.safetensors", "model.safetensors.index.json", "config.json", "adapter_config.json",
        "adapter_model.safetensors", *_MARKS, *COMPANION_NAMES,
    ]  # fmt: skip
    try:
        snapshot = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except GatedRepoError:
        raise InputError(
            f"{hub_id}: the hub asks for a login; accept its terms there and run `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        where = hub_id if revision is None else f"{hub_id} at revision {revision}"
        raise InputError(f"{where}: no such file or folder here, and no such model on the Hugging Face hub") from None
    except Exception as error:  # noqa: BLE001 - the advice is the same for every error of the HTTP client
        raise BackendError(
            f"{hub_id}: no such file or folder here, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); download the model where there is a network and pass its folder"
        ) from None
    if not any(snapshot.glob("*.safetensors")) and not any((snapshot / name).exists() for name in _MARKS):
        folder = hub_id.rpartition("/")[2]
        raise UnsupportedError(
            f"{hub_id}: holds no safetensors on the hub; download one of its GGUF files; or, if you trust its .bin "
            f"files, write safetensors and give the folder {folder}: "
            f"{save_pretrained(hub_id, folder, tokenizer=True)}"
        )
    return snapshot
