"""What every graph of an artifact takes and gives, and the check that a loaded one does.

Inputs `input_ids` [B,S], `attention_mask` [B,P+S], `position_ids` [B,S] where the graph has it, and
`past_key_values.N.key/value` [B,heads,P,head_dim]; outputs `logits` [B,S,V] and `present.N.key/value`. Inputs of
tokens are int64, logits are float32, whatever the dtype of the weights; the cache is in what the graph computes in:
float32, unless the manifest says float16.

A graph may have one input more, with a default: `first_logits` [1] is the first of the S tokens that gets logits, as in
a Python slice; the default 0 gives them to all.

An initialiser has the name of the stored tensor that it reads, that of a tied head the head's own. A graph may have a
large one in slices of its rows, which are numbered in their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curconvert_runtime.errors import IntegrityError

FIRST_LOGITS = "first_logits"
_SLICE = ".slice."
# onnxruntime's spelling.
_FLOAT, _INT64 = "tensor(float)", "tensor(int64)"
_CACHES = {"float32": _FLOAT, "float16": "tensor(float16)"}


@dataclass(frozen=True)
class _Signature:
    """Name, type and dimensions (numbers or axis names) of an input or output."""

    name: str
    type: str
    shape: list[int | str]


def cache_names(layers: int) -> tuple[list[str], list[str]]:
    """Return the names of the past inputs and the present outputs, key before value, layer by layer."""
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return [f"past_key_values.{part}" for part in parts], [f"present.{part}" for part in parts]


def slice_name(name: str, number: int) -> str:
    """Return the name of an initialiser that reads some rows of a tensor."""
    return f"{name}{_SLICE}{number}"


def unsliced_name(name: str) -> str:
    """Return the name of the tensor whose rows an initialiser reads, which may be all of them."""
    stem, slice_mark, number = name.rpartition(_SLICE)
    return stem if slice_mark and number.isdecimal() else name


def check_contract(session: Any, path: Path, model: Mapping[str, Any], arithmetic: str = "float32") -> bool:
    """Compare a loaded graph with the contract and the manifest.

    Args:
        session: An `onnxruntime.InferenceSession`.
        path: The graph's file, for messages.
        model: The manifest's `model` section.
        arithmetic: What the manifest says that the graph computes in.

    Returns:
        Whether the graph takes `position_ids`.

    Raises:
        IntegrityError: A name, type or dimension differs.
    """
    try:
        inputs, outputs = (
            {entry.name: _Signature(entry.name, entry.type, list(entry.shape)) for entry in entries}
            for entries in (session.get_inputs(), session.get_outputs())
        )
    except UnicodeDecodeError:
        raise IntegrityError(f"{path}: a name in the graph is not UTF-8; convert the model again") from None
    # One name past what the graph can have is enough to name the missing one; the manifest's number may be absurd.
    past, present = cache_names(min(model["num_hidden_layers"], len(inputs)))
    for kind, found, expected in (
        ("input", set(inputs) - {"position_ids"}, {"input_ids", "attention_mask", *past}),
        ("output", set(outputs), {"logits", *present}),
    ):
        if found != expected:
            name = sorted(found ^ expected)[0]
            state = "unexpected" if name in found else "missing"
            raise IntegrityError(f"{path}: {kind} {name[:200]!r} is {state}; convert the model again")
    heads, head_dim, vocabulary = model["num_key_value_heads"], model["head_dim"], model["vocab_size"]
    for entry in [inputs[name] for name in past] + [outputs[name] for name in present]:
        _check(path, entry, _CACHES[arithmetic], {1: heads, 3: head_dim}, 4)
    for name in ("input_ids", "attention_mask", "position_ids"):
        if name in inputs:
            _check(path, inputs[name], _INT64, {}, 2)
    _check(path, outputs["logits"], _FLOAT, {2: vocabulary}, 3)
    return "position_ids" in inputs


def _check(path: Path, entry: _Signature, kind: str, sizes: Mapping[int, int], dimensions: int) -> None:
    fits = len(entry.shape) == dimensions and all(entry.shape[axis] == size for axis, size in sizes.items())
    if entry.type != kind or not fits:
        wanted = [sizes.get(axis, "any") for axis in range(dimensions)]
        raise IntegrityError(
            f"{path}: {entry.name!r} is {entry.type} {entry.shape}, expected {kind} {wanted}; convert the model again"
        )
