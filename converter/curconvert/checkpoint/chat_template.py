"""Finds the one chat template that an artifact gets, among all places where a model may keep templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curconvert.base.errors import InputError
from curconvert.checkpoint.types import Companions

JINJA, PROCESSOR = "chat_template.jinja", "chat_template.json"


def chat_template(
    files: Companions, settings: Mapping[str, Any], processor: Mapping[str, Any], where: str
) -> tuple[str | None, list[str]]:
    """Return the default template, or None, and notices about templates that are left out.

    `chat_template.jinja` comes first, as in transformers. Then come `tokenizer_config.json`, which may hold a list of
    named templates, and `chat_template.json`, which belongs to a processor.

    Args:
        files: The model's files.
        settings: Content of `tokenizer_config.json`.
        processor: Content of `chat_template.json`.
        where: The model's folder or file, for messages.

    Raises:
        InputError: A template is not UTF-8 text, or is no text.
    """
    named = _named(settings.get("chat_template"), f"{where}/tokenizer_config.json")
    content = files.content(JINJA)
    if content is not None:
        try:
            named["default"] = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}/{JINJA}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    elif not named:
        named = _named(processor.get("chat_template"), f"{where}/{PROCESSOR}")
    if len(named) == 1:
        return next(iter(named.values())), []
    left = sorted(named.keys() - {"default"})
    if not left:
        return None, []
    kept = "only 'default' is kept" if "default" in named else "none is called 'default', so none is kept"
    return named.get("default"), [
        f"{where}: chat templates {', '.join(left)} are left out, because an artifact has one template; {kept}"
    ]


def _named(value: Any, where: str) -> dict[str, str]:
    """Return templates by name; a lone template is the default one."""
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    named = value if isinstance(value, dict) else {"default": value}
    if not all(isinstance(part, str) for pair in named.items() for part in pair):
        raise InputError(f"{where}: chat_template: expected a text or a list of named texts; correct the file")
    return dict(named)
