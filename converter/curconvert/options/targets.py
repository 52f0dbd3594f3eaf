"""The linears to compress, as `--targets` names them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from curconvert.base.errors import InputError
from curconvert.base.roles import Role

TARGET_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "q_proj": Role.QUERY,
        "k_proj": Role.KEY,
        "v_proj": Role.VALUE,
        "o_proj": Role.OUTPUT,
        "gate_proj": Role.GATE,
        "up_proj": Role.UP,
        "down_proj": Role.DOWN,
    }
)
"""Names of the roles of linears for `--targets`, the same for all families."""
LINEARS = tuple(TARGET_ROLES)
DEFAULT_TARGETS = ("q_proj", "k_proj", "gate_proj")  # CURing, §4


def target_roles(targets: Collection[str]) -> frozenset[Role]:
    """Return the roles of the named targets."""
    return frozenset(TARGET_ROLES[target] for target in targets)


def targets_for(roles: Collection[Role]) -> tuple[str, ...]:
    """Return the names of roles for `--targets`, in the order of `LINEARS`."""
    return tuple(target for target, role in TARGET_ROLES.items() if role in roles)


def parse_targets(text: str) -> tuple[str, ...]:
    """Parse `all` or a comma-separated list of linears; order and repetition do not matter."""
    if text.strip() == "all":
        return LINEARS
    names = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(names - set(LINEARS))
    if unknown:
        raise InputError(
            f"--targets: {', '.join(unknown)} matches nothing; expected all, or some of {', '.join(LINEARS)}"
        )
    return tuple(name for name in LINEARS if name in names)
