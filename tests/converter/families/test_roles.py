"""Roles of linears: by the names of every family, and nowhere by names outside the families."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from curconvert.base.errors import InputError
from curconvert.base.roles import Role
from curconvert.families.family import SUPPORTED_FAMILIES, Family
from curconvert.families.roles import _find, distinct_inputs, is_linear, role_of, with_role
from curconvert.families.skeleton import expected_tensors
from curconvert.options.targets import LINEARS, TARGET_ROLES
from support.families import tiny_config

ROOT = Path(__file__).resolve().parents[3] / "converter"
ROLES = {
    "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value", "self_attn.o_proj": "output",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip
NAME = re.compile(r"\w+_proj(?![\w])")


@pytest.mark.parametrize("model_type", SUPPORTED_FAMILIES)
def test_every_linear_of_a_family_has_its_role(model_type: str) -> None:
    """In both layers of a tiny model, by transformers' own modules; no other tensor has one."""
    shapes = expected_tensors(tiny_config(model_type).to_dict())
    linears = {name: shape for name, shape in shapes.items() if is_linear(name)}
    assert linears.keys() == {f"model.layers.{layer}.{path}.weight" for layer in (0, 1) for path in ROLES}
    assert {name: role_of(name) for name in linears} == {name: ROLES[name[15:-7]] for name in linears}
    assert {name.split(".")[-2]: role for name in linears if (role := role_of(name))} == dict(TARGET_ROLES)
    for name in linears:
        siblings = {with_role(name, role) for role in Role}
        assert siblings == {other for other in linears if other[:15] == name[:15]}


@pytest.mark.parametrize(
    "name",
    ["x", "model.layers.0.x.q_proj.weight", "model.layers.0.self_attn.q_proj.bias", "model.layers.q_proj.weight", "",
     "lm_head.weight", "model.encoder.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"],
)  # fmt: skip
def test_other_names_have_no_role(name: str) -> None:
    """One clear line, whatever a damaged file calls its tensors."""
    assert not is_linear(name)
    with pytest.raises(InputError, match="is not the weight of a linear in a decoder block"):
        role_of(name)


def test_a_family_may_use_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is all it takes: roles, siblings, inputs and parts of fused projections follow it."""
    paths = dict(zip(Role, ("attn.wq", "attn.wk", "attn.wv", "attn.wo", "ff.w1", "ff.w3", "ff.w2"), strict=True))
    fused = {"attn.wqkv": (Role.QUERY, Role.KEY, Role.VALUE)}
    family = Family("toy", "ToyForCausalLM", blocks="toy.h", linears=paths, fused=fused)
    monkeypatch.setattr("curconvert.families.roles.SUPPORTED_FAMILIES", {**SUPPORTED_FAMILIES, "toy": family})
    _find.cache_clear()
    try:
        assert [role_of(f"toy.h.12.{path}.weight") for path in paths.values()] == list(Role)
        assert with_role("toy.h.12.ff.w2.weight", Role.GATE) == "toy.h.12.ff.w1.weight"
        assert not is_linear("model.layers.0.attn.wq.weight")
        shapes = {f"toy.h.3.{path}.weight": (8, width) for path, width in zip(paths.values(), range(7), strict=True)}
        assert distinct_inputs(shapes).keys() == {f"toy.h.3.{path}.weight" for path in
                                                  ("attn.wq", "attn.wo", "ff.w1", "ff.w2")}  # fmt: skip
    finally:
        _find.cache_clear()
    config = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
    assert family.parts(config, "attn.wqkv") == {"wq": 16, "wk": 8, "wv": 8}


def test_families_agree_on_siblings() -> None:
    """Of two families that use one name for a linear, either may be asked for its siblings."""
    for family in SUPPORTED_FAMILIES.values():
        for role in family.linears:
            for other in family.linears:
                assert with_role(family.weight_of(3, role), other) == family.weight_of(3, other)


def test_no_other_code_spells_a_linears_name() -> None:
    """`families/` has the names, `options/` those that users give to `--targets`; docstrings may have examples."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT / "curconvert")
        if place.parts[0] in ("families", "options"):
            continue
        found += [f"{place}:{line} {text!r}" for line, text in names_in(path.read_text(encoding="utf-8"))]
    assert not found


def test_the_search_finds_names() -> None:
    """Also within a longer or formatted string; not in docstrings."""
    assert [text for _, text in names_in('"""q_proj"""\nx = "q_proj"\ny = f"{x}.up_proj.weight"')] == [
        "q_proj", ".up_proj.weight"]  # fmt: skip
    assert (
        names_in("class A:\n    'About o_proj.'\n    x = 1\n    '''Like k_proj.'''\n    y = 'read_projections'") == []
    )
    assert list(LINEARS) == [name for _, name in names_in(f"x = {LINEARS!r}")]


def names_in(source: str) -> list[tuple[int, str]]:
    tree = ast.parse(source)
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings, of attributes too
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
        if NAME.search(node.value)
    ]
