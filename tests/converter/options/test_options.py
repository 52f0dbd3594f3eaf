"""Options: presets, and everything that is refused on construction."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from curconvert.base.errors import InputError
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.cur import CUR
from curconvert.methods.curing import CURing
from curconvert.methods.neurons import Neurons
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.targets import DEFAULT_TARGETS, LINEARS, parse_targets


def test_curing_is_the_papers_preset() -> None:
    """DEIM on |W|∘a, plain U, every block calibrated on the original model."""
    options = ConvertOptions.for_method("curing")
    assert options.method == CURing(rank=128, selector="deim", importance="wanda", link="plain")
    assert not options.sequential
    assert options.targets == ("q_proj", "k_proj", "gate_proj")


def test_cur_is_the_default() -> None:
    """Rows by the outputs' Gram matrix, columns by the activations, full U, every block on the original's inputs."""
    assert ConvertOptions.for_method() == ConvertOptions.for_method("cur")
    options = ConvertOptions.for_method()
    assert isinstance(options.method, CUR)
    assert (options.method.importance, options.method.link, options.sequential) == ("output", "full", False)


def test_single_values_override_a_preset() -> None:
    """None means not given; False is given."""
    options = ConvertOptions.for_method("cur", selector="deim", sequential=False, link=None, rank=7)
    # output goes with qr
    assert options.method == CUR(selector="deim", link="full", rank=7, importance="activation")
    assert not options.sequential


def test_neurons_takes_the_whole_mlp() -> None:
    """Three quarters of the neurons unless a number or a share is given; the order of targets does not matter."""
    options = ConvertOptions.for_method("neurons")
    assert options.method == Neurons(density=0.75, rank=None)
    assert options.to_json()["form"] == "modular"
    assert options.targets == ("gate_proj", "up_proj", "down_proj")
    assert ConvertOptions.for_method("neurons", rank=100).method == Neurons(rank=100, density=None)
    mixed = ConvertOptions.for_method("neurons", targets=("down_proj", "gate_proj", "up_proj"), density=0.5)
    assert mixed.method == Neurons(rank=None, density=0.5)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"density": 0.0}, "--density 0.0: expected a share above 0 and below 1"),
        ({"density": 1.0}, "--density 1.0"),
        ({"density": float("nan")}, "--density nan"),
        ({"density": 0.5, "rank": 8}, "found --rank, --density"),
        ({"method": "pifa", "selector": "deim"}, "--select deim: belongs to --method cur and curing, not to pifa"),
        ({"method": "svd-llm", "link": "full"}, "--link full: belongs to"),
        ({"selector": "deim", "importance": "output"}, "--importance output goes with --select qr, not deim"),
        (
            {"method": "neurons", "selector": "deim"},
            "--select deim: belongs to --method cur and curing, not to neurons",
        ),
        ({"method": "neurons", "targets": ("gate_proj",)}, "--targets gate_proj: --method neurons takes gate_proj,up_"),
        ({"method": "neurons", "targets": LINEARS}, "o_proj,gate_proj,up_proj,down_proj: --method neurons takes"),
        ({"rank": 0}, "--rank 0: expected an integer of at least 1"),
        ({"rank": -3}, "--rank -3"),
        ({"rank": 2.5}, "--rank 2.5"),
        ({"rank": True}, "--rank True"),
        ({"seed": -1}, "--seed -1"),
        ({"ridge": float("nan")}, "--ridge nan"),
        ({"ridge": float("inf")}, "--ridge inf"),
        ({"ridge": -0.1}, "--ridge -0.1"),
        ({"ridge": 1e300}, "--ridge 1e+300: expected a number from 0 to 1e+06"),
        ({"selector": "svd"}, "--select 'svd': expected one of deim, qdeim, qr, lu, leverage, random"),
        ({"importance": ""}, "--importance ''"),
        ({"stored": "svd"}, "--form 'svd': expected one of cur, folded, interpolative, auto"),
        ({"method": "pifa", "stored": "folded"}, "--form folded: belongs to --method cur and curing, not to pifa"),
        ({"steps": 3}, "--steps 3: belongs to --method soco, not to cur"),
        ({"scored": True}, "--scored: belongs to --method auto, not to cur"),
        ({"method": "pifa", "exact_svd": True}, "--exact-svd: belongs to --method cur and curing, not to pifa"),
        ({"link": "half"}, "--link 'half': expected one of plain, diagonal, full"),
        ({"dtype": "int8"}, "--dtype 'int8': expected one of float32, float16, bfloat16"),
        ({"targets": ()}, "--targets is empty"),
        ({"targets": ("q_proj", "lm_head")}, "--targets 'lm_head'"),
    ],
)
def test_unsound_values_are_refused(values: dict[str, Any], message: str) -> None:
    """The message names the option, the value and what is expected."""
    with pytest.raises(InputError) as error:
        ConvertOptions.for_method(**{"method": "cur", **values})
    assert message in str(error.value)


def test_an_unknown_method_is_refused() -> None:
    """With the list of those there are."""
    with pytest.raises(InputError) as error:
        ConvertOptions.for_method("qr")
    assert str(error.value) == (
        "--method 'qr': expected one of asvd, auto, cur, curing, dense, fwsvd, modegpt, neurons, pifa, row-id, soco, "
        "svd, svd-llm"
    )


@pytest.mark.parametrize("name", ["form", "approximation", "rnak"])
def test_what_no_method_knows_is_a_mistake_of_the_program(name: str) -> None:
    """The command line cannot give it, so it is no error of input."""
    with pytest.raises(TypeError, match=f"'{name}' is not an option of a conversion"):
        ConvertOptions.for_method("row-id", **{name: "svd"})


def test_options_are_frozen() -> None:
    """What was validated stays."""
    options = ConvertOptions.for_method()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.method = CUR(rank=1)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.method.rank = 0  # type: ignore[attr-defined]


def test_options_become_json_without_paths() -> None:
    """The manifest holds the name of a calibration file, not its folder."""
    options = ConvertOptions.for_method(calibration=CalibrationOptions(source="/home/someone/text.txt"))
    values = json.loads(json.dumps(options.to_json()))
    assert values["calibration"]["source"] == "text.txt"
    assert values["targets"] == list(DEFAULT_TARGETS)
    assert values["rank"] == 128


@pytest.mark.parametrize(
    "text, expected",
    [
        ("all", LINEARS),
        (" all ", LINEARS),
        ("down_proj,q_proj", ("q_proj", "down_proj")),
        ("q_proj, q_proj,", ("q_proj",)),
        ("", ()),
    ],
)
def test_targets_are_a_set(text: str, expected: tuple[str, ...]) -> None:
    """Order and repetition do not matter; an empty list is refused by the options."""
    assert parse_targets(text) == expected


@pytest.mark.parametrize("text", ["q_porj", "q_proj,lm_head", "ALL", "all,q_proj", "q_proj k_proj"])
def test_unknown_targets_are_refused(text: str) -> None:
    """A pattern that matches nothing is a mistake."""
    with pytest.raises(InputError, match=r"--targets: .* matches nothing"):
        parse_targets(text)
