"""A tokenizer in another format than tokenizer.json gives the ids that its own format defines."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from curconvert.checkpoint import open_checkpoint
from support.families import make_checkpoint

HARD = (
    "the lazy dog, the quick brown fox",
    "  two  spaces and\ttab\n\nlines ",
    "Café naïve 日本語 🙂👨‍👩",
    "12345 don't x=1;",
    " ",
    "the<|user|> dog</s>fox",
)
TEXT = ["the lazy dog, the quick brown fox jumps over the lazy dog. don't 123 the\nfox"] * 20


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with more tokens than any tokenizer here."""
    return make_checkpoint(tmp_path_factory.mktemp("wide") / "model", "llama", vocab_size=600).folder


@pytest.fixture
def llama(wide: Path, tmp_path: Path) -> Path:
    """A copy of it without a tokenizer."""
    return Path(shutil.copytree(wide, tmp_path / "llama"))


def ids_of(folder: Path, text: str) -> list[int]:
    """Encode with the tokenizer.json that an artifact gets, as clients do."""
    content = open_checkpoint(folder).companions().written["tokenizer.json"]
    ids: list[int] = Tokenizer.from_str(content.decode()).encode(text).ids
    return ids


# --- sentencepiece ---

PIECES = [
    "▁the",
    "▁",
    "th",
    "he",
    "▁t",
    "the",
    "la",
    "lazy",
    "▁lazy",
    "do",
    "og",
    "dog",
    "▁dog",
    "fo",
    "fox",
    "▁fox",
    "ck",
]
SPECIALS = ["<unk>", "<s>", "</s>"]


def write_sentencepiece(path: Path, *, model_type: int = 2, charsmap: bytes = b"") -> list[str]:
    """Write a `tokenizer.model` in the style of Llama 2; returns its pieces in the order of their ids."""
    proto = import_protobuf().ModelProto()
    characters = sorted(set("".join(TEXT)) - {" ", "\n"})
    pieces = [(piece, 0.0, 2 if piece == "<unk>" else 3) for piece in SPECIALS]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(piece, -float(place), 1) for place, piece in enumerate([*PIECES, *characters])]
    for piece, score, kind in pieces:
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = model_type, True
    proto.normalizer_spec.add_dummy_prefix, proto.normalizer_spec.remove_extra_whitespaces = True, False
    proto.normalizer_spec.precompiled_charsmap = charsmap
    path.write_bytes(proto.SerializeToString())
    return [piece for piece, _, _ in pieces]


def sentencepiece_ids(text: str, pieces: list[str], prefix: bool = True) -> list[int]:
    """Encode as sentencepiece defines: join the neighbors with the best score until none is left, then bytes."""
    score = {piece: -number for number, piece in enumerate(pieces) if number >= len(SPECIALS) + 256}
    parts = list(("▁" if prefix else "") + text.replace(" ", "▁"))
    while True:
        joined = [(score[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in score]
        if not joined:
            break
        at = -max(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = []
    for part in parts:
        ids += [pieces.index(part)] if part in score else [pieces.index(f"<0x{byte:02X}>") for byte in part.encode()]
    return ids


@pytest.mark.parametrize("text", HARD)
@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_gives_its_own_ids(llama: Path, text: str, legacy: bool) -> None:
    """BOS, pieces by score, bytes for what is unknown; added tokens stay whole; a space before the text.

    In the older form, each part after a special token starts with a space as well. In the newer one, transformers adds
    no second space to a text that starts with one.
    """
    pieces = write_sentencepiece(llama / "tokenizer.model")
    added = {str(len(pieces)): {"content": "<|user|>", "special": True, "rstrip": False}}
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "added_tokens_decoder": added,
        "eos_token": "</s>",
    }
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    whole = {"<|user|>": len(pieces), "</s>": 2}
    expected = [1]
    for place, part in enumerate(re.split(r"(<\|user\|>|</s>)", text)):
        if part:
            expected += (
                [whole[part]]
                if part in whole
                else sentencepiece_ids(part, pieces, legacy or (place == 0 and part[0] != " "))
            )
    assert ids_of(llama, text) == expected


@pytest.mark.parametrize(("begin", "end"), [(False, False), (True, True), (False, True)])
def test_sentencepiece_adds_the_tokens_that_the_settings_say(llama: Path, begin: bool, end: bool) -> None:
    """add_bos_token and add_eos_token decide what surrounds a text."""
    pieces = write_sentencepiece(llama / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": begin, "add_eos_token": end}
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ids_of(llama, "the dog") == [1] * begin + sentencepiece_ids("the dog", pieces) + [2] * end


def test_tokens_of_added_tokens_json_follow_the_pieces(llama: Path) -> None:
    """Older models list them in a file of their own."""
    pieces = write_sentencepiece(llama / "tokenizer.model")
    (llama / "added_tokens.json").write_text(json.dumps({"<|a|>": len(pieces) + 1}))
    assert ids_of(llama, "<|a|>") == [1, len(pieces) + 1]


# --- tekken ---

PATTERN = r"[^\s\d]+|\d|\s+"


def write_tekken(path: Path) -> tuple[list[str], list[bytes]]:
    """Write a `tekken.json` with five special tokens, two of them unnamed; returns these and the byte sequences."""
    ranked = [bytes([byte]) for byte in range(256)] + [b"th", b"he", b"the", b" t", b"do", b"og", b"dog", b"fo", b"fox"]
    specials = ["<unk>", "<s>", "</s>"]
    value = {
        "config": {"pattern": PATTERN, "default_num_special_tokens": 5, "default_vocab_size": 5 + len(ranked)},
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
            for rank, piece in enumerate([*ranked, b"never"])
        ],
        "special_tokens": [{"rank": n, "token_str": name, "is_control": True} for n, name in enumerate(specials)],
    }
    path.write_text(json.dumps(value))
    return [*specials, "<SPECIAL_3>", "<SPECIAL_4>"], ranked


def tekken_ids(text: str, ranked: list[bytes]) -> list[int]:
    """Encode as tiktoken defines: split by the pattern, then join the neighbors of the lowest rank."""
    ids = []
    for word in re.findall(PATTERN, text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            joined = [
                (ranked.index(a + b), at) for at, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranked
            ]
            if not joined:
                break
            at = min(joined)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [5 + ranked.index(part) for part in parts]
    return ids


@pytest.mark.parametrize("text", [text for text in HARD if "</s>" not in text])
def test_tekken_gives_its_own_ids(llama: Path, text: str) -> None:
    """The begin token, then bytes joined in the order of their ranks, after the special tokens."""
    _, ranked = write_tekken(llama / "tekken.json")
    assert ids_of(llama, text) == [1, *tekken_ids(text, ranked)]


def test_tekken_keeps_its_special_tokens_whole(llama: Path) -> None:
    """Their ids come first, the unnamed ones included."""
    specials, ranked = write_tekken(llama / "tekken.json")
    assert ids_of(llama, "the</s><SPECIAL_4>") == [1, *tekken_ids("the", ranked), 2, specials.index("<SPECIAL_4>")]


# --- vocab.json and merges.txt ---


def write_words(folder: Path, kind: str) -> None:
    """Write `vocab.json` and `merges.txt` of a small byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    )
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(merge) for merge in model["merges"]))
    settings = {"tokenizer_class": kind, "eos_token": "<|end|>", "unk_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("kind", ["Qwen2Tokenizer", "GPT2Tokenizer"])
def test_words_and_merges_give_the_ids_of_transformers(llama: Path, kind: str) -> None:
    """Each class of transformers splits text in its own way; the ids are those of the class that the model names."""
    write_words(llama, kind)
    original = AutoTokenizer.from_pretrained(llama)
    for text in HARD:
        assert ids_of(llama, text) == original(text)["input_ids"]


def test_the_built_tokenizer_loads_in_transformers(llama: Path, tmp_path: Path) -> None:
    """The settings that come with it name a class that takes tokenizer.json as it is."""
    write_sentencepiece(llama / "tokenizer.model")
    for name, content in open_checkpoint(llama).companions().written.items():
        (tmp_path / name).write_bytes(content)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("the dog")["input_ids"] == ids_of(llama, "the dog")
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")


# --- what cannot be built ---


def unigram(folder: Path) -> None:
    write_sentencepiece(folder / "tokenizer.model", model_type=1)


def tiktoken(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")


def old_tekken(folder: Path) -> None:
    (folder / "tekken.json").write_text('{"config": {"pattern": "."}, "vocab": []}')


@pytest.mark.parametrize(
    ("write", "advice"),
    [(unigram, "pip install sentencepiece"), (tiktoken, "pip install tiktoken"), (old_tekken, "mistral-common")],
)
def test_a_tokenizer_that_needs_another_package_gives_a_warning(
    llama: Path,
    write: Callable[[Path], Any],
    advice: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights are usable without it, and one line names the package."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    write(llama)
    with caplog.at_level(logging.WARNING, "curconvert"):
        companions = open_checkpoint(llama).companions()
    assert "tokenizer.json" not in companions.written
    [message] = [record.getMessage() for record in caplog.records if record.name.startswith("curconvert")]
    assert re.search(advice, message)
    assert "\n" not in message
