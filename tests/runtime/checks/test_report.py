"""The report, as an object and as JSON."""

from __future__ import annotations

import json
import math

import pytest

from curconvert_runtime.checks.metrics import Distribution, Fidelity
from curconvert_runtime.checks.report import Check, VerificationReport, at_least, at_most
from curconvert_runtime.errors import VerificationError
from curconvert_schemas import SchemaError, validate

NAN = float("nan")


def _fidelity(exact: bool = True, mean: float = 0.1) -> Fidelity:
    return Fidelity(exact, 2, 8, Distribution(mean, NAN, 0.1, 0.2, 0.3, 0.4), 0.9, 0.01, 10.0, 11.0, 1.1, 0.02)


def _report(*checks: Check, exact: bool = True, mean: float = 0.1) -> VerificationReport:
    return VerificationReport("out", checks, _fidelity(exact, mean), "a text", {"numpy": "2"})


def test_json_matches_its_schema() -> None:
    """A report with passed, failed and non-finite checks is valid and strict JSON."""
    document = _report(at_most("a.b", 1, 2, "x"), at_least("a.c", NAN, 2, "y"), mean=math.inf).to_json()
    validate(document, "verification-1.0")
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_json_names_the_lower_bound() -> None:
    """A bucketed divergence is never called kl."""
    document = _report(Check("a", True, ""), exact=False).to_json()
    validate(document, "verification-1.0")
    assert "kl" not in document["fidelity"]
    assert document["fidelity"]["kl_lower_bound"]["mean"] == 0.1


def test_schema_refuses_an_exact_lower_bound() -> None:
    """The schema ties the name of the divergence to `exact`."""
    document = _report(Check("a", True, ""), exact=False).to_json()
    document["fidelity"]["exact"] = True
    with pytest.raises(SchemaError):
        validate(document, "verification-1.0")


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_numbers_that_are_not_finite_fail_any_limit(value: float) -> None:
    """No limit accepts NaN or an infinity."""
    assert not at_most("a", value, math.inf, "").passed
    assert not at_least("a", value, -math.inf, "").passed


def test_limits_are_inclusive() -> None:
    """A value equal to its limit passes."""
    assert at_most("a", 0.0, 0.0, "").passed
    assert at_least("a", 1.0, 1.0, "").passed


def test_no_checks_is_not_a_pass() -> None:
    """A report without a check has verified nothing."""
    assert not _report().passed
    with pytest.raises(VerificationError, match="nothing was checked"):
        _report().raise_for_failures()
