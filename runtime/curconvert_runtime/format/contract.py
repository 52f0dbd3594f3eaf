"""What every graph of an artifact takes and gives (docs/artifact.md, "Graphs"), and the check that a loaded one does.

A graph may have a constant `first_logits`, the first of the new tokens that gets logits. A session makes an input of
it, with that default; graphs of older artifacts have the input themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curconvert_runtime.errors import unsound

FIRST_LOGITS = "first_logits"
SLICE = ".slice."
"""Between a tensor's name and a number in the name of an initializer that reads some of its rows."""
# onnxruntime's spelling.
_FLOAT, _INT64 = "tensor(float)", "tensor(int64)"
_CACHES = {"float32": _FLOAT, "float16": "tensor(float16)"}


def cache_names(layers: int) -> tuple[list[str], list[str]]:
    """Return the names of the past inputs and the present outputs, key before value, layer by layer."""
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return [f"past_key_values.{part}" for part in parts], [f"present.{part}" for part in parts]


def unsliced_name(name: str) -> str:
    """Return the name of the tensor whose rows an initializer reads, which may be all of them."""
    stem, slice_mark, number = name.rpartition(SLICE)
    return stem if slice_mark and number.isdecimal() else name


def check_contract(session: Any, path: Path, model: Mapping[str, Any], arithmetic: str = "float32") -> bool:
    """Refuse a loaded graph that differs from the contract, or from what the manifest says of model and arithmetic.

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
    # One name past what the graph can have is enough to name the missing one; the manifest's number may be absurd.
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
