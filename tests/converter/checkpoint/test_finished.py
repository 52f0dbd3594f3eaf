"""What an artifact gets of a model's files: one chat template, defaults of generation, nothing of a training run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime_genai as genai
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from curconvert.base.errors import InputError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import Companions
from curconvert.jobs.export import export
from curconvert.options.source import SourceOptions
from support.checkpoints import edit_config
from support.families import VOCABULARY

TWO = [{"name": "default", "template": "D {{ messages[0].content }}"}, {"name": "tool_use", "template": "T"}]
TEXTS = ["the quick brown fox jumps over the lazy dog"] * 5


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def model(llama: Path) -> Path:
    """A checkpoint with a byte-level tokenizer, which every client reads, and plain settings."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=90, special_tokens=["<end>"]))
    tokenizer.save(str(llama / "tokenizer.json"))
    write(llama / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"})
    write(llama / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 0})
    return llama


def settings_with(model: Path, **values: Any) -> None:
    path = model / "tokenizer_config.json"
    write(path, json.loads(path.read_text()) | values)


def parsed(files: Companions, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files.content(name) or b"{}")
    return content


def test_sound_files_are_copied_unchanged(model: Path) -> None:
    """What says all that it should say keeps its bytes."""
    settings_with(model, pad_token="<end>", model_input_names=["input_ids", "attention_mask"])
    edit_config(model, bos_token_id=None, eos_token_id=0, pad_token_id=0)
    files = open_checkpoint(model).companions()
    assert files.written == {}
    assert files.copied.keys() == {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert files.notices == ()


def many_tokens(stored: dict[str, Any]) -> None:
    last = stored["added_tokens"][-1]
    stored["added_tokens"] += [last | {"id": 500 + n, "content": f"<{n}>"} for n in range(VOCABULARY)]


BEYOND: dict[str, Callable[[dict[str, Any]], Any]] = {
    "added tokens": many_tokens,
    "a word": lambda t: t["model"]["vocab"].update({"\u0120x": 5000}),
    "the first that the model lacks": lambda t: t["model"]["vocab"].update({"\u0120x": VOCABULARY}),
}


@pytest.mark.parametrize("case", BEYOND)
def test_tokens_that_the_model_lacks_are_named(model: Path, case: str) -> None:
    """A text with one of them cannot be run, so the conversion says it and not only the first such text."""
    path = model / "tokenizer.json"
    stored = json.loads(path.read_text())
    BEYOND[case](stored)
    write(path, stored)
    notice = open_checkpoint(model).companions().notices[-1]
    last = max(Tokenizer.from_file(str(path)).get_vocab().values())
    assert last >= VOCABULARY
    assert f"tokens up to {last}; the model knows only the first {VOCABULARY}, and texts with others" in notice


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_model_without_a_tokenizer_says_so(model: Path, left: tuple[str, ...]) -> None:
    """An artifact that takes no text is announced at its conversion, not at the first text."""
    for name in {"tokenizer.json", "tokenizer_config.json"} - set(left):
        (model / name).unlink()
    assert "the artifact takes token ids only" in open_checkpoint(model).companions().notices[0]


# --- chat templates ---

# tokenizer_config.json's template; chat_template.jinja; chat_template.json; the result; words of the notice
TEMPLATES: dict[str, tuple[Any, str | None, Any, str | None, str]] = {
    "a text": ("A", None, None, "A", ""),
    "a file": (None, "B", None, "B", ""),
    "a file before a text": ("A", "B", None, "B", ""),
    "a list": (TWO, None, None, TWO[0]["template"], "chat templates tool_use are left out"),
    "a list and a file": (TWO, "B", None, "B", "chat templates tool_use are left out"),
    "a list of one": ([{"name": "rag", "template": "R"}], None, None, "R", ""),
    "a list without a default": ([TWO[1], {"name": "rag", "template": "R"}], None, None, None, "none is called"),
    "a processor's file": (None, None, {"chat_template": "P"}, "P", ""),
    "none": (None, None, None, None, ""),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_the_default_template_is_where_clients_look(model: Path, tmp_path: Path, case: str) -> None:
    """As a text in tokenizer_config.json and as chat_template.jinja; transformers finds it, a notice names others."""
    text, file, processor, expected, words = TEMPLATES[case]
    if text is not None:
        settings_with(model, chat_template=text)
    if file is not None:
        (model / "chat_template.jinja").write_text(file)
    if processor is not None:
        write(model / "chat_template.json", processor)
    files = open_checkpoint(model).companions()
    assert parsed(files, "tokenizer_config.json").get("chat_template") == expected
    assert files.content("chat_template.jinja") == (None if expected is None else expected.encode())
    assert "chat_template.json" not in files.copied
    assert words in " ".join(files.notices)
    assert bool(files.notices) == bool(words)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (content := files.content(name)) is not None:
            (tmp_path / name).write_bytes(content)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == expected


@pytest.mark.parametrize("template", ["Übung".encode("latin-1"), b"\xff\xfe\x00", b"{{ \xe2\x82 }}"])
def test_a_template_in_another_encoding_is_refused(model: Path, template: bytes) -> None:
    """One line names the file and the first bad byte."""
    (model / "chat_template.jinja").write_bytes(template)
    with pytest.raises(InputError, match=r"chat_template\.jinja: not UTF-8 at byte \d; save the file as UTF-8"):
        open_checkpoint(model).companions()


@pytest.mark.parametrize("template", [7, [{"name": "default"}], {"default": None}, ["A"]])
def test_a_template_that_is_no_text_is_refused(model: Path, template: Any) -> None:
    """Whatever stands where a text should be."""
    settings_with(model, chat_template=template)
    with pytest.raises(InputError, match=r"tokenizer_config\.json: chat_template: expected a text"):
        open_checkpoint(model).companions()


@pytest.mark.parametrize("template", ["A", TWO, {"default": "A", "rag": "R"}])
def test_onnxruntime_genai_takes_the_tokenizer(model: Path, tmp_path: Path, template: Any) -> None:
    """It accepts one template only, and gives the ids of tokenizers."""
    settings_with(model, chat_template=template)
    export(SourceOptions(model), tmp_path / "out")
    found = genai.Tokenizer(genai.Model(str(tmp_path / "out"))).encode(TEXTS[0]).tolist()
    assert found == Tokenizer.from_file(str(model / "tokenizer.json")).encode(TEXTS[0]).ids


# --- traces of training ---


def test_truncation_padding_and_dropout_do_not_reach_an_artifact(model: Path) -> None:
    """Clients that load tokenizer.json encode a long text whole, alone and in a batch; nothing else changes."""
    path = model / "tokenizer.json"
    plain = json.loads(path.read_text())
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    trained = json.loads(tokenizer.to_str())
    trained["model"]["dropout"] = 0.5
    write(path, trained)
    files = open_checkpoint(model).companions()
    assert parsed(files, "tokenizer.json") == plain
    [notice] = files.notices
    assert "truncation, padding, BPE dropout" in notice
    clean = Tokenizer.from_str((files.content("tokenizer.json") or b"").decode())
    assert [len(one.ids) for one in clean.encode_batch(["the", TEXTS[0]])] == [1, len(clean.encode(TEXTS[0]).ids)]
    assert len(clean.encode(TEXTS[0]).ids) > 8


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"max_length": 16, "truncation_strategy": "longest_first", "stride": 0}, {}),
        ({"padding": "max_length", "pad_to_multiple_of": 8}, {}),
        ({"name_or_path": "/home/me/run", "tokenizer_file": "/x", "special_tokens_map_file": "/y"}, {}),
        ({"auto_map": {"AutoTokenizer": ["x.py", None]}, "use_auth_token": "hf_x", "_commit_hash": "0"}, {}),
        ({"model_max_length": 32}, {"model_max_length": 64}),
        ({"model_max_length": 1024}, {"model_max_length": 1024}),
        ({"model_max_length": 1e30}, {"model_max_length": 1e30}),
        ({"padding_side": "left", "add_bos_token": True}, {"padding_side": "left", "add_bos_token": True}),
    ],
)
def test_settings_of_a_run_do_not_reach_an_artifact(model: Path, values: dict[str, Any], kept: dict[str, Any]) -> None:
    """Lengths, padding, paths, tokens and code of a training run go; what describes the tokenizer stays."""
    settings_with(model, **values)
    settings = parsed(open_checkpoint(model).companions(), "tokenizer_config.json")
    assert {key: value for key, value in settings.items() if key in values} == kept


def test_the_config_of_a_run_does_not_reach_an_artifact(model: Path) -> None:
    """Paths, gradient checkpointing, attention kernels and the switched-off cache of a training run go."""
    edit_config(
        model, _name_or_path="/home/me/run", use_cache=False, gradient_checkpointing=True, unsloth_version="1",
        _attn_implementation="flash_attention_2", attn_implementation="flash_attention_2",
    )  # fmt: skip
    config = open_checkpoint(model).config
    assert config["use_cache"] is True
    assert not [key for key in config if key.startswith(("_", "gradient", "unsloth", "attn_implementation"))]


# --- defaults of generation ---


def test_generation_settings_of_an_old_config_move_to_their_file(model: Path) -> None:
    """Older models keep them in config.json, from where transformers takes them if there is no other file."""
    (model / "generation_config.json").unlink()
    edit_config(model, do_sample=True, repetition_penalty=1.2, temperature=0.5)
    checkpoint = open_checkpoint(model)
    generation = parsed(checkpoint.companions(), "generation_config.json")
    assert (generation["do_sample"], generation["repetition_penalty"], generation["temperature"]) == (True, 1.2, 0.5)
    assert not checkpoint.config.keys() & {"do_sample", "repetition_penalty", "temperature"}


def test_the_generation_file_counts_alone(model: Path) -> None:
    """transformers ignores what config.json says as well."""
    write(model / "generation_config.json", {"temperature": 0.5, "use_cache": False, "transformers_version": "4.1.0"})
    edit_config(model, repetition_penalty=1.2)
    generation = parsed(open_checkpoint(model).companions(), "generation_config.json")
    assert generation.keys() == {"temperature", "bos_token_id", "eos_token_id", "pad_token_id"}


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", -1), ("top_k", -1), ("top_p", 2), ("min_p", 1.5), ("repetition_penalty", 0)]
)
def test_a_setting_without_a_meaning_is_left_out(model: Path, name: str, value: Any) -> None:
    """The runtime would refuse it at each request; a notice names file and value."""
    write(model / "generation_config.json", {"eos_token_id": 0, name: value})
    files = open_checkpoint(model).companions()
    assert name not in parsed(files, "generation_config.json")
    [notice] = files.notices
    assert f"generation_config.json: {name} {value!r}: expected" in notice


@pytest.mark.parametrize(
    ("name", "value"),
    [("no_repeat_ngram_size", 3), ("typical_p", 0.9), ("bad_words_ids", [[5]]), ("suppress_tokens", [1])],
)
def test_a_setting_that_the_runtime_does_not_follow_is_named(model: Path, name: str, value: Any) -> None:
    """It stays in the file for transformers; a notice says that the runtime's text differs."""
    write(model / "generation_config.json", {"eos_token_id": 0, name: value})
    files = open_checkpoint(model).companions()
    assert parsed(files, "generation_config.json")[name] == value
    [notice] = files.notices
    assert f"does not follow {name}; transformers does" in notice
