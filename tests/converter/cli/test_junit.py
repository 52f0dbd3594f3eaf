"""A verification as JUnit XML."""

from __future__ import annotations

from xml.etree import ElementTree

from curconvert.cli.junit import to_junit
from curconvert_runtime.checks.report import Check, VerificationReport


def _junit(*checks: Check) -> str:
    return to_junit(VerificationReport("out", checks))


def test_junit_has_one_case_per_check() -> None:
    """Cases carry group and name; a failed one has a failure element."""
    xml = _junit(Check("parity.fused.logits", True, "fine"), Check("fidelity.kl", False, "0.3 > 0.1"))
    suite = ElementTree.fromstring(xml)
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    first, second = suite.findall("testcase")
    assert (first.get("classname"), first.get("name"), first.find("failure")) == (
        "curconvert.parity",
        "fused.logits",
        None,
    )
    failure = second.find("failure")
    assert failure is not None
    assert failure.get("message") == "0.3 > 0.1"


def test_junit_survives_any_text() -> None:
    """Control characters and lone surrogates of a tensor's name do not break the XML."""
    xml = _junit(Check("a.b", False, "tensor '\x00\x1b\ud800<&>' ‖ ok"))
    failure = ElementTree.fromstring(xml.encode("utf-8")).find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "tensor '???<&>' ‖ ok"
