"""Reads `tekken.json`, the format of Mistral's newer tokenizers, without the mistral-common package."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

TEKKEN = "tekken.json"


def tekken_tokenizer(value: Mapping[str, Any], vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer in a `tekken.json`, and its special tokens by name.

    Special tokens have the first ids. Then come byte sequences; of all neighbors that form one, those of the lowest id
    merge first.

    Args:
        value: Content of the file.
        vocab_size: Number of rows of the model's embedding.

    Raises:
        ValueError: The file does not list its special tokens, or has more of them than the model has tokens.
    """
    settings, special = value["config"], value.get("special_tokens")
    if special is None:
        raise ValueError("an old tekken.json, without special tokens; save the tokenizer with mistral-common first")
    names = [entry["token_str"] for entry in sorted(special, key=lambda entry: entry["rank"])]
    count = settings.get("default_num_special_tokens", len(names))
    if count > vocab_size:
        raise ValueError(f"default_num_special_tokens is {count}, the model has {vocab_size} tokens")
    names += [f"<SPECIAL_{number}>" for number in range(len(names), count)]
    ranked = [base64.b64decode(entry["token_bytes"]) for entry in value["vocab"]]
    ranked = ranked[: settings.get("default_vocab_size", len(ranked) + count) - count]
    letters = _byte_letters()
    rank = {piece: number for number, piece in enumerate(ranked)}
    merges = []
    for piece in ranked:
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in cuts if pair[0] in rank and pair[1] in rank]
        merges += sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]]))

    def spelled(piece: bytes) -> str:
        return "".join(letters[byte] for byte in piece)

    vocabulary = {name: number for number, name in enumerate(names)}
    vocabulary |= {spelled(piece): number + count for piece, number in rank.items()}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [(spelled(left), spelled(right)) for left, right in merges], ignore_merges=True)
    )
    split = pre_tokenizers.Split(Regex(settings["pattern"]), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if "<s>" in names:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", names.index("<s>"))]
        )
    usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return tokenizer, {key: name for key, name in usual.items() if name in names}


def _byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte in a byte-level vocabulary, as `tokenizers` spells it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
