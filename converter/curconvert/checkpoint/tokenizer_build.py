"""Builds `tokenizer.json` for a model that keeps its tokenizer in another format.

curconvert reads `tokenizer.model` (sentencepiece) and `tekken.json` (Mistral) itself, because transformers needs more
packages for them. From `vocab.json` and `merges.txt` transformers builds it: only it knows how each class splits text.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from curconvert.base.errors import InputError
from curconvert.checkpoint.companions import json_bytes
from curconvert.checkpoint.files import json_object
from curconvert.checkpoint.sentencepiece import is_plain, sentencepiece_model, sentencepiece_tokenizer
from curconvert.checkpoint.tekken import TEKKEN, tekken_tokenizer
from curconvert.checkpoint.types import Companions
from curconvert_runtime.format.files import TOKENIZER_CONFIG

logger = logging.getLogger(__name__)

SENTENCEPIECE = "tokenizer.model"
_WORDS = ("vocab.json", "merges.txt", "added_tokens.json", SENTENCEPIECE)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
_HARD = (
    "Hello world's  123 4567, don't\tstop!\n\n  end ",
    "Café naïve \u00dcbung \u65e5\u672c\u8a9e \u0440\u0443\u0441 \u0627\u0644 \U0001f642\U0001f468\u200d\U0001f469",
    "def f(x):\n\treturn x**2  # 3.14e-10\r\n</s><s><|endoftext|><|im_end|>",
    " ",
    "\u200b\ufeff\u00a0e\u0301",
)


def build_tokenizer(
    files: Companions, settings: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[bytes | None, dict[str, Any]]:
    """Return `tokenizer.json`, and the tokenizer's settings to go with it.

    A tokenizer that cannot be built gives a warning and None, because the weights are usable without it.

    Args:
        files: The model's files, without `tokenizer.json`.
        settings: Content of `tokenizer_config.json`.
        config: The model's config.
        where: The model's folder, for messages.

    Raises:
        InputError: A tokenizer file is malformed.
    """
    name = next((name for name in (TEKKEN, SENTENCEPIECE, _WORDS[0]) if files.content(name) is not None), None)
    if name is None:
        return None, dict(settings)
    content = files.content(name)
    assert content is not None
    try:
        if name == TEKKEN:
            tokenizer, named = tekken_tokenizer(json_object(content, f"{where}/{name}"), config["vocab_size"])
        else:
            proto = sentencepiece_model(content) if name == SENTENCEPIECE else None
            if proto is not None and is_plain(proto):
                tokenizer, named = sentencepiece_tokenizer(proto, settings, _added(files), config)
            else:
                if name == SENTENCEPIECE:
                    _check_installed("tiktoken" if proto is None else "sentencepiece")
                tokenizer, named = _by_transformers(files, settings, config)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - any file can be broken in any way, and each library has its own errors
        reason = " ".join(str(error).split())[:300]
        logger.warning("%s/%s: no tokenizer.json can be made of it: %s", where, name, reason)
        return None, dict(settings)
    kept = {key: value for key, value in settings.items() if value is not None}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return tokenizer.to_str(pretty=True).encode("utf-8"), {**named, **kept}


def _check_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"run pip install {package}, which reads this kind of file, and convert again")


def _added(files: Companions) -> dict[str, int]:
    content = files.content("added_tokens.json")
    return {} if content is None else json_object(content, "added_tokens.json")


def _by_transformers(
    files: Companions, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer that transformers makes and its special tokens, if both give the same ids."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - slow to load, and few models need it

    with tempfile.TemporaryDirectory() as folder:
        # A copy: no code, and no links out of the model's folder.
        for name in _WORDS:
            if (content := files.content(name)) is not None:
                (Path(folder) / name).write_bytes(content)
        (Path(folder) / TOKENIZER_CONFIG).write_bytes(json_bytes(settings))
        (Path(folder) / "config.json").write_bytes(json_bytes({"model_type": config["model_type"]}))
        made = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = Tokenizer.from_str(made.backend_tokenizer.to_str())
        for text in _HARD:
            if tokenizer.encode(text).ids != made(text)["input_ids"]:
                raise ValueError(f"tokenizers and transformers disagree on {text!r}")
        named = {name: getattr(made, name) for name in _NAMED}
    return tokenizer, {name: str(token) for name, token in named.items() if token is not None}
