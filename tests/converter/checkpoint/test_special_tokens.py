"""Begin, end and padding tokens are decided once, from all files, and every file of the artifact states the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime_genai as genai
import pytest
from transformers import AutoConfig, GenerationConfig

from curconvert.base.errors import InputError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.finished import Stated, finished
from curconvert.checkpoint.special_tokens import SpecialTokens
from curconvert.checkpoint.types import Companions
from curconvert.jobs.export import export
from curconvert.options.source import SourceOptions
from curconvert_runtime import Artifact
from curconvert_runtime.serve.generation import end_tokens
from support.checkpoints import edit_config
from support.families import VOCABULARY, TinyModel
from support.gguf_files import write_gguf
from support.tiny_runs import add_tokenizer, manifest_of

NOTHING: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def edit(path: Path, **values: Any) -> None:
    """Change fields of a JSON file; `...` removes one."""
    content = (json.loads(path.read_text()) if path.exists() else {}) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.fixture
def model(llama: Path) -> Path:
    """A checkpoint whose tokenizer has `<pad>` 0, `<s>` 1, `</s>` 2 and names none of them, nor do its configs."""
    add_tokenizer(llama)
    edit(llama / "tokenizer_config.json", eos_token=..., pad_token=...)
    (llama / "generation_config.json").unlink(missing_ok=True)
    edit_config(llama, **dict.fromkeys(NOTHING))
    return llama


def fields(**values: Any) -> dict[str, Any]:
    return {f"{name}_token_id": value for name, value in values.items()}


# Changes of generation_config.json, config.json, tokenizer_config.json; begin, end, padding; words of the first notice.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], tuple[Any, Any, Any], tuple[str, ...]]] = {
    "only the tokenizer names an end": ({}, {}, {"eos_token": "</s>"}, (None, 2, 2), ()),
    "the config lacks the fields": ({}, fields(bos=..., eos=..., pad=...), {"eos_token": "A"}, (1, 36, 36), ()),
    "a default of transformers": ({}, fields(eos=2), {"eos_token": "A"}, (None, 36, 36), ("eos_token_id 2", "36")),
    "a copied default": (
        {"_from_model_config": True, **fields(eos=2)}, fields(eos=2), {"eos_token": "A"}, (None, 36, 36),
        ("eos_token_id 2", "36"),
    ),
    "a default among several": ({}, fields(eos=[2, 7]), {"eos_token": "</s>"}, (None, [2, 7], 2), ()),
    "a default among several others": (
        {}, fields(eos=[2, 7]), {"eos_token": "A"}, (None, [2, 7, 36], 2), ("36 is not among",),
    ),
    "a copied default among several": (
        {"_from_model_config": True, **fields(eos=[2, 7])}, fields(eos=[2, 7]), {"eos_token": "</s>"},
        (None, [2, 7], 2), (),
    ),
    "a chosen end": (fields(eos=2), fields(eos=2), {"eos_token": "A"}, (None, [2, 36], 2), ("36 is not among",)),
    "several ends": (fields(eos=[7, 2]), fields(eos=5), {"eos_token": "</s>"}, (None, [7, 2], 7), ()),
    "an end beyond the vocabulary": (
        fields(eos=[5, VOCABULARY]), {}, {}, (None, 5, 5), ("eos_token_id 97 is outside the vocabulary of 97",),
    ),
    "a padding of its own": (fields(eos=5), fields(pad=9), {}, (None, 5, 9), ()),
    "the tokenizer's padding": (fields(eos=5), {}, {"pad_token": "<pad>"}, (None, 5, 0), ()),
    "padding -1": (fields(eos=5, pad=-1), fields(pad=-1), {}, (None, 5, 5), ()),
    "padding beyond the vocabulary": (fields(eos=5, pad=97), {}, {}, (None, 5, 5), ("pad_token_id 97 is outside",)),
    "a padding that the tokenizer lacks": (
        fields(eos=5), {}, {"pad_token": "[PAD]"}, (None, 5, 5), ("pad_token '[PAD]' is not in the tokenizer",),
    ),
    "begin null": (fields(bos=None, eos=5), fields(bos=None), {"bos_token": None}, (None, 5, 5), ()),
    "the tokenizer's begin": (fields(bos=7, eos=5), {}, {"bos_token": "<s>"}, (1, 5, 5), ()),
    "a begin of the config": ({}, fields(bos=7, eos=5), {}, (7, 5, 5), ()),
    "no end anywhere": ({}, {}, {}, (None, None, None), ("no file of the model names an end token",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_all_sources_give_one_answer(model: Path, case: str) -> None:
    """Which file counts, and which values are left out with a notice that names file and value."""
    generation, config, tokenizer, (begin, end, pad), words = CASES[case]
    if generation:
        edit(model / "generation_config.json", **generation)
    edit_config(model, **config)
    edit(model / "tokenizer_config.json", **tokenizer)
    files = open_checkpoint(model).companions()
    expected = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad}
    assert files.special_tokens.fields() == expected
    written = json.loads(files.content("generation_config.json") or b"{}")
    assert {key: written.get(key) for key in NOTHING} == expected
    assert bool(files.notices) == bool(words), files.notices
    assert all(word in files.notices[0] for word in words)


@pytest.mark.parametrize("end", ["2", True, 2.0, [[2]]])
def test_what_is_no_token_id_is_an_error(model: Path, end: Any) -> None:
    """It names the file and the value."""
    edit(model / "generation_config.json", eos_token_id=end)
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id is .* expected token ids; correct"):
        open_checkpoint(model).companions()


def test_an_override_counts_before_every_file(model: Path) -> None:
    """The user's --config-set is later than what the files say."""
    edit(model / "generation_config.json", eos_token_id=5)
    files = open_checkpoint(model, config_set={"eos_token_id": "7"}).companions()
    assert files.special_tokens.end == (7,)


@pytest.mark.parametrize("outer", [{}, {"eos_token_id": 9}])
def test_a_multimodal_config_holds_them_at_two_levels(model: Path, outer: dict[str, int]) -> None:
    """Those of the whole model count before those of its text model."""
    normalized = open_checkpoint(model).config
    config = {"model_type": "gemma3", "text_config": {"eos_token_id": [1, 5], "bos_token_id": 3}, **outer}
    files = finished(Companions(), Stated(model, config, {}, normalized))
    assert files.special_tokens == SpecialTokens(3, (9,) if outer else (1, 5), 9 if outer else 1)


def all_statements(folder: Path) -> list[tuple[Any, Any, Any]]:
    """Return begin, end and padding as each file of an artifact states them, read as their clients read them."""
    manifest, served = manifest_of(folder)["model"], json.loads((folder / "genai_config.json").read_text())["model"]
    config, generation = AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    found = [tuple(part.get(key) for key in NOTHING) for part in (manifest, served)]
    return [*found, *(tuple(getattr(part, key) for key in NOTHING) for part in (config, generation))]


@pytest.mark.parametrize("case", ["the config lacks the fields", "several ends", "no end anywhere"])
def test_every_file_of_an_artifact_says_the_same(model: Path, tmp_path: Path, case: str) -> None:
    """Manifest, genai, transformers' two configs and the runtime; and onnxruntime-genai loads it."""
    generation, config, tokenizer, expected, _ = CASES[case]
    edit(model / "generation_config.json", **generation)
    edit_config(model, **config)
    edit(model / "tokenizer_config.json", **tokenizer)
    export(SourceOptions(model), tmp_path / "out")
    assert all_statements(tmp_path / "out") == [expected] * 4
    ends = expected[1] if isinstance(expected[1], list) else [expected[1]]
    assert end_tokens(Artifact.open(tmp_path / "out")) == set(ends) - {None}
    genai.Model(str(tmp_path / "out"))


def test_a_gguf_file_states_them_in_its_metadata(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Ends of text and of turn; a padding token outside the vocabulary is left out with a notice."""
    metadata = {"eos": 2, "eot": 7, "bos": 1, "padding": 4}
    keys = {f"tokenizer.ggml.{name}_token_id": number for name, number in metadata.items()}
    write_gguf(tmp_path / "m.gguf", tiny("llama"), metadata=keys)
    files = open_checkpoint(tmp_path / "m.gguf").companions()
    assert files.special_tokens == SpecialTokens(1, (2, 7), 4)


def test_the_tokenizers_settings_get_the_decided_tokens(model: Path) -> None:
    """Missing end and padding tokens are filled in where the tokenizer marks them as special; begin never is."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    tokenizer["added_tokens"] = [{"id": 1, "content": "<s>", **flags}, {"id": 2, "content": "</s>", **flags}]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit(model / "generation_config.json", eos_token_id=2, bos_token_id=1)
    edit(model / "tokenizer_config.json", pad_token="[PAD]")
    settings = json.loads(open_checkpoint(model).companions().written["tokenizer_config.json"])
    assert (settings["eos_token"], settings["pad_token"], settings.get("bos_token")) == ("</s>", "</s>", None)
