"""Opening an artifact: a sound folder opens, and every kind of damage is refused in one line that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curconvert_runtime import Artifact, InputError, IntegrityError, UnsupportedError
from curconvert_runtime.format.vectors import MODULAR
from support.folders import hard_linked, in_hub_cache
from support.onnx_writer import Tensor
from support.safetensors_files import save_file
from support.tiny_artifact import MATRIX, RANK, STEM, manifest_of, reseal, toy_graph, toy_tensors, write_toy

WEIGHTS = "model.safetensors"
SEALED_FILES = (WEIGHTS, "model.onnx", "model.fused.onnx", "config.json", "tokenizer.json", "tokenizer_config.json")


def refused(folder: Path, text: str, error: type[Exception] = IntegrityError) -> None:
    """Assert that the folder is refused in one line with `text` in it."""
    with pytest.raises(error) as caught:
        Artifact.open(folder)
    message = str(caught.value)
    assert text in message
    assert "\n" not in message


def write_manifest(folder: Path, text: str | bytes) -> None:
    (folder / "curconvert.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def with_tensors(folder: Path, **changed: Any) -> None:
    """Store changed factors and seal again, so that only the factor itself is wrong."""
    tensors = toy_tensors()
    for name, value in changed.items():
        if value is None:
            del tensors[f"{STEM}.{name}"]
        else:
            tensors[f"{STEM}.{name}"] = value
    reference = write_toy(folder.parent / "reference", tensors)
    for name in SEALED_FILES[:3]:
        (folder / name).write_bytes((reference / name).read_bytes())
    reseal(folder)


def test_a_sound_folder_opens_and_gives_its_tensors(sealed: Path) -> None:
    """Tensors read from the folder equal what was stored, bit for bit."""
    artifact = Artifact.open(sealed, full=True)
    for name, value in toy_tensors().items():
        assert artifact.tensor(name).dtype == value.dtype
        np.testing.assert_array_equal(artifact.tensor(name), value)


def test_tensors_are_memory_mapped_and_read_only(sealed: Path) -> None:
    """A tensor is a view of the file that cannot be written to."""
    tensor = Artifact.open(sealed).tensor("model.embed_tokens.weight")
    assert isinstance(tensor, np.memmap)
    assert not tensor.flags.writeable


def test_sharded_weights_open(tmp_path: Path) -> None:
    """Tensors of both shards are found through the index."""
    artifact = Artifact.open(write_toy(tmp_path / "out", shards=2))
    assert set(artifact.tensors) == set(toy_tensors())
    np.testing.assert_array_equal(artifact.tensor(f"{STEM}.rows"), toy_tensors()[f"{STEM}.rows"])


def test_the_manifest_is_plain_json(sealed: Path) -> None:
    """It can be written out again, as `inspect --json` does."""
    assert json.loads(json.dumps(Artifact.open(sealed).manifest)) == manifest_of(sealed)


def test_config_is_read(sealed: Path) -> None:
    """The Hugging Face config is at hand as a mapping."""
    assert Artifact.open(sealed).config["model_type"] == "toy"


def test_an_unknown_tensor_is_an_input_error(sealed: Path) -> None:
    """Asking for a tensor that is not there is the caller's mistake."""
    with pytest.raises(InputError, match="no tensor"):
        Artifact.open(sealed).tensor("nothing")


def test_hidden_entries_are_ignored(toy: Path) -> None:
    """Version control and download caches may leave hidden entries in the folder."""
    (toy / ".gitattributes").write_text("x")
    (toy / ".cache").mkdir()
    Artifact.open(toy)


def test_odd_folder_names_open(sealed: Path, tmp_path: Path) -> None:
    """Spaces and non-ASCII letters in a path are no obstacle."""
    Artifact.open(write_toy(tmp_path / "größe und 模型"))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("absent", "no such folder"), ("a\0b", "no such folder"), ("x" * 300, "no such folder"),
        ("~nobody-of-this-name/x", "no such folder"), ("curconvert.json", "a file"), ("model.safetensors", "a file"),
    ],
)  # fmt: skip
def test_a_path_without_a_folder_is_an_input_error(sealed: Path, path: str, found: str) -> None:
    """What is not a folder at all is a wrong argument, not a damaged artifact; a file is called one."""
    refused(sealed / path if not path.startswith("~") else Path(path), f"{path}: {found}; give the folder", InputError)


def duplicate_key(text: str) -> str:
    return text.replace('"rank":', '"rank": 1, "rank":', 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "not json", "not valid JSON"),
        (lambda text: "[]", "expected a JSON object"),
        (lambda text: "", "not valid JSON"),
        (lambda text: text[:-1], "not valid JSON"),
        (duplicate_key, "appears twice"),
        (lambda text: '{"metrics":' + "[" * 200_000, "nested too deeply"),
        (lambda text: text.replace('"metrics": null', '"metrics": {"kl": NaN}'), "NaN"),
        (lambda text: text.replace('"metrics": null', '"metrics": {"kl": 1e309}'), "out of range"),
        (lambda text: text.replace('"metrics": null', '"metrics": null, "extra": 1'), "extra"),
        (lambda text: text.replace('"head_dim": 8', '"head_dim": "8"'), "head_dim"),
        (lambda text: text.replace('"model.onnx"', '"../model.onnx"'), "model.onnx"),
        (lambda text: text.replace('"format_version": "1.0", ', ""), "format_version"),
        (lambda text: text + " " * (17 * 2**20), "larger than"),
        (lambda text: b"\xff\xfe" + text.encode(), "not valid JSON"),
    ],
)
def test_a_damaged_manifest_is_refused(toy: Path, damage: Callable[[str], str | bytes], message: str) -> None:
    """Whatever is wrong with the manifest is said in one line."""
    write_manifest(toy, damage((toy / "curconvert.json").read_text()))
    refused(toy, message)


def test_a_missing_manifest_is_refused(toy: Path) -> None:
    """A folder without a manifest is not an artifact."""
    (toy / "curconvert.json").unlink()
    refused(toy, "curconvert.json: missing")


@pytest.mark.parametrize("version", ["2.0", "1.1", "10.3"])
def test_a_newer_format_is_refused_by_name(toy: Path, version: str) -> None:
    """A newer format asks for an upgrade, before any other complaint."""
    write_manifest(toy, json.dumps({"format_version": version, "news": 1}))
    refused(toy, "upgrade curconvert", UnsupportedError)


@pytest.mark.parametrize("name", SEALED_FILES)
def test_one_flipped_bit_in_any_file_is_found(toy: Path, name: str) -> None:
    """A single bit is enough, in whichever file and wherever the headers do not notice."""
    data = bytearray((toy / name).read_bytes())
    data[-2] ^= 1
    (toy / name).write_bytes(data)
    refused(toy, name)


@pytest.mark.parametrize("name", SEALED_FILES)
def test_a_missing_file_is_named(toy: Path, name: str) -> None:
    """Every listed file must be there."""
    (toy / name).unlink()
    refused(toy, f"{name}: missing")


@pytest.mark.parametrize("change", [b"x", None])
@pytest.mark.parametrize("name", SEALED_FILES)
def test_a_file_of_another_size_is_named(toy: Path, name: str, change: bytes | None) -> None:
    """One byte more or less is noticed before anything is parsed."""
    data = (toy / name).read_bytes()
    (toy / name).write_bytes(data + change if change else data[:-1])
    refused(toy, f"{name}: ")


def test_swapped_files_are_found(toy: Path) -> None:
    """The two graphs in each other's place do not pass."""
    first, second = (toy / "model.onnx").read_bytes(), (toy / "model.fused.onnx").read_bytes()
    (toy / "model.onnx").write_bytes(second)
    (toy / "model.fused.onnx").write_bytes(first)
    refused(toy, ".onnx")


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: path.mkdir()])
def test_an_extra_entry_is_refused(toy: Path, make: Callable[[Path], object]) -> None:
    """A file or folder that nobody vouches for does not belong into an artifact."""
    make(toy / "pytorch_model.bin")
    refused(toy, "pytorch_model.bin: not listed")


def link_outside(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "curconvert.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(link_outside, "a link to a file outside"), (pipe, "not a regular file"), (folder_instead, "not a regular file")],
)
def test_links_to_other_places_pipes_and_folders_are_refused(
    toy: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    """The manifest included: nothing outside the folder is read, and nothing blocks the reader."""
    damage(toy / name)
    refused(toy, f"{name}: {message}")


def test_links_within_the_folder_open(toy: Path) -> None:
    """A link to a hidden file of the folder is as good as the file."""
    for name in (WEIGHTS, "config.json", "curconvert.json"):
        (toy / name).rename(toy / f".{name}")
        (toy / name).symlink_to(f".{name}")
    Artifact.open(toy)


def test_every_byte_behind_a_link_is_checked(sealed: Path, tmp_path: Path) -> None:
    """One flipped bit of a blob in the hub's cache is found, as is one in a hard-linked file."""
    copy = Path(shutil.copytree(sealed, tmp_path / "copy"))
    for folder in (in_hub_cache(sealed, tmp_path), hard_linked(copy, tmp_path / "linked")):
        Artifact.open(folder)
        blob = (folder / WEIGHTS).resolve()
        data = bytearray(blob.read_bytes())
        data[-2] ^= 1
        blob.write_bytes(data)
        refused(folder, f"{WEIGHTS}: sha256")


def test_files_for_people_may_change(toy: Path) -> None:
    """A card that an older artifact lists may be edited or removed; a license and pictures may be added."""
    (toy / "README.md").write_text("old")
    (toy / "report.html").write_text("old")
    reseal(toy)
    assert "README.md" in manifest_of(toy)["files"]
    (toy / "README.md").write_text("new")
    (toy / "report.html").unlink()
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "logo.png"):
        (toy / name).write_text("x")
    assert "README.md" not in Artifact.open(toy).manifest["files"]


@pytest.mark.parametrize(
    "name", ["libops.so", "modeling_toy.py", "pytorch_model.bin", "other.safetensors", "weights.pkl", "LICENSE.so"]
)
def test_code_and_foreign_weights_are_refused_even_if_they_are_listed(toy: Path, name: str) -> None:
    """The manifest may list only files that conversions write."""
    (toy / name).write_bytes(b"x")
    refused(toy, f"{name}: not listed")
    reseal(toy)
    refused(toy, f"the name {name!r} is not allowed")


def test_a_file_in_a_subfolder_is_refused(toy: Path) -> None:
    """Under any name: a folder called like a license is no license."""
    for name in ("code", "LICENSE", "logo.png"):
        (toy / name).mkdir()
        (toy / name / "modeling.py").write_text("x")
        refused(toy, f"{name}: not listed")
        shutil.rmtree(toy / name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("config.json", {"model_type": "toy", "auto_map": {"AutoConfig": "evil.C"}}, "auto_map: not allowed"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "auto_map: not allowed"),
        ("genai_config.json", {"model": {"decoder": {"session_options": {"custom_ops_library": "x.so"}}}}, "$"),
        ("generation_config.json", {"custom_generate": "someone/x"}, "custom_generate: not allowed"),
    ],
)
def test_settings_that_name_code_are_refused(toy: Path, name: str, settings: Any, message: str) -> None:
    """However right the hashes are, and also when the folder was checked before."""
    Artifact.open(toy)
    (toy / name).write_text(json.dumps(settings))
    reseal(toy)
    for _ in range(2):
        refused(toy, f"{name}: $")
        refused(toy, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"C": np.zeros((6, 3), np.float32)}, "[6, 3]"),
        ({"U": np.zeros((3, 3), np.float32)}, "[3, 3]"),
        ({"R": np.zeros((5, 2), np.float32)}, "[5, 2]"),
        ({"R": np.zeros((2, 5), np.float16)}, "F16"),
        ({"U": None}, "missing"),
        ({"rows": np.array([0, 6], np.int32)}, "distinct indices below 6"),
        ({"rows": np.array([-1, 0], np.int32)}, "distinct indices below 6"),
        ({"rows": np.array([3, 3], np.int32)}, "distinct indices below 6"),
        ({"cols": np.array([0, 5], np.int32)}, "distinct indices below 5"),
        ({"cols": np.array([0, 1], np.int64)}, "I64"),
        ({"cols": np.array([0, 1, 2], np.int32)}, "[3]"),
        ({"weight": np.zeros((6, 5), np.float32)}, "beside its factors"),
    ],
)
def test_unsound_factors_are_refused(toy: Path, changed: dict[str, Any], message: str) -> None:
    """Factors have the shapes, dtypes and distinct indices that the manifest's rank implies, though hashes agree."""
    with_tensors(toy, **changed)
    refused(toy, message)


# Of `sparse_rows`, in an order that agrees with them.
SWAPPED = {"rows": np.array([4, 1], np.int32), "order": np.array([2, 1, 2, 2, 0, 2], np.int32)}


def as_form(folder: Path, form: str, changed: dict[str, Any], rank: int = RANK) -> None:
    """Store the toy's (6, 5) matrix in another form, some of its tensors changed (None: left out), and seal again."""
    rng = np.random.default_rng(0)
    factors: dict[str, dict[str, Any]] = {
        "interpolative": {
            "R": rng.standard_normal((2, 5)).astype(np.float32),
            "T": rng.standard_normal((4, 2)).astype(np.float32),
            "rows": np.array([4, 1], np.int32),
            "order": np.array([2, 1, 3, 4, 0, 5], np.int32),
        },
        "two_factor": {
            "A": rng.standard_normal((6, 2)).astype(np.float32),
            "B": rng.standard_normal((2, 5)).astype(np.float32),
        },
        "sparse_rows": {
            "weight": rng.standard_normal((2, 5)).astype(np.float32),
            "rows": np.array([1, 4], np.int32),
            "order": np.array([2, 0, 2, 2, 1, 2], np.int32),
        },
        "sparse_columns": {
            "weight": rng.standard_normal((6, 2)).astype(np.float32),
            "order": np.array([1, 4], np.int32),
        },
    }
    tensors = {name: value for name, value in toy_tensors().items() if not name.startswith(STEM)}
    tensors |= {f"{STEM}.{suffix}": value for suffix, value in (factors[form] | changed).items() if value is not None}
    reference = write_toy(folder.parent / "reference", tensors)
    for name in SEALED_FILES[:3]:
        (folder / name).write_bytes((reference / name).read_bytes())
    basis = "rows" if form in ("interpolative", "sparse_rows") else None
    reseal(folder, lambda manifest: manifest["matrices"][0].update(form=form, basis=basis, rank=rank))


@pytest.mark.parametrize("form", ["interpolative", "two_factor", "sparse_rows", "sparse_columns"])
def test_other_forms_open(toy: Path, form: str) -> None:
    """A matrix may be stored in any of the forms."""
    as_form(toy, form, {})
    assert Artifact.open(toy).manifest["matrices"][0]["form"] == form


@pytest.mark.parametrize(
    ("form", "changed", "message"),
    [
        ("interpolative", {"R": np.zeros((3, 5), np.float32)}, "[3, 5]"),
        ("interpolative", {"T": np.zeros((6, 2), np.float32)}, "[6, 2]"),
        ("interpolative", {"T": np.zeros((4, 2), np.float16)}, "F16"),
        ("interpolative", {"T": None}, f"{STEM}.T' is missing"),
        ("interpolative", {"order": None}, "missing"),
        ("interpolative", {"rows": None}, "missing"),
        ("interpolative", {"order": np.array([2, 1, 3, 4, 0], np.int32)}, "[5]"),
        ("interpolative", {"order": np.array([2, 1, 3, 4, 0, 5], np.int64)}, "I64"),
        (
            "interpolative",
            {"order": np.array([2, 1, 3, 4, 0, 6], np.int32)},
            ".order' must hold distinct indices below 6",
        ),
        ("interpolative", {"order": np.array([2, 1, 3, 4, 0, -1], np.int32)}, ".order' must hold distinct"),
        ("interpolative", {"order": np.array([2, 1, 3, 3, 0, 5], np.int32)}, ".order' must hold distinct"),
        ("interpolative", {"rows": np.array([4, 6], np.int32)}, ".rows' must hold distinct indices below 6"),
        ("interpolative", {"rows": np.array([4, 4], np.int32)}, ".rows' must hold distinct"),
        ("interpolative", {"rows": np.array([1, 4], np.int32)}, "does not lead to"),
        ("interpolative", {"order": np.array([0, 1, 2, 3, 4, 5], np.int32)}, "does not lead to"),
        ("interpolative", {"weight": np.zeros((6, 5), np.float32)}, "beside its factors"),
        ("two_factor", {"A": np.zeros((2, 6), np.float32)}, "[2, 6]"),
        ("two_factor", {"B": np.zeros((5, 2), np.float32)}, "[5, 2]"),
        ("two_factor", {"B": np.zeros((2, 5), np.float16)}, "F16"),
        ("two_factor", {"A": None}, "missing"),
        ("sparse_rows", {"weight": np.zeros((6, 5), np.float32)}, "[6, 5]"),
        ("sparse_rows", {"weight": None}, "weight' is missing"),
        ("sparse_rows", {"order": None}, "order' is missing"),
        ("sparse_rows", {"rows": np.array([1, 6], np.int32)}, ".rows' must hold distinct indices below 6"),
        ("sparse_rows", {"rows": np.array([1, -1], np.int32)}, ".rows' must hold distinct indices below 6"),
        ("sparse_rows", {"rows": np.array([1, 1], np.int32)}, ".rows' must hold distinct"),
        ("sparse_rows", SWAPPED, ".rows' is not ascending"),
        ("sparse_rows", {"rows": np.array([1, 3], np.int32)}, ".order' does not lead to"),
        ("sparse_rows", {"order": np.array([2, 1, 2, 2, 0, 2], np.int32)}, ".order' does not lead to"),
        ("sparse_rows", {"order": np.array([2, 0, 1, 2, 1, 2], np.int32)}, ".order' must be 2 for every dropped"),
        ("sparse_rows", {"order": np.array([3, 0, 2, 2, 1, 2], np.int32)}, ".order' must be 2 for every dropped"),
        ("sparse_rows", {"order": np.array([-1, 0, 2, 2, 1, 2], np.int32)}, ".order' must be 2 for every dropped"),
        ("sparse_columns", {"order": np.array([1, 5], np.int32)}, ".order' must hold distinct indices below 5"),
        ("sparse_columns", {"order": np.array([-1, 4], np.int32)}, ".order' must hold distinct indices below 5"),
        ("sparse_columns", {"order": np.array([1, 1], np.int32)}, ".order' must hold distinct"),
        ("sparse_columns", {"order": np.array([4, 1], np.int32)}, ".order' is not ascending"),
        ("sparse_columns", {"order": np.array([1, 4], np.int64)}, "I64"),
        ("sparse_columns", {"weight": np.zeros((6, 2), np.float16)}, "F16"),
    ],
)
def test_unsound_factors_of_other_forms_are_refused(
    toy: Path, form: str, changed: dict[str, Any], message: str
) -> None:
    """Shapes, dtypes, and index vectors that are what their form asks for, though hashes agree."""
    as_form(toy, form, changed)
    refused(toy, message)


@pytest.mark.parametrize(
    ("form", "rank"),
    [("interpolative", 6), ("interpolative", 7), ("two_factor", 6), ("sparse_rows", 7), ("sparse_columns", 6)],
)
def test_a_rank_beyond_the_matrix_is_refused(toy: Path, form: str, rank: int) -> None:
    """A rank is at most the form's largest, whatever the factors' shapes."""
    as_form(toy, form, {}, rank)
    refused(toy, f"cannot be {form} of rank {rank}")


MLP = STEM.rpartition(".")[0]


def as_module(folder: Path, changed: dict[str, Any], dropped: str | None = None, rank: int = 3) -> None:
    """Store an MLP of six neurons that keeps three, some of its tensors changed, one linear dense if asked for."""
    rng, kept = np.random.default_rng(0), np.array([0, 2, 5], np.int32)
    parts: dict[str, Any] = {"down_proj.weight": rng.standard_normal((5, 3)).astype(np.float32), "down_proj.cols": kept}
    for linear in ("gate_proj", "up_proj"):
        parts |= {f"{linear}.weight": rng.standard_normal((3, 5)).astype(np.float32), f"{linear}.rows": kept}
    tensors = {name: value for name, value in toy_tensors().items() if not name.startswith(STEM)}
    tensors |= {f"{MLP}.{name}": value for name, value in (parts | changed).items() if value is not None}
    reference = write_toy(folder.parent / "reference", tensors)
    for name in SEALED_FILES[:3]:
        (folder / name).write_bytes((reference / name).read_bytes())

    def describe(manifest: dict[str, Any]) -> None:
        row = manifest["matrices"][0] | {"rank": rank, "bound": None}
        shapes = {"gate_proj": [6, 5], "up_proj": [6, 5], "down_proj": [5, 6]}
        manifest["matrices"] = [
            row | {"name": f"{MLP}.{linear}.weight", "shape": shape, "form": MODULAR[linear]}
            for linear, shape in shapes.items()
            if linear != dropped
        ]

    reseal(folder, describe)


def test_a_smaller_mlp_opens(toy: Path) -> None:
    """Three linears that keep the same neurons, with or without the bias of the kept rows."""
    as_module(toy, {})
    assert len(Artifact.open(toy).manifest["matrices"]) == 3
    as_module(toy, {"gate_proj.bias": np.zeros(3, np.float32), "down_proj.bias": np.zeros(5, np.float32)})
    Artifact.open(toy)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gate_proj.weight": np.zeros((6, 5), np.float32)}, "[6, 5]"),
        ({"down_proj.weight": np.zeros((3, 5), np.float32)}, "[3, 5]"),
        ({"up_proj.weight": np.zeros((3, 5), np.float16)}, "F16"),
        ({"up_proj.weight": None}, "up_proj.weight' is missing"),
        ({"down_proj.cols": None}, "down_proj.cols' is missing"),
        ({"gate_proj.rows": np.array([0, 2, 5], np.int64)}, "I64"),
        ({"gate_proj.rows": np.array([0, 2, 6], np.int32)}, ".rows' must hold distinct indices below 6"),
        ({"down_proj.cols": np.array([0, 2, 6], np.int32)}, ".cols' must hold distinct indices below 6"),
        ({"down_proj.cols": np.array([0, 2, 2], np.int32)}, ".cols' must hold distinct"),
        ({"up_proj.rows": np.array([0, 2, 4], np.int32)}, "up_proj.rows' and"),
        ({"gate_proj.rows": np.array([2, 0, 5], np.int32)}, "gate_proj.rows' and"),
        ({"down_proj.cols": np.array([0, 1, 5], np.int32)}, "keep different neurons"),
        (
            {name: np.array([2, 0, 5], np.int32) for name in ("gate_proj.rows", "up_proj.rows", "down_proj.cols")},
            "down_proj.cols' is not ascending",
        ),
        ({"up_proj.bias": np.zeros(6, np.float32)}, "[6]"),
        ({"up_proj.bias": np.zeros(3, np.float16)}, "F16"),
    ],
)
def test_an_unsound_smaller_mlp_is_refused(toy: Path, changed: dict[str, Any], message: str) -> None:
    """Shapes, dtypes, and the same ascending neurons in all three, though hashes agree."""
    as_module(toy, changed)
    refused(toy, message)


@pytest.mark.parametrize("linear", MODULAR)
def test_a_part_of_a_smaller_mlp_is_refused(toy: Path, linear: str) -> None:
    """One linear alone of the original size would not fit the others."""
    as_module(toy, {}, dropped=linear)
    refused(toy, "is modular in parts")


def test_a_smaller_mlp_keeps_at_most_what_there_is(toy: Path) -> None:
    """More neurons than the original has."""
    as_module(toy, {}, rank=7)
    refused(toy, "cannot be modular_rows of rank 7")


def test_an_mlp_that_keeps_its_outputs_instead_is_refused(toy: Path) -> None:
    """A down_proj has kept columns, not kept rows."""
    as_module(toy, {"down_proj.weight": np.zeros((3, 6), np.float32), "down_proj.rows": np.array([0, 2, 4], np.int32)})
    reseal(toy, lambda manifest: manifest["matrices"][2].update(form="modular_rows"))
    refused(toy, "is modular in parts")


@pytest.mark.parametrize(
    ("row", "values", "message"),
    [
        (0, {"rank": 1}, "[1, 5]"),
        (0, {"shape": [5, 6]}, "[2, 6]"),
        (0, {"rank": None}, "rank"),
        (0, {"basis": "rows"}, "basis"),
        (0, {"form": "interpolative", "basis": None}, "basis"),
        (0, {"form": "interpolative", "basis": "rows"}, ".T' is missing"),
        (0, {"form": "two_factor"}, ".B' is missing"),
        (1, {"rank": 3}, "rank"),
        (1, {"shape": [3, 4]}, "[4, 3]"),
        (1, {"name": "absent.weight"}, "missing"),
    ],
)
def test_a_matrix_row_that_contradicts_the_tensors_is_refused(
    toy: Path, row: int, values: dict[str, Any], message: str
) -> None:
    """The manifest's table is checked against what is stored."""
    reseal(toy, lambda manifest: manifest["matrices"][row].update(values))
    refused(toy, message)


def test_a_matrix_listed_twice_is_refused(toy: Path) -> None:
    """Each matrix has one row."""
    reseal(toy, lambda manifest: manifest["matrices"].append(manifest["matrices"][1]))
    refused(toy, "listed twice")


def graph_with(toy: Path, change: Callable[[Tensor], object]) -> None:
    """Change the embedding's initializer in the portable graph, then seal."""
    model = toy_graph(toy / "model.safetensors", "portable")
    change(model.tensor("model.embed_tokens.weight"))
    (toy / "model.onnx").write_bytes(model.encode())
    reseal(toy)


def entry(key: str, value: str) -> Callable[[Tensor], object]:
    return lambda tensor: tensor.external.update({key: value})


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "/etc/passwd",
        "C:\\x",
        "",
        "config.json",
        ".hidden",
        "././model.safetensors",
        ".//model.safetensors",
        "x/../model.safetensors",
        "./../secret",
        "model\0",
    ],
)
def test_external_data_outside_the_weights_is_refused(toy: Path, location: str) -> None:
    """A graph may read weight files of its own folder and nothing else."""
    graph_with(toy, entry("location", location))
    refused(toy, "not a weight file")


def test_a_weight_file_may_be_spelled_with_its_folder(toy: Path) -> None:
    """What a graph names twice, in both spellings, is one file."""
    graph_with(toy, entry("location", "./model.safetensors"))
    assert Artifact.open(toy)


@pytest.mark.parametrize("offset", [0, 8, 10**9, 2**63])
def test_external_data_outside_the_tensor_bytes_is_refused(toy: Path, offset: int) -> None:
    """Neither the header nor anything past the end can be taken for weights."""
    graph_with(toy, entry("offset", str(offset)))
    refused(toy, "points outside")


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-1", "x", "", "1e3", "9" * 30])
def test_external_data_with_odd_numbers_is_refused(toy: Path, key: str, value: str) -> None:
    """Offset and length are plain decimal numbers."""
    graph_with(toy, entry(key, value))
    refused(toy, "not a number")


def test_external_length_must_fit_the_shape(toy: Path) -> None:
    """A tensor takes exactly the bytes that its type and shape need."""
    graph_with(toy, lambda tensor: tensor.dims.__setitem__(0, 299))
    refused(toy, "shape need")


def test_external_data_needs_a_length(toy: Path) -> None:
    """Without a length a tensor would take the rest of the file."""
    graph_with(toy, lambda tensor: tensor.external.pop("length"))
    refused(toy, "exactly once")


def test_an_unlisted_graph_is_refused(toy: Path) -> None:
    """A graph entry must name a listed file."""
    reseal(toy, lambda manifest: manifest["graphs"]["portable"].update(file="other.onnx"))
    refused(toy, "other.onnx")


def test_both_weights_and_index_are_refused(toy: Path) -> None:
    """Two answers to the question where the weights are is one too many."""
    (toy / "model.safetensors.index.json").write_text("{}")
    reseal(toy)
    refused(toy, "either")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "no weight_map"),
        (lambda index: index["weight_map"].update({f"{STEM}.U": "../x.safetensors"}), "not listed"),
        (lambda index: index["weight_map"].update({f"{STEM}.U": 3}), "not listed"),
        (lambda index: index["weight_map"].update({"ghost": "model-00001-of-00002.safetensors"}), "absent"),
        (lambda index: index["weight_map"].pop("model.norm.weight"), "not in the index"),
        (
            lambda index: index["weight_map"].update({f"{STEM}.C": "model-00002-of-00002.safetensors"}),
            "not in the index",
        ),
    ],
)
def test_a_wrong_shard_index_is_refused(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    """Index and shards must say the same."""
    folder = write_toy(tmp_path / "out", shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    reseal(folder)
    refused(folder, message)


def test_hostile_names_stay_on_one_line(toy: Path) -> None:
    """A tensor name with line breaks cannot forge a second line of output."""
    tensors = toy_tensors() | {"evil\nname": np.zeros(1, np.float32)}
    save_file(tensors, toy / WEIGHTS)
    graph_with(toy, lambda tensor: setattr(tensor, "name", "evil\nname"))
    with pytest.raises(IntegrityError) as caught:
        Artifact.open(toy)
    assert "\n" not in str(caught.value)


def test_dense_only_artifacts_open(toy: Path) -> None:
    """An exported, uncompressed model has an empty table."""
    reseal(toy, lambda manifest: manifest.update(matrices=[]))
    assert manifest_of(toy)["matrices"] == []
    assert Artifact.open(toy).graphs.keys() == {"portable", "fused"}


def test_the_matrix_of_the_toy_is_listed(sealed: Path) -> None:
    """The manifest names the compressed matrix as the checkpoint does."""
    assert Artifact.open(sealed).manifest["matrices"][0]["name"] == MATRIX
