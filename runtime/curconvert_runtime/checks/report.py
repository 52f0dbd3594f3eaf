"""Holds the result of a verification, checks with their limits, as objects and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from curconvert_runtime.checks.metrics import Fidelity
from curconvert_runtime.errors import VerificationError

SCHEMA = "verification-1.0"


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: Stable dotted name, such as `parity.fused.logits`.
        passed: Whether it passed.
        detail: One line for people: what was compared, found and expected.
        value: The measured number, if there is one.
        limit: The number that `value` was compared with.
        relation: `<=` for an upper limit, `>=` for a lower one.
    """

    name: str
    passed: bool
    detail: str
    value: float | None = None
    limit: float | None = None
    relation: str | None = None


def at_most(name: str, value: float, limit: float, detail: str) -> Check:
    """Return a check of value ≤ limit; NaN and infinity always fail."""
    passed = math.isfinite(value) and value <= limit
    return Check(name, passed, f"{detail} {value:.3g}, limit {limit:g}", value, limit, "<=")


def at_least(name: str, value: float, limit: float, detail: str) -> Check:
    """Return a check of value ≥ limit; NaN and infinity always fail."""
    passed = math.isfinite(value) and value >= limit
    return Check(name, passed, f"{detail} {value:.6g}, limit {limit:g}", value, limit, ">=")


@dataclass(frozen=True)
class VerificationReport:
    """The result of a verification.

    Attributes:
        artifact: The folder, as the caller wrote it.
        checks: All checks, in the order in which they ran.
        fidelity: Quality against the original; None if it was not measured.
        text: Description of the text on which fidelity was measured.
        environment: Package versions and execution provider.
    """

    artifact: str
    checks: tuple[Check, ...]
    fidelity: Fidelity | None = None
    text: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True if every check passed and there was at least one."""
        return bool(self.checks) and not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def raise_for_failures(self) -> None:
        """Raise a VerificationError that names every failed check, if any check failed."""
        if not self.checks:
            raise VerificationError(f"{self.artifact}: nothing was checked")
        if self.failures:
            found = "; ".join(f"{check.name} ({check.detail})" for check in self.failures)
            raise VerificationError(
                f"{self.artifact}: {len(self.failures)} of {len(self.checks)} checks failed: {found}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON (schema `verification-1.0`). Numbers that are not finite become null."""
        return {
            "schema": SCHEMA,
            "artifact": self.artifact,
            "passed": self.passed,
            "environment": dict(self.environment),
            "checks": [_finite(asdict(check)) for check in self.checks],
            "fidelity": None if self.fidelity is None else _fidelity_json(self.fidelity, self.text or ""),
        }


def _fidelity_json(fidelity: Fidelity, text: str) -> dict[str, Any]:
    """Return the numbers as JSON values; the divergence is `kl`, or `kl_lower_bound` if it is not exact."""
    values = asdict(fidelity)
    kl = values.pop("kl")
    return {"text": text, "kl" if fidelity.exact else "kl_lower_bound": _finite(kl), **_finite(values)}


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
