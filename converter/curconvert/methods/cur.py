"""`--method cur`: columns of W, a small linking matrix and rows of W, `W ≈ C·U·R`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from curconvert.base.checks import one_of
from curconvert.base.errors import InputError
from curconvert.base.roles import Role
from curconvert.methods.core.costs import Cost, cost_of, of_selection
from curconvert.methods.core.matrixwise import Matrixwise
from curconvert.methods.core.method import option
from curconvert.methods.core.sized import Sized
from curconvert.options.choices import BASIS_SELECTORS, IMPORTANCES, LINKS, SELECTORS
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan
    from curconvert.base.types import Vector
    from curconvert.factorization.types import Factorization, Problem
    from curconvert.options.choices import Importance, Link, Selector

STORED: Mapping[str, tuple[str, ...]] = {
    "cur": ("cur",),
    "folded": ("two_factor",),
    "interpolative": ("interpolative",),
    "auto": ("cur", "two_factor", "interpolative"),
}
"""How C·U·R may be stored: as three factors, as C·U and R, as rows and coefficients, or as the best of these."""
_PIVOTING = ("qr", "lu")


@dataclass(frozen=True)
class CUR(Matrixwise, Sized):
    """Factorizes into CURing's form, with rows and columns chosen for the outputs.

    Attributes:
        selector: Chooses rows and columns, see `curconvert.selection.indices`.
        importance: Which matrix the selector works on, see `importance_matrix` there.
        link: Metric in which U is optimal.
        stored: How C·U·R is stored, one of `STORED`.
        exact_svd: Whether a full SVD computes the singular vectors for `deim`, `qdeim` and `leverage`.
    """

    name: ClassVar[str] = "cur"
    stores: ClassVar[str] = "r columns, r rows and an r × r matrix: r(m + n + r)"
    summary: ClassVar[str] = "C·U·R: rows by pivoted Cholesky, columns by pivoted QR, U minimizes the output error"
    recorded: ClassVar[Mapping[str, str]] = {"form": "cur"}

    selector: str = option("--select", "qr")
    importance: str = option("--importance", "output")
    link: str = option("--link", "full")
    stored: str = option("--form", "cur")
    exact_svd: bool = option("--exact-svd", False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the method; selectors other than `qr` default to the importance `activation`."""
        other = cls.importance == "output" and values.get("selector", "qr") != "qr"
        return super().of({**({"importance": "activation"} if other else {}), **values})

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("--select", self.selector, SELECTORS)
        one_of("--importance", self.importance, IMPORTANCES)
        one_of("--link", self.link, LINKS)
        one_of("--form", self.stored, tuple(STORED))
        if self.importance == "output" and self.selector != "qr":
            raise InputError(f"--importance output goes with --select qr, not {self.selector}")
        if self.exact_svd and self.selector not in BASIS_SELECTORS:
            expected = ", ".join(BASIS_SELECTORS)
            raise InputError(f"--exact-svd: --select {self.selector} uses no singular vectors; use --select {expected}")

    @property
    def full_metric(self) -> bool:
        """Whether U is optimal for the outputs; see `Method.full_metric`."""
        return self.link == "full"

    @property
    def compares_inputs(self) -> bool:
        """See `Method.compares_inputs`."""
        return self.full_metric

    def forms(self, role: Role) -> tuple[str, ...]:
        """Return the forms in which C·U·R may be stored."""
        return STORED[self.stored]

    def factorize(self, problem: Problem, settings: Settings, fisher_rows: Vector | None) -> Factorization:
        """Return the factors of one matrix; see `Matrixwise.factorize`."""
        from curconvert.factorization.cur import CUROptions, factorize_cur

        options = CUROptions(
            selector=cast("Selector", self.selector),
            importance=cast("Importance", self.importance),
            link=cast("Link", self.link),
            ridge=settings.ridge,
            seed=settings.seed,
            exact_svd=self.exact_svd,
            device=settings.device,
        )
        return factorize_cur(problem, options)

    def cost(self, matrix: MatrixPlan, tokens: int) -> Cost:
        """Return the cost of selection, link and storage; see `Method.cost`."""
        if matrix.form not in STORED["cur"]:
            return cost_of(matrix, tokens)
        pivots = self.selector in _PIVOTING
        return of_selection(matrix, tokens, pivots=pivots, bases=self.selector in BASIS_SELECTORS)


METHOD = CUR
