"""Quantized artifacts, from the options to every gate: parity, the original's numbers, planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from curconvert.base.errors import IntegrityError
from curconvert.blocks.stored import build_torch_model, stored_matrix
from curconvert.jobs.convert import convert
from curconvert.jobs.export import export
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime import Artifact, CpuOptions, load
from curconvert_runtime.checks.verification import VerifyOptions, verify
from support.checkpoints import make_layers_alike
from support.families import make_checkpoint
from support.tiny_artifact import reseal
from support.tiny_runs import manifest_of, stored_tensors, tiny_options

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INT4, INT8 = Quantization("int4", 32), Quantization("int8")
ZEROS = Quantization("int4", 32, asymmetric=True)
MIXED = Quantization("mixed", 32, bits_per_weight=7.0)
TIED = {"tie_word_embeddings": True}
SIX, SEVEN = Quantization("int6", 64), Quantization("int7", 32, scale_dtype="float32")
# Method, its size, family, its settings, quantization: every form, both tyings, both types, with and without zeros.
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], Quantization]] = {
    "dense": ("dense", {"rank": None}, "llama", TIED, INT8),
    "dense-untied": ("dense", {"rank": None}, "phi3", {}, Quantization("int8", 64, asymmetric=True)),
    "embedding-scale": ("dense", {"rank": None}, "gemma2", {}, INT4),
    "sequential": ("dense", {"rank": None, "sequential": True}, "qwen3", {}, ZEROS),
    "cur": ("cur", {}, "qwen2", {}, ZEROS),
    "pifa": ("pifa", {"dtype": "bfloat16"}, "qwen2", {"mlp_bias": True}, INT4),
    "svd-llm": ("svd-llm", {"layers": "1"}, "olmo2", {}, Quantization("int5", 64, asymmetric=True)),
    "three": ("pifa", {}, "qwen2", {}, Quantization("int3", 32, asymmetric=True)),
    "six": ("dense", {"rank": None}, "llama", TIED, SIX),
    "seven": ("dense", {"rank": None, "dtype": "bfloat16"}, "gemma2", {}, SEVEN),
    "neurons": ("neurons", {"rank": 20}, "llama", {"mlp_bias": True, "attention_bias": True}, INT4),
    "modegpt": ("modegpt", {"rank": None, "density": 0.6}, "llama", TIED, ZEROS),
    "auto": ("auto", {"rank": None, "keep": 0.9, "rank_multiple": 4}, "llama", {}, INT8),
    "mixed": ("dense", {"rank": None}, "qwen2", {}, MIXED),
    "mixed-factors": ("pifa", {"sequential": True, "layers": "1"}, "llama", TIED, replace(MIXED, asymmetric=True)),
    "mixed-auto": ("auto", {"rank": None, "keep": 0.9, "rank_multiple": 4}, "llama", {}, MIXED),
    "nearest": ("pifa", {}, "llama", {}, Quantization("int4", 32, rounding="nearest")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Callable[[str], tuple[Path, Path]]:
    """Convert each case once, through every gate of a conversion; returns the checkpoint and the artifact."""
    done: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in done:
            method, size, family, settings, quantization = CASES[name]
            home = tmp_path_factory.mktemp(name)
            model = make_checkpoint(home / "model", family, **settings)
            options = tiny_options(tokens, method, quantization=quantization, **size)
            convert(SourceOptions(str(model.folder)), home / "out", options, verification=VerifyOptions())
            done[name] = model.folder, home / "out"
        return done[name]

    return get


@pytest.mark.parametrize("name", CASES)
def test_every_gate_passes(made: Callable[[str], tuple[Path, Path]], name: str) -> None:
    """Both graphs answer as torch does with the dequantized weights, and those are as near to the original as said."""
    source, out = made(name)
    checks = [*torch_parity(out).checks, *check_slices(out, source)]
    assert {check.name for check in checks if not check.passed} == set()
    assert {"torch.portable.logits", "torch.fused.logits", "source.quantized"} <= {check.name for check in checks}


@pytest.mark.parametrize("name", CASES)
def test_only_norms_biases_and_indices_stay_as_they_were(made: Callable[[str], tuple[Path, Path]], name: str) -> None:
    """Nothing of two axes is float but scales and a small U; the manifest's numbers are those of the file."""
    _, out = made(name)
    stored, said = stored_tensors(out), manifest_of(out)["quantization"]
    wide = {name for name, tensor in stored.items() if tensor.ndim > 1 and tensor.is_floating_point()}
    assert {name for name in wide if not name.endswith((".scales", ".U"))} == set()
    ends = (".q", ".q1", ".q2", ".scales", ".zeros")
    parts = [tensor for name, tensor in stored.items() if name.endswith(ends)]
    assert said["bytes"] == sum(part.numel() * part.element_size() for part in parts)
    assert said["parameters"] == sum(rows * columns for rows, columns in (row["shape"] for row in said["tensors"]))
    rest = sum(t.numel() for name, t in stored.items() if t.is_floating_point() and not name.endswith(ends))
    assert manifest_of(out)["model"]["parameters_after"] == said["parameters"] + rest


def test_the_portable_graph_has_standard_operators_only(made: Callable[[str], tuple[Path, Path]]) -> None:
    """Of opset 21, for integers of 4 bits; the fused one multiplies packed weights by MatMulNBits alone."""
    _, out = made("dense-untied")
    portable = onnx.load(out / "model.onnx", load_external_data=False)
    assert {(entry.domain, entry.version) for entry in portable.opset_import} == {("", 21)}
    onnx.checker.check_model(str(out / "model.onnx"))
    fused = onnx.load(out / "model.fused.onnx", load_external_data=False).graph
    found = {node.op_type for node in fused.node}
    assert {"MatMulNBits", "GatherBlockQuantized"} <= found
    assert "FusedMatMul" not in found


def test_a_tied_head_reads_the_embedding(made: Callable[[str], tuple[Path, Path]]) -> None:
    """One copy of the bytes for the look-up and for the product, in both graphs."""
    _, out = made("dense")
    assert not any(name.startswith("lm_head") for name in stored_tensors(out))
    for graph in ("model.onnx", "model.fused.onnx"):
        places = {
            tensor.name: {entry.key: entry.value for entry in tensor.external_data}
            for tensor in onnx.load(out / graph, load_external_data=False).graph.initializer
        }
        for part in ("q", "scales"):
            assert places[f"{HEAD}.{part}"] == places[f"{EMBEDDING}.{part}"]


@pytest.mark.parametrize("name", ["dense", "dense-untied", "embedding-scale"])
def test_the_fused_graph_computes_the_last_logits_alone(made: Callable[[str], tuple[Path, Path]], name: str) -> None:
    """Asked for two columns it gives two, those of the whole answer: both products of an int8 head, soft-capped too."""
    session = load(made(name)[1], graph="fused")
    ids = np.array([[5, 9, 30, 7, 11, 4, 8]])
    everything, _ = session.forward(ids)
    assert session.trims_logits
    few, _ = session.forward(ids, first=-2)
    assert few.shape == everything[:, -2:].shape
    np.testing.assert_allclose(few, everything[:, -2:], atol=1e-4, rtol=0)


def test_the_head_is_rounded_by_its_inputs(made: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    """It is not what rounding to the nearest gives; an embedding of its own is."""
    source, out = made("pifa")
    export(SourceOptions(str(source)), tmp_path / "nearest", quantization=Quantization("int4", 32, rounding="nearest"))
    ours, nearest = stored_tensors(out), stored_tensors(tmp_path / "nearest")
    assert torch.equal(ours[f"{EMBEDDING}.q"], nearest[f"{EMBEDDING}.q"])
    assert not torch.equal(ours[f"{HEAD}.q"], nearest[f"{HEAD}.q"])


def test_an_export_rounds_to_the_nearest(tmp_path: Path) -> None:
    """Without a text: half a step at most from the checkpoint, norms bit for bit, graphs that agree with torch."""
    model = make_checkpoint(tmp_path / "model", "qwen3", **TIED)
    export(SourceOptions(str(model.folder)), tmp_path / "out", quantization=Quantization("int8", rounding="nearest"))
    artifact, original = Artifact.open(tmp_path / "out"), load_file(model.folder / "model.safetensors")
    assert all(check.passed for check in check_slices(tmp_path / "out", model.folder))
    for name in artifact.quantized:
        steps = np.abs(artifact.tensor(f"{name}.scales")).max()
        assert np.abs(stored_matrix(artifact, name) - original[name].numpy()).max() <= 0.5001 * steps
    torch_model: Any = build_torch_model(artifact)
    ids = torch.tensor([[5, 9, 30, 7, 61]])
    wanted = torch_model(ids).logits[0].detach().numpy()
    for kind, exact in (("portable", False), ("portable", True), ("fused", True)):
        options = CpuOptions(round_activations=not exact)
        found = load(tmp_path / "out", graph=kind, options=options).logits(ids[0].numpy())
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_fused_graph_rounds_activations(made: Callable[[str], tuple[Path, Path]], name: str) -> None:
    """Which shows in its answers, and is small beside them: a few hundredths."""
    ids = np.arange(3, 40)
    served, exact = (
        load(made(name)[1], graph="fused", options=CpuOptions(round_activations=rounds)).logits(ids)
        for rounds in (True, False)
    )
    error = np.linalg.norm(served - exact) / np.linalg.norm(exact - np.mean(exact, axis=-1, keepdims=True))
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("mixed")])
def test_widths_stay_within_the_budget(made: Callable[[str], tuple[Path, Path]], name: str) -> None:
    """Several are there, nothing more fits, and each tensor has that of its matrix."""
    said = manifest_of(made(name)[1])["quantization"]
    widths = {row["name"].removesuffix("weight"): row["bits"] for row in said["widths"]}
    assert len(set(widths.values())) > 1
    for row in said["tensors"]:
        (own,) = (bits for stem, bits in widths.items() if row["name"].startswith(stem))
        assert row["bits"] == own
    assert 6.5 * said["parameters"] < 8 * said["bytes"] <= 7 * said["parameters"]
    for row in said["widths"]:
        assert list(row["errors"]) == ["int3", "int4", "int5", "int6", "int7", "int8"]
        assert sorted(row["errors"].values(), reverse=True) == list(row["errors"].values())


def test_a_dense_matrix_has_the_error_that_its_width_was_chosen_by(made: Callable[[str], tuple[Path, Path]]) -> None:
    """The table was measured on what is stored."""
    manifest = manifest_of(made("mixed")[1])
    errors = {row["name"]: row["relative_output_error"] for row in manifest["matrices"]}
    rows = [row for row in manifest["quantization"]["widths"] if row["name"] in errors]
    assert len(rows) == len(errors)
    for row in rows:
        assert row["errors"][f"int{row['bits']}"] == pytest.approx(errors[row["name"]], rel=1e-6)


def test_an_export_mixes_widths(tmp_path: Path) -> None:
    """By the squared error of the numbers: no step that still fits saves more of it per bit than one that was taken."""
    model = make_checkpoint(tmp_path / "model", "llama")
    asked = Quantization("mixed", 32, rounding="nearest", bits_per_weight=7.0)
    export(SourceOptions(str(model.folder)), tmp_path / "out", quantization=asked)
    assert all(check.passed for check in check_slices(tmp_path / "out", model.folder))
    artifact, original = Artifact.open(tmp_path / "out"), load_file(model.folder / "model.safetensors")
    said = artifact.manifest["quantization"]
    left = 7.0 * said["parameters"] - 8 * said["bytes"]
    taken, open_steps = [], []
    for row in said["widths"]:
        weight, bits = original[row["name"]].double().numpy(), row["bits"]
        lost = np.sum((stored_matrix(artifact, row["name"]) - weight) ** 2)
        assert row["costs"][f"int{bits}"] == pytest.approx(lost, rel=1e-6)
        costs = [row["costs"][f"int{width}"] for width in range(3, 9)]
        per_bit = weight.shape[0] * -(-weight.shape[1] // 32) * 32
        taken += [(costs[width - 3] - lost) / per_bit / (bits - width) for width in range(3, bits)]
        further = [((lost - costs[width - 3]) / per_bit / (width - bits), width) for width in range(bits + 1, 9)]
        if further and (max(further)[1] - bits) * per_bit <= left:
            open_steps.append(max(further)[0])
    assert max(open_steps, default=0.0) <= min(taken)


def test_a_search_counts_what_rounding_costs(tmp_path: Path, tokens: Path) -> None:
    """The artifact itself stays within --max-kl, embedding and head included."""
    model = make_checkpoint(tmp_path / "model", "llama")
    options = tiny_options(
        tokens, "auto", rank=None, max_kl=1.0, rank_multiple=4, self_text=0.0, quantization=Quantization("int4", 32)
    )
    found = convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=VerifyOptions(max_kl=1.0))
    assert found.plan is not None
    assert found.plan.parameters_after < found.plan.parameters_before


@pytest.mark.parametrize("asked", [INT4, MIXED], ids=["int4", "mixed"])
def test_two_layers_with_one_basis_have_it_quantized_once(tmp_path: Path, tokens: Path, asked: Quantization) -> None:
    """Either block computes the same common R, in one width; one of them stores it."""
    model = make_checkpoint(tmp_path / "model", "llama")
    make_layers_alike(model.folder)
    options = tiny_options(tokens, "auto", rank=None, keep=0.75, rank_multiple=2, share=True, quantization=asked)
    convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=VerifyOptions())
    shared = [row["shared"]["matrices"] for row in manifest_of(tmp_path / "out")["matrices"] if row["shared"]]
    assert shared
    stored = stored_tensors(tmp_path / "out")
    for owner, other in shared:
        assert f"{owner.removesuffix('weight')}R.q" in stored
        assert f"{other.removesuffix('weight')}R.q" not in stored
        rows = {row["name"]: row for row in manifest_of(tmp_path / "out")["quantization"]["tensors"]}
        parts = ((owner, "R"), (owner, "T"), (other, "T"))
        assert len({rows[f"{matrix.removesuffix('weight')}{part}"].get("bits") for matrix, part in parts}) == 1
    assert all(check.passed for check in torch_parity(tmp_path / "out").checks)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "out"))


def change_byte(folder: Path, name: str, flipped: int = 0x70) -> None:
    """Change the first byte of a stored tensor, and reseal."""
    header = Artifact.open(folder).tensors[name]
    data = bytearray(header.file.read_bytes())
    data[header.offset] ^= flipped
    header.file.write_bytes(data)
    reseal(folder)


@pytest.mark.parametrize(
    ("name", "part", "flipped"),
    [("dense", "weight.q", 0x70), ("six", "weight.q", 1), ("six", "weight.q1", 2), ("seven", "weight.q2", 0xFF)],
)
def test_a_changed_digit_is_found(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, name: str, part: str, flipped: int
) -> None:
    """In any plane, by the stored answers, and by the distance from the original."""
    source, out = made(name)
    folder = copied(out, tmp_path)
    change_byte(folder, f"model.layers.1.mlp.up_proj.{part}", flipped)
    assert "source.quantized" in {check.name for check in check_slices(folder, source) if not check.passed}
    assert {check.name for check in verify(folder).failures} >= {"parity.portable.logits", "parity.fused.logits"}


def test_a_distance_that_the_manifest_leaves_out_is_a_fault(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Else a changed embedding would be compared with nothing: no row of `matrices` has its distance."""
    source, out = made("dense")
    folder = copied(out, tmp_path)

    def forget(manifest: dict[str, Any]) -> None:
        row = next(row for row in manifest["quantization"]["tensors"] if row["name"] == EMBEDDING)
        assert row["relative_frobenius_error"] is not None
        row["relative_frobenius_error"] = None

    reseal(folder, forget)
    (fault,) = [check for check in check_slices(folder, source) if not check.passed]
    assert (fault.name, EMBEDDING in fault.detail) == ("source.quantized", True)


def _edit(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["quantization"].update(values)


def _first(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["quantization"]["tensors"][0].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["quantization"]["tensors"][0].update(bits=4, block_size=32), "tensor .*\\.q' is U8"),
        (_edit(block_size=64), "convert the model again"),
        (_edit(bits=4), "tensor .*\\.q' is U8"),
        (_edit(symmetric=False), "'zeros' is missing"),
        (_edit(block_size=48), "48"),
        (_edit(scale_dtype="float32"), "tensor .*\\.scales' is F16 .* says F32"),
        (_edit(bits=7), "part 'q' is U8|tensor .*\\.q' is U8"),
        (_first(shape=[97, 64]), "convert the model again"),
        (_first(name="lm_head.weights"), "missing"),
        (lambda manifest: manifest.update(quantization=None), "missing"),
        (lambda m: m["quantization"]["tensors"].append(m["quantization"]["tensors"][0]), "twice"),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    """Before a tensor is used."""
    folder = copied(made("dense")[1], tmp_path)
    reseal(folder, change)
    with pytest.raises(IntegrityError, match=words):
        Artifact.open(folder)


@pytest.mark.parametrize(
    ("bits", "words"), [(4, "stored part 'q1'"), (7, "part 'q2' is missing"), (5, "tensor .*\\.q1' is U8"), (9, "9")]
)
def test_planes_that_the_width_does_not_have_are_refused(
    made: Callable[[str], tuple[Path, Path]], tmp_path: Path, bits: int, words: str
) -> None:
    """One too many, one too few, one of another size."""
    folder = copied(made("six")[1], tmp_path)
    reseal(folder, _edit(bits=bits))
    with pytest.raises(IntegrityError, match=words):
        Artifact.open(folder)


def test_an_artifact_of_an_earlier_version_has_scales_of_32_bits(tmp_path: Path) -> None:
    """Its manifest does not say so."""
    model = make_checkpoint(tmp_path / "model", "llama")
    asked = Quantization("int8", rounding="nearest", scale_dtype="float32")
    export(SourceOptions(str(model.folder)), tmp_path / "out", quantization=asked)
    reseal(tmp_path / "out", lambda manifest: manifest["quantization"].pop("scale_dtype"))
    artifact = Artifact.open(tmp_path / "out")
    assert {packing.layout.scale_dtype for packing in artifact.quantized.values()} == {"float32"}
    assert all(check.passed for check in check_slices(tmp_path / "out", model.folder))


@pytest.mark.parametrize("key", ["parameters", "bytes"])
def test_wrong_counts_are_found(made: Callable[[str], tuple[Path, Path]], tmp_path: Path, key: str) -> None:
    """One more than there are."""
    folder = copied(made("dense")[1], tmp_path)
    reseal(folder, lambda manifest: manifest["quantization"].update({key: manifest["quantization"][key] + 1}))
    assert "structure.counts" in {check.name for check in verify(folder).failures}


def test_options_are_in_the_manifest(made: Callable[[str], tuple[Path, Path]]) -> None:
    """With the block size that a default stood for."""
    options = json.loads((made("dense")[1] / "curconvert.json").read_text(encoding="utf-8"))["options"]
    expected = {"type": "int8", "block_size": 32, "asymmetric": False, "rounding": "gptq", "scale_dtype": "float16"}
    assert options["quantization"] == expected
