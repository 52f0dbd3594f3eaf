"""`--method modegpt`: a smaller MLP, and attention heads with fewer dimensions (MoDeGPT, arXiv 2408.09632)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curconvert.base.errors import InputError
from curconvert.methods.core.costs import Cost, of_part
from curconvert.methods.core.planning import Shape, planned
from curconvert.methods.core.sized import Sized
from curconvert.options.settings import LINEARS, Settings
from curconvert_runtime.format.modules import MODULAR

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan, Plan
    from curconvert.checkpoint.types import Checkpoint
    from curconvert.factorization.types import FactorTask
    from curconvert.families.heads import Heads
    from curconvert.linalg.statistics import InputStatistics
    from curconvert.methods.core.context import Context

SPARSE = {"q_proj": "sparse_rows", "k_proj": "sparse_rows", "v_proj": "sparse_rows", "o_proj": "sparse_columns"}
"""The linears of an attention whose heads keep some of their dimensions, each with its form."""
_PAIRS = (("q_proj", "k_proj"), ("v_proj", "o_proj"))  # linears whose heads keep the same dimensions
_MODULES = (*_PAIRS, tuple(MODULAR))  # linears that get smaller together


@dataclass(frozen=True)
class MoDeGPT(Sized):
    """Each module of a block gets smaller as a whole: queries and keys, values and outputs, the MLP."""

    name: ClassVar[str] = "modegpt"
    stores: ClassVar[str] = "a share of each head's dimensions and of each MLP's neurons"
    summary: ClassVar[str] = "whole modules: heads keep dimensions, MLPs keep neurons (MoDeGPT, arXiv 2408.09632)"
    sizes: ClassVar[tuple[str, ...]] = ("density",)
    default_size: ClassVar[Mapping[str, float]] = {"density": 0.75}
    defaults: ClassVar[Mapping[str, Any]] = {"targets": LINEARS}
    recorded: ClassVar[Mapping[str, str]] = {"form": "modules"}

    def check(self, settings: Settings) -> None:
        """Refuse parts of modules; see `Method.check`."""
        if any(set(part) - set(settings.targets) not in (set(), set(part)) for part in _MODULES):
            parts = " and ".join(",".join(part) for part in _MODULES)
            raise InputError(
                f"--targets {','.join(settings.targets)}: --method {self.name} takes whole ones of {parts}"
            )

    def forms(self, linear: str) -> tuple[str, ...]:
        """Return the form of a linear."""
        return ((MODULAR | SPARSE)[linear],)

    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        """Plan each matrix, those of an attention by their heads; see `Method.plan`."""
        from curconvert.base.names import layer_of
        from curconvert.families.heads import attention_heads

        heads = attention_heads(checkpoint.config)

        def plan_matrix(name: str, shape: Shape) -> MatrixPlan:
            return self._in_heads(name, shape, heads[layer_of(name)])

        return planned(checkpoint, settings, plan_matrix, f"--{self.asked}", layers)

    def _in_heads(self, name: str, shape: Shape, heads: Heads) -> MatrixPlan:
        from curconvert.base.names import linear_of
        from curconvert.base.plan import MatrixPlan

        linear, reason = linear_of(name), _obstacle(name, heads)
        if reason is not None:
            return MatrixPlan(name, shape, "dense", reason=reason)
        if linear not in SPARSE:
            return self.plan_matrix(name, shape)
        assert self.density is not None
        rank = heads.count(linear) * heads.kept(linear, self.density)
        if rank == 0:
            return MatrixPlan(name, shape, "dense", reason=f"{self.asked} leaves nothing of a head")
        return self.saving(name, shape, self.forms(linear)[0], rank)

    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Read one block's modules; see `Method.tasks`."""
        from curconvert.base.names import layer_of, linear_of
        from curconvert.factorization.projections import read_projections
        from curconvert.factorization.tasks import HeadsTask, mlp_task

        parts = read_projections([plan.name for plan in plans], statistics, context.checkpoint, context.dtype)
        ridge, dtype = context.settings.ridge, context.dtype
        mlp = [plan for plan in plans if linear_of(plan.name) in MODULAR]
        if mlp:
            yield mlp_task(mlp, parts, ridge, dtype)
        attention = {linear_of(plan.name): plan for plan in plans if linear_of(plan.name) in SPARSE}
        heads = context.heads[layer_of(plans[0].name)]
        for pair in _PAIRS:
            if not attention.keys() & set(pair):
                continue
            sizes = {(attention[x].rank or 0) / heads.count(x) if x in attention else 0 for x in pair}
            kept = int(min(sizes))
            if sizes != {kept}:
                raise InputError(f"{plans[0].name}: {' and '.join(pair)} must keep as many dimensions of each head")
            names = {linear: attention[linear].name for linear in pair}
            both = {linear: parts[name] for linear, name in names.items()}
            yield HeadsTask(names, both, heads, kept, ridge, dtype)

    @classmethod
    def fixed(cls, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Return the queries and keys that a norm follows; see `Sized.fixed`."""
        from curconvert.base.names import layer_of
        from curconvert.checkpoint.linears import decoder_linears
        from curconvert.families.heads import attention_heads

        heads = attention_heads(checkpoint.config)
        found = {name: _obstacle(name, heads[layer_of(name)]) for name in decoder_linears(checkpoint)}
        return {name: reason for name, reason in found.items() if reason is not None}

    def cost(self, matrix: MatrixPlan, tokens: int) -> Cost:
        """See `Method.cost`."""
        return of_part(matrix, tokens)


def _obstacle(name: str, heads: Heads) -> str | None:
    """Return why a linear's heads cannot get smaller, or None."""
    from curconvert.base.names import linear_of

    if heads.normed and linear_of(name) in ("q_proj", "k_proj"):
        return "a norm follows it, which dropped dimensions would change"
    return None


METHOD = MoDeGPT
