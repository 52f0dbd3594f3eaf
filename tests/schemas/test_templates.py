"""Chat templates: what transformers renders for published styles, and an early end for every bomb."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from curconvert_schemas.templates import TemplateLimitError, render
from support.fuzzing import memory_below, within
from support.template_bombs import BOMBS
from support.templates import CONVERSATIONS, STYLES
from support.tiny_artifact import byte_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), **SPECIAL)


def rendered(source: str, conversation: dict[str, Any]) -> str | None:
    """Return the text, or None where the template fails on the conversation."""
    values = {"tools": None, "documents": None, "add_generation_prompt": False, **SPECIAL, **conversation}
    try:
        return render(source, values)
    except (jinja2.TemplateError, TypeError):
        return None


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("style", STYLES)
def test_a_template_renders_as_in_transformers(
    style: str, conversation: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The constructs of Llama, Qwen, Gemma, Mistral, DeepSeek and Command templates; refusals are the same as well."""
    values = dict(CONVERSATIONS[conversation])
    try:
        expected = tokenizer.apply_chat_template(
            values.pop("messages"), chat_template=STYLES[style], tokenize=False, **values
        )
    except (jinja2.TemplateError, TypeError):
        expected = None
    assert rendered(STYLES[style], CONVERSATIONS[conversation]) == expected


def test_most_styles_render_most_conversations() -> None:
    """The comparison above is not one of refusals."""
    texts = [rendered(source, values) for source in STYLES.values() for values in CONVERSATIONS.values()]
    assert sum(text is not None for text in texts) > 0.8 * len(texts)
    assert len({text for text in texts if text}) > 0.7 * len(texts)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_early(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops, growth of numbers, text and lists, wide formats, and ways out: within a tenth of the usual budget."""
    monkeypatch.setattr("curconvert_schemas.templates._BUDGET", 300_000)
    with memory_below(300e6), within(1.5), pytest.raises(Exception) as caught:
        render(BOMBS[name], {"messages": []})
    assert not isinstance(caught.value, MemoryError)


def test_a_long_conversation_is_far_from_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 messages of 2,000 characters take a fifth of the work, and 200 pages in one message pass as well."""
    monkeypatch.setattr("curconvert_schemas.templates._BUDGET", 600_000)
    turns = [{"role": role, "content": "word " * 400} for role in ("user", "assistant")]
    for source in STYLES.values():
        text = rendered(source, {"messages": turns * 500})
        assert text is not None
        assert len(text) > 2_000_000 or "<start_of_turn>" in text
    long = [{"role": "user", "content": "x" * 500_000}]
    assert all("x" * 500_000 in (rendered(source, {"messages": long}) or "") for source in STYLES.values())


def test_arguments_are_not_mistaken_for_sizes() -> None:
    """Numbers and places of ordinary templates pass."""
    assert render("{{ x.find('b', 20000) }} {{ n | default(10**9) }}", {"x": "a" * 30_000 + "b"}) == "30000 1000000000"
    assert render("{{ '%05d %s' % (7, 'x') }} {{ '{:>4}|{}'.format(1, 2) }}", {}) == "00007 x    1|2"
    assert (
        render("{{ 2**10 }} {{ 2 ** -1 }} {{ 2.5 * 2 }} {{ '-' * 3 }} {{ ([1] * 2) | length }}", {})
        == "1024 0.5 5.0 --- 2"
    )


def test_an_iterator_is_read_once_and_in_order() -> None:
    """Filters that give iterators chain as in Jinja."""
    source = "{% set x = [3, 1, 2] | map('string') %}{% if x is defined %}{{ x | join('-') }}{% endif %}{{ x | list }}"
    assert render(source, {}) == "3-1-2[]"


@pytest.mark.parametrize("name", ["attributes", "globals of a macro", "include", "lipsum"])
def test_the_sandbox_is_jinjas(name: str) -> None:
    """Ways out end in Jinja's own errors, not in ours."""
    with pytest.raises(Exception) as caught:
        render(BOMBS[name], {})
    assert not isinstance(caught.value, TemplateLimitError)
