"""Malformed checkpoints as data: how to damage a sound one, the exit code, and words that the error line holds."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

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


def fill(name: str, value: float) -> Damage:
    """Put a value in the middle of a tensor."""
    return tensors(lambda stored: stored[name].flatten()[7:9].fill_(value))


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


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


# Exit code 2: the input is wrong; 5: it may be right, and this version does not handle it.
BAD: dict[str, tuple[Damage, int, tuple[str, ...]]] = {
    # config.json
    "no-config": (lambda folder: (folder / "config.json").unlink(), 2, ("config.json", "--config")),
    "config-not-json": (config_text("{nope"), 2, ("config.json", "not valid JSON")),
    "config-list": (config_text("[]"), 2, ("config.json", "object", "list")),
    "config-nan": (config_text('{"rms_norm_eps": NaN}'), 2, ("config.json", "NaN")),
    "config-duplicate-key": (config_text('{"a": 1, "a": 2}'), 2, ("config.json", "'a' appears twice")),
    "config-deep": (config_text("[" * 200_000), 2, ("config.json", "deep")),
    "config-deep-field": (config(extra=nested(900)), 2, ("config.json", "deep")),
    "config-not-utf8": (
        lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xff"}'),
        2,
        ("config.json", "utf-8"),
    ),
    "config-50-mb": (config_text(" " * 50_000_000), 2, ("config.json", "50000000")),
    "config-is-fifo": (lambda folder: swap_for_fifo(folder / "config.json"), 2, ("config.json", "regular")),
    "config-links-to-itself": (
        lambda folder: (
            (folder / "config.json").unlink(),
            (folder / "config.json").symlink_to(folder / "config.json"),
        ),
        2,
        ("config.json",),
    ),
    "config-links-out": (lambda folder: swap_for_link(folder / "config.json"), 2, ("config.json", "outside")),
    "model-type-unknown": (config(model_type="gpt2"), 5, ("'gpt2'", "llama, mistral")),
    "model-type-missing": (config(model_type=...), 2, ("model_type", "llama")),
    "model-type-list": (config(model_type=["llama"]), 2, ("model_type",)),
    "moe": (config(model_type="mixtral"), 5, ("'mixtral'",)),
    "multimodal": (config(model_type="gemma3"), 2, ("text_config is None", "gemma3")),
    "multimodal-experts": (
        config(model_type="llama4", text_config={"model_type": "llama4_text"}),
        5,
        ("'llama4' (its language model is 'llama4_text')", "llama, mistral"),
    ),
    "multimodal-other-family": (
        config(model_type="llava", text_config={"model_type": "opt"}),
        5,
        ("the language model of this llava model is a 'opt'", "llama, mistral"),
    ),
    "multimodal-layers-1e9": (
        config(model_type="gemma3", text_config={"num_hidden_layers": 10**9}),
        2,
        ("num_hidden_layers is 1000000000",),
    ),
    "hidden-zero": (config(hidden_size=0), 2, ("hidden_size", "0")),
    "hidden-negative": (config(hidden_size=-32), 2, ("hidden_size", "-32")),
    "hidden-string": (config(hidden_size="32"), 2, ("hidden_size", "'32'")),
    "hidden-bool": (config(hidden_size=True), 2, ("hidden_size", "True")),
    "hidden-float": (config(hidden_size=32.0), 2, ("hidden_size", "32.0")),
    "hidden-1e309": (config_text('{"model_type": "llama", "hidden_size": 1e309}'), 2, ("1e309",)),
    "hidden-2e9": (config(hidden_size=2_000_000_000), 2, ("hidden_size",)),
    "hidden-missing": (config(hidden_size=...), 2, ("hidden_size", "--config-set")),
    "layers-1e9": (config(num_hidden_layers=10**9), 2, ("num_hidden_layers",)),
    "layers-1000": (config(num_hidden_layers=1000), 2, ("num_hidden_layers 1000", "model.layers.2.", "missing")),
    "hidden-long": (config(hidden_size="x" * 10_000), 2, ("hidden_size",)),
    "heads-not-divisible": (config(num_key_value_heads=3), 2, ("num_key_value_heads 3",)),
    "no-head-dim": (config(head_dim=..., num_attention_heads=5), 2, ("attention heads (5)",)),
    "eps-zero": (config(rms_norm_eps=0), 2, ("rms_norm_eps",)),
    "theta-string": (config(rope_parameters={"rope_type": "default", "rope_theta": "x"}), 2, ("rope_theta",)),
    "rope-list": (config(rope_parameters=[1]), 2, ("rope_parameters",)),
    "rope-nested-number": (config(rope_parameters={"full_attention": 3}), 2, ("rope_parameters", "3")),
    "rope-factor-10-400": (
        config(rope_parameters={"rope_type": "linear", "factor": 10**400, "rope_theta": 1e4}),
        2,
        (),
    ),
    "rope-share-2e9": (
        config(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 2**31}),
        2,
        ("partial_rotary_factor", "2147483648"),
    ),
    "rope-type-list": (config(rope_parameters={"rope_type": [1], "rope_theta": 1e4}), 5, ("rope type [1]",)),
    "dtype-list": (config(dtype=[1]), 2, ("dtype", "[1]")),
    "rope-unknown": (
        config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        5,
        ("'spiral'", "llama3"),
    ),
    "rope-incomplete": (
        config(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
        2,
        ("low_freq_factor",),
    ),
    "tie-string": (config(tie_word_embeddings="no"), 2, ("tie_word_embeddings",)),
    "pad-outside": (config(pad_token_id=97), 2, ("pad_token_id", "97")),
    "activation-unknown": (config(hidden_act="swish9"), 2, ("swish9",)),
    "bidirectional": (config(use_bidirectional_attention=True), 5, ("use_bidirectional_attention", "causal")),
    "compressed": (
        config(quantization_config={"quant_method": "curconvert", "version": 1, "matrices": {}}),
        5,
        ("is an artifact", "the original"),
    ),
    "quantized": (config(quantization_config={"quant_method": "gptq"}), 5, ("quantized",)),
    # config and tensors disagree
    "fewer-layers": (config(num_hidden_layers=1), 2, ("model.layers.1.", "unexpected")),
    "more-layers": (config(num_hidden_layers=3), 2, ("model.layers.2.", "missing")),
    "other-vocabulary": (config(vocab_size=96), 2, (EMBEDDING, "[97, 32]", "[96, 32]")),
    "extra-tensor": (
        tensors(lambda stored: stored.update(extra=torch.ones(2))),
        2,
        ("tensor extra is unexpected", "--ignore 'extra'"),
    ),
    "no-q-proj": (tensors(lambda stored: stored.pop(Q_PROJ)), 2, (f"tensor {Q_PROJ} is missing",)),
    "no-norm": (tensors(lambda stored: stored.pop(NORM)), 2, (NORM, "missing")),
    "no-embedding": (tensors(lambda stored: stored.pop(EMBEDDING)), 2, (EMBEDDING, "missing")),
    "no-lm-head": (
        tensors(lambda stored: stored.pop("lm_head.weight")),
        2,
        ("lm_head.weight is missing", "tie_word_embeddings=true"),
    ),
    "one-dimensional": (
        tensors(lambda stored: stored.update({Q_PROJ: stored[Q_PROJ].flatten()})),
        2,
        (Q_PROJ, "[1024]", "[32, 32]"),
    ),
    "three-dimensional": (tensors(lambda stored: stored.update({Q_PROJ: stored[Q_PROJ][None]})), 2, (Q_PROJ,)),
    "transposed": (
        tensors(lambda stored: stored.update({"model.layers.0.mlp.up_proj.weight": torch.ones(32, 48)})),
        2,
        ("up_proj", "[32, 48]", "[48, 32]"),
    ),
    "empty-tensor": (tensors(lambda stored: stored.update({NORM: torch.ones(0)})), 2, (NORM, "[0]")),
    "long-name": (
        tensors(lambda stored: stored.update({"x" * 5000: torch.ones(2)})),
        2,
        ("model.safetensors", "name has 5000 characters"),
    ),
    # dtypes
    "fp8": (cast(Q_PROJ, torch.float8_e4m3fn), 5, (Q_PROJ, "F8_E4M3")),
    "int8": (cast(Q_PROJ, torch.int8), 5, (Q_PROJ, "I8")),
    "float64": (cast(Q_PROJ, torch.float64), 5, (Q_PROJ, "F64", "float32")),
    "bool": (cast(Q_PROJ, torch.bool), 5, (Q_PROJ, "BOOL")),
    "gptq": (
        tensors(lambda stored: stored.update({Q_PROJ.replace("weight", "qweight"): torch.ones(1, dtype=torch.int32)})),
        5,
        ("qweight", "quantized"),
    ),
    "fp8-scale": (
        tensors(lambda stored: stored.update({f"{Q_PROJ}_scale_inv": torch.ones(1)})),
        5,
        ("weight_scale_inv", "quantized"),
    ),
    # values
    "nan": (fill(Q_PROJ, float("nan")), 2, (Q_PROJ, "NaN or infinity")),
    "infinity": (fill(Q_PROJ, float("inf")), 2, (Q_PROJ, "NaN or infinity")),
    "nan-in-a-norm": (fill(NORM, float("nan")), 2, (NORM, "NaN or infinity")),
    "nan-in-the-embedding": (fill(EMBEDDING, float("nan")), 2, (EMBEDDING, "NaN or infinity")),
    # the index
    "both": (both, 2, ("both", "index")),
    "index-parent": (place("../outside.safetensors"), 2, ("index.json", "../outside")),
    "index-absolute": (place("/etc/x.safetensors"), 2, ("index.json", "/etc/x")),
    "index-drive": (place("C:\\x.safetensors"), 2, ("index.json", "C:")),
    "index-nul": (place("x\0.safetensors"), 2, ("index.json", "\\x00")),
    "index-empty": (place(""), 2, ("index.json", NORM)),
    "index-number": (place(3), 2, ("index.json", NORM)),
    "index-pickle": (place("pytorch_model.bin"), 2, ("index.json", "pytorch_model.bin")),
    "index-long-name": (index(lambda weight_map, _: weight_map.update({"x" * 10_000: FIRST})), 2, ("is not in", FIRST)),
    "index-long-shard": (place("x" * 300 + ".safetensors"), 2, ("index.json", NORM, "expected the name")),
    "index-no-shard": (place("gone.safetensors"), 2, ("gone.safetensors", "missing")),
    "index-wrong-shard": (
        index(
            lambda weight_map, _: weight_map.update(
                dict.fromkeys([NORM], FIRST if weight_map[NORM] == SECOND else SECOND)
            )
        ),
        2,
        (NORM, "not in"),
    ),
    "index-absent-tensor": (
        index(lambda weight_map, _: weight_map.update(ghost=FIRST)),
        2,
        ("tensor ghost is not in", FIRST),
    ),
    "index-duplicate": (index(duplicate_tensor), 2, ("is also in", FIRST)),
    "index-no-map": (index(lambda weight_map, _: weight_map.clear()), 2, ("weight_map",)),
    "index-3-mb": (
        index(lambda weight_map, _: weight_map.update({"x" * 3_000_000: FIRST})),
        2,
        ("index.json", "expected a JSON file of at most 2000000"),
    ),
    "index-list": (
        lambda folder: (shard(folder), (folder / "model.safetensors.index.json").write_text("[]")),
        2,
        ("index.json", "list"),
    ),
    # shards
    "shard-links-out": (shard_file(swap_for_link), 2, (FIRST, "outside")),
    "shard-fifo": (shard_file(swap_for_fifo), 2, (FIRST, "regular")),
    "shard-folder": (shard_file(swap_for_folder), 2, (FIRST, "folder")),
    "shard-empty": (shard_file(lambda path: path.write_bytes(b"")), 2, (FIRST, "an empty file")),
    "shard-truncated": (shard_file(truncate), 2, (FIRST, "not a valid")),
    "shard-trailing": (shard_file(lengthen), 2, (FIRST, "not a valid")),
    # headers
    "header-too-long": (header("{}", length=10**6), 2, ("not a valid",)),
    "header-2-63": (header("{}", length=2**63), 2, ("header", "9223372036854775808")),
    "header-9-mb": (header(" " * 9_000_000), 2, ("header", "9000000", "at most 4000000")),
    "header-not-utf8": (header(b'{"\xff": 1}'), 2, ("not a valid",)),
    "header-list": (header([]), 2, ("not a valid",)),
    "header-nested-metadata": (header({"__metadata__": {"a": {}}}), 2, ("not a valid",)),
    "header-overlap": (
        header({"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}}, b"\0" * 12),
        2,
        ("not a valid",),
    ),
    "header-hole": (
        header({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 20]}}, b"\0" * 20),
        2,
        ("not a valid",),
    ),
    "header-negative": (header({"a": ENTRY | {"data_offsets": [-8, 0]}}, b"\0" * 8), 2, ("not a valid",)),
    "header-overflow": (
        header({"a": ENTRY | {"shape": [2**62, 4]}}, b"\0" * 8),
        2,
        ("not a valid",),
    ),
    "header-duplicate": (
        header('{"a": %s, "a": %s}' % ((json.dumps(ENTRY),) * 2), b"\0" * 8),
        2,
        ("not a valid", "'a' appears twice"),
    ),
    "header-four-bits": (header({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, b"\0" * 2), 5, ("F4",)),
    "header-unknown-dtype": (
        header({"a": ENTRY | {"dtype": "F7"}}, b"\0" * 8),
        2,
        ("not a valid", "unknown dtype 'F7'"),
    ),
    "header-only-length": (
        lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2)),
        2,
        (),
    ),
    # what lies in the folder
    "only-pickle": (only_pickle, 5, ("pytorch_model.bin", "save_pretrained")),
    "only-pt": (lambda folder: (folder / "model.safetensors").rename(folder / "model.pt"), 5, ("model.pt", "pickle")),
    "other-name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"),
        2,
        ("weights.safetensors",),
    ),
    "nothing": (lambda folder: (folder / "model.safetensors").unlink(), 2, ("model.safetensors",)),
}
