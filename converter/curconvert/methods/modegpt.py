"""`--method modegpt`: MLPs with fewer neurons, attention heads with fewer dimensions (MoDeGPT, arXiv 2408.09632)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curconvert.base.errors import InputError
from curconvert.base.roles import MODULAR, SPARSE, Role
from curconvert.methods.core.costs import Cost, of_part
from curconvert.methods.core.planning import Shape, planned
from curconvert.methods.core.sized import Sized
from curconvert.options.settings import Settings
from curconvert.options.targets import LINEARS, targets_for

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan, Plan
    from curconvert.checkpoint.types import Checkpoint
    from curconvert.factorization.types import FactorTask
    from curconvert.families.heads import Heads
    from curconvert.linalg.statistics import InputStatistics
    from curconvert.methods.core.context import Context

_PAIRS = ((Role.QUERY, Role.KEY), (Role.VALUE, Role.OUTPUT))  # linears whose heads keep the same dimensions
_MODULES = (*_PAIRS, tuple(MODULAR))  # linears that get smaller together


@dataclass(frozen=True)
class MoDeGPT(Sized):
    """Compresses each module of a block as a whole: query and key, value and output, the MLP."""

    name: ClassVar[str] = "modegpt"
    stores: ClassVar[str] = "a share of the dimensions of each head and of the neurons of each MLP"
    summary: ClassVar[str] = "removes dimensions of attention heads and neurons of MLPs (MoDeGPT, arXiv 2408.09632)"
    sizes: ClassVar[tuple[str, ...]] = ("density",)
    default_size: ClassVar[Mapping[str, float]] = {"density": 0.75}
    defaults: ClassVar[Mapping[str, Any]] = {"targets": LINEARS}
    recorded: ClassVar[Mapping[str, str]] = {"form": "modules"}

    def check(self, settings: Settings) -> None:
        """Reject targets that are only a part of a module; see `Method.check`."""
        if any(set(part) - settings.roles not in (set(), set(part)) for part in _MODULES):
            parts = " and ".join(",".join(targets_for(part)) for part in _MODULES)
            raise InputError(
                f"--targets {','.join(settings.targets)}: --method {self.name} needs whole groups: {parts}"
            )

    def forms(self, role: Role) -> tuple[str, ...]:
        """Return the form of a linear."""
        return ({**MODULAR, **SPARSE}[role],)

    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        """Plan each matrix; the heads decide the ranks in attention; see `Method.plan`."""
        from curconvert.base.names import layer_of
        from curconvert.families.heads import attention_heads

        heads = attention_heads(checkpoint.config)

        def plan_matrix(name: str, shape: Shape) -> MatrixPlan:
            return self._in_heads(name, shape, heads[layer_of(name)])

        return planned(checkpoint, settings, plan_matrix, f"--{self.asked}", layers)

    def _in_heads(self, name: str, shape: Shape, heads: Heads) -> MatrixPlan:
        from curconvert.base.plan import MatrixPlan
        from curconvert.families.roles import role_of

        role, reason = role_of(name), _obstacle(name, heads)
        if reason is not None:
            return MatrixPlan(name, shape, "dense", reason=reason)
        if role not in SPARSE:
            return self.plan_matrix(name, shape)
        assert self.density is not None
        rank = heads.count(role) * heads.kept(role, self.density)
        if rank == 0:
            return MatrixPlan(name, shape, "dense", reason=f"{self.asked} leaves nothing of a head")
        return self.saving(name, shape, self.forms(role)[0], rank)

    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Read one block and yield a task for each module; see `Method.tasks`."""
        from curconvert.base.names import layer_of
        from curconvert.factorization.projections import read_projections
        from curconvert.factorization.tasks import HeadsTask, mlp_task
        from curconvert.families.family import linear_name
        from curconvert.families.roles import role_of

        parts = read_projections([plan.name for plan in plans], statistics, context.checkpoint, context.dtype)
        ridge, dtype = context.settings.ridge, context.dtype
        mlp = [plan for plan in plans if role_of(plan.name) in MODULAR]
        if mlp:
            yield mlp_task(mlp, parts, ridge, dtype)
        attention = {role_of(plan.name): plan for plan in plans if role_of(plan.name) in SPARSE}
        heads = context.heads[layer_of(plans[0].name)]
        for pair in _PAIRS:
            if not attention.keys() & set(pair):
                continue
            sizes = {(attention[x].rank or 0) / heads.count(x) if x in attention else 0 for x in pair}
            kept = int(min(sizes))
            if sizes != {kept}:
                both_names = " and ".join(map(linear_name, pair))
                raise InputError(f"{plans[0].name}: {both_names} must keep the same number of dimensions per head")
            names = {role: attention[role].name for role in pair}
            both = {role: parts[name] for role, name in names.items()}
            yield HeadsTask(names, both, heads, kept, ridge, dtype)

    @classmethod
    def fixed(cls, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Return the query and key linears that are followed by a norm; see `Sized.fixed`."""
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
    """Return the reason why a linear's heads cannot become smaller, or None."""
    from curconvert.families.roles import role_of

    if heads.normed and role_of(name) in (Role.QUERY, Role.KEY):
        return "a norm follows it, which dropped dimensions would change"
    return None


METHOD = MoDeGPT
