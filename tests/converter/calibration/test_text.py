"""Calibration text: every source, the held-out probes, and what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from curconvert.base.errors import InputError
from curconvert.calibration import documents
from curconvert.calibration import text as text_module
from curconvert.calibration.text import CalibrationTokens, digest, load_tokens
from curconvert.calibration.tokenizer import TextTools
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.gguf_tokenizer import tokenizer_files
from curconvert.checkpoint.types import Companions
from curconvert.options.calibration import CalibrationOptions
from curconvert_runtime.format.files import TOKENIZER

MODEL = Path(__file__).resolve().parents[3] / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROSE = "The heron stood in the shallows, and nobody on the ferry said anything about the plums.\n"


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    """A byte-level BPE of 300 entries that would add <s>, truncate and pad if it were let."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=4096)
    content: str = tokenizer.to_str()
    return content.encode()


def plain_ids(tokenizer_json: bytes, text: str) -> list[int]:
    """The ids of a text by the tokenizers library alone."""
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def files(tokenizer: bytes) -> Companions:
    """The files of a model that has a tokenizer."""
    return Companions(written={TOKENIZER: tokenizer})


def write_ids(path: Path, ids: np.ndarray, name: str = "input_ids") -> str:
    """Save token ids and return the path as an option takes it."""
    save_file({name: np.ascontiguousarray(ids)}, path)
    return str(path)


def options(
    source: str, sequences: int = 4, length: int = 8, probes: int = 2, seed: int = 0, **values: Any
) -> CalibrationOptions:
    """Options small enough to check by eye."""
    return CalibrationOptions(
        source, sequences=sequences, tokens_per_sequence=length, probe_sequences=probes, seed=seed, **values
    )


def testbuiltin_text_has_at_least_7500_words() -> None:
    """The shipped text is long enough to calibrate on."""
    assert len(text_module.builtin_text().split()) >= 7500


def testbuiltin_text_is_not_repetitive() -> None:
    """No eight words occur twice in the shipped text more than a handful of times, so it is no template filler."""
    words = text_module.builtin_text().split()
    grams = [tuple(words[i : i + 8]) for i in range(len(words) - 7)]
    assert len(grams) - len(set(grams)) <= 10


def testbuiltin_text_meets_the_defaults_without_a_notice(tokenizer_json: bytes) -> None:
    """The default options get all their sequences from the shipped text."""
    tokens = load_tokens(CalibrationOptions(), files(tokenizer_json))
    assert (tokens.calibration.shape, tokens.probes.shape, tokens.notices) == ((128, 128), (16, 128), ())


@pytest.mark.model
def testbuiltin_text_meets_the_defaults_on_a_real_tokenizer() -> None:
    """With a vocabulary of 49 152 there are still 144 sequences of 128 tokens in the shipped text."""
    tokenizer = open_checkpoint(MODEL).companions().written["tokenizer.json"]
    tokens = load_tokens(CalibrationOptions(), files(tokenizer), vocab_size=49_152)
    assert (tokens.calibration.shape, tokens.probes.shape, tokens.notices) == ((128, 128), (16, 128), ())


def test_builtin_is_named_builtin(tokenizer_json: bytes) -> None:
    """The manifest can say which text calibrated a model."""
    assert load_tokens(options("builtin"), files(tokenizer_json)).source == "builtin"


def test_a_text_file_gives_the_tokenizers_own_ids(tmp_path: Path, tokenizer_json: bytes) -> None:
    """Together the sequences are the running ids of the text, without special tokens, truncation or padding."""
    text = PROSE * 3
    path = tmp_path / "prose.txt"
    path.write_text(text, encoding="utf-8")
    ids = plain_ids(tokenizer_json, text)
    count = len(ids) // 8
    tokens = load_tokens(options(str(path), sequences=count - 2, begin=False), files(tokenizer_json))
    found = {tuple(row) for row in np.concatenate([tokens.calibration, tokens.probes]).tolist()}
    assert found == {tuple(ids[8 * i : 8 * i + 8]) for i in range(count)}


def test_a_tokenizer_file_works_like_its_content(tmp_path: Path, tokenizer_json: bytes) -> None:
    """A path and the bytes behind it give the same tokens."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json)
    both = (Companions(copied={TOKENIZER: path}), files(tokenizer_json))
    assert len({load_tokens(options("builtin"), companions).sha256 for companions in both}) == 1


def test_jsonl_documents_are_joined_by_newlines(tmp_path: Path, tokenizer_json: bytes) -> None:
    """A JSONL file calibrates as the text of its field would, blank lines and other fields aside."""
    documents = [PROSE.strip() + f" Number {i} of\u2028many." for i in range(20)]
    lines = [json.dumps({"id": i, "body": document}, ensure_ascii=False) for i, document in enumerate(documents)]
    jsonl, plain = tmp_path / "a.jsonl", tmp_path / "a.txt"
    jsonl.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    plain.write_text("\n".join(documents), encoding="utf-8")
    assert (
        load_tokens(options(str(jsonl), text_field="body"), files(tokenizer_json)).sha256
        == load_tokens(options(str(plain)), files(tokenizer_json)).sha256
    )


def test_a_byte_order_mark_is_no_token(tmp_path: Path, tokenizer_json: bytes) -> None:
    """A file written with a byte order mark gives the same ids as one without."""
    with_mark, without = tmp_path / "a.txt", tmp_path / "b.txt"
    with_mark.write_text(PROSE * 3, encoding="utf-8-sig")
    without.write_text(PROSE * 3, encoding="utf-8")
    assert (
        load_tokens(options(str(with_mark)), files(tokenizer_json)).sha256
        == load_tokens(options(str(without)), files(tokenizer_json)).sha256
    )


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("shape", [(48,), (6, 8), (3, 16)])
def test_token_ids_need_no_tokenizer(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """A safetensors file of ids, a row or a table, is cut in its own order."""
    source = write_ids(tmp_path / "ids.safetensors", np.arange(48, dtype=dtype).reshape(shape))
    tokens = load_tokens(options(source))
    rows = np.concatenate([tokens.calibration, tokens.probes])
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], np.arange(48).reshape(6, 8))


def test_results_are_int64(tmp_path: Path) -> None:
    """Whatever the file stores, callers get int64."""
    tokens = load_tokens(options(write_ids(tmp_path / "a.safetensors", np.arange(48, dtype=np.int32))))
    assert {tokens.calibration.dtype.name, tokens.probes.dtype.name} == {"int64"}


@pytest.mark.parametrize("seed", range(5))
def test_probes_are_never_calibrated_on(tmp_path: Path, seed: int) -> None:
    """No sequence is both a probe and a calibration sequence."""
    source = write_ids(tmp_path / "a.safetensors", np.arange(800))
    tokens = load_tokens(options(source, sequences=30, probes=10, seed=seed))
    assert not set(tokens.probes[:, 0].tolist()) & set(tokens.calibration[:, 0].tolist())


@pytest.mark.parametrize("seed", range(5))
def test_probes_and_calibration_cover_the_whole_text(tmp_path: Path, seed: int) -> None:
    """Each tenth of a long text gives one of ten probes and about a tenth of the calibration."""
    source = write_ids(tmp_path / "a.safetensors", np.arange(8000))
    tokens = load_tokens(options(source, sequences=100, probes=10, seed=seed))
    assert (tokens.probes[:, 0] // 800).tolist() == list(range(10))
    assert np.abs(np.bincount(tokens.calibration[:, 0] // 800, minlength=10) - 10).max() <= 1


def test_the_same_options_give_the_same_tokens(tmp_path: Path) -> None:
    """Nothing about the choice is left to chance."""
    source = write_ids(tmp_path / "a.safetensors", np.arange(800))
    assert load_tokens(options(source)).sha256 == load_tokens(options(source)).sha256


def test_another_seed_takes_other_sequences(tmp_path: Path) -> None:
    """The seed shifts the choice."""
    source = write_ids(tmp_path / "a.safetensors", np.arange(8000))
    first, second = (load_tokens(options(source, seed=seed)) for seed in (0, 1))
    assert first.sha256 != second.sha256


def test_sha256_is_over_little_endian_ids(tmp_path: Path) -> None:
    """The digest can be recomputed from the ids alone: calibration, then probes."""
    tokens = load_tokens(options(write_ids(tmp_path / "a.safetensors", np.arange(48))))
    ids = tokens.calibration.reshape(-1).tolist() + tokens.probes.reshape(-1).tolist()
    assert tokens.sha256 == hashlib.sha256(struct.pack(f"<{len(ids)}q", *ids)).hexdigest()


def test_the_source_is_named_without_its_folder(tmp_path: Path) -> None:
    """The name recorded does not depend on the machine."""
    assert load_tokens(options(write_ids(tmp_path / "a.safetensors", np.arange(48)))).source == "a.safetensors"


@pytest.mark.parametrize(("available", "calibration", "probes"), [(2, 1, 1), (4, 3, 1), (10, 8, 2), (143, 127, 16)])
def test_a_short_text_serves_calibration_first(tmp_path: Path, available: int, calibration: int, probes: int) -> None:
    """When the text is short, probes shrink to a fifth of it and both kinds keep at least one sequence."""
    source = write_ids(tmp_path / "a.safetensors", np.arange(available * 8))
    tokens = load_tokens(options(source, sequences=128, probes=16))
    assert (len(tokens.calibration), len(tokens.probes)) == (calibration, probes)


def test_a_short_text_is_noticed(tmp_path: Path) -> None:
    """Each wish that was not met gets a sentence with both numbers."""
    source = write_ids(tmp_path / "a.safetensors", np.arange(80))
    assert load_tokens(options(source, sequences=128, probes=16)).notices == (
        "a.safetensors gives 8 calibration sequences of 8 tokens, fewer than the 128 requested",
        "a.safetensors gives 2 probe sequences of 8 tokens, fewer than the 16 requested",
    )


def test_a_long_text_is_sampled_over_its_whole_length(tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text far longer than needed only some pieces are tokenized, from the beginning to the end."""
    monkeypatch.setattr(text_module, "CHUNK_CHARACTERS", 64)
    monkeypatch.setattr(text_module, "LEAST_CHUNKS", 10)
    text = "".join(letter * 640 for letter in "0123456789")
    tokenizer = TextTools(files(tokenizer_json)).tokenizer("builtin")
    ids = text_module._tokenize(text, tokenizer, options("builtin", sequences=1, length=2, probes=1))
    assert ids.tolist() == plain_ids(tokenizer_json, "".join(letter * 64 for letter in "0123456789"))


def test_chunks_lose_no_character() -> None:
    """The pieces of a text, whether or not it has places to cut at, are the text."""
    text = "word " * 9000 + "\n" + "x" * 40_000 + "\n\n" + PROSE * 400
    chunks = list(text_module._chunks(text))
    assert "".join(chunks) == text
    assert max(map(len, chunks)) <= text_module.CHUNK_CHARACTERS


def _rows(tokens: CalibrationTokens) -> set[tuple[int, ...]]:
    return {tuple(row) for row in np.concatenate([tokens.calibration, tokens.probes]).tolist()}


def test_every_sequence_starts_with_the_begin_token(tmp_path: Path, tokenizer_json: bytes) -> None:
    """It takes one position; the rest is the running text without a gap, and more sequences come of it."""
    path = tmp_path / "prose.txt"
    path.write_text(PROSE * 3, encoding="utf-8")
    ids = plain_ids(tokenizer_json, PROSE * 3)
    count = len(ids) // 7
    tokens = load_tokens(options(str(path), sequences=count - 2), files(tokenizer_json))
    assert _rows(tokens) == {(0, *ids[7 * i : 7 * i + 7]) for i in range(count)}
    assert tokens.begin == 0
    assert tokens.sha256 == digest(tokens.calibration, tokens.probes)


def test_without_the_option_no_sequence_starts_with_it(tmp_path: Path, tokenizer_json: bytes) -> None:
    """`begin` off: the text alone."""
    path = tmp_path / "prose.txt"
    path.write_text(PROSE * 3, encoding="utf-8")
    tokens = load_tokens(options(str(path), begin=False), files(tokenizer_json))
    assert tokens.begin is None
    assert not (tokens.calibration == 0).any()


@pytest.mark.parametrize("has", [True, False])
def test_token_ids_get_the_begin_token_once(tmp_path: Path, tokenizer_json: bytes, has: bool) -> None:
    """A table whose rows start with it stays as it is."""
    table = np.arange(1, 49).reshape(6, 8)
    table[:, 0] = 0 if has else table[:, 0]
    tokens = load_tokens(options(write_ids(tmp_path / "a.safetensors", table)), files(tokenizer_json))
    flat = range(1, 49)
    expected = table.tolist() if has else [[0, *flat[7 * i : 7 * i + 7]] for i in range(6)]
    assert _rows(tokens) == {tuple(row) for row in expected}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [({"add_bos_token": True}, 1), ({"add_bos_token": False}, None), ({}, 1), ({"add_eos_token": True}, 1)],
)
def test_a_gguf_file_says_whether_there_is_a_begin_token(metadata: dict[str, bool], expected: int | None) -> None:
    """By `add_bos_token`; a Llama's vocabulary has one unless the file says otherwise."""
    pieces = ["<unk>", "<s>", "</s>", *map(chr, range(97, 123)), "▁"]
    written = tokenizer_files(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": [0.0] * len(pieces),
            "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 27],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            **{f"tokenizer.ggml.{key}": value for key, value in metadata.items()},
        },
        "a.gguf",
    )
    tokens = load_tokens(options("builtin"), Companions(written=written))
    assert tokens.begin == expected
    assert (tokens.calibration[:, 0] == 1).all() == (expected == 1)


def test_a_begin_token_outside_the_vocabulary_is_refused(tmp_path: Path, tokenizer_json: bytes) -> None:
    """It belongs to another model, as other ids do."""
    changed = tokenizer_json.replace(b'"ids":[0]', b'"ids":[77]')
    assert changed != tokenizer_json
    source = write_ids(tmp_path / "a.safetensors", np.arange(48))
    with pytest.raises(InputError, match=r"begin token.* is 77, but the model's vocabulary has 50"):
        load_tokens(options(source), files(changed), vocab_size=50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sequences": 0}, "sequences is 0"),
        ({"tokens_per_sequence": 1}, "tokens_per_sequence is 1"),
        ({"probe_sequences": -1}, "probe_sequences is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"source": ""}, "source is empty"),
        ({"text_field": ""}, "text_field is empty"),
    ],
)
def test_options_are_validated(change: dict[str, object], message: str) -> None:
    """An option out of range is refused where it is made, by name."""
    with pytest.raises(InputError, match=message):
        CalibrationOptions(**change)  # type: ignore[arg-type]


def test_text_without_a_tokenizer_is_refused() -> None:
    """The error says what to give instead."""
    with pytest.raises(InputError, match=r"no tokenizer\.json.*safetensors file whose tensor 'input_ids'"):
        load_tokens(options("builtin"))


def test_a_broken_tokenizer_is_refused() -> None:
    """A tokenizer file that is none is named."""
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokens(options("builtin"), files(b"{}"))


@pytest.mark.parametrize("name", ["gone.txt", "gone.jsonl", "gone.safetensors"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str, tokenizer_json: bytes) -> None:
    """A path that leads nowhere is named."""
    with pytest.raises(InputError, match=f"{name}: no such calibration file"):
        load_tokens(options(str(tmp_path / name)), files(tokenizer_json))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "calibration text is empty"),
        ("a.txt", b" \n\n", "calibration text is empty"),
        ("a.txt", b"caf\xe9 au lait", "not UTF-8 text: byte 3 is 0xe9"),
        ("a.txt", b"short", "at least 14 are needed"),
        ("a.jsonl", b"", "calibration text is empty"),
        ("a.jsonl", b'{"text": "x"}\nnot json\n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n["x"]\n', "line 3: expected a JSON object, found list"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', r"line 1: no string in the field 'text' \(fields: body, id\)"),
        ("a.jsonl", b'{"text": 7}\n', "line 1: no string in the field 'text'"),
        ("a.jsonl", rb'{"text": "\ud800"}', "line 1: the field 'text' holds half of a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.safetensors", b"\x08\0\0\0\0\0\0\0 garbage", "not a readable safetensors file"),
    ],
)
def test_malformed_files_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str, tokenizer_json: bytes
) -> None:
    """Each fault is named with the place where it was found."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_tokens(options(str(path)), files(tokenizer_json))


def test_a_text_that_fills_the_memory_is_refused(
    tmp_path: Path, tokenizer_json: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file over the limit is refused before it is read."""
    monkeypatch.setattr(documents, "MAX_TEXT_BYTES", 2**20)
    path = tmp_path / "big.txt"
    path.write_bytes(b"a " * 2**20)
    with pytest.raises(InputError, match="2 MiB of calibration text; give a sample of at most 1 MiB"):
        load_tokens(options(str(path)), files(tokenizer_json))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.arange(48, dtype=np.float32), "F32 of shape"),
        (np.arange(48, dtype=np.uint8), "U8 of shape"),
        (np.zeros((2, 3, 8), np.int64), r"I64 of shape \(2, 3, 8\)"),
        (np.arange(15), "15 tokens, but at least 16 are needed"),
        (np.arange(48) - 1, "token 0 is -1, but the model's vocabulary has 40 entries"),
        (np.arange(48), "token 40 is 40, but the model's vocabulary has 40 entries"),
    ],
)
def test_unfit_ids_are_refused(tmp_path: Path, ids: np.ndarray, message: str) -> None:
    """Ids of another type, shape or vocabulary are refused with what was found."""
    with pytest.raises(InputError, match=message):
        load_tokens(options(write_ids(tmp_path / "a.safetensors", ids)), vocab_size=40)


def test_a_tensor_of_another_name_is_refused(tmp_path: Path) -> None:
    """The error lists the tensors that are there."""
    source = write_ids(tmp_path / "a.safetensors", np.arange(48), name="tokens")
    with pytest.raises(InputError, match=r"no tensor 'input_ids' \(found: tokens\)"):
        load_tokens(options(source))


def test_a_tokenizer_of_another_model_is_noticed(tokenizer_json: bytes) -> None:
    """Text ids past the embedding's rows are refused as well."""
    with pytest.raises(InputError, match="vocabulary has 50 entries"):
        load_tokens(options("builtin"), files(tokenizer_json), vocab_size=50)
