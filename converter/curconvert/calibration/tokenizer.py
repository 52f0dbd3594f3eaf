"""Opens what a model comes with for text: its tokenizer, its begin token and its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from curconvert.base.errors import CurConvertError, InputError
from curconvert.checkpoint.finished import opened
from curconvert.checkpoint.types import Companions
from curconvert_runtime.format import strict_json
from curconvert_runtime.format.files import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from curconvert_runtime.serve.text import begin_token, render_chat, template_in

TOKEN_TENSOR = "input_ids"  # noqa: S105 - the name of a tensor


class TextTools:
    """Turns texts and conversations into what the model reads.

    Args:
        companions: The files that the model comes with.
    """

    def __init__(self, companions: Companions) -> None:
        self._companions = companions

    def tokenizer(self, source: str) -> Tokenizer:
        """Return the model's tokenizer, without the truncation and padding that its file may set.

        Args:
            source: Name of the text to read, for messages.

        Raises:
            InputError: There is none, or it is malformed.
        """
        if self._tokenizer is None:
            raise InputError(
                f"{source}: the model has no tokenizer.json, which a calibration text needs; "
                f"give a .safetensors file whose tensor {TOKEN_TENSOR!r} holds token ids"
            )
        return self._tokenizer

    @cached_property
    def begin(self) -> int | None:
        """The token that the model expects before every text; None without one or without a tokenizer."""
        return None if self._tokenizer is None else begin_token(self._tokenizer, self._settings)

    def conversation(self, where: str, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return a conversation as the model's chat template writes it.

        Args:
            where: Place of the conversation, for messages.
            messages: Mappings with `role` and `content`.

        Raises:
            InputError: The model has no template, it rejects the messages, or its text is not valid Unicode.
        """
        if self._template is None:
            raise InputError(f"{where}: holds a conversation, but the model has no chat template; give plain text")
        try:
            text = render_chat(self._template, self._settings, messages, add_generation_prompt=False)
            text.encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: the conversation holds half of a surrogate pair") from None
        except CurConvertError as error:
            raise type(error)(f"{where}: {error}") from None
        return text

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        content = self._companions.content(TOKENIZER)
        if content is None:
            return None
        tokenizer = opened(content, self._companions.copied.get(TOKENIZER, TOKENIZER))
        # A tokenizer file may set both, but running text must have neither.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _settings(self) -> dict[str, Any]:
        content = self._companions.content(TOKENIZER_CONFIG)
        return {} if content is None else strict_json.parse(content, TOKENIZER_CONFIG)

    @cached_property
    def _template(self) -> str | None:
        content = self._companions.content(CHAT_TEMPLATE)
        try:
            return template_in(self._settings) if content is None else content.decode()
        except UnicodeDecodeError:
            raise InputError(f"{CHAT_TEMPLATE}: not UTF-8 text; get the file again from its source") from None
