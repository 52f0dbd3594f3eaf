"""Tokenizer, chat templates and incremental text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curconvert_runtime import Artifact, InputError, IntegrityError, UnsupportedError
from curconvert_runtime.serve.text import TextStream, Tokenizer, render_template
from support.template_bombs import BOMBS
from support.tiny_artifact import BOS, byte_tokenizer, reseal
from support.tokenizer_bombs import content


@pytest.fixture(scope="module")
def tokenizer(sealed: Path) -> Tokenizer:
    return Tokenizer(Artifact.open(sealed))


def test_ids_are_those_of_the_tokenizers_package(tokenizer: Tokenizer) -> None:
    """Encoding is what `tokenizer.json` says, special tokens included or not."""
    text = "Grüße, 世界 🙂"
    assert tokenizer.encode(text) == byte_tokenizer().encode(text).ids
    assert tokenizer.encode(text, add_special_tokens=False) == tokenizer.encode(text)[1:]
    assert tokenizer.encode(text)[0] == BOS
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_saved_truncation_and_padding_are_switched_off(toy: Path) -> None:
    """The limits of a training run do not cut a prompt."""
    saved = byte_tokenizer()
    saved.enable_truncation(3)
    saved.enable_padding(length=64)
    saved.save(str(toy / "tokenizer.json"))
    reseal(toy)
    assert len(Tokenizer(Artifact.open(toy)).encode("abcdef")) == 7


@pytest.mark.parametrize("text", ["\ud800", None, 3, b"x"])
def test_what_is_no_text_is_refused(tokenizer: Tokenizer, text: Any) -> None:
    """Lone surrogates and other types are input errors."""
    with pytest.raises(InputError):
        tokenizer.encode(text)


def test_a_damaged_tokenizer_file_is_named(toy: Path) -> None:
    """A sealed but senseless tokenizer.json is one line."""
    (toy / "tokenizer.json").write_text('{"model": 3}')
    reseal(toy)
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        Tokenizer(Artifact.open(toy))


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
    ],
)
def test_a_tokenizer_that_panics_is_named(toy: Path, part: dict[str, Any]) -> None:
    """Some files make the Rust code panic, at loading or at the first text; the caller still sees one line."""
    content = json.loads((toy / "tokenizer.json").read_text())
    (toy / "tokenizer.json").write_text(json.dumps(content | part))
    reseal(toy)
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        Tokenizer(Artifact.open(toy)).encode("x")


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_streamed_text_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Byte by byte, the pieces join to the whole, and none ends in a broken character."""
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(" " + text)]
    assert "".join(pieces) + stream.flush() == " " + text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_that_never_ends_is_flushed_as_broken(tokenizer: Tokenizer) -> None:
    """At the end of generation half a character shows as U+FFFD, once."""
    stream = TextStream(tokenizer)
    first, *_ = tokenizer.encode("🙂", add_special_tokens=False)
    assert stream.push(first) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def chat(toy: Path, template: Any, *, file: str | None = None, **messages: Any) -> str:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}
    (toy / "tokenizer_config.json").write_text(json.dumps(config))
    if file is not None:
        (toy / "chat_template.jinja").write_text(file)
    reseal(toy)
    return Tokenizer(Artifact.open(toy)).render_chat([{"role": "user", "content": "hi <b>"}], **messages)


def test_a_template_sees_messages_and_special_tokens(toy: Path) -> None:
    """Special tokens come as text, whichever way the config spells them."""
    template = "{{ bos_token }}{{ messages[0].role }}: {{ messages[0]['content'] }}{{ eos_token }}"
    assert chat(toy, template) == "<s>user: hi <b></s>"


def test_the_template_file_goes_before_the_config(toy: Path) -> None:
    """chat_template.jinja is the newer place."""
    assert chat(toy, "old", file="new") == "new"


@pytest.mark.parametrize("template", [b"\xff\xfe", "Übung".encode("latin-1"), b"{{ \xe2\x82"])
def test_a_template_that_is_not_utf8_is_an_error(toy: Path, template: bytes) -> None:
    """The message names the file."""
    (toy / "chat_template.jinja").write_bytes(template)
    reseal(toy)
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja: not UTF-8 text; convert the model again"):
        Tokenizer(Artifact.open(toy)).render_chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("template", [None, 3, [], [{"name": "other", "template": "x"}]])
def test_a_model_without_template_says_so(toy: Path, template: Any) -> None:
    """A base model has no conversation format."""
    with pytest.raises(UnsupportedError, match="no chat template"):
        chat(toy, template)


def test_variables_reach_the_template(toy: Path) -> None:
    """Switches such as enable_thinking are passed on."""
    assert chat(toy, "{{ enable_thinking }}", enable_thinking=False) == "False"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('{{ {"a": "<é>"} | tojson }}', '{"a": "<é>"}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for i in range(9) %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("{% if true %}\n  x\n{% endif %}\n", "  x\n"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)
def test_the_usual_helpers_work(source: str, expected: str) -> None:
    """Templates written for transformers render the same here."""
    assert render_template(source, {}) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system role') }}",
        "{% if %}",
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% include 'x' %}",
        "{{ missing.attribute }}",
    ],
)
def test_a_hostile_or_broken_template_is_refused(source: str) -> None:
    """Attribute tricks, mutation, huge ranges and plain mistakes all end in one line."""
    with pytest.raises(InputError, match="chat template") as caught:
        render_template(source, {"messages": []})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["a text that doubles 31 times", "a decoder that doubles 31 times", "nested repetitions", "many special tokens"],
)
def test_a_tokenizer_bomb_is_refused_at_load(toy: Path, name: str) -> None:
    """The line says which part would do what."""
    (toy / "tokenizer.json").write_bytes(content(name))
    reseal(toy)
    with pytest.raises(
        IntegrityError, match=r"tokenizer\.json: cannot be used as a tokenizer \((\w|a pattern).*; convert"
    ):
        Tokenizer(Artifact.open(toy))


@pytest.mark.parametrize("name", ["power", "nested ranges", "doubled text", "JSON indent", "shared lists, printed"])
def test_a_template_bomb_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says so; plain text is the way around it."""
    monkeypatch.setattr("curconvert_schemas.templates._BUDGET", 100_000)
    with pytest.raises(InputError, match=r"chat template refused: it .*; give the prompt as plain text"):
        render_template(BOMBS[name], {"messages": []})
