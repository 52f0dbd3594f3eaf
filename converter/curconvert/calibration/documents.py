"""Reads files of documents: plain text, and texts or conversations in JSON lines or parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curconvert.base.errors import InputError
from curconvert.calibration.parquet import parquet_rows
from curconvert.calibration.tokenizer import TextTools

MAX_TEXT_BYTES = 256 * 2**20
TASK_FIELDS = ("prompt", "completion")
CHAT_FIELDS = ("messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant"}

Message = Mapping[str, Any]
Located = tuple[str, Mapping[str, Any]]
"""Place in the file, for messages, and the record found there."""


def read_documents(path: Path, text_field: str, tools: TextTools, characters: int) -> str:
    """Return the text of a file, its documents one after the other.

    Newlines join texts. Conversations stand as the model's chat template writes them.

    Args:
        path: A UTF-8 text file, or a `.jsonl` or `.parquet` file.
        text_field: Field that holds the text.
        tools: Renders conversations.
        characters: About how many are needed. Of more conversations only some are rendered, evenly spread.

    Raises:
        InputError: The file is malformed, too large or JSON without lines, or the model has no chat template.
    """
    if path.suffix == ".parquet":
        rows = parquet_rows(path, (text_field, *CHAT_FIELDS, *TASK_FIELDS), MAX_TEXT_BYTES)
        found = _contents(rows, text_field)
    elif path.suffix == ".jsonl":
        found = _contents(json_lines(path, read_utf8(path)), text_field)
    elif path.suffix == ".json":
        raise InputError(
            f"{path}: would be read as plain text; write its records to {path.with_suffix('.jsonl')}, one JSON object "
            "in each line"
        )
    else:
        return read_utf8(path)
    if all(isinstance(content, str) for _, content in found):
        return "\n".join(content for _, content in found if isinstance(content, str))
    step = max(1, sum(_size(content) for _, content in found) // characters)
    return "".join(_rendered(where, content, tools) for where, content in found[step // 2 :: step])


def _contents(records: Iterable[Located], text_field: str) -> list[tuple[str, str | list[Message]]]:
    return [(where, _content(where, record, text_field)) for where, record in records]


def _content(where: str, record: Mapping[str, Any], text_field: str) -> str | list[Message]:
    """Return a record's text, or its conversation; the text's field comes first."""
    if record.get(text_field) is not None and not isinstance(record[text_field], list):
        return string_field(where, record, text_field)
    for field in (text_field, *CHAT_FIELDS):
        if isinstance(record.get(field), list):
            return _messages(where, field, record[field])
    if all(record.get(field) is not None for field in TASK_FIELDS):
        return [
            message
            for field, role in zip(TASK_FIELDS, ("user", "assistant"), strict=True)
            for message in _turns(where, record, field, role)
        ]
    return string_field(where, record, text_field)


def _turns(where: str, record: Mapping[str, Any], field: str, role: str) -> list[Message]:
    if isinstance(record[field], list):
        return _messages(where, field, record[field])
    return [{"role": role, "content": string_field(where, record, field)}]


def _messages(where: str, field: str, entries: Sequence[Any]) -> list[Message]:
    """Return messages with `role` and `content`; `from` and `value` are other names of these."""
    found: list[Message] = []
    for entry in entries:
        message = dict(entry) if isinstance(entry, Mapping) else {}
        if "role" not in message and "from" in message:
            sender = message.pop("from")
            message = {"role": _ROLES.get(sender, sender), "content": message.pop("value", None), **message}
        if not isinstance(message.get("role"), str) or "content" not in message:
            raise InputError(
                f"{where}: message {len(found)} of {field!r} needs 'role' and 'content', or 'from' and 'value'"
            )
        found.append(message)
    if not found:
        raise InputError(f"{where}: {field!r} is empty; remove this record")
    return found


def _size(content: str | list[Message]) -> int:
    return len(content) if isinstance(content, str) else sum(len(str(message["content"])) for message in content)


def _rendered(where: str, content: str | list[Message], tools: TextTools) -> str:
    return content + "\n" if isinstance(content, str) else tools.conversation(where, content)


def read_utf8(path: Path) -> str:
    """Read a text file of at most MAX_TEXT_BYTES.

    Raises:
        InputError: It is too large or not UTF-8.
    """
    if (size := path.stat().st_size) > MAX_TEXT_BYTES:
        raise InputError(
            f"{path}: {size / 2**20:.0f} MiB of calibration text; give a sample of at most {MAX_TEXT_BYTES >> 20} MiB"
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}") from error


def json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the location (for messages) and the JSON object of each line that is not blank.

    Raises:
        InputError: A line is not a JSON object.
    """
    # Only "\n" ends a JSONL line: a JSON string may contain the other characters that str.splitlines splits at.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
        yield where, record


def string_field(where: str, record: Mapping[str, Any], field: str) -> str:
    """Return the text in a field of a JSON object.

    Raises:
        InputError: The field is missing, is not a string, or is not valid Unicode.
    """
    value = record.get(field)
    if not isinstance(value, str):
        raise InputError(f"{where}: no string in the field {field!r} (fields: {', '.join(record) or 'none'})")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: the field {field!r} holds half of a surrogate pair") from error
    return value
