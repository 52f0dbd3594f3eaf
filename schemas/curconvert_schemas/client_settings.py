"""Checks the settings that other programs read from an artifact: they may name no code and no library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curconvert_schemas import is_valid, validate

_CLIENTS = "client_config-1.0"  # has a property for each file
SETTINGS = {
    "chat_template.json": _CLIENTS,
    "config.json": _CLIENTS,
    "genai_config.json": "genai_config-1.0",
    "generation_config.json": _CLIENTS,
    "special_tokens_map.json": _CLIENTS,
    "tokenizer_config.json": _CLIENTS,
}
"""The schema of each file of settings."""


def check_settings(file: str, settings: Mapping[str, Any]) -> None:
    """Raise `SchemaError` if a file of settings holds something that curconvert never writes."""
    validate(_document(file, settings), SETTINGS[file])


def foreign_keys(file: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the keys of a file's settings that must not reach an artifact."""
    return [key for key, value in settings.items() if not is_valid(_document(file, {key: value}), SETTINGS[file])]


def _document(file: str, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return {file: settings} if SETTINGS[file] == _CLIENTS else settings
