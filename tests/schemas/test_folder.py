"""What may lie beside the sealed files of a folder, and where links may lead."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from curconvert.checkpoint.companions import COMPANION_NAMES, REPLACED_NAMES
from curconvert_schemas import SchemaError, load_schema, validate
from curconvert_schemas.folder import is_for_people, link_boundary, regular_size
from support.tiny_artifact import toy_manifest

SEALED = load_schema("manifest-1.0")["$defs"]["sealed_name"]["anyOf"][0]["enum"]


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "README_zh.md", "readme", "LICENSE", "LICENSE.txt", "LICENCE", "LICENSE-MIT", "LICENSE-2.0.txt",
        "NOTICE", "THIRD_PARTY_NOTICES.txt", "USE_POLICY.md", "USAGE_POLICY", "COPYING", "CITATION.cff", "report.html",
        "model card.md", "loss curve.png", "logo.svg", "figure.JPG", "paper.pdf",
    ],
)  # fmt: skip
def test_documents_and_pictures_are_for_people(name: str) -> None:
    """They may be edited, added and removed."""
    assert is_for_people(name)


@pytest.mark.parametrize(
    "name",
    [
        *SEALED, "model-00001-of-00002.safetensors", "modeling_llama.py", "libops.so", "LICENSE.so", "README.py",
        "readme.md.so", "NOTICE.dll", "pytorch_model.bin", "LICENSE.pkl", "license.json", "notes.txt", "index.html",
        "assets/logo.png", "README.md\n", "logo.png\n", "x.png.exe",
    ],
)  # fmt: skip
def test_what_a_program_might_load_is_not_for_people(name: str) -> None:
    """Neither a sealed file, nor code under the name of a document."""
    assert not is_for_people(name)


WRITTEN = sorted({*COMPANION_NAMES} - {*REPLACED_NAMES})


@pytest.mark.parametrize("name", [*WRITTEN, "model-00001-of-00012.safetensors", "README.md"])
def test_what_conversions_write_may_be_listed(name: str) -> None:
    """Each file that a conversion copies, a shard, and the cards that older artifacts list."""
    validate(toy_manifest() | {"files": {name: {"size": 1, "sha256": "a" * 64}}}, "manifest-1.0")


@pytest.mark.parametrize(
    "name",
    [
        "libops.so", "modeling.py", "pytorch_model.bin", "optimizer.pt", "ops.dll", "other.safetensors", "LICENSE",
        "model-1-of-2.safetensors", "code/modeling.py", "curconvert.json", "preprocessor_config.json", "model.onnx\n",
    ],
)  # fmt: skip
def test_nothing_else_may_be_listed(name: str) -> None:
    """The names of an artifact's files are a closed list."""
    with pytest.raises(SchemaError, match=r"^\$\.files: the name .* is not allowed$"):
        validate(toy_manifest() | {"files": {name: {"size": 1, "sha256": "a" * 64}}}, "manifest-1.0")


def test_links_stay_in_the_folder_or_in_their_repository_of_the_cache(tmp_path: Path) -> None:
    """A snapshot's boundary is the repository's folder in the cache, also for a folder inside the snapshot."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    assert link_boundary(snapshot) == tmp_path / "models--a--b"
    assert link_boundary(snapshot / "part") == tmp_path / "models--a--b"
    for plain in (tmp_path, tmp_path / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"):
        assert link_boundary(plain) == plain


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (link_to("/etc/passwd"), "a link to a file outside"),
        (link_to("../secret"), "a link to a file outside"),
        (link_to("../../../models--c--d/blobs/x"), "a link to a file outside"),
        (link_to("gone"), "missing"),
        (link_to("file"), "missing"),
        (link_to("."), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (Path.mkdir, "not a regular file"),
    ],
)
def test_only_regular_files_inside_the_boundary_count(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    """A file elsewhere, a link to nothing or to itself, a folder and a pipe are named as what they are."""
    (tmp_path / "secret").write_text("x")
    other = tmp_path / "models--c--d" / "blobs"
    other.mkdir(parents=True)
    (other / "x").write_text("x")
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    (folder.parent / "secret").write_text("x")
    make(folder / "file")
    with pytest.raises(ValueError, match=message):
        regular_size(folder / "file")
