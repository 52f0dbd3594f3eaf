"""The begin token that a tokenizer adds, and windows that start with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.text import Tokenizer as ArtifactTokenizer
from curconvert_runtime.serve.text import begin_token, windows
from support.tiny_artifact import BOS, EOS, byte_tokenizer, reseal

_BYTES = processors.ByteLevel(trim_offsets=False)


def _template(single: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS), ("0", 15)])


KINDS: dict[str, tuple[Any, dict[str, Any], int | None]] = {
    "template": (_template("<s> $A"), {}, BOS),
    "both-ends": (_template("<s> $A </s>"), {}, BOS),
    "sequence": (processors.Sequence([_BYTES, _template("<s> $A")]), {}, BOS),
    "roberta": (processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS)), {}, BOS),
    "text-token": (_template("0 $A"), {}, 15),
    "template-wins": (_template("<s> $A"), {"add_bos_token": False, "bos_token": "</s>"}, BOS),
    "end-alone": (_template("$A </s>"), {}, None),
    "bytes-alone": (_BYTES, {}, None),
    "bos-without-adding": (_BYTES, {"bos_token": "<s>"}, None),
    "config-adds": (_BYTES, {"add_bos_token": True, "bos_token": "<s>"}, BOS),
    "config-adds-object": (_BYTES, {"add_bos_token": True, "bos_token": {"content": "<s>"}}, BOS),
    "config-adds-unknown": (_BYTES, {"add_bos_token": True, "bos_token": "<bos>"}, None),
    "config-refuses": (_BYTES, {"add_bos_token": False, "bos_token": "<s>"}, None),
}


def _tokenizer(processor: Any) -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = processor
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_the_begin_token_is_what_the_tokenizer_adds(kind: str) -> None:
    """Whatever post-processor adds it; the settings count if that adds none."""
    processor, settings, expected = KINDS[kind]
    tokenizer = _tokenizer(processor)
    assert begin_token(tokenizer, settings) == expected
    if "config" not in kind:  # the tokenizers library agrees on a text
        plain, full = (tokenizer.encode("text", add_special_tokens=add).ids for add in (False, True))
        assert full[: len(full) - full.count(EOS)] == ([] if expected is None else [expected]) + plain


def test_a_vocabulary_without_letters_has_a_begin_token_too() -> None:
    """The answer does not depend on a text that the tokenizer knows."""
    tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                **json.loads(byte_tokenizer().to_str()),
                "model": {"type": "WordLevel", "vocab": {"0": 15}, "unk_token": "?"},
                "normalizer": None,
            }
        )
    )
    assert begin_token(tokenizer, {}) == BOS


@pytest.mark.parametrize("kind", ["template", "end-alone", "config-adds"])
def test_an_artifacts_tokenizer_knows_its_begin_token(toy: Path, kind: str) -> None:
    """From `tokenizer.json` and `tokenizer_config.json`."""
    processor, settings, expected = KINDS[kind]
    _tokenizer(processor).save(str(toy / "tokenizer.json"))
    (toy / "tokenizer_config.json").write_text(json.dumps(settings))
    reseal(toy)
    assert ArtifactTokenizer(Artifact.open(toy)).begin == expected


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 13, 14, 15, 100])
def test_windows_without_a_begin_token_are_consecutive(count: int) -> None:
    """Whole ones; the rest is dropped."""
    found = windows(np.arange(count), 7, None)
    assert found.shape == (count // 7, 7)
    assert found.reshape(-1).tolist() == list(range(count // 7 * 7))


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 12, 13, 100])
def test_the_begin_token_takes_one_position_of_each_window(count: int) -> None:
    """The windows keep their length, and the text goes on without a gap."""
    found = windows(np.arange(count), 7, 500)
    assert found.shape == (count // 6, 7)
    assert (found[:, 0] == 500).all()
    assert found[:, 1:].reshape(-1).tolist() == list(range(count // 6 * 6))


def test_no_window_starts_with_two_begin_tokens() -> None:
    """Rows of a table of ids that have it stay whole, and one inside a window stays where it is."""
    table = np.array([[9, 1, 2, 3], [9, 4, 5, 6], [9, 7, 8, 0]])
    assert windows(table.reshape(-1), 4, 9).tolist() == table.tolist()
    assert windows(np.array([1, 2, 9, 3, 4, 5, 6]), 4, 9).tolist() == [[9, 1, 2, 9], [9, 3, 4, 5]]
