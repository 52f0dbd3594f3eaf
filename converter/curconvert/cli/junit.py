"""Converts a verification report to JUnit XML, which build servers read."""

from __future__ import annotations

from xml.etree import ElementTree

from curconvert_runtime.checks.report import VerificationReport


def to_junit(report: VerificationReport) -> str:
    """Return JUnit XML: one test suite, one test case per check."""
    tests, failures = str(len(report.checks)), str(len(report.failures))
    suite = ElementTree.Element("testsuite", name="curconvert verify", tests=tests, failures=failures, errors="0")
    for check in report.checks:
        group, _, name = check.name.partition(".")
        case = ElementTree.SubElement(suite, "testcase", classname=f"curconvert.{group}", name=name or group)
        if not check.passed:
            ElementTree.SubElement(case, "failure", message=_xml_safe(check.detail), type="VerificationError")
        ElementTree.SubElement(case, "system-out").text = _xml_safe(check.detail)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _xml_safe(text: str) -> str:
    """Replace characters that XML 1.0 cannot hold (a tensor name may contain any of them)."""
    return "".join(c if c in "\t\n" or (c.isprintable() and c < "\ufffe") else "?" for c in text)
