"""What can be asked for, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curconvert.base.errors import InputError
from curconvert.jobs.export import export
from curconvert.jobs.sweep.options import SweepOptions
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime.format.quantized import Layout
from support.command_line import call, refused
from support.families import make_checkpoint
from support.tiny_runs import add_tokenizer


def test_the_default_block_follows_the_type() -> None:
    """32 numbers in int8, 64 in the others; a constant zero point, scales of 16 bits, and rounding by the inputs."""
    assert Quantization("int4").layout == Layout(4, 64, True, "float16")
    assert Quantization("int6").layout == Layout(6, 64, True, "float16")
    assert Quantization("int8").layout == Layout(8, 32, True, "float16")
    assert Quantization("int8", 128, asymmetric=True, scale_dtype="float32").layout == Layout(8, 128, False, "float32")
    assert Quantization("int4").uses_statistics


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("int2", None, False, None), "--quantize 'int2': expected one of int3, int4, int5, int6, int7, int8"),
        (("int9", None, False, None), "--quantize 'int9'"),
        (("int4", None, False, None, None, "bfloat16"), "--scale-dtype 'bfloat16': expected one of float16, float32"),
        ((None, None, False, None, None, "float32"), "--scale-dtype: belongs to --quantize"),
        (("int4", 48, False, None), "--block-size 48: expected one of 32, 64, 128"),
        (("int4", 256, False, None), "--block-size 256"),
        (("int4", 64, False, "up"), "--rounding 'up'"),
        ((None, 64, False, None), "--block-size: belongs to --quantize"),
        ((None, None, True, None), "--asymmetric: belongs to --quantize"),
        ((None, None, False, "gptq"), "--rounding: belongs to --quantize"),
        (("int4", None, False, None, 5.0), "leave --quantize out"),
        ((None, None, False, None, 3.2), r"--bits-per-weight 3.2: expected 3.25 \(all int3.* to 8.5 \(all int8"),
        ((None, None, False, "gptq", 9.1, "float32"), r"expected 3.5 \(all int3.* to 9 \(all int8"),
        ((None, 128, True, None, 8.4), r"expected 3.157 \(all int3, blocks of 128\) to 8.187"),
        ((None, None, False, None, float("nan")), "--bits-per-weight nan"),
    ],
)
def test_bad_values_are_refused(given: tuple[Any, ...], words: str) -> None:
    """By the option's name."""
    with pytest.raises(InputError, match=words):
        Quantization.of(*given)


def test_nothing_is_quantized_unless_it_is_asked_for() -> None:
    """No option, no quantization."""
    assert Quantization.of(None) is None
    assert ConvertOptions.for_method("cur").to_json()["quantization"] is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "give --quantize"),
        ({"quantization": Quantization("int4"), "layers": "1-2"}, "no --layers"),
        ({"quantization": Quantization("int4"), "rank": 8}, "--rank: --method dense keeps every number"),
    ],
)
def test_the_dense_method_only_quantizes(values: dict[str, Any], words: str) -> None:
    """It takes no size and no layers, and has nothing else to do."""
    with pytest.raises(InputError, match=words):
        ConvertOptions.for_method("dense", **values)


def test_a_budget_in_bytes_is_refused() -> None:
    """Not all numbers have one size then."""
    with pytest.raises(InputError, match="--target-bytes"):
        ConvertOptions.for_method("auto", target_bytes=10**6, quantization=Quantization("int4"))


def test_widths_are_not_mixed_in_a_search() -> None:
    """Nor where gradients cannot be had."""
    mixed = Quantization.of(None, bits_per_weight=5.0)
    with pytest.raises(InputError, match="--max-kl: cannot be combined with --bits-per-weight"):
        ConvertOptions.for_method("auto", max_kl=0.1, quantization=mixed)
    with pytest.raises(InputError, match="--bits-per-weight and --self-text run on the CPU"):
        ConvertOptions.for_method("cur", device="cuda", quantization=mixed)


def test_a_sweep_has_no_dense_points() -> None:
    """Every point of a sweep has a size."""
    with pytest.raises(InputError, match="--methods 'dense'"):
        SweepOptions(methods=("dense",))


def test_an_export_cannot_round_by_inputs(tmp_path: Path) -> None:
    """It reads no text; the message says what does."""
    with pytest.raises(InputError, match="convert --method dense"):
        export(SourceOptions("nowhere"), tmp_path / "out", quantization=Quantization("int4"))


def test_the_command_line_quantizes(tmp_path: Path) -> None:
    """An export, what `inspect` says of it, and a conversion's plan; a bad value exits with 2."""
    model = make_checkpoint(tmp_path / "model", "llama").folder
    add_tokenizer(model)
    done = call("export", model, "-o", tmp_path / "out", "--quantize", "int4", "--block-size", "32", "--asymmetric")
    assert done.exit_code == 0, done.output
    shown = call("inspect", tmp_path / "out").stdout
    assert "in int4 in blocks of 32, with zero points, nearest rounding" in shown
    assert "bits each" in shown
    planned = call(
        "plan", model, "-o", tmp_path, "--method", "dense", "--quantize", "int8", "--calibration-tokens", "24"
    )
    assert planned.exit_code == 0, planned.output
    refused(call("export", model, "-o", tmp_path / "o", "--quantize", "int2", "-q"), 2, "--quantize 'int2'")
    refused(call("convert", model, "-o", tmp_path / "o", "--block-size", "32", "-q"), 2, "--block-size")


def test_the_command_line_mixes_widths(tmp_path: Path) -> None:
    """The table is shown; a budget that padding takes up is refused by what this model's matrices would take."""
    model = make_checkpoint(tmp_path / "model", "llama").folder
    add_tokenizer(model)
    done = call("export", model, "-o", tmp_path / "out", "--bits-per-weight", "7", "--block-size", "32")
    assert done.exit_code == 0, done.output
    shown = call("inspect", tmp_path / "out").stdout
    assert "int6 in blocks of 32 (" in shown
    assert "and int7 in blocks of 32 (" in shown
    assert "error at int3" in shown
    assert "<h2>Bits</h2>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    arguments = ("-o", tmp_path / "o", "--bits-per-weight", "3.25", "-q")
    refused(call("export", model, *arguments), 2, "--bits-per-weight 3.25: expected ", "(all int3, blocks of 64) to ")
    refused(
        call("convert", model, "--method", "dense", "--calibration-tokens", "24", *arguments),
        2,
        "--bits-per-weight 3.25: expected ",
    )
