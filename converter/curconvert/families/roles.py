"""Finds the role of a linear by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from curconvert.base.errors import InputError
from curconvert.base.plan import MatrixPlan
from curconvert.base.roles import Role
from curconvert.families.family import SUPPORTED_FAMILIES, Family

_WEIGHT = re.compile(r"(?P<blocks>[^.]+\.[^.]+)\.(?P<layer>[0-9]+)\.(?P<path>.+)\.weight")
_COMMON_INPUT = {Role.KEY: Role.QUERY, Role.VALUE: Role.QUERY, Role.UP: Role.GATE}
_INPUT_ORDER = (Role.QUERY, Role.OUTPUT, Role.GATE, Role.DOWN)


@lru_cache(maxsize=2**16)
def _find(name: str) -> tuple[Family, int, Role] | None:
    """Return the first family that has a linear of this name, its layer and its role; None if there is none."""
    match = _WEIGHT.fullmatch(name)
    for family in SUPPORTED_FAMILIES.values() if match else ():
        assert match is not None
        if match["blocks"] == family.blocks:
            for role, path in family.linears.items():
                if path == match["path"]:
                    return family, int(match["layer"]), role
    return None


def _found(name: str) -> tuple[Family, int, Role]:
    found = _find(name)
    if found is None:
        raise InputError(f"{name[:200]!r} is not the weight of a linear in a decoder block")
    return found


def is_linear(name: str) -> bool:
    """Tell whether a canonical tensor name is the weight of a decoder block's linear."""
    return _find(name) is not None


def role_of(name: str) -> Role:
    """Return the role of a linear.

    Args:
        name: Canonical weight name.

    Raises:
        InputError: No supported family has a linear of this name.
    """
    return _found(name)[2]


def with_role(name: str, role: Role) -> str:
    """Return the weight name of the linear with another role in the same block; raises like `role_of`."""
    family, layer, _ = _found(name)
    return family.weight_of(layer, role)


def distinct_inputs(shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Return the width of each distinct input of these linears, by the weight name of one linear that reads it.

    Queries, keys and values read the same input; gate and up read another one.

    Args:
        shapes: (out_features, in_features), by weight name.
    """
    found = {}
    for name, (_, width) in shapes.items():
        role = role_of(name)
        found[with_role(name, _COMMON_INPUT.get(role, role))] = width
    return found


def by_input(plans: Sequence[MatrixPlan]) -> list[list[MatrixPlan]]:
    """Return one block's linears in groups that read the same input, in the order in which the block runs them."""
    found: dict[Role, list[MatrixPlan]] = {role: [] for role in _INPUT_ORDER}
    for plan in plans:
        role = role_of(plan.name)
        found[_COMMON_INPUT.get(role, role)].append(plan)
    return [group for group in found.values() if group]
