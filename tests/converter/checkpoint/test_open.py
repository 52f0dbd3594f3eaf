"""Sound checkpoints in every storage give the values that were stored."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from curconvert.base.errors import InputError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.companions import folder_companions
from curconvert.checkpoint.files import ModelFolder
from curconvert_runtime.format.hashing import sha256
from support.checkpoints import edit_config, edit_tensors, shard
from support.families import FAMILIES, TinyModel, make_checkpoint, split_names
from support.tiny_runs import add_tokenizer

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def oracle(model: TinyModel) -> dict[str, torch.Tensor]:
    """transformers' own state dict with fused projections split and the tied head left out."""
    expected: dict[str, torch.Tensor] = {}
    for stored, tensor in model.oracle.state_dict().items():
        names, sizes = zip(*split_names(stored, tensor.shape[0], model.config), strict=True)
        expected.update(zip(names, tensor.split(sizes), strict=True))
    if model.config["tie_word_embeddings"]:
        del expected[HEAD]
    return expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back_bit_for_bit(family: str, tiny: Callable[[str], TinyModel]) -> None:
    """Names, shapes and values are those of transformers' state dict, fused projections split."""
    model = tiny(family)
    expected = oracle(model)
    checkpoint = open_checkpoint(model.folder)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(checkpoint.read(name), tensor)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_locations_are_the_bytes_of_the_tensors(family: str, tiny: Callable[[str], TinyModel]) -> None:
    """The byte range of a tensor, row slices of fused ones included, holds exactly its little-endian values."""
    checkpoint = open_checkpoint(tiny(family).folder)
    content = (tiny(family).folder / "model.safetensors").read_bytes()
    for name, info in checkpoint.tensors.items():
        assert info.location is not None
        raw = content[info.location.offset : info.location.offset + info.location.length]
        assert raw == checkpoint.read(name).numpy().tobytes()


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_shards_read_like_one_file(family: str, tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """A sharded copy has the same tensors and lists its shards in order."""
    folder = Path(shutil.copytree(tiny(family).folder, tmp_path / "sharded"))
    shard(folder, 3)
    checkpoint = open_checkpoint(folder)
    for name, tensor in oracle(tiny(family)).items():
        assert torch.equal(checkpoint.read(name), tensor)
    assert [file.name for file in checkpoint.files] == [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    """A half-precision checkpoint is read in its stored dtype, bit for bit."""
    make_checkpoint(tmp_path / "model", "llama", dtype=dtype)
    checkpoint = open_checkpoint(tmp_path / "model")
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        assert checkpoint.read(name).dtype == dtype
        assert torch.equal(checkpoint.read(name), tensor)
    assert checkpoint.config["dtype"] == checkpoint.config["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_qwen2_keeps_its_biases(tiny: Callable[[str], TinyModel]) -> None:
    """Qwen2's q, k and v biases are part of the checkpoint."""
    checkpoint = open_checkpoint(tiny("qwen2").folder)
    biases = [name.split(".")[-2] for name in checkpoint.tensors if name.endswith(".bias")]
    assert sorted(set(biases)) == ["k_proj", "q_proj", "v_proj"]


def test_heads_may_be_wider_than_the_hidden_size(tiny: Callable[[str], TinyModel]) -> None:
    """head_dim · heads ≠ hidden_size is legal."""
    info = open_checkpoint(tiny("qwen3").folder).tensors["model.layers.0.self_attn.q_proj.weight"]
    assert info.shape == (64, 32)


def test_a_read_tensor_does_not_write_to_the_file(llama: Path) -> None:
    """Writing to a mapped tensor by mistake leaves the file as it is."""
    before = sha256(llama / "model.safetensors")
    checkpoint = open_checkpoint(llama)
    checkpoint.read("model.norm.weight").zero_()
    assert sha256(llama / "model.safetensors") == before
    assert checkpoint.read("model.norm.weight").abs().sum() > 0


def test_opening_reads_no_weights(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untied checkpoint opens without mapping a tensor."""
    monkeypatch.setattr("curconvert.checkpoint.open.map_tensor", lambda *_: pytest.fail("a tensor was read"))
    open_checkpoint(llama)


def test_a_file_that_shrank_is_refused_at_reading(llama: Path) -> None:
    """A file that was cut after it was opened gives an error, not a crash of the process."""
    checkpoint = open_checkpoint(llama)
    with (llama / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match=r"model\.safetensors: another program changed or replaced it"):
        checkpoint.read("model.norm.weight")


def test_an_unknown_name_is_an_error(llama: Path) -> None:
    """Reading a name that does not exist says so."""
    with pytest.raises(InputError, match="there is no tensor nothing"):
        open_checkpoint(llama).read("nothing")


@pytest.mark.parametrize("name", ["model", "Modèle 模型", "with space", "x" * 200])
def test_odd_folder_names_work(name: str, tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Non-ASCII, spaces and long names are fine."""
    folder = shutil.copytree(tiny("llama").folder, tmp_path / name)
    assert open_checkpoint(folder).path == folder


def test_the_home_folder_is_expanded(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` means the home folder."""
    monkeypatch.setenv("HOME", str(llama.parent))
    assert open_checkpoint("~/model").path == llama


def test_a_lone_file_uses_the_config_beside_it(llama: Path) -> None:
    """`model.safetensors` by itself is the same checkpoint as its folder."""
    checkpoint = open_checkpoint(llama / "model.safetensors")
    assert checkpoint.kind == "safetensors"
    assert checkpoint.config == open_checkpoint(llama).config


def test_a_named_config_is_used_instead(llama: Path, tmp_path: Path) -> None:
    """`config=` wins over the one beside the weights."""
    (llama / "config.json").rename(tmp_path / "other.json")
    (llama / "config.json").write_text("broken")
    assert open_checkpoint(llama, config=tmp_path / "other.json").config["hidden_size"] == 32


def test_config_set_overrides_the_stored_config(llama: Path) -> None:
    """Text is parsed as JSON where it is JSON; a rope override reaches both dialects."""
    config = open_checkpoint(llama, config_set={"rope_theta": "5e5", "max_position_embeddings": "99"}).config
    assert config["max_position_embeddings"] == 99
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5e5


def test_old_rotary_buffers_are_ignored(llama: Path) -> None:
    """`rotary_emb.inv_freq`, which old versions saved, is no weight."""
    edit_tensors(llama, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert not any("inv_freq" in name for name in open_checkpoint(llama).tensors)


def test_an_lm_head_equal_to_the_embedding_is_tied(llama: Path) -> None:
    """With tie_word_embeddings, a stored copy of the embedding is dropped."""
    edit_config(llama, tie_word_embeddings=True)
    edit_tensors(llama, lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    checkpoint = open_checkpoint(llama)
    assert HEAD not in checkpoint.tensors
    assert checkpoint.config["tie_word_embeddings"] is True


def test_a_different_lm_head_is_untied(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The stored tensors overrule a config that says tied, with a warning."""
    edit_config(llama, tie_word_embeddings=True)
    with caplog.at_level(logging.WARNING):
        checkpoint = open_checkpoint(llama)
    assert HEAD in checkpoint.tensors
    assert checkpoint.config["tie_word_embeddings"] is False
    assert "treated as untied" in caplog.text


def test_an_nan_in_a_tied_copy_does_not_untie_it(llama: Path) -> None:
    """Copies are compared by their bits."""
    edit_config(llama, tie_word_embeddings=True)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EMBEDDING][0, 0] = float("nan")
        tensors[HEAD] = tensors[EMBEDDING].clone()

    edit_tensors(llama, edit)
    assert HEAD not in open_checkpoint(llama).tensors


def test_a_missing_lm_head_can_be_declared_tied(llama: Path) -> None:
    """The advice of the error message works."""
    edit_tensors(llama, lambda t: t.pop(HEAD))
    assert HEAD not in open_checkpoint(llama, config_set={"tie_word_embeddings": "true"}).tensors


def test_a_phi3_checkpoint_may_be_stored_split(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Canonical names are read as they are."""
    folder = Path(shutil.copytree(tiny("phi3").folder, tmp_path / "split"))
    expected = {name: tensor.clone() for name, tensor in oracle(tiny("phi3")).items()}
    save_file(expected, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in expected.items())


def test_a_folder_that_may_not_be_read_is_one_line(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says becomes an InputError that names the file."""

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(llama))

    monkeypatch.setattr("curconvert.checkpoint.files.ModelFolder.regular", denied)
    with pytest.raises(InputError, match=r"model: Permission denied$"):
        open_checkpoint(llama)


def test_unaligned_tensors_are_read(llama: Path) -> None:
    """Old files have headers of any length; their tensors start at odd offsets."""
    content = (llama / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    odd = (length + 1).to_bytes(8, "little") + content[8 : 8 + length] + b" " + content[8 + length :]
    expected = {name: tensor.clone() for name, tensor in load_file(llama / "model.safetensors").items()}
    (llama / "model.safetensors").write_bytes(odd)
    checkpoint = open_checkpoint(llama)
    assert all(torch.equal(checkpoint.read(name) + 0, tensor) for name, tensor in expected.items())


def test_the_dtype_is_taken_from_the_tensors_when_the_config_has_none(llama: Path) -> None:
    """Missing or meaningless, it becomes what is stored."""
    for dtype in (..., "int8", None):
        edit_config(llama, dtype=dtype)
        config = open_checkpoint(llama).config
        assert config["dtype"] == config["torch_dtype"] == "float32"


def test_links_within_a_hub_cache_are_followed(tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """A snapshot of the Hugging Face cache is made of links to `../../blobs`."""
    repository = tmp_path / "models--org--name"
    blobs = Path(shutil.copytree(tiny("llama").folder, repository / "blobs"))
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert len(open_checkpoint(snapshot).tensors) == len(oracle(tiny("llama")))


def test_companions_are_copied_but_weights_and_code_are_not(llama: Path) -> None:
    """Tokenizer and generation files travel; anything else does not."""
    for name in ("merges.txt", "chat_template.jinja", "README.md", "modeling_llama.py"):
        (llama / name).write_text("{}")
    add_tokenizer(llama)
    companions = open_checkpoint(llama).companions()
    assert {"tokenizer.json", "merges.txt", "chat_template.jinja"} <= companions.copied.keys()
    assert not companions.copied.keys() & {"README.md", "modeling_llama.py", "config.json", "model.safetensors"}
    assert companions.copied["merges.txt"] == llama / "merges.txt"


def test_the_tokenizer_class_of_transformers_5_is_rewritten(llama: Path) -> None:
    """transformers 4.57 cannot load `TokenizersBackend`; both load `PreTrainedTokenizerFast`."""
    (llama / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend", "eos_token": "é"}')
    companions = open_checkpoint(llama).companions()
    assert "tokenizer_config.json" not in companions.copied
    written = json.loads(companions.written["tokenizer_config.json"])
    assert written == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "é",
        "model_input_names": ["input_ids", "attention_mask"],  # or 4.57 adds token_type_ids, which no graph takes
    }


@pytest.mark.parametrize(
    ("name", "settings", "foreign"),
    [
        ("tokenizer_config.json", {"eos_token": "é", "auto_map": {"AutoTokenizer": ["x.Y", None]}}, "auto_map"),
        ("tokenizer_config.json", {"eos_token": "é", "vocab_file": "/home/someone/vocab.json"}, "vocab_file"),
        ("generation_config.json", {"temperature": 0.5, "custom_generate": "someone/loop"}, "custom_generate"),
        ("special_tokens_map.json", {"eos_token": "é", "vocab_file": "x"}, "vocab_file"),
    ],
)
def test_settings_that_name_code_or_files_are_left_out(
    llama: Path, name: str, settings: dict[str, Any], foreign: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning names the setting and its file; a file without such settings is copied byte for byte."""
    kept = {key: value for key, value in settings.items() if key != foreign}
    (llama / name).write_text(json.dumps(kept))
    assert name in folder_companions(ModelFolder.at(llama)).copied
    assert caplog.messages == []
    (llama / name).write_text(json.dumps(settings))
    companions = folder_companions(ModelFolder.at(llama))
    assert name not in companions.copied
    assert json.loads(companions.written[name]) == kept
    assert [message.split(":")[0:2] for message in caplog.messages] == [[str(llama / name), f" {foreign} left out"]]


def test_a_companion_that_links_out_is_refused(llama: Path) -> None:
    """No file outside the folder is copied into an artifact."""
    (llama.parent / "secret").write_text("x")
    (llama / "merges.txt").symlink_to(llama.parent / "secret")
    with pytest.raises(InputError, match=r"merges\.txt: a link to a file outside"):
        open_checkpoint(llama).companions()
