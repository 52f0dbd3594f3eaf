"""The manifest schema: a sound manifest passes, and each departure from the format is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from curconvert.base.forms import traits_of
from curconvert_runtime.format.forms import FORMS
from curconvert_schemas import SchemaError, load_schema, validate
from support.tiny_artifact import toy_manifest

HEALING = {
    "source": "builtin", "token_sha256": "b" * 64, "sequences": 1, "tokens_per_sequence": 8, "options": {},
    "trained_parameters": 4, "curves": {}, "tensors": ["model.layers.0.self_attn.q_proj.U", "model.norm.weight"],
}  # fmt: skip
FILE = {"size": 1, "sha256": "a" * 64}


def sound() -> dict[str, Any]:
    return toy_manifest() | {"files": {"model.safetensors": FILE}}


def all_objects(schema: Any) -> list[dict[str, Any]]:
    """Return every subschema that describes named properties."""
    if isinstance(schema, list):
        return [found for item in schema for found in all_objects(item)]
    if not isinstance(schema, dict):
        return []
    here = [schema] if schema.get("type") == "object" and "properties" in schema else []
    return here + [found for value in schema.values() for found in all_objects(value)]


def test_the_schema_is_a_valid_schema() -> None:
    """It conforms to draft 2020-12 itself."""
    Draft202012Validator.check_schema(load_schema("manifest-1.0"))


def test_no_object_takes_unknown_fields() -> None:
    """Every object with named fields is closed."""
    objects = all_objects(load_schema("manifest-1.0"))
    assert len(objects) > 8
    assert all(each["additionalProperties"] is False for each in objects)


def test_a_sound_manifest_passes() -> None:
    """The example manifest conforms."""
    validate(sound(), "manifest-1.0")


@pytest.mark.parametrize("form", [form.name for form in FORMS.values() if form.is_compressed])
def test_every_form_of_the_runtime_passes(form: str) -> None:
    """What the runtime can read may be in a manifest, and nothing else."""
    manifest = sound()
    manifest["matrices"][0].update(form=form, basis="rows" if traits_of(form).has_basis else None)
    validate(manifest, "manifest-1.0")
    assert load_schema("manifest-1.0")["$defs"]["matrix"]["properties"]["form"]["enum"] == list(FORMS)


def test_calibration_metrics_and_healing_pass() -> None:
    """The optional parts conform when they are there."""
    calibration = {"source": "builtin", "token_sha256": "b" * 64, "sequences": 128, "tokens_per_sequence": 128}
    validate(sound() | {"calibration": calibration, "metrics": {"kl": {"mean": 0.1}}}, "manifest-1.0")
    validate(sound() | {"healing": HEALING}, "manifest-1.0")


@pytest.mark.parametrize("begin", [0, 7, None])
def test_the_begin_token_is_an_id_or_null(begin: int | None) -> None:
    """Older manifests, which have none, pass too: see above."""
    calibration = {"source": "a", "token_sha256": "b" * 64, "sequences": 1, "tokens_per_sequence": 2, "begin": begin}
    validate(sound() | {"calibration": calibration}, "manifest-1.0")


@pytest.mark.parametrize("begin", [-1, 1.5, "<s>", True, [1]])
def test_another_begin_token_is_refused(begin: Any) -> None:
    """A text, a list or a number below zero is no id."""
    calibration = {"source": "a", "token_sha256": "b" * 64, "sequences": 1, "tokens_per_sequence": 2, "begin": begin}
    with pytest.raises(SchemaError):
        validate(sound() | {"calibration": calibration}, "manifest-1.0")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m: m.update(extra=1), "$"),
        (lambda m: m.pop("source"), "$"),
        (lambda m: m.update(format_version="1.1"), "$.format_version"),
        (lambda m: m["generator"].update(version=1), "$.generator.version"),
        (lambda m: m["source"].update(kind="bin"), "$.source.kind"),
        (lambda m: m["source"].update(files=[]), "$.source.files"),
        (lambda m: m["source"]["files"][0].update(sha256="0" * 63), "$.source.files[0].sha256"),
        (lambda m: m["source"]["files"][0].update(sha256="0" * 64 + "\n"), "$.source.files[0].sha256"),
        (lambda m: m["model"].update(dtype="int8"), "$.model.dtype"),
        (lambda m: m["model"].update(head_dim=0), "$.model.head_dim"),
        (lambda m: m["model"].update(vocab_size=True), "$.model.vocab_size"),
        (lambda m: m["model"].update(head_dim=8.5), "$.model.head_dim"),
        (lambda m: m["model"].update(head_dim=8.0), "$.model.head_dim"),
        (lambda m: m.update(options=[]), "$.options"),
        (lambda m: m.update(calibration={}), "$.calibration"),
        (lambda m: m["environment"].update(numpy=2), "$.environment.numpy"),
        (lambda m: m["matrices"][0].update(form="svd"), "$.matrices[0].form"),
        (lambda m: m["matrices"][0].pop("basis"), "$.matrices[0]"),
        (lambda m: m["matrices"][0].update(basis="rows"), "$.matrices[0].basis"),
        (lambda m: m["matrices"][0].update(form="interpolative"), "$.matrices[0].basis"),
        (lambda m: m["matrices"][0].update(form="interpolative", basis="columns"), "$.matrices[0].basis"),
        (lambda m: m["matrices"][0].update(form="two_factor", basis="subspace"), "$.matrices[0].basis"),
        (lambda m: m["matrices"][0].update(form="two_factor", rank=None), "$.matrices[0].rank"),
        (lambda m: m["matrices"][0].update(form="modular"), "$.matrices[0].form"),
        (lambda m: m["matrices"][0].update(form="modular_rows", basis="rows"), "$.matrices[0].basis"),
        (lambda m: m["matrices"][0].update(form="modular_columns", rank=None), "$.matrices[0].rank"),
        (lambda m: m["matrices"][0].update(form="sparse_rows", basis=None), "$.matrices[0].basis"),
        (lambda m: m["matrices"][0].update(form="sparse_columns", basis="rows"), "$.matrices[0].basis"),
        (lambda m: m["matrices"][0].update(rank=None), "$.matrices[0].rank"),
        (lambda m: m["matrices"][1].update(rank=4), "$.matrices[1].rank"),
        (lambda m: m["matrices"][0].update(shape=[6]), "$.matrices[0].shape"),
        (lambda m: m["matrices"][0].update(name="x.bias"), "$.matrices[0].name"),
        (lambda m: m["matrices"][0].update(relative_output_error=-1), "$.matrices[0].relative_output_error"),
        (lambda m: m["matrices"][0].update(teacher_share=1.5), "$.matrices[0].teacher_share"),
        (lambda m: m["matrices"][0]["bound"].pop("eta_rows"), "$.matrices[0].bound"),
        (lambda m: m.update(graphs={}), "$.graphs"),
        (lambda m: m["graphs"]["fused"].update(padding="left"), "$.graphs.fused.padding"),
        (lambda m: m["graphs"].update(other={}), "$.graphs"),
        (lambda m: m.update(files={}), "$.files"),
        (lambda m: m["files"].update({"vocab.json": {"size": -1, "sha256": "a" * 64}}), "$.files['vocab.json'].size"),
        (
            lambda m: m.update(healing=HEALING | {"tensors": ["q_proj.bias"]}),
            "$.healing.tensors[0]",
        ),
        (
            lambda m: m.update(healing=HEALING | {"tensors": ["q_proj.C"]}),
            "$.healing.tensors[0]",
        ),
    ],
)
def test_departures_are_refused_with_their_place(change: Callable[[Any], object], place: str) -> None:
    """The message is one line that begins with the place."""
    manifest = sound()
    change(manifest)
    with pytest.raises(SchemaError) as caught:
        validate(manifest, "manifest-1.0")
    assert str(caught.value).startswith(place + ": ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/b", "a\\b", "C:x", ".hidden", "..", ".", "", "a\0b", "a\nb", "x\n", "curconvert.json", "x" * 256],
)
def test_file_names_are_plain(name: str) -> None:
    """A name that could leave the folder, hide, or be the manifest itself is refused."""
    manifest = sound()
    manifest["files"][name] = FILE
    with pytest.raises(SchemaError):
        validate(manifest, "manifest-1.0")


def test_a_changed_copy_does_not_change_the_schema() -> None:
    """Callers get their own copy."""
    schema = load_schema("manifest-1.0")
    before = copy.deepcopy(schema)
    schema.clear()
    assert load_schema("manifest-1.0") == before


def test_an_unknown_schema_is_a_key_error() -> None:
    """There is nothing under other names."""
    with pytest.raises(KeyError):
        load_schema("manifest-9.9")
