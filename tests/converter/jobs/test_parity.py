"""The torch side of verification: the rebuilt model, its comparison with graphs, and the original's slices."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from curconvert.blocks.stored import build_torch_model, stored_tensor
from curconvert.checkpoint import open_checkpoint
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.jobs.verify import verify_artifact
from curconvert_runtime.checks.rotary import rotary_check
from curconvert_runtime.checks.verification import VerifyOptions, verify
from curconvert_runtime.errors import IntegrityError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.probes import Probes
from support.conversions import convert_tiny
from support.tiny_artifact import reseal

Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return convert_tiny(tmp_path_factory.mktemp("qwen2"), "qwen2")


def _failed(checks: Any) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_rebuilt_model_is_transformers_with_the_factors_products(tmp_path: Path, dtype: str | None) -> None:
    """The model built from an artifact answers as transformers' own with C·U·R multiplied out in float64."""
    source, out = convert_tiny(tmp_path, "qwen2", dtype=dtype)
    stored = load_file(out / "model.safetensors")
    oracle = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            stem = name.removesuffix(".weight")
            if name in stored:
                parameter.copy_(stored[name])
            else:
                c, u, r = (stored[f"{stem}.{part}"].double() for part in "CUR")
                parameter.copy_(c @ u @ r)
    ids = torch.randint(3, 97, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = build_torch_model(Artifact.open(out))(input_ids=ids).logits
        expected = oracle(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "phi3", "smollm3"])
def test_families_with_a_mind_of_their_own_agree(tmp_path: Path, family: str) -> None:
    """Short windows, soft caps, fused projections and layers without positions: torch equals both graphs."""
    _, out = convert_tiny(tmp_path, family)
    assert torch_parity(out, VerifyOptions(max_parity=1e-4)).passed


@pytest.mark.parametrize("method", ["row-id", "pifa", "svd-llm", "neurons", "modegpt"])
def test_every_form_agrees(tmp_path: Path, method: str) -> None:
    """Torch equals both graphs, and what is a slice of the original is found to be one, also after a cast."""
    source, out = convert_tiny(tmp_path, "qwen2", method=method, dtype="float16")
    assert torch_parity(out).passed
    assert _failed(check_slices(out, source)) == set()


@pytest.mark.parametrize("form", ["folded", "interpolative"])
def test_c_u_r_agree_in_every_form(tmp_path: Path, form: str) -> None:
    """Torch equals both graphs, and they answer as C·U·R does, in fewer bytes."""
    source, plain = convert_tiny(tmp_path / "cur", "qwen2")
    _, out = convert_tiny(tmp_path / form, "qwen2", form=form)
    assert torch_parity(out, VerifyOptions(max_parity=1e-4)).passed
    assert _failed(check_slices(out, source)) == set()
    ids = torch.tensor([[5, 9, 30, 7]])
    with torch.no_grad():
        ours, theirs = (build_torch_model(Artifact.open(path))(ids).logits for path in (out, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert (out / "model.safetensors").stat().st_size < (plain / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("method", "found"), [("row-id", {"source.files", "source.slices"}), ("pifa", {"source.files"})]
)
def test_rows_of_a_subspace_are_not_taken_for_slices(tmp_path: Path, method: str, found: set[str]) -> None:
    """Another original shows in R where R claims to be made of it, and only there."""
    source, out = convert_tiny(tmp_path, "llama", method=method)
    stem = "model.layers.1.mlp.gate_proj"
    row = load_file(out / "model.safetensors")[f"{stem}.rows"][3]
    tensors = load_file(source / "model.safetensors")
    tensors[f"{stem}.weight"].view(torch.int32)[row, 7] ^= 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    checks = check_slices(out, source)
    assert _failed(checks) == found
    assert method == "pifa" or f"{stem}.R" in next(check.detail for check in checks if check.name == "source.slices")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_weights_agree_as_float32_ones_do(tmp_path: Path, dtype: str) -> None:
    """16 bits are a way to store weights: torch and both graphs compute with them in float32."""
    _, out = convert_tiny(tmp_path, "llama", dtype=dtype)
    options = VerifyOptions(max_parity=1e-4)
    assert _failed(verify(out, options).checks) == set()
    assert _failed(torch_parity(out, options).checks) == set()


def test_mapped_tensors_are_private(qwen2: Pair) -> None:
    """Writing to a mapped tensor does not change the file."""
    name = "model.norm.weight"
    tensor = stored_tensor(Artifact.open(qwen2[1]), name)
    before = tensor.clone()
    tensor.fill_(7)
    torch.testing.assert_close(stored_tensor(Artifact.open(qwen2[1]), name), before)


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.v_proj.bias",
        "model.layers.0.self_attn.q_proj.U",
        "lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named(qwen2: Pair, name: str) -> None:
    """What the config asks for must be stored: nothing is left at random values."""
    whole = Artifact.open(qwen2[1])
    tensors = {key: value for key, value in whole.tensors.items() if key != name}
    with pytest.raises(IntegrityError, match=name):
        build_torch_model(Artifact(whole.path, whole.manifest, tensors))


def test_a_tensor_without_a_place_is_named(qwen2: Pair) -> None:
    """What the config has no place for is refused."""
    whole = Artifact.open(qwen2[1])
    tensors = {**whole.tensors, "model.layers.9.stray": whole.tensors["model.norm.weight"]}
    with pytest.raises(IntegrityError, match=r"layers\.9\.stray"):
        build_torch_model(Artifact(whole.path, whole.manifest, tensors))


def test_a_matrix_of_another_shape_is_named(qwen2: Pair) -> None:
    """Shapes of factored matrices come from the config too."""
    whole = Artifact.open(qwen2[1])
    rows = [{**m, "shape": [99, 98]} if m["form"] == "cur" else m for m in whole.manifest["matrices"]]
    manifest = {**whole.manifest, "matrices": rows}
    with pytest.raises(IntegrityError, match=r"q_proj\.weight has shape \[99, 98\]"):
        build_torch_model(Artifact(whole.path, manifest, whole.tensors))


def test_a_tensor_of_another_shape_is_named(qwen2: Pair) -> None:
    """Shapes come from the config."""
    whole = Artifact.open(qwen2[1])
    tensors = {**whole.tensors, "model.norm.weight": whole.tensors["model.embed_tokens.weight"]}
    with pytest.raises(IntegrityError, match=r"model\.norm\.weight has shape"):
        build_torch_model(Artifact(whole.path, whole.manifest, tensors))


def test_exact_fidelity_is_the_torch_models(qwen2: Pair) -> None:
    """KL, agreement and perplexities against the checkpoint equal those of two torch models in float64."""
    source, out = qwen2
    artifact = Artifact.open(out)
    ids = torch.from_numpy(Probes.load(artifact).original.ids.astype("int64"))
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.inference_mode():
        p = original(input_ids=ids).logits.log_softmax(-1)
        q = build_torch_model(artifact)(input_ids=ids).logits.double().log_softmax(-1)
    found = verify_artifact(out, VerifyOptions(), against=str(source), torch=False).fidelity
    bound = verify(out).fidelity
    assert found is not None
    assert bound is not None
    kl = (p.exp() * (p - q)).sum(-1)
    following = ids[:, 1:, None]
    losses = [-side[:, :-1].gather(-1, following).mean() for side in (p, q)]
    assert found.exact
    assert found.kl.mean == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.kl.p99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-3)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.perplexity_original == pytest.approx(float(losses[0].exp()), rel=1e-4)
    assert found.perplexity_compressed == pytest.approx(float(losses[1].exp()), rel=1e-4)
    # All 97 tokens are among the 256 that the probe keeps: here the bound is the divergence.
    assert bound.kl.mean == pytest.approx(found.kl.mean, rel=1e-4)


def test_slices_of_the_original_pass(qwen2: Pair) -> None:
    """An untouched artifact holds the original's bits."""
    assert _failed(check_slices(qwen2[1], qwen2[0])) == set()


def test_slices_take_an_open_checkpoint(qwen2: Pair) -> None:
    """A checkpoint that is already open is used as it is."""
    assert _failed(check_slices(qwen2[1], open_checkpoint(qwen2[0]))) == set()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_slices_are_compared_after_the_cast(tmp_path: Path, dtype: str) -> None:
    """Slices of a float32 original in a half-precision artifact equal its rounded weights."""
    source, out = convert_tiny(tmp_path, "llama", dtype=dtype)
    assert _failed(check_slices(out, source)) == set()


def test_another_checkpoint_is_recognized(qwen2: Pair, tmp_path: Path) -> None:
    """One changed weight is another source file, and another norm."""
    other = Path(shutil.copytree(qwen2[0], tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    checks = check_slices(qwen2[1], other)
    assert _failed(checks) == {"source.files", "source.tensors"}
    assert "model.norm.weight" in next(check.detail for check in checks if check.name == "source.tensors")


@pytest.mark.parametrize(("part", "index"), [("C", (0, 0)), ("R", (5, 31))])
def test_one_wrong_number_of_a_slice_is_found(qwen2: Pair, tmp_path: Path, part: str, index: tuple[int, int]) -> None:
    """The last bit of one element of C or R is enough."""
    other = Path(shutil.copytree(qwen2[0], tmp_path / "other"))
    whole = load_file(qwen2[1] / "model.safetensors")
    stem = "model.layers.1.mlp.gate_proj"
    rows, cols = whole[f"{stem}.rows"], whole[f"{stem}.cols"]
    row, column = (index[0], cols[index[1]]) if part == "C" else (rows[index[0]], index[1])
    tensors = load_file(other / "model.safetensors")
    bits = tensors[f"{stem}.weight"].view(torch.int32)
    bits[row, column] ^= 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    checks = check_slices(qwen2[1], other)
    assert "source.slices" in _failed(checks)
    assert f"{stem}.{part}" in next(check.detail for check in checks if check.name == "source.slices")


HEALING = {
    "source": "builtin", "token_sha256": "b" * 64, "sequences": 1, "tokens_per_sequence": 8, "options": {},
    "trained_parameters": 4, "curves": {},
}  # fmt: skip


def flip(folder: Path, name: str) -> None:
    """Change the lowest bit of a stored tensor's first number; its place in the file stays."""
    header = Artifact.open(folder).tensors[name]
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[header.offset] ^= 1
    (folder / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize(
    ("name", "excused"),
    [
        ("model.layers.0.input_layernorm.weight", True),
        ("model.norm.weight", True),
        ("model.layers.0.self_attn.q_proj.U", True),
        ("model.layers.0.self_attn.o_proj.weight", False),
        ("model.embed_tokens.weight", False),
        ("lm_head.weight", False),
        ("model.layers.0.self_attn.v_proj.weight", False),
    ],
)
def test_only_what_healing_trains_may_differ(qwen2: Pair, tmp_path: Path, name: str, excused: bool) -> None:
    """A manifest that lists a dense weight as healed does not excuse it from the comparison with the original."""
    source, out = qwen2[0], Path(shutil.copytree(qwen2[1], tmp_path / "out"))
    flip(out, name)
    reseal(out, lambda manifest: manifest.update(healing={**HEALING, "tensors": [name]}))
    checks = check_slices(out, source)
    assert _failed(checks) == (set() if excused else {"source.tensors"})
    if not excused:
        detail = next(check.detail for check in checks if check.name == "source.tensors")
        assert f"{name} is listed as healed, which only linking factors and norms can be" in detail
        assert f"{name} differs from the original" in detail


def test_a_listed_weight_is_found_by_verify_against_the_original(qwen2: Pair, tmp_path: Path) -> None:
    """Also where its bits are the original's: the manifest claims what cannot be."""
    out = Path(shutil.copytree(qwen2[1], tmp_path / "out"))
    names = ["model.layers.0.mlp.down_proj.weight", "nothing.weight", "model.layers.0.self_attn.o_proj.U"]
    reseal(out, lambda manifest: manifest.update(healing={**HEALING, "tensors": names}))
    report = verify_artifact(out, VerifyOptions(), against=str(qwen2[0]), torch=False)
    assert {check.name for check in report.failures} == {"source.tensors"}
    assert all(name in report.failures[0].detail for name in names)


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "large base": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("name", ROPES)
def test_rotations_are_transformers(tmp_path: Path, name: str) -> None:
    """Our frequencies explain the keys that transformers computed, and any other base or factor does not."""
    _, out = convert_tiny(tmp_path, "llama", rope_parameters=ROPES[name])
    artifact = Artifact.open(out)
    probe = Probes.load(artifact).compressed
    config = dict(artifact.config)
    sound = rotary_check(config, probe)
    assert sound is not None
    assert sound.passed
    for key in ROPES[name].keys() & {"rope_theta", "factor"}:
        wrong = {**config, "rope_parameters": {**config["rope_parameters"], key: config["rope_parameters"][key] * 1.1}}
        check = rotary_check(wrong, probe)
        assert check is not None
        assert not check.passed


@pytest.mark.parametrize(("family", "settings"), [("phi3", {"partial_rotary_factor": 0.5}), ("gemma3_text", {})])
def test_rotations_of_other_families(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    """Partial rotation and one base per kind of layer are read from the config."""
    _, out = convert_tiny(tmp_path, family, **settings)
    assert "structure.rotary" in {check.name for check in verify(out).checks if check.passed}


def test_lengths_that_change_the_rotation_are_left_out(qwen2: Pair) -> None:
    """For a scaling that is not modeled here nothing is claimed."""
    artifact = Artifact.open(qwen2[1])
    parameters = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0}
    assert rotary_check({"rope_parameters": parameters}, Probes.load(artifact).compressed) is None


@pytest.mark.parametrize("theta", [[], "ten", 0])
def test_malformed_rope_parameters_fail(qwen2: Pair, theta: Any) -> None:
    """Text or a list in the place of the base is a failed check, not a traceback."""
    probe = Probes.load(Artifact.open(qwen2[1])).compressed
    check = rotary_check({"rope_parameters": {"rope_type": "default", "rope_theta": theta}}, probe)
    assert check is not None
    assert not check.passed
