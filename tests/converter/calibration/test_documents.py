"""Calibration from conversations and parquet: the text that transformers' own templates give, or a refusal."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from curconvert.base.errors import BackendError, InputError
from curconvert.calibration.documents import read_documents
from curconvert.calibration.text import load_tokens
from curconvert.calibration.tokenizer import TextTools
from curconvert.checkpoint.types import Companions
from curconvert.options.calibration import CalibrationOptions
from support.tiny_artifact import byte_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}"
    "{% endif %}<|{{ message.role }}|>\n{{ message.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Short."},
    {"role": "user", "content": "Hi "},
    {"role": "assistant", "content": "Yo"},
]
TURNS = [
    {"from": "system", "value": "Short."}, {"from": "human", "value": "Hi "}, {"from": "gpt", "value": "Yo"}
]  # fmt: skip
MANY = 10**6


def tools(template: str | list[dict[str, str]] | None = TEMPLATE, jinja: bytes | None = None) -> TextTools:
    """The files of a model with a chat template."""
    settings = {"bos_token": "<s>", "eos_token": "</s>", **({} if template is None else {"chat_template": template})}
    files = {
        "tokenizer.json": byte_tokenizer().to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    return TextTools(Companions(written=files if jinja is None else {**files, "chat_template.jinja": jinja}))


def expected(messages: list[dict[str, Any]], template: str = TEMPLATE) -> str:
    """A conversation by transformers alone."""
    oracle = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), bos_token="<s>", eos_token="</s>")
    found: str = oracle.apply_chat_template(messages, chat_template=template, tokenize=False)
    return found


def lines(path: Path, *records: Any) -> Path:
    """Write a JSONL file."""
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "field", "messages"),
    [
        ({"messages": CHAT}, "text", CHAT),
        ({"messages": CHAT, "text": None, "id": 7}, "text", CHAT),
        ({"conversations": TURNS}, "text", CHAT),
        ({"conversations": CHAT}, "text", CHAT),
        ({"dialog": TURNS}, "dialog", CHAT),
        ({"prompt": "Hi ", "completion": "Yo"}, "text", CHAT[1:]),
        ({"prompt": CHAT[:2], "completion": CHAT[2:]}, "text", CHAT),
    ],
)
def test_a_conversation_is_what_transformers_writes(
    tmp_path: Path, record: dict[str, Any], field: str, messages: list[dict[str, Any]]
) -> None:
    """All of them, one after the other, without the start of another answer."""
    path = lines(tmp_path / "chat.jsonl", record, record)
    assert read_documents(path, field, tools(), MANY) == 2 * expected(messages)


def test_text_comes_before_conversations(tmp_path: Path) -> None:
    """A record that has both is read as text, and a file may mix both kinds."""
    path = lines(tmp_path / "a.jsonl", {"text": "Plain.", "messages": CHAT}, {"messages": CHAT}, {"text": "More."})
    assert read_documents(path, "text", tools(), MANY) == f"Plain.\n{expected(CHAT)}More.\n"


def test_the_template_is_found_where_transformers_looks(tmp_path: Path) -> None:
    """The file of its own comes first."""
    model = tools("no", TEMPLATE.encode())
    assert read_documents(lines(tmp_path / "a.jsonl", {"messages": CHAT}), "text", model, MANY) == expected(CHAT)


def test_sequences_of_conversations_start_with_one_begin_token(tmp_path: Path) -> None:
    """The template writes it too; no sequence has it twice."""
    path = lines(tmp_path / "chat.jsonl", *[{"messages": CHAT}] * 40)
    given = CalibrationOptions(str(path), sequences=16, tokens_per_sequence=24, probe_sequences=4)
    tokens = load_tokens(given, tools()._companions)
    assert (tokens.calibration[:, 0] == 297).all()
    assert not (tokens.calibration[:, 1] == 297).any()
    assert len(tokens.calibration) == 16


@pytest.mark.parametrize("content", ['[{"messages": []}]', '{"text": "a"}\n{"text": "b"}', "{}"])
def test_json_is_not_taken_for_prose(tmp_path: Path, content: str) -> None:
    """Field names and braces are no text of the model's; the message names a file that is read as records."""
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"would be read as plain text; write its records to .*chat\.jsonl"):
        read_documents(path, "text", tools(), MANY)


def test_of_many_conversations_some_are_rendered_from_everywhere(tmp_path: Path) -> None:
    """About as many characters as asked for."""
    chats = [{"messages": [{"role": "user", "content": f"{number:03}" * 10}]} for number in range(200)]
    text = read_documents(lines(tmp_path / "a.jsonl", *chats), "text", tools(), 600)
    found = [number for number in range(200) if f"{number:03}" * 10 in text]
    assert found == list(range(5, 200, 10))


@pytest.mark.parametrize(
    ("record", "model", "message"),
    [
        ({"messages": CHAT}, tools(None), "line 1: holds a conversation, but the model has no chat template"),
        ({"messages": []}, tools(), "line 1: 'messages' is empty"),
        ({"messages": ["Hi"]}, tools(), "line 1: message 0 of 'messages' needs 'role' and 'content'"),
        ({"messages": [*CHAT, {"role": "user"}]}, tools(), "line 1: message 3 of 'messages' needs"),
        ({"messages": [{"role": 1, "content": "x"}]}, tools(), "line 1: message 0 of 'messages' needs"),
        ({"messages": [{"role": "tool", "content": "x"}]}, tools(), "line 1: chat template failed.*no tools"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, tools(), "line 1: the conversation holds half"),
        ({"prompt": "Hi", "completion": 7}, tools(), "line 1: no string in the field 'completion'"),
        ({"prompt": "Hi"}, tools(), r"line 1: no string in the field 'text' \(fields: prompt\)"),
        ({"messages": "Hi"}, tools(), r"line 1: no string in the field 'text' \(fields: messages\)"),
        ({"messages": CHAT}, tools(None, b"\xff"), r"chat_template\.jinja: not UTF-8"),
    ],
)
def test_malformed_conversations_are_refused(
    tmp_path: Path, record: dict[str, Any], model: TextTools, message: str
) -> None:
    """Each fault is named with its line."""
    with pytest.raises(InputError, match=message):
        read_documents(lines(tmp_path / "a.jsonl", record), "text", model, MANY)


def test_without_pyarrow_a_parquet_file_gets_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install, and what else works."""
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(BackendError, match=r"a\.parquet: reading parquet needs pyarrow; run: pip install pyarrow"):
        read_documents(tmp_path / "a.parquet", "text", tools(), MANY)


@pytest.mark.parametrize("column", ["text", "messages", "conversations"])
def test_a_parquet_file_reads_like_the_lines(tmp_path: Path, column: str) -> None:
    """The same text as the same records in JSON lines, other columns aside."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    content: dict[str, Any] = {"text": "Plain text.", "messages": CHAT, "conversations": TURNS}
    records = [{"id": number, column: content[column]} for number in range(600)]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    jsonl = lines(tmp_path / "a.jsonl", *records)
    assert read_documents(tmp_path / "a.parquet", "text", tools(), MANY) == read_documents(jsonl, "text", tools(), MANY)


def test_unfit_parquet_files_are_refused(tmp_path: Path) -> None:
    """A file that is none, and one without a known column."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 garbage PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_documents(tmp_path / "a.parquet", "text", tools(), MANY)
    parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"no column text or messages .*\(columns: body\)"):
        read_documents(tmp_path / "b.parquet", "text", tools(), MANY)
