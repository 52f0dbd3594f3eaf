"""Every malformed checkpoint gets one clear line and the right exit code."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from curconvert.checkpoint import open_checkpoint
from curconvert.errors import CurConvertError, InputError, UnsupportedError
from support.checkpoints import edit_config, edit_tensors, shard, write_index, write_raw

Damage = Callable[[Path], Any]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def config(**values: Any) -> Damage:
    """Set fields of config.json."""
    return lambda folder: edit_config(folder, **values)


def config_text(text: str) -> Damage:
    """Replace config.json."""
    return lambda folder: (folder / "config.json").write_text(text)


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """Change the stored tensors."""
    return lambda folder: edit_tensors(folder, edit)


def cast(name: str, dtype: torch.dtype) -> Damage:
    """Store one tensor in another dtype."""
    return tensors(lambda stored: stored.update({name: stored[name].to(dtype)}))


def header(content: Any, data: bytes = b"", length: int | None = None) -> Damage:
    """Replace model.safetensors by a file with any header."""
    return lambda folder: write_raw(folder / "model.safetensors", content, data, length)


def index(change: Callable[[dict[str, Any], Path], Any]) -> Damage:
    """Shard the model and change the index."""

    def damage(folder: Path) -> None:
        weight_map: dict[str, Any] = shard(folder)
        change(weight_map, folder)
        write_index(folder, weight_map)

    return damage


def place(name: Any) -> Damage:
    """Let the index place the norm in any file."""
    return index(lambda weight_map, _: weight_map.update({NORM: name}))


def shard_file(change: Callable[[Path], Any]) -> Damage:
    """Shard the model and change the first shard."""
    return index(lambda _, folder: change(folder / FIRST))


def swap_for_link(path: Path) -> None:
    """Move a file out of its folder and leave a link."""
    outside = path.parent.parent / "outside.safetensors"
    path.rename(outside)
    path.symlink_to(outside)


def swap_for_fifo(path: Path) -> None:
    """Put a FIFO in the place of a file; opening it would block."""
    path.unlink()
    os.mkfifo(path)


def swap_for_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    path.unlink()
    path.mkdir()


def truncate(path: Path) -> None:
    """Cut the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    """Add a byte at the end."""
    path.write_bytes(path.read_bytes() + b"\0")


def duplicate_tensor(_: Any, folder: Path) -> None:
    """Store a tensor of the first shard in the second one, too."""
    first, second = load_file(folder / FIRST), load_file(folder / SECOND)
    name = min(first)
    save_file({**second, name: first[name]}, folder / SECOND)


def only_pickle(folder: Path) -> None:
    """Leave nothing but a pickle."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def both(folder: Path) -> None:
    """Leave a single file and an index."""
    single = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(single)


BAD: dict[str, tuple[Damage, type[CurConvertError], tuple[str, ...]]] = {
    # config.json
    "no-config": (lambda folder: (folder / "config.json").unlink(), InputError, ("config.json", "--config")),
    "config-not-json": (config_text("{nope"), InputError, ("config.json", "not valid JSON")),
    "config-list": (config_text("[]"), InputError, ("config.json", "object", "list")),
    "config-nan": (config_text('{"rms_norm_eps": NaN}'), InputError, ("config.json", "NaN")),
    "config-duplicate-key": (config_text('{"a": 1, "a": 2}'), InputError, ("config.json", "'a' appears twice")),
    "config-deep": (config_text("[" * 200_000), InputError, ("config.json", "deep")),
    "config-not-utf8": (
        lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xff"}'),
        InputError,
        ("config.json", "utf-8"),
    ),
    "config-50-mb": (config_text(" " * 50_000_000), InputError, ("config.json", "50000000")),
    "config-is-fifo": (lambda folder: swap_for_fifo(folder / "config.json"), InputError, ("config.json", "regular")),
    "config-links-to-itself": (
        lambda folder: (
            (folder / "config.json").unlink(),
            (folder / "config.json").symlink_to(folder / "config.json"),
        ),
        InputError,
        ("config.json",),
    ),
    "config-links-out": (lambda folder: swap_for_link(folder / "config.json"), InputError, ("config.json", "outside")),
    "model-type-unknown": (config(model_type="gpt2"), UnsupportedError, ("'gpt2'", "llama, mistral")),
    "model-type-missing": (config(model_type=...), InputError, ("model_type", "llama")),
    "model-type-list": (config(model_type=["llama"]), InputError, ("model_type",)),
    "moe": (config(model_type="mixtral"), UnsupportedError, ("'mixtral'",)),
    "multimodal": (config(model_type="gemma3"), UnsupportedError, ("'gemma3'",)),
    "hidden-zero": (config(hidden_size=0), InputError, ("hidden_size", "0")),
    "hidden-negative": (config(hidden_size=-32), InputError, ("hidden_size", "-32")),
    "hidden-string": (config(hidden_size="32"), InputError, ("hidden_size", "'32'")),
    "hidden-bool": (config(hidden_size=True), InputError, ("hidden_size", "True")),
    "hidden-float": (config(hidden_size=32.0), InputError, ("hidden_size", "32.0")),
    "hidden-1e309": (config_text('{"model_type": "llama", "hidden_size": 1e309}'), InputError, ("1e309",)),
    "hidden-2e9": (config(hidden_size=2_000_000_000), InputError, ("hidden_size",)),
    "hidden-missing": (config(hidden_size=...), InputError, ("hidden_size", "--config-set")),
    "layers-1e9": (config(num_hidden_layers=10**9), InputError, ("num_hidden_layers",)),
    "heads-not-divisible": (config(num_key_value_heads=3), InputError, ("num_key_value_heads 3",)),
    "no-head-dim": (config(head_dim=..., num_attention_heads=5), InputError, ("attention heads (5)",)),
    "eps-zero": (config(rms_norm_eps=0), InputError, ("rms_norm_eps",)),
    "theta-string": (config(rope_parameters={"rope_type": "default", "rope_theta": "x"}), InputError, ("rope_theta",)),
    "rope-list": (config(rope_parameters=[1]), InputError, ("rope_parameters",)),
    "rope-nested-number": (config(rope_parameters={"full_attention": 3}), InputError, ("rope_parameters", "3")),
    "rope-factor-10-400": (
        config(rope_parameters={"rope_type": "linear", "factor": 10**400, "rope_theta": 1e4}),
        InputError,
        (),
    ),
    "dtype-list": (config(dtype=[1]), InputError, ("dtype", "[1]")),
    "rope-unknown": (
        config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        UnsupportedError,
        ("'spiral'", "llama3"),
    ),
    "rope-incomplete": (
        config(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
        InputError,
        ("low_freq_factor",),
    ),
    "tie-string": (config(tie_word_embeddings="no"), InputError, ("tie_word_embeddings",)),
    "pad-outside": (config(pad_token_id=97), InputError, ("pad_token_id", "97")),
    "activation-unknown": (config(hidden_act="swish9"), InputError, ("swish9",)),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), UnsupportedError, ("quantised",)),
    # config and tensors disagree
    "fewer-layers": (config(num_hidden_layers=1), InputError, ("model.layers.1.", "unexpected")),
    "more-layers": (config(num_hidden_layers=3), InputError, ("model.layers.2.", "missing")),
    "other-vocabulary": (config(vocab_size=96), InputError, (EMBEDDING, "[97, 32]", "[96, 32]")),
    "extra-tensor": (
        tensors(lambda stored: stored.update(extra=torch.ones(2))),
        InputError,
        ("tensor extra is unexpected",),
    ),
    "no-q-proj": (tensors(lambda stored: stored.pop(Q_PROJ)), InputError, (f"tensor {Q_PROJ} is missing",)),
    "no-norm": (tensors(lambda stored: stored.pop(NORM)), InputError, (NORM, "missing")),
    "no-embedding": (tensors(lambda stored: stored.pop(EMBEDDING)), InputError, (EMBEDDING, "missing")),
    "no-lm-head": (
        tensors(lambda stored: stored.pop("lm_head.weight")),
        InputError,
        ("lm_head.weight is missing", "tie_word_embeddings=true"),
    ),
    "one-dimensional": (
        tensors(lambda stored: stored.update({Q_PROJ: stored[Q_PROJ].flatten()})),
        InputError,
        (Q_PROJ, "[1024]", "[32, 32]"),
    ),
    "three-dimensional": (tensors(lambda stored: stored.update({Q_PROJ: stored[Q_PROJ][None]})), InputError, (Q_PROJ,)),
    "transposed": (
        tensors(lambda stored: stored.update({"model.layers.0.mlp.up_proj.weight": torch.ones(32, 48)})),
        InputError,
        ("up_proj", "[32, 48]", "[48, 32]"),
    ),
    "empty-tensor": (tensors(lambda stored: stored.update({NORM: torch.ones(0)})), InputError, (NORM, "[0]")),
    # dtypes
    "fp8": (cast(Q_PROJ, torch.float8_e4m3fn), UnsupportedError, (Q_PROJ, "F8_E4M3")),
    "int8": (cast(Q_PROJ, torch.int8), UnsupportedError, (Q_PROJ, "I8")),
    "float64": (cast(Q_PROJ, torch.float64), UnsupportedError, (Q_PROJ, "F64", "float32")),
    "bool": (cast(Q_PROJ, torch.bool), UnsupportedError, (Q_PROJ, "BOOL")),
    "gptq": (
        tensors(lambda stored: stored.update({Q_PROJ.replace("weight", "qweight"): torch.ones(1, dtype=torch.int32)})),
        UnsupportedError,
        ("qweight", "quantised"),
    ),
    # the index
    "both": (both, InputError, ("both", "index")),
    "index-parent": (place("../outside.safetensors"), InputError, ("index.json", "../outside")),
    "index-absolute": (place("/etc/x.safetensors"), InputError, ("index.json", "/etc/x")),
    "index-drive": (place("C:\\x.safetensors"), InputError, ("index.json", "C:")),
    "index-nul": (place("x\0.safetensors"), InputError, ("index.json", "\\x00")),
    "index-empty": (place(""), InputError, ("index.json", NORM)),
    "index-number": (place(3), InputError, ("index.json", NORM)),
    "index-pickle": (place("pytorch_model.bin"), InputError, ("index.json", "pytorch_model.bin")),
    "index-no-shard": (place("gone.safetensors"), InputError, ("gone.safetensors", "missing")),
    "index-wrong-shard": (
        index(
            lambda weight_map, _: weight_map.update(
                dict.fromkeys([NORM], FIRST if weight_map[NORM] == SECOND else SECOND)
            )
        ),
        InputError,
        (NORM, "not in"),
    ),
    "index-absent-tensor": (
        index(lambda weight_map, _: weight_map.update(ghost=FIRST)),
        InputError,
        ("tensor ghost is not in", FIRST),
    ),
    "index-extra-tensor": (index(lambda weight_map, _: weight_map.pop(NORM)), InputError, (NORM, "not in the index")),
    "index-duplicate": (index(duplicate_tensor), InputError, ("is also in", FIRST)),
    "index-no-map": (index(lambda weight_map, _: weight_map.clear()), InputError, ("weight_map",)),
    "index-list": (
        lambda folder: (shard(folder), (folder / "model.safetensors.index.json").write_text("[]")),
        InputError,
        ("index.json", "list"),
    ),
    # shards
    "shard-links-out": (shard_file(swap_for_link), InputError, (FIRST, "outside")),
    "shard-fifo": (shard_file(swap_for_fifo), InputError, (FIRST, "regular")),
    "shard-folder": (shard_file(swap_for_folder), InputError, (FIRST, "folder")),
    "shard-empty": (shard_file(lambda path: path.write_bytes(b"")), InputError, (FIRST, "not a valid")),
    "shard-truncated": (shard_file(truncate), InputError, (FIRST, "not a valid")),
    "shard-trailing": (shard_file(lengthen), InputError, (FIRST, "not a valid")),
    # headers
    "header-too-long": (header("{}", length=10**6), InputError, ("not a valid",)),
    "header-2-63": (header("{}", length=2**63), InputError, ("not a valid",)),
    "header-not-utf8": (header(b'{"\xff": 1}'), InputError, ("not a valid",)),
    "header-list": (header([]), InputError, ("not a valid",)),
    "header-nested-metadata": (header({"__metadata__": {"a": {}}}), InputError, ("not a valid",)),
    "header-overlap": (
        header({"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}}, b"\0" * 12),
        InputError,
        ("not a valid",),
    ),
    "header-hole": (
        header({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 20]}}, b"\0" * 20),
        InputError,
        ("not a valid",),
    ),
    "header-negative": (header({"a": ENTRY | {"data_offsets": [-8, 0]}}, b"\0" * 8), InputError, ("not a valid",)),
    "header-overflow": (
        header({"a": ENTRY | {"shape": [2**62, 4]}}, b"\0" * 8),
        InputError,
        ("not a valid",),
    ),
    "header-duplicate": (
        header('{"a": %s, "a": %s}' % ((json.dumps(ENTRY),) * 2), b"\0" * 8),
        InputError,
        ("not a valid", "'a' appears twice"),
    ),
    "header-only-length": (
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2)),
        InputError,
        (),
    ),
    # what lies in the folder
    "only-pickle": (only_pickle, UnsupportedError, ("pytorch_model.bin", "save_pretrained")),
    "other-name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"),
        InputError,
        ("weights.safetensors",),
    ),
    "nothing": (lambda folder: (folder / "model.safetensors").unlink(), InputError, ("model.safetensors",)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_refused_in_one_line(case: str, llama: Path) -> None:
    """The error has the right exit class, is one line, names the place, and nothing blocks."""
    damage, kind, words = BAD[case]
    damage(llama)
    with pytest.raises(CurConvertError) as caught:
        open_checkpoint(llama)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    assert str(llama) in message or "config" in message
    assert len(message) < 600
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gone.safetensors", InputError),
        ("gone", InputError),
        ("a\0b", InputError),
        ("x" * 300, InputError),
        ("~nobody-of-that-name/model", InputError),
        ("README.md", InputError),
        ("model.bin", UnsupportedError),
        ("model.pth", UnsupportedError),
        ("pipe.safetensors", InputError),
        ("loop.safetensors", InputError),
    ],
)
def test_a_bad_path_is_refused_in_one_line(name: str, kind: type[CurConvertError], tmp_path: Path) -> None:
    """Missing, unreachable, unreadable or pickled: one line, and nothing blocks."""
    for file in ("README.md", "model.bin", "model.pth"):
        (tmp_path / file).write_text("x")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    with pytest.raises(kind) as caught:
        open_checkpoint(name if name.startswith("~") else str(tmp_path / name))
    assert "\n" not in str(caught.value)
