"""Faults planted in real artifacts whose manifest is resealed, so that every hash agrees: `verify` must find each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from safetensors.numpy import load_file

from curconvert.cli import main
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert_runtime.checks.verification import verify
from curconvert_runtime.errors import IntegrityError, VerificationError
from curconvert_schemas import validate
from support.conversions import convert_tiny
from support.tiny_artifact import reseal

GRAPHS = ("model.onnx", "model.fused.onnx")
Q = "model.layers.1.self_attn.q_proj"
PARITY = {"parity.portable.logits", "parity.fused.logits"}
KEYS = {f"parity.{kind}.{key}_key" for kind in ("portable", "fused") for key in ("first", "last")}


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Convert each kind of model once."""
    done: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in done:
            model, _, method = name.partition("/")
            family, _, dtype = model.partition("-")
            folder = tmp_path_factory.mktemp("model")
            settings = {"method": method or "cur", "dtype": dtype or None, "num_hidden_layers": 3}
            done[name] = convert_tiny(folder, family, **settings)
        return done[name]

    return get


@pytest.fixture
def copy(converted: Callable[..., tuple[Path, Path]], tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return (checkpoint, a copy of its artifact to be damaged)."""

    def get(name: str) -> tuple[Path, Path]:
        source, artifact = converted(name)
        return source, Path(shutil.copytree(artifact, tmp_path / "out"))

    return get


def edit_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change tensors in place in the file (its layout, to which the graphs point, stays) and reseal."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    change(tensors)
    for name, value in tensors.items():
        begin, end = header[name]["data_offsets"]
        data[8 + length + begin : 8 + length + end] = np.ascontiguousarray(value).tobytes()
    path.write_bytes(data)
    reseal(folder)


def edit_graphs(folder: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    """Change both graphs in the same way and reseal."""
    for name in GRAPHS:
        model = onnx.load(folder / name, load_external_data=False)
        change(model.graph)
        (folder / name).write_bytes(model.SerializeToString())
    reseal(folder)


def external_of(graph: onnx.GraphProto, name: str) -> Any:
    """Return an initializer's external data entries."""
    return next(tensor for tensor in graph.initializer if tensor.name == name).external_data


def point_to(graph: onnx.GraphProto, name: str, other: str) -> None:
    """Make one initializer read another's bytes."""
    source = {entry.key: entry.value for entry in external_of(graph, other)}
    for entry in external_of(graph, name):
        entry.value = source[entry.key]


def failed(folder: Path) -> set[str]:
    """Return the failed checks; a report with a failure must raise."""
    report = verify(folder)
    if report.failures:
        with pytest.raises(VerificationError):
            report.raise_for_failures()
    return {check.name for check in report.failures}


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen2", "llama-float16", "llama/row-id", "llama/pifa", "llama/svd-llm", "phi3/neurons", "qwen2/modegpt"],
)
def test_sound_artifacts_pass(converted: Callable[..., tuple[Path, Path]], name: str) -> None:
    """Without a fault every gate passes: torch-free, with torch, and with the original."""
    source, artifact = converted(name)
    assert failed(artifact) == set()
    assert torch_parity(artifact).passed
    assert all(check.passed for check in check_slices(artifact, source))


@pytest.mark.parametrize(
    ("name", "present"),
    [("llama", True), ("llama/row-id", False), ("llama/svd-llm", False), ("phi3/neurons", False)],
)
def test_nothing_checked_is_no_tick(converted: Callable[..., tuple[Path, Path]], name: str, present: bool) -> None:
    """Without CUR matrices there is no check of them that could pass."""
    checks = {check.name: check.detail for check in verify(converted(name)[1]).checks}
    assert ("structure.factors" in checks) == present
    assert not any(detail.startswith("0 ") for detail in checks.values())


def test_swapped_row_indices(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Two row indices swapped: the original shows it, and so do C and R alone."""

    def swap(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q}.rows"][[0, 1]] = tensors[f"{Q}.rows"][[1, 0]]

    source, artifact = copy("llama")
    edit_weights(artifact, swap)
    found = [check for check in check_slices(artifact, source) if not check.passed]
    assert [(check.name, Q in check.detail) for check in found] == [("source.slices", True)]
    assert failed(artifact) == {"structure.factors"}


def test_transposed_link(copy: Callable[..., tuple[Path, Path]]) -> None:
    """U transposed: both graphs answer differently from the conversion's torch model."""
    _, artifact = copy("llama")
    edit_weights(artifact, lambda tensors: tensors.update({f"{Q}.U": tensors[f"{Q}.U"].T}))
    assert failed(artifact) >= PARITY


def test_column_of_another_matrix(copy: Callable[..., tuple[Path, Path]]) -> None:
    """One column of C from another layer: not a slice, not consistent with R, and other answers."""

    def mix(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q}.C"][:, 2] = tensors[f"{Q.replace('1', '0')}.C"][:, 2]

    source, artifact = copy("llama")
    edit_weights(artifact, mix)
    assert PARITY | {"structure.factors"} <= failed(artifact)
    assert "source.slices" in {check.name for check in check_slices(artifact, source) if not check.passed}


def test_outputs_in_another_order(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Two outputs that are not chosen rows swapped: rows and order still agree, both graphs answer differently."""

    def swap(tensors: dict[str, np.ndarray]) -> None:
        order = tensors[f"{Q}.order"]
        first, second = np.setdiff1d(np.arange(len(order)), tensors[f"{Q}.rows"])[:2]
        order[[first, second]] = order[[second, first]]

    _, artifact = copy("llama/pifa")
    edit_weights(artifact, swap)
    assert failed(artifact) >= PARITY


@pytest.mark.parametrize("suffix", ["rows", "order"])
def test_rows_and_order_that_disagree(copy: Callable[..., tuple[Path, Path]], suffix: str) -> None:
    """Two entries of either swapped: the artifact does not open."""

    def swap(tensors: dict[str, np.ndarray]) -> None:
        first, second = (0, 1) if suffix == "rows" else tensors[f"{Q}.rows"][:2]
        tensors[f"{Q}.{suffix}"][[first, second]] = tensors[f"{Q}.{suffix}"][[second, first]]

    _, artifact = copy("llama/row-id")
    edit_weights(artifact, swap)
    with pytest.raises(IntegrityError, match="does not lead to"):
        verify(artifact)


@pytest.mark.parametrize(("method", "factor"), [("row-id", "R"), ("pifa", "T"), ("svd-llm", "A"), ("svd-llm", "B")])
def test_rows_of_a_factor_swapped(copy: Callable[..., tuple[Path, Path]], method: str, factor: str) -> None:
    """Every factor of every form reaches the answers of both graphs; a row that is none of the original's shows."""

    def swap(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q}.{factor}"][[0, 1]] = tensors[f"{Q}.{factor}"][[1, 0]]

    source, artifact = copy(f"llama/{method}")
    edit_weights(artifact, swap)
    assert failed(artifact) >= PARITY
    slices = next(check for check in check_slices(artifact, source) if check.name == "source.slices")
    assert slices.passed == (method != "row-id")


def test_neurons_that_disagree(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Two row indices swapped, or another column index: the artifact does not open."""
    mlp = "model.layers.1.mlp"
    for name, message in (("gate_proj.rows", "keep different neurons"), ("down_proj.cols", "keep different neurons")):
        _, artifact = copy("llama/neurons")

        def damage(tensors: dict[str, np.ndarray], name: str = f"{mlp}.{name}") -> None:
            values = tensors[name]
            values[[0, 1]] = values[[1, 0]] if name.endswith("rows") else np.setdiff1d(np.arange(48), values)[:2]

        edit_weights(artifact, damage)
        with pytest.raises(IntegrityError, match=message):
            verify(artifact)
        shutil.rmtree(artifact)


def test_neurons_of_other_rows(copy: Callable[..., tuple[Path, Path]]) -> None:
    """The same wrong neuron in all three index vectors: nothing but the original can tell."""
    mlp = "model.layers.1.mlp"

    def shift(tensors: dict[str, np.ndarray]) -> None:
        kept = tensors[f"{mlp}.down_proj.cols"]
        other = np.setdiff1d(np.arange(48), kept)[0]
        for name in ("gate_proj.rows", "up_proj.rows", "down_proj.cols"):
            tensors[f"{mlp}.{name}"] = np.sort(np.append(kept[1:], other)).astype(np.int32)

    source, artifact = copy("llama/neurons")
    edit_weights(artifact, shift)
    assert failed(artifact) == set()
    found = [check for check in check_slices(artifact, source) if not check.passed]
    assert [(check.name, f"{mlp}.gate_proj.weight" in check.detail) for check in found] == [("source.slices", True)]


@pytest.mark.parametrize("linear", ["gate_proj", "up_proj", "down_proj"])
def test_neurons_swapped_in_one_linear(copy: Callable[..., tuple[Path, Path]], linear: str) -> None:
    """Two neurons swapped in one of the three weights: both graphs answer differently; gate and up are no slices."""

    def swap(tensors: dict[str, np.ndarray]) -> None:
        weight = tensors[f"model.layers.1.mlp.{linear}.weight"]
        weight = weight.T if linear == "down_proj" else weight
        weight[[0, 1]] = weight[[1, 0]]

    source, artifact = copy("llama/neurons")
    edit_weights(artifact, swap)
    assert failed(artifact) >= PARITY
    slices = next(check for check in check_slices(artifact, source) if check.name == "source.slices")
    assert slices.passed == (linear == "down_proj")


def move(kept: np.ndarray, size: int) -> np.ndarray:
    """Return kept indices with the first moved to one that was dropped, ascending."""
    return np.sort(np.append(kept[1:], np.setdiff1d(np.arange(size), kept)[0])).astype(np.int32)


def test_rows_in_other_places(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Rows and order that agree on other outputs: both graphs answer differently, and the rows are not those."""

    def shift(tensors: dict[str, np.ndarray]) -> None:
        rows = move(tensors[f"{Q}.rows"], 32)
        order = np.full(32, len(rows), np.int32)
        order[rows] = np.arange(len(rows))
        tensors |= {f"{Q}.rows": rows, f"{Q}.order": order}

    source, artifact = copy("llama/modegpt")
    edit_weights(artifact, shift)
    assert failed(artifact) >= PARITY
    found = [check for check in check_slices(artifact, source) if not check.passed]
    assert [(check.name, f"{Q}.weight" in check.detail) for check in found] == [("source.slices", True)]


def test_columns_in_other_places(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Another input of o_proj: both graphs answer differently."""
    name = f"{Q.replace('q_proj', 'o_proj')}.order"

    def shift(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = move(tensors[name], 32)

    _, artifact = copy("llama/modegpt")
    edit_weights(artifact, shift)
    assert failed(artifact) >= PARITY


def test_a_dropped_output_that_is_not_zero(copy: Callable[..., tuple[Path, Path]]) -> None:
    """A dropped output that repeats a kept one: the artifact does not open."""

    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q}.order"][np.setdiff1d(np.arange(32), tensors[f"{Q}.rows"])[0]] = 0

    _, artifact = copy("llama/modegpt")
    edit_weights(artifact, damage)
    with pytest.raises(IntegrityError, match="for every dropped output"):
        verify(artifact)


def test_wrong_parameter_count(copy: Callable[..., tuple[Path, Path]]) -> None:
    """A manifest that claims fewer parameters than are stored."""
    _, artifact = copy("llama/pifa")
    reseal(artifact, lambda manifest: manifest["model"].update(parameters_after=1000))
    assert failed(artifact) == {"structure.counts"}


def test_wrong_rope_base_in_the_config(copy: Callable[..., tuple[Path, Path]]) -> None:
    """rope_theta changed in both dialects: torch computes other keys, and the stored keys alone contradict it."""
    _, artifact = copy("llama")
    config = json.loads((artifact / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 20000.0
    (artifact / "config.json").write_text(json.dumps(config))
    reseal(artifact)
    assert failed(artifact) == {"structure.rotary"}
    torch_failures = {check.name for check in torch_parity(artifact).checks if not check.passed}
    assert {"torch.conversion.first_key", "torch.portable.logits", "torch.fused.logits"} <= torch_failures


def test_wrong_rope_base_in_one_dialect(copy: Callable[..., tuple[Path, Path]]) -> None:
    """rope_theta changed where only transformers 4 reads it: the config contradicts itself."""
    _, artifact = copy("llama")
    config = json.loads((artifact / "config.json").read_text())
    config["rope_theta"] = 20000.0
    (artifact / "config.json").write_text(json.dumps(config))
    reseal(artifact)
    assert failed(artifact) == {"structure.config"}


def test_wrong_rope_base_in_the_graphs(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Rotary frequencies of another base in both graphs."""
    expected, wrong = (base ** (-np.arange(0, 8, 2) / 8) for base in (10000.0, 20000.0))

    def rebase(graph: onnx.GraphProto) -> None:
        found = [t for t in graph.initializer if list(t.dims) == [4] and t.data_type == onnx.TensorProto.FLOAT]
        (tensor,) = (t for t in found if np.allclose(numpy_helper.to_array(t), expected))
        tensor.CopyFrom(numpy_helper.from_array(wrong.astype(np.float32), tensor.name))

    _, artifact = copy("llama")
    edit_graphs(artifact, rebase)
    assert failed(artifact) >= PARITY | KEYS


def test_positions_off_by_one(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Positions shifted in both graphs: logits cannot show it, keys do."""

    def shift(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["shifted_ids" if name == "position_ids" else name for name in node.input]
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.int64), "a_one"))
        graph.node.insert(0, onnx.helper.make_node("Add", ["position_ids", "a_one"], ["shifted_ids"]))

    _, artifact = copy("llama")
    edit_graphs(artifact, shift)
    assert failed(artifact) == KEYS


def test_dropped_bias(copy: Callable[..., tuple[Path, Path]]) -> None:
    """The addition of a q bias removed from both graphs."""

    def drop(graph: onnx.GraphProto) -> None:
        (add,) = (node for node in graph.node if f"{Q}.bias" in node.input)
        before = next(name for name in add.input if name != f"{Q}.bias")
        for node in graph.node:
            node.input[:] = [before if name == add.output[0] else name for name in node.input]
        graph.node.remove(add)

    _, artifact = copy("qwen2")
    edit_graphs(artifact, drop)
    assert failed(artifact) >= PARITY


def test_norm_of_another_layer(copy: Callable[..., tuple[Path, Path]]) -> None:
    """A norm's initializer that reads another layer's norm: seen in the graph itself and in its answers."""
    norm = "model.layers.{}.input_layernorm.weight"
    _, artifact = copy("llama")
    edit_graphs(artifact, lambda graph: point_to(graph, norm.format(1), norm.format(2)))
    assert PARITY | {"structure.portable_bindings", "structure.fused_bindings"} <= failed(artifact)


def test_overflow_in_half_precision(copy: Callable[..., tuple[Path, Path]]) -> None:
    """A weight beyond 65504 is infinity once it is stored as float16; so are the logits that it makes."""

    def scale(tensors: dict[str, np.ndarray]) -> None:
        with np.errstate(over="ignore"):
            tensors["model.norm.weight"] *= np.float16(60000)
            tensors["model.norm.weight"] *= np.float16(60000)
        assert np.isinf(tensors["model.norm.weight"]).any()

    _, artifact = copy("llama-float16")
    edit_weights(artifact, scale)
    assert PARITY | {"structure.finite", "parity.between_graphs", "fidelity.finite"} <= failed(artifact)


def test_large_weights_in_half_precision(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Logits that float16 could not hold: graphs compute in float32, and differ from what was stored."""

    def scale(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"] *= np.float16(1000)
        tensors["lm_head.weight"] *= np.float16(1000)

    _, artifact = copy("llama-float16")
    edit_weights(artifact, scale)
    assert failed(artifact) >= PARITY


def test_overflow(copy: Callable[..., tuple[Path, Path]]) -> None:
    """Weights so large that logits overflow: infinities fail, whatever the tolerance."""

    def scale(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"] *= np.float32(1e30)
        tensors["lm_head.weight"] *= np.float32(1e30)

    _, artifact = copy("llama")
    edit_weights(artifact, scale)
    assert PARITY | {"parity.between_graphs", "fidelity.finite"} <= failed(artifact)


def test_untied_head(copy: Callable[..., tuple[Path, Path]]) -> None:
    """An lm_head that reads other bytes, here the embedding's."""
    _, artifact = copy("llama")
    edit_graphs(artifact, lambda graph: point_to(graph, "lm_head.weight", "model.embed_tokens.weight"))
    assert PARITY | {"structure.portable_bindings", "structure.fused_bindings"} <= failed(artifact)


def run(*arguments: str | Path) -> Any:
    """Run the command line in this process."""
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def test_exit_code_of_a_fault(copy: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    """The command exits 3, and JSON and JUnit name the failed checks."""
    _, artifact = copy("llama")
    edit_weights(artifact, lambda tensors: tensors.update({f"{Q}.U": tensors[f"{Q}.U"].T}))
    result = run(artifact, "--json", "--junit", tmp_path / "junit.xml")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    validate(report, "verification-1.0")
    assert {check["name"] for check in report["checks"] if not check["passed"]} >= PARITY
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert int(suite.get("failures", 0)) == len(suite.findall("testcase/failure")) >= 2


def test_exit_code_of_a_flipped_bit(copy: Callable[..., tuple[Path, Path]]) -> None:
    """The command exits 4 on bytes that the manifest does not describe."""
    _, artifact = copy("llama")
    data = bytearray((artifact / "model.safetensors").read_bytes())
    data[-5] ^= 16
    (artifact / "model.safetensors").write_bytes(data)
    assert run(artifact).exit_code == 4


def test_exit_code_of_a_threshold(converted: Callable[..., tuple[Path, Path]]) -> None:
    """A sound artifact exits 0 without thresholds, 3 when it is too far from the original, 2 on a senseless limit."""
    _, artifact = converted("llama")
    assert run(artifact, "--no-torch").exit_code == 0
    assert run(artifact, "--no-torch", "--max-kl", "0").exit_code == 3
    assert run(artifact, "--no-torch", "--max-kl", "nan").exit_code == 2


def test_against_the_checkpoint(copy: Callable[..., tuple[Path, Path]]) -> None:
    """With the checkpoint at hand the command finds swapped row indices by name."""

    def swap(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q}.cols"][[0, 1]] = tensors[f"{Q}.cols"][[1, 0]]

    source, artifact = copy("llama")
    assert run(artifact, "--against", source).exit_code == 0
    edit_weights(artifact, swap)
    result = run(artifact, "--against", source, "--json")
    assert result.exit_code == 3
    failures = {check["name"] for check in json.loads(result.stdout)["checks"] if not check["passed"]}
    assert failures == {"structure.factors", "source.slices"}


def test_flipped_bit(copy: Callable[..., tuple[Path, Path]]) -> None:
    """One flipped bit without resealing is an integrity error, exit code 4, in every file that a program reads."""
    _, artifact = copy("llama")
    sealed = json.loads((artifact / "curconvert.json").read_text(encoding="utf-8"))["files"]
    assert {path.name for path in artifact.iterdir()} - {*sealed, "curconvert.json"} == {"README.md", "report.html"}
    for path in (artifact / name for name in (*sealed, "curconvert.json")):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(IntegrityError) as caught:
            verify(artifact)
        assert caught.value.exit_code == 4
        path.write_bytes(data)
    assert failed(artifact) == set()
