"""Estimates: what they must depend on, and what a machine's measured rates are. Accuracy is a benchmark's matter."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from curconvert.base.errors import InputError
from curconvert.blocks.precision import multiplies_bfloat16
from curconvert.checkpoint import open_checkpoint
from curconvert.estimate import time
from curconvert.estimate.rates import Machine, measure_machine
from curconvert.estimate.total import Estimate, estimate
from curconvert.families.skeleton import EMBEDDING
from curconvert.jobs import plan
from curconvert.jobs.convert import convert
from curconvert.jobs.plan import predict
from curconvert.jobs.prepare import first_plan
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.core.registry import methods
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from support.families import make_checkpoint
from support.tiny_runs import tiny_options, token_file

TOKENS = Path("ids.safetensors")
MACHINE = Machine(
    single=1e11,
    block=5e10,
    half=2e11,
    double=4e10,
    eigen=4e9,
    load=1e9,
    copy=1e10,
    draw=1e8,
    digest=1e9,
    write=2e8,
    workers=2,
)
LARGE = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "head_dim": 64}


def of(folder: Path, options: ConvertOptions, machine: Machine = MACHINE, **config: int) -> Estimate:
    checkpoint = open_checkpoint(make_checkpoint(folder, "llama", **config).folder)
    return estimate(checkpoint, first_plan(checkpoint, options), options, machine)


def test_memory_does_not_depend_on_the_number_of_layers(tmp_path: Path) -> None:
    """Time, disk and output do."""
    few, many = (of(tmp_path / str(n), tiny_options(TOKENS), num_hidden_layers=n) for n in (2, 8))
    assert few.peak_memory_bytes == many.peak_memory_bytes
    assert few.seconds < many.seconds
    assert few.output_bytes < many.output_bytes <= many.temporary_bytes


def test_a_faster_machine_takes_less_time_and_the_same_memory(tmp_path: Path) -> None:
    """Each rate counts."""
    options = tiny_options(TOKENS, layers="angular:2")
    base = of(tmp_path / "base", options, num_hidden_layers=5)
    for field in ("single", "block", "double", "eigen", "load", "copy", "digest", "write"):
        faster = replace(MACHINE, **{field: 100 * getattr(MACHINE, field)})
        found = of(tmp_path / field, options, faster, num_hidden_layers=5)
        assert found.seconds < base.seconds, field
        assert found.peak_memory_bytes == base.peak_memory_bytes


def test_more_tokens_and_larger_matrices_take_more(tmp_path: Path) -> None:
    """Of time and memory both."""
    text = CalibrationOptions(source=str(TOKENS), sequences=12, tokens_per_sequence=24, probe_sequences=2)
    options = tiny_options(TOKENS)
    base = of(tmp_path / "base", options)
    wide = of(tmp_path / "wide", options, **LARGE)
    long = of(tmp_path / "long", replace(options, calibration=replace(text, sequences=1200)))
    for found in (wide, long):
        assert found.seconds > base.seconds
        assert found.peak_memory_bytes > base.peak_memory_bytes


def test_the_sequential_rule_takes_more(tmp_path: Path) -> None:
    """Compressed blocks run twice; where targets are mixed, the original is run and held beside them."""
    text = CalibrationOptions(source=str(TOKENS), sequences=1200, tokens_per_sequence=24, probe_sequences=2)
    for method, mixed in (("curing", False), ("pifa", True)):
        rules = [tiny_options(TOKENS, method, sequential=sequential, calibration=text) for sequential in (False, True)]
        plain, sequential = (of(tmp_path / f"{method}{i}", rule, **LARGE) for i, rule in enumerate(rules))
        assert sequential.seconds > plain.seconds
        assert sequential.output_bytes == plain.output_bytes
        assert (sequential.peak_memory_bytes > plain.peak_memory_bytes) == mixed
        assert (sequential.temporary_bytes > plain.temporary_bytes) == mixed


def test_planes_take_memory_when_they_are_joined(tmp_path: Path) -> None:
    """More with three planes than with two, in a file that is smaller than that of int8."""
    found = {
        kind: of(tmp_path / kind, tiny_options(TOKENS, "dense", rank=None, quantization=Quantization(kind)), **LARGE)
        for kind in ("int6", "int7", "int8")
    }
    peaks = {kind: each.verification_memory_bytes for kind, each in found.items()}
    assert peaks["int8"] < peaks["int6"] < peaks["int7"]
    assert found["int6"].output_bytes < found["int7"].output_bytes < found["int8"].output_bytes


SETTINGS: dict[str, dict[str, Any]] = {
    "auto": {"rank": None, "keep": 0.8, "rank_multiple": 4},
    "dense": {"rank": None, "quantization": Quantization("int8")},
    "modegpt": {"rank": None, "density": 0.6},
    "neurons": {"rank": None, "density": 0.6},
    "soco": {"rank": None, "keep": 0.8, "rank_multiple": 4, "steps": 4},
}
"""Where rank 8 is no size of the method."""


@pytest.mark.parametrize("method", list(methods()))
def test_every_method_has_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The output is what the conversion then writes; the room on the disk covers it; the smaller matrices take time."""
    options = tiny_options(token_file(tmp_path / "ids.safetensors"), method, **SETTINGS.get(method, {}))
    source = SourceOptions(str(make_checkpoint(tmp_path / "model", "llama").folder))
    monkeypatch.setattr(plan, "measure_machine", lambda *_: MACHINE)  # it takes a second, and is tested below
    found, result = predict(source, options, tmp_path), convert(source, tmp_path / "out", options)
    assert result.plan is not None
    if not options.method.sizes_whole and options.quantization is None:  # sizes that only the conversion finds
        assert found.output_bytes == 4 * result.plan.parameters_after
    assert found.temporary_bytes > (tmp_path / "out" / "model.safetensors").stat().st_size
    costs = [options.method.cost(matrix, 12 * 24) for matrix in result.plan.matrices if matrix.rank is not None]
    assert all(cost.flops > 0 and cost.held > 0 for cost in costs)
    assert bool(costs) == bool(options.method.sizes)


def test_weights_are_read_as_often_as_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each linear, and the embedding that is the head too."""
    options = tiny_options(token_file(tmp_path / "ids.safetensors"), "pifa")
    source = SourceOptions(str(make_checkpoint(tmp_path / "model", "llama", tie_word_embeddings=True).folder))
    kind = type(open_checkpoint(Path(source.model)))
    real, read = kind.read, Counter[str]()

    def counted(checkpoint: Any, name: str) -> Tensor:
        read[name] += 1
        return real(checkpoint, name)

    monkeypatch.setattr(kind, "read", counted)
    convert(source, tmp_path / "out", options)
    linears = {count for name, count in read.items() if name.endswith("_proj.weight")}
    assert linears == {time._WEIGHTS}
    assert read[EMBEDDING] == time._TABLES


def test_a_machine_is_measured_in_about_a_second(tmp_path: Path) -> None:
    """Rates of a real computer, a block of the model's own among them; nothing stays on the disk."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "llama").folder)
    (tmp_path / "disk").mkdir()
    found = measure_machine(checkpoint, 24, tmp_path / "disk", 3)
    assert 1e8 < found.double < 1e13
    assert 1e8 < found.single < 1e14
    assert 1e5 < found.block < found.single  # a tiny one spends its time between products
    assert found.half <= found.block or multiplies_bfloat16()
    assert min(found.eigen, found.load, found.copy, found.draw, found.digest, found.write) > 1e5
    assert found.workers == 3
    assert not list((tmp_path / "disk").iterdir())


@pytest.mark.parametrize("family", ["gemma3_text", "phi3", "qwen2"])
def test_a_block_of_any_family_is_measured(tmp_path: Path, family: str) -> None:
    """Biases, norms and fused projections included: only shapes are known of it."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", family).folder)
    assert measure_machine(checkpoint, 24, tmp_path, 1).block > 1e5


def test_verification_is_estimated_by_itself(tmp_path: Path) -> None:
    """More probes take longer to verify; more calibration text does not."""
    text = CalibrationOptions(source=str(TOKENS), sequences=12, tokens_per_sequence=24, probe_sequences=2)
    options = tiny_options(TOKENS, calibration=text)
    base = of(tmp_path / "base", options)
    probes = of(tmp_path / "probes", replace(options, calibration=replace(text, probe_sequences=64)))
    longer = of(tmp_path / "text", replace(options, calibration=replace(text, sequences=1200)))
    assert 0 < base.verification_seconds == longer.verification_seconds < probes.verification_seconds
    assert base.verification_memory_bytes == longer.verification_memory_bytes > 0


def test_what_cannot_be_converted_has_no_estimate(tmp_path: Path) -> None:
    """The same refusal as the conversion's."""
    with pytest.raises(InputError, match="no such file"):
        predict(SourceOptions(str(tmp_path / "none.safetensors")), tiny_options(TOKENS), tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """With the option that names another."""
    missing = tmp_path / "none"
    with pytest.raises(InputError, match=rf"{missing}: the disk cannot be measured \(No such file.*--output"):
        measure_machine(open_checkpoint(make_checkpoint(tmp_path / "model", "llama").folder), 24, missing, 1)


def test_learning_is_counted(tmp_path: Path) -> None:
    """Twice the steps take twice as much longer; the model is in memory twice, and once more in components."""
    options = tiny_options(TOKENS, "soco", rank=None, keep=0.7, rank_multiple=4, steps=100)
    found = [
        of(tmp_path / f"{steps}", replace(options, method=replace(options.method, steps=steps)))
        for steps in (100, 200, 300)
    ]
    first, second = (more.seconds - fewer.seconds for fewer, more in itertools.pairwise(found))
    assert 0 < first == pytest.approx(second)
    uniform = of(tmp_path / "pifa", tiny_options(TOKENS, "pifa", rank=None, density=0.6))
    assert found[0].peak_memory_bytes > uniform.peak_memory_bytes
