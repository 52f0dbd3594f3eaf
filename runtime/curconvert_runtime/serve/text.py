"""Converts between text and token ids: tokenizer, chat template, and text that streams as tokens arrive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.errors import BackendError, InputError, IntegrityError, UnsupportedError, unsound
from curconvert_runtime.format import strict_json
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from curconvert_runtime.format.hashing import check_once
from curconvert_runtime.serve.backend import one_line
from curconvert_schemas.tokenizer import MAX_BYTES, check_tokenizer

Messages = Sequence[Mapping[str, Any]]
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_RULES = "tokenizer 1"  # name of the rules of `check_tokenizer`; change it when they change
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def _special_token(value: object) -> str:
    """Return a special token's text; `tokenizer_config.json` holds a string or an added-token object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def begin_token(tokenizer: Any, settings: Mapping[str, Any]) -> int | None:
    """Return the token that a `tokenizers.Tokenizer` or `add_bos_token` in its settings puts before a text, or None."""
    from tokenizers import Tokenizer, models  # noqa: PLC0415 - requests by token id need no tokenizer

    one = Tokenizer(models.WordLevel({"a": 2**32 - 1})).encode("a")  # an id that no vocabulary has
    first: int = tokenizer.post_process(one).ids[0]
    bos = _special_token(settings.get("bos_token")) if settings.get("add_bos_token") is True else ""
    return first if first not in one.ids else tokenizer.token_to_id(bos)


def windows(ids: NDArray[np.integer], length: int, begin: int | None) -> NDArray[np.int64]:
    """Cut token ids into windows of 2 or more that start with `begin`, (windows, length); drop the rest."""
    rows, start = [], 0
    while start < len(ids):
        head = [] if begin is None or ids[start] == begin else [begin]  # never twice
        rows.append([*head, *ids[start : (start := start + length - len(head))]])
    return np.asarray([row for row in rows if len(row) == length], np.int64).reshape(-1, length)


class Tokenizer:
    """The tokenizer of an artifact, from `tokenizer.json`. `begin` is its begin token, or None.

    Raises:
        UnsupportedError: The artifact has no `tokenizer.json`.
        IntegrityError: A file of the tokenizer is malformed.
        BackendError: The `tokenizers` package is missing.
    """

    def __init__(self, artifact: Artifact) -> None:
        try:
            import tokenizers  # noqa: PLC0415 - requests by token id need no tokenizer
        except ImportError as error:
            raise BackendError(
                f"tokenizers cannot be imported ({one_line(error)}); run pip install tokenizers"
            ) from None
        self._artifact = artifact
        if not artifact.has(TOKENIZER):
            raise UnsupportedError(
                f"{artifact.path}: the artifact has no tokenizer.json; give token ids instead of text"
            )
        with self._guard(), artifact.file(TOKENIZER).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
            check_once(lambda: check_tokenizer(data), _RULES, artifact.manifest["files"][TOKENIZER]["sha256"])
            self._tokenizer = tokenizers.Tokenizer.from_buffer(data)
        # A saved tokenizer may carry the truncation and padding of its training run.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        has_config = artifact.has(TOKENIZER_CONFIG)
        self._config = strict_json.read(artifact.file(TOKENIZER_CONFIG)) if has_config else {}
        with self._guard():
            self.begin = begin_token(self._tokenizer, self._config)

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn any error of the Rust code into a one-line `IntegrityError`. A Rust panic is no `Exception`."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001
            path = self._artifact.path / TOKENIZER
            raise IntegrityError(f"{path}: cannot be used as a tokenizer ({one_line(error)}); convert again") from None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        if not isinstance(text, str):
            raise InputError(f"prompt: expected text, found {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("prompt: holds a lone surrogate; pass valid Unicode text") from None
        with self._guard():
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        if not ids:
            raise InputError("empty prompt: the text has no tokens; give a longer text")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        with self._guard():
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def chat_template(self) -> str | None:
        """Return the model's chat template, or None."""
        if self._artifact.has(CHAT_TEMPLATE):
            try:
                return self._artifact.file(CHAT_TEMPLATE).read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise unsound(self._artifact.path / CHAT_TEMPLATE, "not UTF-8 text") from None
        return template_in(self._config)

    def render_chat(self, messages: Messages, **variables: Any) -> str:
        """Return a conversation as prompt text that the assistant continues.

        Args:
            messages: Mappings with `role` and `content`.
            **variables: Further variables of the template, such as `tools`.
        """
        source = self.chat_template()
        if source is None:
            raise UnsupportedError(
                f"{self._artifact.path}: the model has no chat template; give the prompt as plain text"
            )
        return render_chat(source, self._config, messages, **variables)

    def encode_chat(self, messages: Messages, **variables: Any) -> list[int]:
        """Return a conversation as token ids. The template adds the special tokens."""
        return self.encode(self.render_chat(messages, **variables), add_special_tokens=False)


def template_in(settings: Mapping[str, Any]) -> str | None:
    """Return the chat template in `tokenizer_config.json`, or None."""
    template = settings.get("chat_template")
    return template if isinstance(template, str) else None


def render_chat(source: str, settings: Mapping[str, Any], messages: Messages, **variables: Any) -> str:
    """Return a conversation as text, from a chat template and `tokenizer_config.json`."""
    special = {name: _special_token(settings.get(name)) for name in _SPECIAL_TOKENS}
    return render_template(source, {"add_generation_prompt": True, **special, **variables, "messages": messages})


def render_template(source: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template within limits of work and text; see `curconvert_schemas.templates`."""
    try:
        from curconvert_schemas import templates  # noqa: PLC0415 - plain prompts need no jinja2
    except ImportError as error:
        raise BackendError(f"jinja2 cannot be imported ({one_line(error)}); run pip install jinja2") from None
    try:
        return templates.render(source, variables)
    except templates.TemplateLimitError as error:
        raise InputError(f"chat template refused: {error}; give the prompt as plain text") from None
    except Exception as error:  # noqa: BLE001 - a template is the model's code and can raise anything
        raise InputError(f"chat template failed: {one_line(error)}; check the messages") from None


class TextStream:
    """Turns token ids into text piece by piece. The joined pieces equal the text of all ids.

    A token may end inside a character, and a decoder may treat the first token specially (a leading space). So new ids
    are decoded together with a few earlier ones, and held back while the text ends in a broken character.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # first id that is decoded again
        self._shown = 0  # ids before this one are in text already returned

    def push(self, token: int) -> str:
        """Add one id and return the text that can no longer change, often empty."""
        self._ids.append(token)
        piece = self._pending()
        if not piece or piece.endswith(_REPLACEMENT):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return piece

    def flush(self) -> str:
        """Return the text still held back; an incomplete character becomes U+FFFD."""
        piece = self._pending()
        self._context = self._shown = len(self._ids)
        return piece

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._shown])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]
