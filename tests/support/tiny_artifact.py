"""Artifact folders made by hand, without the converter: a two-layer toy attention model with an exact NumPy oracle.

The toy: h = E[ids] + P[positions]; for each layer h = h + attention(h, h, h) with one head of eight, causal, scale
1/√8; logits = h·Eᵀ. Both graphs read E and P in place from `model.safetensors`. Between them stands one small
matrix stored as CUR factors, which the graphs do not use: it is there for the manifest to describe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from support.onnx_writer import BOOL, FLOAT, INT32, INT64, Graph, Tensor, Value, node
from support.safetensors_files import header_of, save_file

VOCAB, WIDTH, LAYERS, CONTEXT, RANK = 300, 8, 2, 32, 2
MATRIX = "model.layers.0.mlp.gate_proj.weight"
STEM = MATRIX.removesuffix(".weight")
BOS, EOS = 297, 298
GRAPHS = {"portable": "model.onnx", "fused": "model.fused.onnx"}


def toy_tensors(seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return the toy's weights: embeddings for the graphs, factors for the manifest."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((6, 5)).astype(np.float32)
    rows, cols = np.array([4, 1], np.int32), np.array([0, 3], np.int32)
    return {
        "model.embed_tokens.weight": rng.standard_normal((VOCAB, WIDTH)).astype(np.float32),
        "model.positions.weight": rng.standard_normal((CONTEXT, WIDTH)).astype(np.float32),
        f"{STEM}.C": np.ascontiguousarray(weight[:, cols]),
        f"{STEM}.U": rng.standard_normal((RANK, RANK)).astype(np.float32),
        f"{STEM}.R": np.ascontiguousarray(weight[rows]),
        f"{STEM}.rows": rows,
        f"{STEM}.cols": cols,
        "model.norm.weight": np.ones((4, 3), np.float32),
    }


def toy_logits(ids: list[int], tensors: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return the toy's logits in float64, [tokens, vocabulary]."""
    embedding = tensors["model.embed_tokens.weight"].astype(np.float64)
    h = embedding[ids] + tensors["model.positions.weight"].astype(np.float64)[: len(ids)]
    for _ in range(LAYERS):
        scores = h @ h.T / np.sqrt(WIDTH)
        scores[np.triu_indices(len(ids), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        h = h + weights / weights.sum(axis=1, keepdims=True) @ h
    return h @ embedding.T


def external(name: str, path: Path) -> Tensor:
    """Return a float32 initializer whose bytes are a tensor of a safetensors file."""
    header, start = header_of(path)
    begin, end = header[name]["data_offsets"]
    place = {"location": path.name, "offset": str(start + begin), "length": str(end - begin)}
    return Tensor(name, list(header[name]["shape"]), FLOAT, external=place)


def toy_graph(weights: Path, kind: str, **rename: str) -> Graph:
    """Return the toy as an ONNX graph: standard operators (`portable`) or GroupQueryAttention (`fused`)."""
    constants = {
        "embed": "model.embed_tokens.weight",
        "positions": "model.positions.weight",
    }
    nodes = [
        node("Gather", [constants["embed"], "input_ids"], ["e"]),
        node("Gather", [constants["positions"], "position_ids"], ["p"]),
        node("Add", ["e", "p"], ["h0"]),
    ]
    ints: dict[str, list[int]] = {"one": [1], "axis1": [1], "axis2": [2], "zero": [0]}
    if kind == "fused":
        nodes += [
            node("ReduceSum", ["attention_mask", "axis1"], ["lengths"], keepdims=0),
            node("Sub", ["lengths", "one"], ["last64"]),
            node("Cast", ["last64"], ["seqlens"], to=INT32),
            node("Shape", ["attention_mask"], ["mask_shape"]),
            node("Gather", ["mask_shape", "one"], ["total64"]),
            node("Cast", ["total64"], ["total"], to=INT32),
        ]
    else:
        nodes += [
            node("Shape", ["attention_mask"], ["total1"], start=1, end=2),
            node("Squeeze", ["total1"], ["total0"]),
            node("Shape", ["input_ids"], ["new1"], start=1, end=2),
            node("Squeeze", ["new1"], ["new0"]),
            node("Sub", ["total0", "new0"], ["past0"]),
            node("Range", ["i0", "total0", "i1"], ["columns"]),
            node("Range", ["past0", "total0", "i1"], ["queries"]),
            node("Unsqueeze", ["queries", "axis1"], ["queries2"]),
            node("LessOrEqual", ["columns", "queries2"], ["causal"]),
            node("Cast", ["attention_mask"], ["mask_bool"], to=BOOL),
            node("Unsqueeze", ["mask_bool", "axis1"], ["mask3"]),
            node("And", ["causal", "mask3"], ["allowed"]),
        ]
    for layer in range(LAYERS):
        h, key, value = f"h{layer}", f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        if kind == "fused":
            inputs = [h, h, h, key, value, "seqlens", "total"]
            outputs = [f"a{layer}", *present]
            attributes = {"num_heads": 1, "kv_num_heads": 1, "domain": "com.microsoft"}
            nodes.append(node("GroupQueryAttention", inputs, outputs, **attributes))
        else:
            nodes += [
                node("Unsqueeze", [h, "axis1"], [f"kv{layer}"]),
                node("Concat", [key, f"kv{layer}"], [present[0]], axis=2),
                node("Concat", [value, f"kv{layer}"], [present[1]], axis=2),
                node("Squeeze", [present[0], "axis1"], [f"k{layer}"]),
                node("Squeeze", [present[1], "axis1"], [f"v{layer}"]),
                node("Transpose", [f"k{layer}"], [f"kt{layer}"], perm=[0, 2, 1]),
                node("MatMul", [h, f"kt{layer}"], [f"s{layer}"]),
                node("Mul", [f"s{layer}", "scale"], [f"ss{layer}"]),
                node("Where", ["allowed", f"ss{layer}", "low"], [f"sm{layer}"]),
                node("Softmax", [f"sm{layer}"], [f"w{layer}"], axis=-1),
                node("MatMul", [f"w{layer}", f"v{layer}"], [f"a{layer}"]),
            ]
        nodes.append(node("Add", [h, f"a{layer}"], [f"h{layer + 1}"]))
    hidden = f"h{LAYERS}"
    if kind == "fused":
        nodes.append(node("Slice", [hidden, "first_logits", "end", "axis1"], ["answered"]))
        ints |= {"first_logits": [0], "end": [2**63 - 1]}
        hidden = "answered"
    nodes += [
        node("Transpose", [constants["embed"]], ["embed_t"], perm=[1, 0]),
        node("MatMul", [hidden, "embed_t"], ["logits"]),
    ]
    parts = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    inputs = [
        Value("input_ids", INT64, ["batch", "new"]),
        Value("attention_mask", INT64, ["batch", "total"]),
        Value("position_ids", INT64, ["batch", "new"]),
        *[Value(f"past_key_values.{part}", FLOAT, ["batch", 1, "past", WIDTH]) for part in parts],
    ]
    outputs = [
        Value("logits", FLOAT, ["batch", "new", VOCAB]),
        *[Value(f"present.{part}", FLOAT, ["batch", 1, "present", WIDTH]) for part in parts],
    ]
    tensors = [Tensor.of(name, np.array(value)) for name, value in ints.items()]
    tensors += [Tensor.of(name, np.array(value)) for name, value in (("i0", 0), ("i1", 1))]
    tensors += [
        Tensor.of(name, np.array(value, np.float32)) for name, value in (("scale", WIDTH**-0.5), ("low", -1e30))
    ]
    used = {name for each in nodes for name in each.input}
    tensors = [tensor for tensor in tensors if tensor.name in used]
    tensors += [external(name, weights) for name in constants.values()]
    for before, after in rename.items():
        for entry in [*inputs, *outputs]:
            entry.name = after if entry.name == before else entry.name
        for each in nodes:
            each.input = [after if name == before else name for name in each.input]
            each.output = [after if name == before else name for name in each.output]
    return Graph(nodes, inputs, outputs, tensors)


def byte_tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer without merges: one token per byte, `<s>` before a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    filler = [f"<unused{index}>" for index in range(len(vocab), BOS)]
    tokenizer.add_special_tokens([*filler, "<s>", "</s>", "<pad>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return the folder's manifest as it stands."""
    manifest: dict[str, Any] = json.loads((folder / "curconvert.json").read_text())
    return manifest


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] | None = None) -> None:
    """Write sizes and hashes of the files as they are now into the manifest, after an optional change of it."""
    manifest = manifest_of(folder)
    manifest["files"] = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != "curconvert.json" and path.is_file() and not path.name.startswith(".")
    }
    if change:
        change(manifest)
    (folder / "curconvert.json").write_text(json.dumps(manifest))


def toy_manifest() -> dict[str, Any]:
    """Return a manifest without files."""
    return {
        "format_version": "1.0",
        "generator": {"name": "curconvert", "version": "0.0"},
        "source": {
            "kind": "safetensors",
            "name": "toy.safetensors",
            "files": [{"name": "toy.safetensors", "size": 1, "sha256": "0" * 64}],
        },
        "model": {
            "model_type": "toy",
            "dtype": "float32",
            "parameters_before": 2698,
            "parameters_after": 2694,
            "tied_embeddings": True,
            "vocab_size": VOCAB,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": 1,
            "head_dim": WIDTH,
            "max_position_embeddings": CONTEXT,
        },
        "options": {"rank": RANK},
        "calibration": None,
        "environment": {"numpy": np.__version__},
        "matrices": [
            {
                "name": MATRIX,
                "form": "cur",
                "basis": None,
                "shape": [6, 5],
                "rank": RANK,
                "parameters_before": 30,
                "parameters_after": 26,
                "reason": None,
                "relative_output_error": 0.1,
                "relative_frobenius_error": None,
                "bound": {"eta_rows": 1.5, "eta_columns": 2, "sigma_next": 0.1, "value": 0.3, "matrix": "weight"},
            },
            {
                "name": "model.norm.weight",
                "form": "dense",
                "basis": None,
                "shape": [4, 3],
                "rank": None,
                "parameters_before": 12,
                "parameters_after": 12,
                "reason": "not a target",
                "relative_output_error": None,
                "relative_frobenius_error": None,
                "bound": None,
            },
        ],
        "graphs": {
            "portable": {"file": "model.onnx", "padding": "left"},
            "fused": {"file": "model.fused.onnx", "padding": "right"},
        },
        "files": {},
        "metrics": None,
    }


def write_toy(folder: Path, tensors: dict[str, NDArray[Any]] | None = None, *, shards: int = 1) -> Path:
    """Write a complete, sealed toy artifact."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = tensors or toy_tensors()
    weights = folder / "model.safetensors"
    save_file(tensors, weights)
    for kind, file in GRAPHS.items():
        (folder / file).write_bytes(toy_graph(weights, kind).encode())
    if shards == 2:
        _split(weights, tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "eos_token_id": EOS}))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "curconvert.json").write_text(json.dumps(toy_manifest()))
    reseal(folder)
    return folder


def _split(weights: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Replace the lone weight file by two shards and their index; the graphs follow."""
    folder = weights.parent
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:4], "model-00002-of-00002.safetensors": names[4:]}
    place: dict[str, Path] = {}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / file)
        place |= dict.fromkeys(members, folder / file)
    index = {"metadata": {}, "weight_map": {name: path.name for name, path in place.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for kind, file in GRAPHS.items():
        graph = toy_graph(weights, kind)
        graph.initializer = [
            external(tensor.name, place[tensor.name]) if tensor.name in place else tensor
            for tensor in graph.initializer
        ]
        (folder / file).write_bytes(graph.encode())
    weights.unlink()
