"""Turns a model's files into those of an artifact: one tokenizer, one chat template, special tokens that agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING

from curconvert.base.errors import InputError
from curconvert.checkpoint.chat_template import JINJA, PROCESSOR, chat_template
from curconvert.checkpoint.companions import REPLACED_NAMES, json_bytes
from curconvert.checkpoint.files import json_object
from curconvert.checkpoint.generation_config import generation_config, generation_fields
from curconvert.checkpoint.special_tokens import FIELDS, Source, SpecialTokens, decide
from curconvert.checkpoint.tokenizer_build import build_tokenizer
from curconvert.checkpoint.training_traces import clean_settings, clean_tokenizer
from curconvert.checkpoint.types import Companions
from curconvert_runtime.format.files import GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG
from curconvert_schemas.client_settings import foreign_keys
from curconvert_schemas.tokenizer import check_tokenizer

_TOKENS_MAP = "special_tokens_map.json"


@dataclass(frozen=True)
class Stated:
    """What a model says about itself, before defaults are filled in.

    Attributes:
        where: The folder with the model's files, or its GGUF file.
        config: Its `config.json`, with the user's overrides.
        overrides: The user's overrides alone.
        normalized: The config with the family's defaults.
    """

    where: Path
    config: Mapping[str, Any]
    overrides: Mapping[str, Any]
    normalized: Mapping[str, Any]

    def file(self, name: str) -> str:
        """Return what to call a file in messages."""
        return str(self.where / name if self.where.is_dir() else self.where)


def finished(files: Companions, stated: Stated) -> Companions:
    """Return the files as the artifact gets them.

    Raises:
        InputError: A file is malformed.
    """
    parsed = {
        name: {} if (content := files.content(name)) is None else json_object(content, stated.file(name))
        for name in (TOKENIZER_CONFIG, _TOKENS_MAP, PROCESSOR, GENERATION_CONFIG)
    }
    notices = list(files.notices)
    settings = _with_map(parsed[TOKENIZER_CONFIG], parsed[_TOKENS_MAP])
    written, settings, tokenizer = _tokenizer(files, settings, stated, notices)
    notices += _limits(tokenizer, stated)
    template, left = chat_template(files, settings, parsed[PROCESSOR], str(stated.where))
    notices += left
    own = _own_tokens(settings, tokenizer, stated, notices)
    tokens, found = decide(
        _configs(stated, parsed[GENERATION_CONFIG]),
        Source(stated.file(TOKENIZER_CONFIG), own),
        Source("transformers' default", {k: stated.normalized.get(k) for k in FIELDS if k not in stated.config}),
        stated.normalized["vocab_size"],
    )
    notices += found
    written[GENERATION_CONFIG] = json_bytes(_generation(files, parsed[GENERATION_CONFIG], tokens, stated, notices))
    settings = {k: v for k, v in _agreeing(settings, own, tokens, tokenizer).items() if k != "chat_template"}
    if template is not None:
        settings["chat_template"] = template
        written[JINJA] = template.encode("utf-8")
    if tokenizer is not None or files.content(TOKENIZER_CONFIG) is not None:
        written[TOKENIZER_CONFIG] = json_bytes(settings)
    copied = {
        name: path for name, path in files.copied.items() if name not in (*REPLACED_NAMES, *_changed(files, written))
    }
    generated = {name: content for name, content in {**files.written, **written}.items() if name not in copied}
    return Companions(copied, generated, tokens, tuple(dict.fromkeys(notices)))


def _tokenizer(
    files: Companions, settings: Mapping[str, Any], stated: Stated, notices: list[str]
) -> tuple[dict[str, bytes], dict[str, Any], Tokenizer | None]:
    """Return `tokenizer.json` by its name, if there is one, the settings, and the tokenizer: no traces of training."""
    cleaned, removed = clean_settings(settings, stated.normalized["max_position_embeddings"])
    content = files.content(TOKENIZER)
    if content is None:
        content, cleaned = build_tokenizer(files, cleaned, stated.normalized, str(stated.where))
    tokenizer, written = None, dict[str, bytes]()
    if content is not None:
        tokenizer = opened(content, stated.file(TOKENIZER))
        written[TOKENIZER], found = clean_tokenizer(content, tokenizer)
        removed += found
        # Without a class, transformers would rebuild the tokenizer in its own way for this kind of model.
        cleaned.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        cleaned.setdefault("model_input_names", ["input_ids", "attention_mask"])  # or 4.57 adds token_type_ids
    if removed:
        notices.append(
            f"{stated.where}: the tokenizer keeps settings of a training run, left out: {', '.join(removed)}"
        )
    return written, cleaned, tokenizer


def _limits(tokenizer: Tokenizer | None, stated: Stated) -> list[str]:
    """Return a notice if the artifact cannot take every text."""
    if tokenizer is None:
        return ["the model has no tokenizer that can be used; the artifact takes token ids only"]
    last, vocab_size = max(tokenizer.get_vocab().values(), default=-1), stated.normalized["vocab_size"]
    if last < vocab_size:
        return []
    return [
        f"{stated.file(TOKENIZER)}: has tokens up to {last}; the model knows only the first {vocab_size}, and texts "
        "with others are refused"
    ]


def _generation(
    files: Companions, stored: Mapping[str, Any], tokens: SpecialTokens, stated: Stated, notices: list[str]
) -> dict[str, Any]:
    """Return the content of `generation_config.json`; a model without this file keeps such settings in its config."""
    name = GENERATION_CONFIG
    if files.content(name) is None:
        name = "config.json"
        moved = {key: value for key, value in stated.config.items() if key in generation_fields()}
        foreign = foreign_keys(GENERATION_CONFIG, moved)
        stored = {key: value for key, value in moved.items() if key not in foreign}
    content, found = generation_config(stored, tokens, stated.file(name))
    notices += found
    return content


def _changed(files: Companions, written: Mapping[str, bytes]) -> list[str]:
    """Return the names of copied files with another content than what has to be written."""
    changed = []
    for name in files.copied.keys() & written.keys():
        old, new = files.copied[name].read_bytes(), written[name]
        same = old == new or (name in (TOKENIZER_CONFIG, GENERATION_CONFIG) and json.loads(old) == json.loads(new))
        if not same:
            changed.append(name)
    return changed


def _with_map(settings: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer's settings with `special_tokens_map.json`, which transformers follows in older models."""
    merged = {**settings, **named} if "added_tokens_decoder" not in settings else {**named, **settings}
    if merged.get("tokenizer_class") == "TokenizersBackend":
        # transformers 5 writes a class name that 4.57 cannot load; both versions load the name written here.
        merged["tokenizer_class"] = "PreTrainedTokenizerFast"
        merged.setdefault("model_input_names", ["input_ids", "attention_mask"])  # or 4.57 adds token_type_ids
    return merged


def opened(content: bytes, where: str | Path) -> Tokenizer:
    """Return a tokenizer after a check that it cannot fill the memory or take for ever.

    Raises:
        InputError: It is malformed, or could do so.
    """
    try:
        check_tokenizer(content)
        return Tokenizer.from_buffer(content)
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: not a tokenizer ({reason}); get the file again, or upgrade tokenizers") from None


def _own_tokens(
    settings: Mapping[str, Any], tokenizer: Tokenizer | None, stated: Stated, notices: list[str]
) -> dict[str, int | None]:
    """Return the ids of the tokenizer's special tokens by field of a config."""
    found: dict[str, int | None] = dict.fromkeys(FIELDS)
    for field in FIELDS if tokenizer is not None else ():
        name = field.removesuffix("_id")
        text = _text(settings.get(name))
        if text is not None and tokenizer is not None:
            found[field] = tokenizer.token_to_id(text)
            if found[field] is None:
                notices.append(
                    f"{stated.file(TOKENIZER_CONFIG)}: {name} {text!r:.60} is not in the tokenizer; left out"
                )
    return found


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _configs(stated: Stated, generation: Mapping[str, Any]) -> list[Source]:
    """Return what the configs say, the user's overrides first. A multimodal config holds its text model's."""
    inner = stated.config.get("text_config")
    within: Mapping[str, Any] = inner if isinstance(inner, dict) else {}
    config = {key: stated.config.get(key, within.get(key)) for key in FIELDS}
    family = CONFIG_MAPPING[stated.normalized["model_type"]]()
    defaults = {key: getattr(family, key, None) for key in FIELDS}
    copied = generation.get("_from_model_config") is True
    return [
        Source("--config-set", stated.overrides),
        Source(stated.file(GENERATION_CONFIG), generation, defaults if copied else {}),
        Source(stated.file("config.json"), config, defaults),
    ]


def _agreeing(
    settings: Mapping[str, Any], own: Mapping[str, int | None], tokens: SpecialTokens, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Return the tokenizer's settings with the decided end and padding tokens."""
    agreeing = dict(settings)
    if tokenizer is None:
        return agreeing
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    decided = zip(FIELDS, ((tokens.begin,), tokens.end, (tokens.pad,)), strict=True)
    for field, ids in decided:
        name = field.removesuffix("_id")
        if own[field] is not None and own[field] in ids:
            continue
        if settings.get(name) is not None:
            agreeing[name] = None
        # A tokenizer that names no begin token must not get one: templates would write it.
        if field != "bos_token_id" and ids and ids[0] in special:
            agreeing[name] = tokenizer.id_to_token(ids[0])
    return agreeing
