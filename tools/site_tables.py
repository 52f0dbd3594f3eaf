"""Fill generated tables into pages of the site; mkdocs.yml names this file as a hook.

`<!-- commands -->` becomes the reference of the command line, `<!-- schemas -->` the fields of every schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import click

import curconvert_schemas
from curconvert.cli import main

SCHEMAS = (
    "manifest-1.0", "verification-1.0", "components-1.0", "sweep-1.0", "bench-1.0", "client_config-1.0",
    "genai_config-1.0",
)  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its markers replaced; mkdocs calls it for each page."""
    for marker, render in (("<!-- commands -->", commands), ("<!-- schemas -->", schemas)):
        if marker in markdown:
            markdown = markdown.replace(marker, render())
    return markdown


def commands() -> str:
    """Return a section for each command: what it does, its usage and its options."""
    return "\n".join(line for command in main.commands.values() for line in _command(command))


def _command(command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=f"curconvert {command.name}")
    yield from (f"## {command.name}", "", *_paragraphs(command.help or ""), "")
    yield from ("```text", context.get_usage().removeprefix("Usage: "), "```", "")
    yield from ("| option | what it does | default |", "|---|---|---|")
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            what, default = split_default(record[1])
            yield _row(f"`{record[0]}`", what, default)
    yield ""


def _paragraphs(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def split_default(text: str) -> tuple[str, str]:
    """Return an option's help and the default that ends it in brackets: `[128]` or `[default: 128]`."""
    what, default = text, ""
    while match := re.search(r"\s+\[([^\]]*)\]$", what):
        what, default = what[: match.start()], match[1].removeprefix("default: ")
    return what, default


def schemas() -> str:
    """Return a section for each schema: what the document is, and its top-level fields."""
    return "\n".join(line for name in SCHEMAS for line in _schema(name, curconvert_schemas.load_schema(name)))


def _schema(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"### {name}", "", f"{schema['title']}. {schema['description']}", "")
    yield from ("| field | required | what it holds |", "|---|---|---|")
    for field, entry in schema["properties"].items():
        yield _row(f"`{field}`", "yes" if field in schema["required"] else "no", entry["description"])
    yield ""


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
