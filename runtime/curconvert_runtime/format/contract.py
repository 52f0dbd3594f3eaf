"""Checks the inputs and outputs of a loaded graph against the contract in docs/artifact.md, "Graphs".

A graph may have a constant `first_logits`: the index of the first new token that gets logits. A session turns it into
an input with that default. Graphs of older artifacts already have the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curconvert_runtime.errors import unsound

FIRST_LOGITS = "first_logits"
SLICE = ".slice."
"""Separates tensor name and number in the name of an initializer that reads only some of the tensor's rows."""
# onnxruntime's spelling.
_FLOAT, _INT64 = "tensor(float)", "tensor(int64)"
_CACHES = {"float32": _FLOAT, "float16": "tensor(float16)"}


def cache_names(layers: int) -> tuple[list[str], list[str]]:
    """Return the names of the past inputs and the present outputs, key before value, layer by layer."""
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return [f"past_key_values.{part}" for part in parts], [f"present.{part}" for part in parts]


def unsliced_name(name: str) -> str:
    """Return the name of the tensor that an initializer reads: its own name without a slice number."""
    stem, slice_mark, number = name.rpartition(SLICE)
    return stem if slice_mark and number.isdecimal() else name


def check_contract(session: Any, path: Path, model: Mapping[str, Any], arithmetic: str = "float32") -> bool:
    """Raise `IntegrityError` if a loaded graph breaks the contract or does not match the manifest's model.

    Returns:
        Whether the graph takes `position_ids`.
    """
    try:
        inputs, outputs = (
            {entry.name: (entry.type, list(entry.shape)) for entry in entries}
            for entries in (session.get_inputs(), session.get_outputs())
        )
    except UnicodeDecodeError:
        raise unsound(path, "a name in the graph is not UTF-8") from None
    # The manifest's number of layers may be absurdly large. Names up to the graph's number of inputs are enough.
    past, present = cache_names(min(model["num_hidden_layers"], len(inputs)))
    for kind, found, expected in (
        ("input", set(inputs) - {"position_ids"}, {"input_ids", "attention_mask", *past}),
        ("output", set(outputs), {"logits", *present}),
    ):
        if found != expected:
            name = sorted(found ^ expected)[0]
            state = "unexpected" if name in found else "missing"
            raise unsound(path, f"{kind} {name[:200]!r} is {state}")
    heads, head_dim, vocabulary = model["num_key_value_heads"], model["head_dim"], model["vocab_size"]
    wanted: dict[str, tuple[str, list[int | None]]] = {
        **dict.fromkeys(("input_ids", "attention_mask", "position_ids"), (_INT64, [None, None])),
        **dict.fromkeys(past + present, (_CACHES[arithmetic], [None, heads, None, head_dim])),
        "logits": (_FLOAT, [None, None, vocabulary]),
    }
    for name, (kind, shape) in {**inputs, **outputs}.items():
        right, sizes = wanted[name]
        fits = len(shape) == len(sizes) and all(size in (None, axis) for size, axis in zip(sizes, shape, strict=True))
        if kind != right or not fits:
            shown = [size or "any" for size in sizes]
            raise unsound(path, f"{name!r} is {kind} {shape}, expected {right} {shown}")
    return "position_ids" in inputs
