"""A model in several files is read by its index, or by the numbers in their names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file, save_file

from curconvert.base.errors import InputError
from curconvert.checkpoint import Checkpoint, open_checkpoint
from support.checkpoints import edit_config, edit_tensors, shard, write_index
from support.families import TinyModel
from support.gguf_files import write_gguf

HEAD, NORM, EMBEDDING = "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Tell whether two checkpoints have the same tensors."""
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.read(name), other.read(name)) for name in one.tensors
    )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_complete_set_needs_no_index(count: int, llama: Path, tiny: Callable[[str], TinyModel]) -> None:
    """The numbers in the names say which files belong together."""
    shard(llama, count)
    (llama / INDEX).unlink()
    checkpoint = open_checkpoint(llama)
    assert same(checkpoint, open_checkpoint(tiny("llama").folder))
    assert [file.name for file in checkpoint.files] == [
        f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_shard_is_named(number: int, llama: Path) -> None:
    """Whichever it is."""
    shard(llama, 3)
    (llama / INDEX).unlink()
    (llama / f"model-{number:05}-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=rf"model-{number:05}-of-00003\.safetensors: missing; 2 of the 3 files"):
        open_checkpoint(llama)


@pytest.mark.parametrize("with_index", [True, False])
def test_the_advice_for_a_single_shard_works(with_index: bool, llama: Path) -> None:
    """One shard of several is no model; its folder is."""
    shard(llama)
    if not with_index:
        (llama / INDEX).unlink()
    with pytest.raises(InputError, match="one of 2 shards; name its folder instead: ") as caught:
        open_checkpoint(llama / FIRST)
    assert open_checkpoint(str(caught.value).rpartition("instead: ")[2]).tensors


def test_shards_of_other_names_are_read_too(llama: Path) -> None:
    """Any stem will do, as long as there is one set."""
    shard(llama)
    (llama / INDEX).unlink()
    for path in llama.glob("model-*"):
        path.rename(path.with_name(path.name.replace("model", "consolidated")))
    assert open_checkpoint(llama).tensors


def test_the_set_that_transformers_reads_is_preferred(llama: Path) -> None:
    """Some models come in two layouts."""
    shard(llama)
    (llama / INDEX).unlink()
    save_file({"other": torch.ones(1)}, llama / "consolidated-00001-of-00001.safetensors")
    assert [file.name for file in open_checkpoint(llama).files] == [FIRST, SECOND]


def test_two_sets_are_refused_by_name(llama: Path) -> None:
    """A folder with two models does not say which is meant."""
    shard(llama)
    (llama / INDEX).unlink()
    for path in llama.glob("model-*"):
        shutil.copy(path, path.with_name(path.name.replace("model", "b")))
        path.rename(path.with_name(path.name.replace("model", "a")))
    with pytest.raises(InputError, match=r"several models, a-\*-of-00002\.safetensors and b-\*-of"):
        open_checkpoint(llama)


def test_an_index_may_list_a_tied_head_that_no_shard_holds(llama: Path) -> None:
    """transformers loads it, and so do we, with a notice."""
    weight_map = shard(llama)
    shard_of_head = llama / weight_map[HEAD]
    save_file({name: t for name, t in load_file(shard_of_head).items() if name != HEAD}, shard_of_head)
    edit_config(llama, tie_word_embeddings=True)
    checkpoint = open_checkpoint(llama)
    assert HEAD not in checkpoint.tensors
    assert checkpoint.config["tie_word_embeddings"] is True
    assert any(f"{INDEX} lists {HEAD}, which no shard holds" in notice for notice in checkpoint.notices)


def test_an_untied_head_that_no_shard_holds_is_missing(llama: Path) -> None:
    """Without tying, the model is incomplete."""
    weight_map = shard(llama)
    shard_of_head = llama / weight_map[HEAD]
    save_file({name: t for name, t in load_file(shard_of_head).items() if name != HEAD}, shard_of_head)
    with pytest.raises(InputError, match=r"lm_head\.weight is missing"):
        open_checkpoint(llama)


@pytest.mark.parametrize("name", ["model.layers.2.mtp.weight", "mtp.fc.weight", "v_head.summary.weight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_tensors_outside_the_index_that_the_model_does_not_know_are_left_out(
    name: str, dtype: torch.dtype, llama: Path, tiny: Callable[[str], TinyModel]
) -> None:
    """Prediction heads and value heads, of any dtype; a notice names them."""
    edit_tensors(llama, lambda tensors: tensors.update({name: torch.ones(4, 4, dtype=dtype)}))
    weight_map = shard(llama)
    del weight_map[name]
    write_index(llama, weight_map)
    checkpoint = open_checkpoint(llama)
    assert same(checkpoint, open_checkpoint(tiny("llama").folder))
    assert checkpoint.notices == (
        f"{INDEX} does not list tensor {name}; left out, because the model has no such tensor",
    )


@pytest.mark.parametrize("name", [NORM, EMBEDDING, "model.layers.1.mlp.down_proj.weight"])
def test_tensors_outside_the_index_that_the_model_needs_are_read(
    name: str, llama: Path, tiny: Callable[[str], TinyModel]
) -> None:
    """The shards decide what is stored."""
    weight_map = shard(llama)
    del weight_map[name]
    write_index(llama, weight_map)
    checkpoint = open_checkpoint(llama)
    assert same(checkpoint, open_checkpoint(tiny("llama").folder))
    assert checkpoint.notices == (f"{INDEX} does not list tensor {name}; read, because the model needs it",)


def test_an_index_entry_without_a_tensor_can_be_ignored(llama: Path) -> None:
    """A leftover of an index that lists more than was saved."""
    weight_map = shard(llama)
    write_index(llama, {**weight_map, "mtp.weight": FIRST})
    with pytest.raises(InputError, match=r"mtp\.weight is not in"):
        open_checkpoint(llama)
    assert open_checkpoint(llama, ignore=["mtp.*"]).tensors


def split_gguf(path: Path, count: int) -> list[Path]:
    """Split a GGUF file as llama.cpp does: all metadata in the first part, `split.*` in each."""
    reader = GGUFReader(path)
    parts = []
    for number in range(count):
        part = path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf")
        writer = GGUFWriter(part, "llama")
        for name, field in reader.fields.items() if number == 0 else ():
            if not name.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(name, field.contents(), field.types[0])
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    return parts


@pytest.fixture
def parts(tiny: Callable[[str], TinyModel], tmp_path: Path) -> list[Path]:
    """The three parts of a split GGUF, alone in their folder; the whole file is beside the folder."""
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, tiny("llama"))
    (tmp_path / "split").mkdir()
    found = split_gguf(whole, 3)
    return [part.rename(tmp_path / "split" / part.name) for part in found]


@pytest.mark.parametrize("named", ["first", "second", "last", "folder"])
def test_a_split_gguf_is_read_from_any_part(named: str, parts: list[Path], tmp_path: Path) -> None:
    """All parts together are the whole file, whichever one is named."""
    source = {"first": parts[0], "second": parts[1], "last": parts[2], "folder": parts[0].parent}[named]
    checkpoint, whole = open_checkpoint(source), open_checkpoint(tmp_path / "whole.gguf")
    assert same(checkpoint, whole)
    assert checkpoint.config == whole.config
    assert [file.name for file in checkpoint.files] == [part.name for part in parts]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_part_is_named(number: int, parts: list[Path]) -> None:
    """Also when another part or the folder is given."""
    parts[number].unlink()
    for source in (parts[number - 1], parts[0].parent):
        with pytest.raises(InputError, match=rf"{parts[number].name}: missing; 2 of the 3"):
            open_checkpoint(source)


def test_parts_of_another_order_are_refused(parts: list[Path]) -> None:
    """The metadata say which part a file is."""
    other = parts[1].with_name("other")
    parts[1].rename(other)
    parts[2].rename(parts[1])
    other.rename(parts[2])
    with pytest.raises(InputError, match=r"00002-of-00003\.gguf: its metadata say part 2 of 3, counted from 0"):
        open_checkpoint(parts[0])


def test_a_part_under_another_name_is_refused_with_advice(parts: list[Path], tmp_path: Path) -> None:
    """The names are needed to find the others."""
    lone = parts[0].rename(tmp_path / "lone.gguf")
    with pytest.raises(InputError, match=r"lone\.gguf: its metadata say part 0 of 3.* such as NAME-00001-of-00003"):
        open_checkpoint(lone)
