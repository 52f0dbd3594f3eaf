"""Turns the dense template into a deployable graph: a dialect rewrites the nodes that it has operators for.

The template's `Transpose(W) → MatMul`, `RMSNormalization`, `Gelu`, `RotaryEmbedding` and `Attention` nodes are
rewritten. Other nodes (activations, multipliers, logits) stay as mobius wrote them.

All values are float32, except stored weights. A Cast converts 16-bit weights to float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common as passes

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.types import TensorInfo
from curconvert.families.facts import ModelFacts
from curconvert.families.skeleton import EMBEDDING, HEAD
from curconvert.graph.binding import DTYPES, INDEX_DTYPE, source_of
from curconvert.graph.dialect import Dialect
from curconvert.graph.forms import EMITTERS
from curconvert.graph.forms.stored import Stored
from curconvert.graph.unpacking import joined
from curconvert.graph.weights import Packed, Weight
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import factor_name, is_index
from curconvert_runtime.format.quantized import Packing, part_name

_FLOAT, _UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8


class Lowering:
    """Rewrites a template in one pass.

    Args:
        model: A copy of the template, rewritten in place.
        dialect: Emits the operators of the target graph.
        facts: The model's facts.
        tensors: The stored tensors; only names and shapes are used.
        forms: Form by weight name; other weights are dense.
        owners: Owner of a shared R by weight name; other weights have their own R.
        quantized: Shape and layout of quantized matrices.
    """

    def __init__(
        self,
        model: ir.Model,
        dialect: Dialect,
        facts: ModelFacts,
        tensors: Mapping[str, TensorInfo],
        forms: Mapping[str, str],
        owners: Mapping[str, str],
        quantized: Mapping[str, Packing],
    ) -> None:
        self._model = model
        self._graph = model.graph
        self._dialect = dialect
        self._facts = facts
        self._tensors = tensors
        self._forms = forms
        self._owners = owners
        self._quantized = quantized
        self._formed: set[str] = set()
        self._embedded: ir.Value | None = None
        self._factors: dict[str, ir.Value] = {}
        self._packed: dict[str, Packed] = {}

    def run(self) -> None:
        """Rewrite the whole model in place."""
        self._declare_stored()
        for node in tuple(self._graph):
            outputs = self._rewrite(node)
            if outputs is None:
                self._keep(node)
            else:
                self._replace(node, outputs)
        unknown = self._forms.keys() - self._formed
        if unknown:
            raise InputError(
                f"graph: the model has no linear with the weight {min(unknown)}, which is listed as factored"
            )
        passes.RemoveUnusedNodesPass()(self._model)
        self._graph.opset_imports.clear()
        self._graph.opset_imports.update(self._dialect.opset_imports)

    def _declare_stored(self) -> None:
        """Set the type of all weights to the stored one."""
        for value in self._graph.initializers.values():
            if value.const_value is None and value.dtype is _FLOAT:
                value.type = ir.TensorType(self._dialect.emit.stored)

    def _keep(self, node: ir.Node) -> None:
        """Leave a node as it is, on float32 inputs."""
        if node.op_type == "Transpose":
            # The transpose of a weight is removed when its MatMul is rewritten.
            return
        for index, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(index, self._dialect.emit.exact(value))
        self._graph.insert_before(node, self._take(node))

    def _replace(self, node: ir.Node, outputs: tuple[ir.Value, ...]) -> None:
        """Replace a node by the emitted nodes, and its outputs by theirs."""
        old = node.outputs[: len(outputs)]
        ir.convenience.replace_nodes_and_values(self._graph, node, [node], self._take(node), old, outputs)

    def _take(self, node: ir.Node) -> list[ir.Node]:
        """Return the emitted nodes, named after the template's node."""
        nodes = self._dialect.emit.take()
        scope = str(node.name).rpartition("/")[0]
        for new in nodes:
            new.name = f"{scope}/{new.op_type}"
        return nodes

    def _rewrite(self, node: ir.Node) -> tuple[ir.Value, ...] | None:
        """Return what replaces the node's outputs, or None to keep the node."""
        match node.op_type:
            case "MatMul":
                return self._linear(node)
            case "RMSNormalization":
                return self._norm(node)
            case "Gelu":
                return (self._dialect.gelu(_input(node, 0), str(_attribute(node, "approximate", "none"))),)
            case "Attention":
                return self._attention(node)
            case "Gather" | "Add" | "Mul":
                return self._adjusted(node)
            case _:
                return None

    def _adjusted(self, node: ir.Node) -> tuple[ir.Value, ...] | None:
        emit, left, right = self._dialect.emit, _input(node, 0), _input(node, 1)
        if node.op_type == "Gather" and left.name == EMBEDDING and EMBEDDING in self._quantized:
            self._embedded = self._dialect.look_up(self._parts(EMBEDDING, EMBEDDING, rows=True), right)
            return (self._embedded,)
        if node.op_type == "Gather" and emit.stored is not _FLOAT and left.is_initializer():
            # Look rows up first and convert only these to float32, not the whole embedding.
            return (emit.cast(emit("Gather", left, right), _FLOAT),)
        if node.op_type == "Add" and not str(right.name).endswith(".bias"):
            # The residual stream, and Gemma's 1 + weight. A new node avoids mobius' numbers in node names.
            return (emit("Add", emit.exact(left), emit.exact(right)),)
        if node.op_type == "Mul" and _is_sigmoid_of(right, left):
            return (self._dialect.silu(left),)
        if node.op_type == "Mul" and self._facts.embedding_scale is not None and self._is_embedding(left):
            # mobius rounds this constant (5.66 for √32 in Gemma 2, bfloat16's 5.65625 in Gemma 3).
            return (emit("Mul", left, emit.constant(self._facts.embedding_scale)),)
        return None

    def _is_embedding(self, value: ir.Value) -> bool:
        if value is self._embedded:
            return True
        producer = value.producer()
        if producer is not None and producer.op_type == "Cast":
            producer = _input(producer, 0).producer()
        return producer is not None and producer.op_type == "Gather" and _input(producer, 0).name == EMBEDDING

    def _linear(self, node: ir.Node) -> tuple[ir.Value, ...] | None:
        transpose = _input(node, 1).producer()
        if transpose is None or transpose.op_type != "Transpose":
            return None
        weight = _input(transpose, 0)
        name = str(weight.name)
        product = self._product(_input(node, 0), weight)
        bias = factor_name(name, "bias")
        if name in self._forms and (form := form_of(self._forms[name])).cuts_outputs:
            _resize(node.outputs[0], self._rows(factor_name(name, list(form.factors)[-1])))
        if bias in self._tensors and bias not in self._graph.initializers:
            # mobius ignores `mlp_bias`; the biases that it supports are Add nodes of the template.
            product = self._dialect.emit("Add", product, self._dialect.emit.exact(self._stored(bias)))
        return (product,)

    def _product(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        """Return x·Wᵀ, computed with the stored form of W."""
        name = str(weight.name)
        self._formed.add(name)
        if name not in self._forms:
            return self._dialect.linear(x, [self._dense(name, weight)])
        if self._forms[name] not in EMITTERS:
            raise UnsupportedError(
                f"tensor {name}: form {self._forms[name]!r} has no graph, expected one of {', '.join(EMITTERS)}"
            )
        form = form_of(self._forms[name])

        def matrix(suffix: str) -> Weight:
            owner = self._owners.get(name, name) if suffix == form.common else name
            return self._matrix(factor_name(owner, suffix), form.name)

        def index(suffix: str) -> ir.Value:
            return self._stored(factor_name(name, suffix), form.name)

        return EMITTERS[form.name](self._dialect, x, Stored(matrix, index))

    def _dense(self, name: str, weight: ir.Value) -> Weight:
        """Return a dense weight: its initializer, the embedding for a tied lm_head, or its quantized parts."""
        if name in self._quantized and name != EMBEDDING:
            return self._parts(name, name)
        tied = name in (HEAD, EMBEDDING) and HEAD not in self._tensors
        if tied and EMBEDDING in self._quantized:
            return self._parts(HEAD, EMBEDDING)
        return self._graph.initializers[EMBEDDING] if tied else weight

    def _matrix(self, name: str, form: str) -> Weight:
        return self._parts(name, name) if name in self._quantized else self._stored(name, form)

    def _rows(self, name: str) -> int:
        return self._quantized[name].shape[0] if name in self._quantized else self._tensors[name].shape[0]

    def _parts(self, name: str, tensor: str, *, rows: bool = False) -> Packed:
        """Return the parts of a quantized matrix: initializers, or values that onnxruntime computes from them at load.

        Args:
            name: Name for the initializers.
            tensor: Name of the stored tensor.
            rows: True for look-ups of rows of bytes; False for the shape that the dialect's products take.
        """
        if name in self._packed:
            return self._packed[name]
        packing, emit = self._quantized[tensor], self._dialect.emit
        shape, layout = packing.shape, packing.layout

        def part(suffix: str, dtype: ir.DataType, seen: tuple[int, ...]) -> ir.Value:
            return self._initializer(part_name(name, suffix), dtype, seen, "quantized")

        sizes = {suffix: size for suffix, (_, size) in packing.parts.items()}
        if len(layout.planes) > 1:
            whole = joined(emit, {suffix: part(suffix, _UINT8, sizes[suffix]) for suffix in layout.planes}, layout)
            integers = emit("Reshape", whole, emit.ints(0, -1)) if rows else self._dialect.arranged(whole, layout)
        elif rows:
            integers = part("q", _UINT8, (sizes["q"][0], math.prod(sizes["q"][1:])))
        else:
            integers = part("q", *self._dialect.integers(shape, layout))
        scales = part("scales", DTYPES[packing.parts["scales"][0]], sizes["scales"])
        scales = scales if scales.dtype is _FLOAT else emit.cast(scales, _FLOAT)
        zeros = None if layout.symmetric else part("zeros", _UINT8, sizes["zeros"])
        self._packed[name] = Packed(shape, layout, integers, scales, zeros)
        return self._packed[name]

    def _stored(self, name: str, form: str = "dense") -> ir.Value:
        """Return the initializer for a stored tensor that the template lacks, or has in another shape."""
        if name in self._factors:
            return self._factors[name]
        if name not in self._tensors:
            raise InputError(f"graph: tensor {name} is missing, its matrix has form {form}")
        dtype = INDEX_DTYPE if is_index(name) else self._dialect.emit.stored
        return self._initializer(name, dtype, self._tensors[name].shape, form)

    def _initializer(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], form: str) -> ir.Value:
        if source_of(name, self._tensors) not in self._tensors:
            raise InputError(f"graph: tensor {name} is missing, its matrix has form {form}")
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        # `binding.bind` sets the initializer's tensor later.
        self._graph.initializers[name] = self._factors[name] = value
        return value

    def _norm(self, node: ir.Node) -> tuple[ir.Value, ...]:
        x, weight = _input(node, 0), self._dialect.emit.exact(_input(node, 1))
        epsilon = float(_attribute(node, "epsilon", 1e-5))
        add = x.producer()
        if (
            add is not None
            and add.op_type == "Add"
            and not any(value.is_initializer() for value in add.inputs if value)
        ):
            normed, total = self._dialect.add_rms_norm(_input(add, 0), _input(add, 1), weight, epsilon)
            if total is not x:
                x.replace_all_uses_with(total)
            return (normed,)
        return (self._dialect.rms_norm(x, weight, epsilon),)

    def _attention(self, node: ir.Node) -> tuple[ir.Value, ...]:
        past = (_input(node, 4), _input(node, 5))
        index = int(str(past[0].name).split(".")[1])
        facts = self._facts.layers[index]
        query, has_rope = _unrotated(_input(node, 0))
        key, _ = _unrotated(_input(node, 1))
        if has_rope != (facts.rope is not None):
            raise UnsupportedError(
                f"layer {index}: mobius {'applies' if has_rope else 'omits'} rotary positions, transformers disagrees"
            )
        return self._dialect.attention(facts, query, key, _input(node, 2), past)


def _resize(value: ir.Value, width: int) -> None:
    """Change the last axis of a template value, and of all values computed from it up to the next product (down)."""
    value.shape = ir.Shape([*value.shape[:-1], width])
    for node in value.consumers():
        if node.op_type != "MatMul":
            for output in node.outputs:
                _resize(output, width)


def _is_sigmoid_of(value: ir.Value, x: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Sigmoid" and _input(producer, 0) is x


def _unrotated(value: ir.Value) -> tuple[ir.Value, bool]:
    producer = value.producer()
    if producer is not None and producer.op_type == "RotaryEmbedding":
        return _input(producer, 0), True
    return value, False


def _input(node: ir.Node, index: int) -> ir.Value:
    return node.inputs[index]


def _attribute(node: ir.Node, name: str, default: float | str) -> float | str:
    return node.attributes[name].value if name in node.attributes else default
