"""`verify` on hand-made toy artifacts, whose every number NumPy can compute."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from curconvert_runtime.checks.structure import _finite_weights
from curconvert_runtime.checks.verification import VerificationReport, VerifyOptions, verify
from curconvert_runtime.errors import InputError, IntegrityError, VerificationError
from curconvert_runtime.format.tensor_file import read_headers
from support.onnx_writer import FLOAT, Tensor, node
from support.safetensors_files import load_file, save_file
from support.tiny_artifact import STEM, byte_tokenizer, reseal, toy_graph, toy_logits, toy_tensors
from support.toy_probes import original_tensors, toy_probe_tensors, write_original_toy, write_verified_toy


@pytest.fixture(scope="session")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_verified_toy(tmp_path_factory.mktemp("verification") / "out")


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original_toy(tmp_path_factory.mktemp("verification") / "original")


@pytest.fixture
def copy(verified: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(verified, tmp_path / "copy"))


@pytest.fixture(scope="session")
def report(verified: Path) -> VerificationReport:
    return verify(verified)


def _rewrite(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = {name: np.array(value) for name, value in load_file(folder / file).items()}
    change(tensors)
    save_file(tensors, folder / file)
    reseal(folder)


def _failed(folder: Path, options: VerifyOptions | None = None) -> set[str]:
    result = verify(folder, options)
    assert result.passed == (not result.failures)
    return {check.name for check in result.failures}


def test_a_sound_artifact_passes(report: VerificationReport) -> None:
    """Every gate passes on an artifact whose numbers NumPy confirms."""
    report.raise_for_failures()
    assert {check.name for check in report.checks} == {
        "integrity.files",
        "structure.config",
        "structure.factors",
        "structure.counts",
        "structure.finite",
        "structure.portable_bindings",
        "structure.fused_bindings",
        *(f"parity.{kind}.{part}" for kind in ("portable", "fused") for part in ("logits", "first_key", "last_key")),
        "parity.between_graphs",
        "fidelity.finite",
    }


def _oracle(verified: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids and both models' probabilities in float64."""
    ids = load_file(verified / "probes.safetensors")["original.ids"]
    sides = [
        special.softmax(np.stack([toy_logits(row.tolist(), tensors) for row in ids]), axis=-1)
        for tensors in (original_tensors(), toy_tensors())
    ]
    return ids, sides[0], sides[1]


def test_probe_fidelity_is_a_lower_bound_of_scipys_divergence(verified: Path, report: VerificationReport) -> None:
    """The bound lies below the whole divergence, and close to it; it is not called exact."""
    _, p, q = _oracle(verified)
    exact = stats.entropy(p, q, axis=-1).mean()
    assert report.fidelity is not None
    assert not report.fidelity.exact
    assert 0.5 * exact < report.fidelity.kl.mean <= exact


def test_top1_and_perplexities_are_the_oracles(verified: Path, report: VerificationReport) -> None:
    """Agreement and perplexities equal a float64 computation."""
    ids, p, q = _oracle(verified)
    following = ids[:, 1:, None].astype(np.int64)
    expected = [np.exp(-np.log(np.take_along_axis(side[:, :-1], following, -1)).mean()) for side in (p, q)]
    assert report.fidelity is not None
    assert report.fidelity.top1 == (p.argmax(-1) == q.argmax(-1)).mean()
    assert report.fidelity.perplexity_original == pytest.approx(expected[0], rel=1e-5)
    assert report.fidelity.perplexity_compressed == pytest.approx(expected[1], rel=1e-5)
    assert report.fidelity.perplexity_ratio == pytest.approx(expected[1] / expected[0], rel=1e-5)


def test_against_the_original_the_divergence_is_exact(verified: Path, original: Path) -> None:
    """With the original's export at hand the divergence is scipy's over the whole vocabulary."""
    _, p, q = _oracle(verified)
    exact = stats.entropy(p, q, axis=-1)
    result = verify(verified, VerifyOptions(against=original)).fidelity
    assert result is not None
    assert result.exact
    assert result.kl.mean == pytest.approx(exact.mean(), rel=1e-3)
    assert result.kl.max == pytest.approx(exact.max(), rel=1e-3)


def test_identical_models_have_no_divergence(copy: Path) -> None:
    """When nothing was lost every distance is zero, and the strictest thresholds that allow rounding pass."""
    tensors = toy_tensors()
    save_file(toy_probe_tensors(tensors, tensors), copy / "probes.safetensors")
    reseal(copy)
    result = verify(copy, VerifyOptions(max_kl=1e-6, min_top1=1, max_ppl_ratio=1.0001))
    result.raise_for_failures()
    assert result.fidelity is not None
    assert result.fidelity.kl.max < 1e-5


def test_any_text_can_be_measured(verified: Path, original: Path, tmp_path: Path) -> None:
    """A text is cut into whole windows, and the report says which and how many."""
    text = tmp_path / "story.txt"
    text.write_text("the quick brown fox jumps over the lazy dog, again and again", encoding="utf-8")
    result = verify(verified, VerifyOptions(against=original, text=text, window=16))
    assert result.text == "story.txt: 4 windows of 16 tokens that begin with token 297"
    assert result.fidelity is not None
    assert (result.fidelity.sequences, result.fidelity.tokens) == (4, 64)


@pytest.mark.parametrize(
    ("recorded", "option", "expected"),
    [
        ({}, None, 297),
        ({"begin": None}, None, None),
        ({"begin": 7}, None, 7),
        ({"begin": None}, True, 297),
        ({"begin": 297}, False, None),
    ],
)
def test_windows_start_as_the_artifact_was_calibrated(
    copy: Path, original: Path, tmp_path: Path, recorded: dict[str, Any], option: bool | None, expected: int | None
) -> None:
    """The option decides, then the manifest, then the tokenizer; both models read the windows, and NumPy agrees."""
    calibration = {"source": "a", "token_sha256": "0" * 64, "sequences": 1, "tokens_per_sequence": 8, **recorded}
    reseal(copy, lambda manifest: manifest.update(calibration=calibration))
    text = tmp_path / "story.txt"
    text.write_text("the quick brown fox", encoding="utf-8")
    result = verify(copy, VerifyOptions(against=original, text=text, window=8, begin=option))
    codes = byte_tokenizer().encode("the quick brown fox", add_special_tokens=False).ids
    step = 8 if expected is None else 7
    rows = [[*([] if expected is None else [expected]), *codes[i : i + step]] for i in range(0, 19 - 19 % step, step)]
    assert {len(row) for row in rows} == {8}
    p, q = (
        special.log_softmax(np.stack([toy_logits(row, tensors) for row in rows]), axis=-1)
        for tensors in (original_tensors(), toy_tensors())
    )
    following = np.array(rows)[:, 1:, None]
    perplexity = np.exp(-np.take_along_axis(q[:, :-1], following, -1).mean())
    assert result.fidelity is not None
    assert result.fidelity.perplexity_compressed == pytest.approx(perplexity, rel=1e-5)
    assert result.fidelity.kl.mean == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), rel=1e-3)
    assert result.text.endswith("of 8 tokens" if expected is None else f"that begin with token {expected}")


def test_a_begin_token_outside_the_vocabulary_is_refused(copy: Path, original: Path, tmp_path: Path) -> None:
    """A manifest may name any number."""
    calibration = {"source": "a", "token_sha256": "0" * 64, "sequences": 1, "tokens_per_sequence": 8, "begin": 300}
    reseal(copy, lambda manifest: manifest.update(calibration=calibration))
    (tmp_path / "story.txt").write_text("the quick brown fox", encoding="utf-8")
    with pytest.raises(InputError, match="token id 300: the vocabulary is 0 … 299"):
        verify(copy, VerifyOptions(against=original, text=tmp_path / "story.txt", window=8))


def test_a_text_shorter_than_a_window_is_refused(verified: Path, original: Path, tmp_path: Path) -> None:
    """Zero samples never pass."""
    text = tmp_path / "short.txt"
    text.write_text("too short")
    with pytest.raises(InputError, match="at least one window"):
        verify(verified, VerifyOptions(against=original, text=text, window=16))


def test_a_window_longer_than_the_context_is_refused(verified: Path, original: Path, tmp_path: Path) -> None:
    """The models cannot score what does not fit their context."""
    text = tmp_path / "long.txt"
    text.write_text("x" * 999)
    with pytest.raises(InputError, match="context"):
        verify(verified, VerifyOptions(against=original, text=text, window=64))


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xfa"])
def test_an_unreadable_text_is_refused(verified: Path, original: Path, tmp_path: Path, content: bytes | None) -> None:
    """A missing file and bytes that are not UTF-8 are input errors."""
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(InputError, match="--text"):
        verify(verified, VerifyOptions(against=original, text=text, window=16))


def test_the_compressed_model_is_refused_as_its_own_reference(verified: Path, copy: Path) -> None:
    """Comparing an artifact with itself, wherever it lies, is a mistake and not a perfect score."""
    with pytest.raises(InputError, match="same weights"):
        verify(verified, VerifyOptions(against=copy))


def test_another_compressed_model_is_refused_as_reference(verified: Path, copy: Path) -> None:
    """A compressed artifact is nobody's original."""
    _rewrite(copy, "model.safetensors", lambda tensors: tensors["model.norm.weight"].fill(2))
    with pytest.raises(InputError, match="compressed model too"):
        verify(verified, VerifyOptions(against=copy))


def test_a_reference_with_another_tokenizer_is_refused(verified: Path, original: Path, tmp_path: Path) -> None:
    """Two tokens that changed places make it another model's tokenizer."""
    other = Path(shutil.copytree(original, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    reseal(other)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        verify(verified, VerifyOptions(against=other))


def test_a_reformatted_tokenizer_is_the_same_tokenizer(verified: Path, original: Path, tmp_path: Path) -> None:
    """Other white space in tokenizer.json is no reason to refuse."""
    other = Path(shutil.copytree(original, tmp_path / "other"))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer, indent=3))
    reseal(other)
    assert verify(verified, VerifyOptions(against=other)).passed


def test_a_reference_with_another_vocabulary_is_refused(verified: Path, original: Path, tmp_path: Path) -> None:
    """The manifest's vocabulary sizes must agree."""
    other = Path(shutil.copytree(original, tmp_path / "other"))
    reseal(other, lambda manifest: manifest["model"].update(vocab_size=299))
    with pytest.raises(InputError, match="vocabulary"):
        verify(verified, VerifyOptions(against=other))


def test_thresholds_fail_by_name(verified: Path) -> None:
    """Each threshold that is not met is a failed check of its own."""
    strict = VerifyOptions(max_kl=0, min_top1=1, max_ppl_ratio=0, max_parity=0)
    assert {
        "fidelity.kl_lower_bound",
        "fidelity.top1",
        "fidelity.perplexity_ratio",
        "parity.portable.logits",
    } <= _failed(verified, strict)


def test_generous_thresholds_pass(verified: Path) -> None:
    """Thresholds that are met are passed checks in the report."""
    result = verify(verified, VerifyOptions(max_kl=5, min_top1=0, max_ppl_ratio=9, max_parity=1))
    assert result.passed
    assert {"fidelity.kl_lower_bound", "fidelity.top1", "fidelity.perplexity_ratio"} <= {c.name for c in result.checks}


@pytest.mark.parametrize("name", ["max_kl", "min_top1", "max_ppl_ratio", "max_parity"])
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), True, "1"])
def test_senseless_thresholds_are_refused(name: str, value: Any) -> None:
    """A threshold is a finite number of at least zero."""
    with pytest.raises(InputError, match=name.replace("_", "-")):
        VerifyOptions(**{name: value})


@pytest.mark.parametrize("options", [{"min_top1": 1.5}, {"window": 1}, {"max_tokens": 0}])
def test_other_senseless_options_are_refused(options: dict[str, Any]) -> None:
    """Shares above one and empty windows are refused."""
    with pytest.raises(InputError):
        VerifyOptions(**options)


def test_a_text_needs_a_reference(verified: Path) -> None:
    """The stored answers say nothing about another text."""
    with pytest.raises(InputError, match="--text needs --against"):
        verify(verified, VerifyOptions(text=Path("story.txt")))


@pytest.mark.parametrize("begin", [True, False])
def test_a_begin_token_needs_a_text(verified: Path, begin: bool) -> None:
    """The stored sequences begin as they do, so the option would change nothing."""
    with pytest.raises(InputError, match="need --text"):
        verify(verified, VerifyOptions(begin=begin))


def test_an_export_has_nothing_to_be_verified_against(original: Path) -> None:
    """An uncompressed model is named as such instead of failing on a missing file."""
    with pytest.raises(InputError, match="uncompressed"):
        verify(original)


def test_a_flipped_bit_is_an_integrity_error(copy: Path) -> None:
    """Without resealing the first gate stops everything, with exit code 4."""
    path = copy / "probes.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        verify(copy)
    assert caught.value.exit_code == 4


def test_an_artifact_without_probes_is_refused(copy: Path) -> None:
    """Nothing to compare with is not a pass."""
    (copy / "probes.safetensors").unlink()
    reseal(copy)
    with pytest.raises(IntegrityError, match=r"probes\.safetensors"):
        verify(copy)


def test_swapped_row_indices_show_without_the_original(copy: Path) -> None:
    """C[rows] and R[:, cols] are the same block of W: indices in another order break that."""
    _rewrite(copy, "model.safetensors", lambda t: t.update({f"{STEM}.rows": t[f"{STEM}.rows"][::-1].copy()}))
    assert _failed(copy) == {"structure.factors"}


@pytest.mark.parametrize("place", [("model",), ("matrices", 0), ("matrices", 1)])
def test_a_wrong_number_of_parameters_fails(copy: Path, place: tuple[str | int, ...]) -> None:
    """The counts of the model, of a factored and of a dense matrix are those of the stored tensors."""

    def change(manifest: Any) -> None:
        for key in place:
            manifest = manifest[key]
        manifest["parameters_after"] += 1

    reseal(copy, change)
    assert _failed(copy) == {"structure.counts"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_weight_that_no_probe_touches_fails(copy: Path, value: float) -> None:
    """A NaN in a tensor that the probes never read is found in the weights."""
    _rewrite(copy, "model.safetensors", lambda t: t["model.norm.weight"].__setitem__((0, 0), value))
    assert _failed(copy) == {"structure.finite"}


@pytest.mark.parametrize(("bits", "fails"), [(0x7F80, True), (0xFFC0, True), (0x7F7F, False), (0x0001, False)])
def test_bfloat16_weights_are_read_as_bits(tmp_path: Path, bits: int, fails: bool) -> None:
    """Infinity and NaN of bfloat16 are recognized, its largest number and a denormal are not mistaken for them."""
    path = tmp_path / "w.safetensors"
    save_file({"w": np.array([0x3F80, bits], np.uint16).view(np.float16)}, path)
    header = replace(read_headers(path)["w"], dtype="BF16")
    artifact = SimpleNamespace(tensors={"w": header})
    assert _finite_weights(artifact).passed != fails  # type: ignore[arg-type]


def test_a_text_needs_a_tokenizer(verified: Path, original: Path, tmp_path: Path) -> None:
    """A model without tokenizer.json cannot read a text, and says so."""
    folders = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (verified, original)]
    for folder in folders:
        (folder / "tokenizer.json").unlink()
        reseal(folder)
    text = tmp_path / "text.txt"
    text.write_text("some words of text")
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        verify(folders[0], VerifyOptions(against=folders[1], text=text, window=4))


def test_wrong_weights_fail_parity_in_both_graphs(copy: Path) -> None:
    """Embeddings that differ from those of the conversion show in logits and keys."""
    _rewrite(copy, "model.safetensors", lambda t: t["model.embed_tokens.weight"].__imul__(np.float32(1.01)))
    failed = _failed(copy)
    assert {"parity.portable.logits", "parity.fused.logits", "parity.fused.first_key"} <= failed
    assert "parity.between_graphs" not in failed


def test_keys_at_shifted_positions_fail(copy: Path) -> None:
    """A graph that adds one to the positions fails on its keys."""
    model = toy_graph(copy / "model.safetensors", "portable")
    next(each for each in model.node if "position_ids" in each.input).input[1] = "shifted"
    model.node.insert(0, node("Add", ["position_ids", "axis1"], ["shifted"]))
    (copy / "model.onnx").write_bytes(model.encode())
    reseal(copy)
    assert {"parity.portable.first_key", "parity.between_graphs"} <= _failed(copy)


def test_an_initializer_of_another_tensor_fails(copy: Path) -> None:
    """An offset that leads to other bytes than the initializer's name says is found in the graph."""
    model = toy_graph(copy / "model.safetensors", "fused")
    place = model.tensor("model.positions.weight").external
    place["offset"] = str(int(place["offset"]) - 32)
    (copy / "model.fused.onnx").write_bytes(model.encode())
    reseal(copy)
    assert "structure.fused_bindings" in _failed(copy)


@pytest.mark.parametrize(
    ("ranges", "sound"),
    [
        ([(0, 20), (20, 32)], True),
        ([(0, 32)], True),
        ([(0, 16), (0, 16)], False),
        ([(16, 32), (0, 16)], False),
        ([(0, 16), (16, 32), (0, 16)], False),
        ([(0, 16), (17, 32)], False),
    ],
)
def test_slices_must_be_a_tensors_rows_in_turn(copy: Path, ranges: list[tuple[int, int]], sound: bool) -> None:
    """Rows that are missing, twice there or in another order are found in the graph."""
    name = "model.positions.weight"
    model = toy_graph(copy / "model.safetensors", "fused")
    whole = model.tensor(name)
    model.initializer.remove(whole)
    offset, row = int(whole.external["offset"]), 4 * whole.dims[1]
    parts = [f"{name}.slice.{number}" for number in range(len(ranges))]
    for part, (start, stop) in zip(parts, ranges, strict=True):
        place = {"offset": str(offset + start * row), "length": str((stop - start) * row)}
        spelled = {"location": "./model.safetensors", **place}  # as older artifacts have it
        model.initializer.append(Tensor(part, [stop - start, whole.dims[1]], FLOAT, external=spelled))
    model.node.insert(0, node("Concat", parts, [name], axis=0))
    (copy / "model.fused.onnx").write_bytes(model.encode())
    reseal(copy)
    assert ("structure.fused_bindings" not in _failed(copy)) == sound


def test_nan_in_the_stored_answers_fails(copy: Path) -> None:
    """A NaN on the original's side fails fidelity, on the torch side parity."""

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["original.top_log_probs"][0, 0, 0] = np.nan
        tensors["compressed.logits"][0, 0, 0] = np.nan

    _rewrite(copy, "probes.safetensors", spoil)
    assert _failed(copy) == {"fidelity.finite", "parity.portable.logits", "parity.fused.logits"}


def test_failures_raise_with_every_name(verified: Path) -> None:
    """The exception names each failed check and carries exit code 3."""
    result = verify(verified, VerifyOptions(max_kl=0, max_ppl_ratio=0))
    with pytest.raises(VerificationError, match=r"kl_lower_bound.*perplexity_ratio") as caught:
        result.raise_for_failures()
    assert caught.value.exit_code == 3


def test_an_artifact_without_the_fused_graph_is_verified(copy: Path) -> None:
    """One graph is enough; what it lacks is not in the report."""
    (copy / "model.fused.onnx").unlink()
    reseal(copy, lambda manifest: manifest["graphs"].pop("fused"))
    assert not any("fused" in check.name or "between" in check.name for check in verify(copy).checks)


def test_progress_is_reported(verified: Path) -> None:
    """Stages count up to their totals."""
    seen: list[tuple[str, int, int]] = []
    verify(verified, progress=lambda *step: seen.append(step))
    assert seen == [("parity", 1, 2), ("parity", 2, 2), *[("fidelity", n, 4) for n in range(1, 5)]]
