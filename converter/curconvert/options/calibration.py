"""Options of the calibration text."""

from __future__ import annotations

from dataclasses import dataclass

from curconvert.base.errors import InputError

BUILTIN = "builtin"


@dataclass(frozen=True)
class CalibrationOptions:
    """The calibration text, and how much of it to use.

    Attributes:
        source: `builtin`, or the path of a UTF-8 text file, a `.jsonl` or `.parquet` file of texts or conversations, or
            a `.safetensors` file of token ids.
        text_field: Field that holds the text in each record of a `.jsonl` or `.parquet` file.
        sequences: Maximum number of sequences. A shorter text gives fewer, with a notice.
        tokens_per_sequence: Tokens in each sequence.
        probe_sequences: Sequences held out for verification. Calibration does not use them.
        seed: Changes which sequences are taken.
        begin: Start every sequence with the begin token, if the tokenizer adds one to a text.

    Raises:
        InputError: A number is out of range or a name is empty.
    """

    source: str = BUILTIN
    text_field: str = "text"
    sequences: int = 128
    tokens_per_sequence: int = 128
    probe_sequences: int = 16
    seed: int = 0
    begin: bool = True

    def __post_init__(self) -> None:
        for name, least in (("sequences", 1), ("tokens_per_sequence", 2), ("probe_sequences", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"calibration: {name} is {getattr(self, name)}, but must be at least {least}")
        for name in ("source", "text_field"):
            if not getattr(self, name):
                raise InputError(f"calibration: {name} is empty")
