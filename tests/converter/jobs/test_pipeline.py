"""The whole conversion of tiny models: against the paper, against transformers, and byte for byte."""

from __future__ import annotations

import functools
import math
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.base.errors import InputError, VerificationError
from curconvert.base.names import layer_of
from curconvert.calibration.text import load_tokens
from curconvert.checkpoint import open_checkpoint
from curconvert.jobs import measure, produce
from curconvert.jobs.conversion import Conversion
from curconvert.jobs.convert import convert
from curconvert.jobs.export import export
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.jobs.plan import plan
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.source import SourceOptions
from curconvert.options.targets import LINEARS
from curconvert_runtime import Artifact
from curconvert_runtime.checks.verification import VerifyOptions
from support import curing
from support.checkpoints import edit_tensors, shard
from support.families import FAMILIES, TinyModel, make_checkpoint
from support.tiny_runs import LENGTH, manifest_of, stored_tensors, tiny_options, token_file

REAL_MODEL = Path(__file__).parents[3] / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Llama of six layers."""
    return make_checkpoint(tmp_path_factory.mktemp("deep") / "model", "llama", num_hidden_layers=6)


def run(model: TinyModel, out: Path, options: ConvertOptions) -> Conversion:
    return convert(SourceOptions(str(model.folder)), out, options, verification=None)


def calibration_ids(options: ConvertOptions) -> np.ndarray:
    return load_tokens(options.calibration).calibration


def compressed_layers(folder: Path) -> list[int]:
    return sorted({layer_of(name) for name in stored_tensors(folder) if name.endswith(".U")})


def saving(weight: np.ndarray, largest: int) -> float:
    """Share of a matrix that the paper's factors save; below 5 % ours stays dense."""
    (m, n), rank = weight.shape, curing.rank_of(*weight.shape, largest)
    return 1 - (rank * (m + n) + rank**2) / (m * n)


@pytest.mark.parametrize("rank", [5, 8, 64])
def test_curing_is_the_paper(tmp_path: Path, deep: TinyModel, tokens: Path, rank: int) -> None:
    """Layers, rows and columns equal an independent float64 implementation exactly; U to rounding."""
    options = tiny_options(tokens, "curing", rank=rank, layers="angular:3")
    run(deep, tmp_path / "out", options)
    states, rms = curing.observe(deep.oracle, calibration_ids(options), 6)
    stored, weights = stored_tensors(tmp_path / "out"), load_file(deep.folder / "model.safetensors")
    layers = curing.choose_layers(states, 3)
    assert compressed_layers(tmp_path / "out") == layers
    for layer in layers:
        for target in curing.TARGETS:
            stem = f"model.layers.{layer}.{target}"
            weight = weights[f"{stem}.weight"].double().numpy()
            if f"{stem}.U" not in stored:
                assert saving(weight, rank) < 0.05
                continue
            expected = curing.factorize(weight, rms[f"{stem}.weight"], rank)
            assert stored[f"{stem}.rows"].tolist() == expected.rows
            assert stored[f"{stem}.cols"].tolist() == expected.columns
            np.testing.assert_allclose(stored[f"{stem}.U"].numpy(), expected.U, rtol=1e-4, atol=1e-5)


@pytest.mark.model
@pytest.mark.slow
def test_curing_is_the_paper_on_the_real_model(tmp_path: Path) -> None:
    """The same for SmolLM2-135M at the default settings: builtin text, rank 128, nine layers."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    options = ConvertOptions.for_method("curing")
    convert(SourceOptions(str(REAL_MODEL)), tmp_path / "out", options, verification=None)
    checkpoint = open_checkpoint(REAL_MODEL)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**dict(checkpoint.config)), attn_implementation="eager", dtype=torch.float32
    ).eval()
    weights = {name: checkpoint.read(name).float() for name in checkpoint.tensors}
    missing = model.load_state_dict(weights, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"])
    assert not missing.unexpected_keys
    model.tie_weights()
    ids = load_tokens(options.calibration, checkpoint.companions()).calibration
    states, rms = curing.observe(model, ids, 30)
    layers = curing.choose_layers(states, 9)
    assert compressed_layers(tmp_path / "out") == layers
    stored = stored_tensors(tmp_path / "out")
    for layer in layers:
        for target in curing.TARGETS:
            stem = f"model.layers.{layer}.{target}"
            weight = weights[f"{stem}.weight"].double().numpy()
            if f"{stem}.U" not in stored:
                assert saving(weight, 128) < 0.05
                continue
            expected = curing.factorize(weight, rms[f"{stem}.weight"], 128)
            assert stored[f"{stem}.rows"].tolist() == expected.rows
            assert stored[f"{stem}.cols"].tolist() == expected.columns


def apply_factors(model: TinyModel, folder: Path, only: Collection[str] | None = None) -> None:
    """Put the products of an artifact's factors into the oracle, where the oracle has the linears by themselves."""
    stored = stored_tensors(folder)
    with torch.no_grad():
        for name in stored:
            stem = name.removesuffix(".U")
            if stem != name and (only is None or stem in only):
                product = stored[f"{stem}.C"].double() @ stored[f"{stem}.U"].double() @ stored[f"{stem}.R"].double()
                model.oracle.get_submodule(stem).weight.copy_(product)


def output_error(
    model: TinyModel, folder: Path, original: dict[str, torch.Tensor], stem: str, ids: np.ndarray
) -> float:
    """Relative output error of one matrix on the inputs that the oracle gives it now."""
    inputs: list[torch.Tensor] = []
    handle = model.oracle.get_submodule(stem).register_forward_pre_hook(lambda _m, x: inputs.append(x[0]))
    with torch.inference_mode():
        model.oracle(input_ids=torch.from_numpy(ids))
    handle.remove()
    stored, x, weight = stored_tensors(folder), inputs[0].double(), original[f"{stem}.weight"].double()
    product = stored[f"{stem}.C"].double() @ stored[f"{stem}.U"].double() @ stored[f"{stem}.R"].double()
    return float((x @ (weight - product).T).norm() / (x @ weight.T).norm())


@pytest.mark.parametrize("method, sequential", [("cur", True), ("curing", False)])
def test_each_block_is_calibrated_as_the_method_says(
    tmp_path: Path, tokens: Path, method: str, sequential: bool
) -> None:
    """Sequential: on what the compressed linears before it lead to; curing, and by default: on the original's inputs.

    The oracle measures every matrix's reported output error on transformers' model with the linears before it replaced
    by dense products of the factors, or not replaced.
    """
    model = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=3)
    original = load_file(model.folder / "model.safetensors")
    options = tiny_options(tokens, method, sequential=sequential)
    run(model, tmp_path / "out", options)
    ids = calibration_ids(options)
    found = {
        m["name"].removesuffix(".weight"): m["relative_output_error"]
        for m in manifest_of(tmp_path / "out")["matrices"]
        if m["form"] == "cur"
    }
    assert len(found) == 9
    other: dict[str, float] = {}
    for layer in range(3):
        for linears in (("self_attn.q_proj", "self_attn.k_proj"), ("mlp.gate_proj",)):
            stems = [f"model.layers.{layer}.{linear}" for linear in linears]
            for stem in stems:
                error = output_error(model, tmp_path / "out", original, stem, ids)
                assert found[stem] == pytest.approx(error, rel=1e-3), stem
                other[stem] = error
            if sequential:
                apply_factors(model, tmp_path / "out", stems)
    if sequential:  # and the difference would show
        model.oracle.load_state_dict(original)
        stem = "model.layers.2.mlp.gate_proj"
        assert found[stem] != pytest.approx(output_error(model, tmp_path / "out", original, stem, ids), rel=1e-2)


def lower_rank(model: TinyModel, rank: int) -> None:
    """Make every projection of a checkpoint exactly rank `rank`, in its file and in the oracle."""

    def truncate(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "_proj" in name and tensor.ndim == 2:
                left, sigma, right = torch.linalg.svd(tensor.double(), full_matrices=False)
                tensors[name] = ((left[:, :rank] * sigma[:rank]) @ right[:rank]).float()

    edit_tensors(model.folder, truncate)
    model.oracle.load_state_dict(load_file(model.folder / "model.safetensors"), strict=False)


def runtime_logits(folder: Path, ids: np.ndarray, graph: str) -> np.ndarray:
    import curconvert_runtime

    return curconvert_runtime.load(folder, graph=graph, threads=1).logits(ids)


@pytest.mark.parametrize("method", ["cur", "curing"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_a_low_rank_checkpoint_survives_full_rank_conversion(
    tmp_path: Path, tokens: Path, family: str, method: str
) -> None:
    """All seven linears of rank 6 at rank 6, below break-even: the original's logits to 1e-4, in both graphs."""
    model = make_checkpoint(tmp_path / "model", family)
    lower_rank(model, 6)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    done = run(model, tmp_path / "out", tiny_options(tokens, method, rank=6, targets=targets, ridge=0.0))
    assert done.plan is not None
    assert all(m.rank == 6 for m in done.plan.matrices)
    ids = np.random.default_rng(0).integers(3, 97, (2, 15))
    with torch.inference_mode():
        expected = model.oracle(input_ids=torch.from_numpy(ids)).logits.numpy()
    for graph in ("portable", "fused"):
        assert np.abs(runtime_logits(tmp_path / "out", ids, graph) - expected).max() < 1e-4 * np.abs(expected).max()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("method, selector", [("cur", None), ("curing", None), ("cur", "random")])
def test_converting_twice_gives_the_same_bytes(
    tmp_path: Path, deep: TinyModel, tokens: Path, method: str, selector: str | None
) -> None:
    """Every file of the artifact, verification's numbers included."""
    options = tiny_options(tokens, method, selector=selector, layers="angular:2")
    for name in ("a", "b"):
        convert(SourceOptions(str(deep.folder)), tmp_path / name, options, verification=VerifyOptions())
    first, second = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert [name for name in first if first[name] != second.get(name)] == []
    assert first.keys() == second.keys()


def test_another_seed_gives_other_rows(tmp_path: Path, deep: TinyModel, tokens: Path) -> None:
    """The seed reaches the random selector."""
    for seed in (0, 1):
        run(deep, tmp_path / str(seed), tiny_options(tokens, selector="random", layers="1", seed=seed))
    name = "model.layers.1.self_attn.q_proj.rows"
    assert not torch.equal(stored_tensors(tmp_path / "0")[name], stored_tensors(tmp_path / "1")[name])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_every_weight_is_stored_in_the_deployed_dtype(
    tmp_path: Path, tokens: Path, dtype: str, stored: torch.dtype
) -> None:
    """Factors are slices of the cast original, untouched tensors are the cast original: the bias of v is, not of q."""
    model = make_checkpoint(tmp_path / "model", "qwen2", dtype=stored)
    run(model, tmp_path / "out", tiny_options(tokens, dtype=dtype))
    original = load_file(model.folder / "model.safetensors")
    found = stored_tensors(tmp_path / "out")
    assert manifest_of(tmp_path / "out")["model"]["dtype"] == dtype
    stems = {name.removesuffix(".U") for name in found if name.endswith(".U")}
    assert len(stems) == 6
    for name, tensor in found.items():
        if name.endswith((".rows", ".cols")):
            assert tensor.dtype == torch.int32
            continue
        assert tensor.dtype == getattr(torch, dtype), name
        if name in original and name.removesuffix(".bias") not in stems:
            assert torch.equal(tensor, original[name].to(tensor.dtype)), name
    for stem in stems:
        weight = original[f"{stem}.weight"].to(getattr(torch, dtype))
        assert torch.equal(found[f"{stem}.C"], weight[:, found[f"{stem}.cols"].long()])
        assert torch.equal(found[f"{stem}.R"], weight[found[f"{stem}.rows"].long()])


def test_the_checkpoints_dtype_is_the_default(tmp_path: Path, tokens: Path) -> None:
    """bfloat16 stays bfloat16, and is verified."""
    model = make_checkpoint(tmp_path / "model", "llama", dtype=torch.bfloat16)
    options, gates = tiny_options(tokens), VerifyOptions()
    done = convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=gates)
    assert done.report is not None
    assert done.report.passed
    assert manifest_of(tmp_path / "out")["model"]["dtype"] == "bfloat16"
    assert {t.dtype for n, t in stored_tensors(tmp_path / "out").items() if n.endswith(".C")} == {torch.bfloat16}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_family_converts_and_verifies(tmp_path: Path, tokens: Path, family: str, dtype: str) -> None:
    """Both graphs agree with the torch model of the conversion; the published folder opens."""
    model = make_checkpoint(tmp_path / "model", family)
    options = tiny_options(tokens, targets=("q_proj", "gate_proj", "down_proj"), dtype=dtype)
    done = convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=VerifyOptions())
    assert done.report is not None
    assert done.report.passed
    assert Artifact.open(tmp_path / "out").manifest["metrics"] is not None


@pytest.mark.parametrize("size", [{"rank": 5}, {"density": 0.6}], ids=["rank", "density"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
@pytest.mark.parametrize("method", ["row-id", "pifa", "svd-llm", "asvd", "fwsvd", "svd"])
def test_every_method_converts_verifies_and_counts(
    tmp_path: Path, tokens: Path, method: str, family: str, size: dict[str, Any]
) -> None:
    """Both graphs agree with torch, slices with the source, counts with the stored numbers."""
    model = make_checkpoint(tmp_path / "model", family)
    calibration = tiny_options(tokens).calibration
    options = ConvertOptions.for_method(method, calibration=calibration, layers="all", targets=LINEARS, **size)
    done = convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=VerifyOptions())
    assert done.report is not None
    assert done.report.passed
    assert done.plan is not None
    compressed = [m for m in done.plan.matrices if m.rank]
    assert len(compressed) >= 10
    numbers = [t.numel() for t in stored_tensors(tmp_path / "out").values() if t.is_floating_point()]
    assert sum(numbers) == done.plan.parameters_after
    if "density" in size:
        assert all(m.parameters_after <= size["density"] * m.parameters_before for m in compressed)
    assert all(check.passed for check in check_slices(tmp_path / "out", model.folder))


@pytest.mark.parametrize("settings", [{}, {"targets": ("down_proj",)}, {"layers": "1"}, {"rank": 3}])
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2"])
def test_counts_are_those_of_the_stored_numbers(
    tmp_path: Path, tokens: Path, family: str, settings: dict[str, object]
) -> None:
    """Parameters of plan and manifest equal what the file holds, indices aside; no matrix grew."""
    model = make_checkpoint(tmp_path / "model", family)
    planned = plan(SourceOptions(str(model.folder)), tiny_options(tokens, **settings))
    run(model, tmp_path / "out", tiny_options(tokens, **settings))
    numbers = {n: t.numel() for n, t in stored_tensors(tmp_path / "out").items() if t.is_floating_point()}
    manifest = manifest_of(tmp_path / "out")
    assert sum(numbers.values()) == planned.parameters_after == manifest["model"]["parameters_after"]
    before = sum(tensor.numel() for tensor in load_file(model.folder / "model.safetensors").values())
    assert before == planned.parameters_before == manifest["model"]["parameters_before"]
    for matrix in manifest["matrices"]:
        stem = matrix["name"].removesuffix(".weight")
        stored = sum(numbers.get(f"{stem}.{suffix}", 0) for suffix in ("weight", "C", "U", "R"))
        assert stored == matrix["parameters_after"] <= matrix["parameters_before"]
        assert matrix["parameters_before"] == math.prod(matrix["shape"])


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_every_file_follows_the_umask(tmp_path: Path, deep: TinyModel, tokens: Path, umask: int) -> None:
    """Weights, graphs, manifest and companions alike, and the folder."""
    previous = os.umask(umask)
    try:
        run(deep, tmp_path / "out", tiny_options(tokens, layers="1"))
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


PLANTED = {
    "embedding": ("model.embed_tokens.weight", (5, 2)),
    "head": ("lm_head.weight", (5, 2)),
    "norm": ("model.layers.0.input_layernorm.weight", (3,)),
    "target": ("model.layers.1.self_attn.q_proj.weight", (3, 4)),
    "untouched linear": ("model.layers.1.mlp.down_proj.weight", (3, 4)),
}


@pytest.mark.parametrize(
    "dtype, value, message",
    [
        ("float32", math.nan, "holds NaN or infinity"),
        ("float32", math.inf, "holds NaN or infinity"),
        ("float16", 1e6, "1e+06 does not fit float16; choose --dtype"),
    ],
    ids=["nan", "inf", "fp16"],
)
@pytest.mark.parametrize("where", PLANTED)
def test_a_value_that_cannot_be_stored_names_its_tensor(
    tmp_path: Path, tokens: Path, where: str, dtype: str, value: float, message: str
) -> None:
    """Wherever it lies; nothing is left behind."""
    name, place = PLANTED[where]
    model = make_checkpoint(tmp_path / "model", "llama")
    edit_tensors(model.folder, lambda tensors: tensors[name].__setitem__(place, value))
    with pytest.raises(InputError) as error:
        run(model, tmp_path / "out", tiny_options(tokens, dtype=dtype))
    assert str(error.value).startswith(f"{name}: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_sharded_artifact_is_the_same_model(
    tmp_path: Path, deep: TinyModel, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the shard size the graphs point into several files; it verifies, and its tensors are the single file's."""
    source, options = SourceOptions(str(deep.folder)), tiny_options(tokens, layers="1-4")
    run(deep, tmp_path / "single", options)
    monkeypatch.setattr(produce, "SafetensorsWriter", functools.partial(SafetensorsWriter, shard_bytes=30_000))
    done = convert(source, tmp_path / "out", options, verification=VerifyOptions())
    assert done.report is not None
    assert done.report.passed
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert torch_parity(tmp_path / "out").passed
    found = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    single = stored_tensors(tmp_path / "single")
    assert found.keys() == single.keys()
    assert all(torch.equal(found[name], single[name]) for name in single)


def test_a_sharded_checkpoint_gives_the_same_weights(tmp_path: Path, tokens: Path) -> None:
    """How the original is cut into files does not matter."""
    model = make_checkpoint(tmp_path / "model", "llama")
    run(model, tmp_path / "a", tiny_options(tokens))
    shard(model.folder, 3)
    run(model, tmp_path / "b", tiny_options(tokens))
    assert files_of(tmp_path / "a")["model.safetensors"] == files_of(tmp_path / "b")["model.safetensors"]


def test_a_failed_gate_publishes_nothing(tmp_path: Path, deep: TinyModel, tokens: Path) -> None:
    """An existing artifact stays as it was."""
    source, out = SourceOptions(str(deep.folder)), tmp_path / "out"
    run(deep, out, tiny_options(tokens, layers="1"))
    before = files_of(out)
    gates = VerifyOptions(max_kl=1e-9)
    with pytest.raises(VerificationError):
        convert(source, out, tiny_options(tokens), overwrite=True, verification=gates)
    assert files_of(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_is_read_before_the_output_is_refused(tmp_path: Path, deep: TinyModel, tokens: Path) -> None:
    """A conversion of hours must not end with `exists`."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    stages: list[str] = []
    with pytest.raises(InputError, match="not empty"):
        convert(
            SourceOptions(str(deep.folder)), tmp_path / "out", tiny_options(tokens),
            progress=lambda stage, _done, _total: stages.append(stage),
        )  # fmt: skip
    assert stages == []


def test_a_calibration_file_inside_the_output_is_refused(tmp_path: Path, deep: TinyModel, tokens: Path) -> None:
    """Overwriting the folder would delete it."""
    out = tmp_path / "out"
    run(deep, out, tiny_options(tokens, layers="1"))
    mine = token_file(out / "ids.safetensors")
    with pytest.raises(InputError, match="overlap"):
        convert(SourceOptions(str(deep.folder)), out, tiny_options(mine), overwrite=True)
    assert mine.exists()


def test_sequences_too_short_to_verify_are_refused_at_once(tmp_path: Path, deep: TinyModel, tokens: Path) -> None:
    """The parity probe decodes 16 tokens."""
    calibration = CalibrationOptions(source=str(tokens), sequences=4, tokens_per_sequence=12, probe_sequences=2)
    stages: list[str] = []
    with pytest.raises(InputError, match="too short"):
        convert(
            SourceOptions(str(deep.folder)), tmp_path / "out", tiny_options(tokens, calibration=calibration),
            progress=lambda stage, _done, _total: stages.append(stage),
        )  # fmt: skip
    assert stages == []


def test_progress_reaches_the_end_of_every_stage(tmp_path: Path, deep: TinyModel, tokens: Path) -> None:
    """Counts go up to the announced total."""
    last: dict[str, tuple[int, int]] = {}
    convert(
        SourceOptions(str(deep.folder)), tmp_path / "out", tiny_options(tokens, layers="angular"),
        verification=VerifyOptions(), progress=lambda stage, done, total: last.update({stage: (done, total)}),
    )  # fmt: skip
    assert {"original", "compress", "parity", "fidelity"} <= last.keys()
    assert all(done == total for done, total in last.values())


def test_notices_say_that_the_text_was_short(tmp_path: Path, deep: TinyModel, tokens: Path) -> None:
    """Fewer sequences than asked for is a notice, not an error."""
    calibration = CalibrationOptions(source=str(tokens), sequences=500, tokens_per_sequence=LENGTH, probe_sequences=2)
    done = run(deep, tmp_path / "out", tiny_options(tokens, calibration=calibration, layers="1"))
    assert any("fewer than the 500 requested" in notice for notice in done.notices)


def test_an_unknown_dtype_of_an_export_is_refused(tmp_path: Path, deep: TinyModel) -> None:
    """As for a conversion."""
    with pytest.raises(InputError, match="--dtype 'float8': expected one of float32"):
        export(SourceOptions(str(deep.folder)), tmp_path / "out", dtype="float8")


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_an_export_serves_the_original(tmp_path: Path, family: str) -> None:
    """Same tensors, same logits in both graphs."""
    model = make_checkpoint(tmp_path / "model", family)
    export(SourceOptions(str(model.folder)), tmp_path / "out")
    ids = np.random.default_rng(0).integers(3, 97, (2, 15))
    with torch.inference_mode():
        expected = model.oracle(input_ids=torch.from_numpy(ids)).logits.numpy()
    for graph in ("portable", "fused"):
        np.testing.assert_allclose(runtime_logits(tmp_path / "out", ids, graph), expected, rtol=0, atol=1e-4)
    manifest = manifest_of(tmp_path / "out")["model"]
    assert manifest["parameters_before"] == manifest["parameters_after"]


def test_a_seed_of_the_text_belongs_to_the_manifest(tmp_path: Path, deep: TinyModel, tokens: Path) -> None:
    """What decided the result can be read back; no path of this machine can."""
    run(deep, tmp_path / "out", tiny_options(tokens, layers="1"))
    options = manifest_of(tmp_path / "out")["options"]
    assert options["calibration"]["source"] == "ids.safetensors"
    assert (options["method"], options["rank"], options["layers"]) == ("cur", 8, "1")
    text = "".join(p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix in (".json", ".md", ".html"))
    assert str(tmp_path) not in text
    assert str(deep.folder.parent) not in text


def test_inputs_that_the_first_pass_keeps_give_the_same_factors(
    deep: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tokens are few and layers are chosen by a score no block is run twice, and the result is the same."""
    ids = token_file(tmp_path / "ids.safetensors", sequences=3)
    calibration = CalibrationOptions(source=str(ids), sequences=1, tokens_per_sequence=LENGTH, probe_sequences=2)
    options = tiny_options(ids, layers="angular:2", calibration=calibration)
    assert int(open_checkpoint(deep.folder).config["hidden_size"]) > LENGTH
    kept = run(deep, tmp_path / "kept", options)
    calls = []
    monkeypatch.setattr(measure, "keeps_inputs", lambda *_: calls.append(1))
    again = run(deep, tmp_path / "again", options)
    assert calls
    assert kept.plan == again.plan
    first, second = (stored_tensors(tmp_path / name) for name in ("kept", "again"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
