"""Two matrices with one R: what is stored, what it multiplies to, and that no half of it opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curconvert_runtime import Artifact, IntegrityError
from curconvert_runtime.checks.structure import structure_checks
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Shared
from curconvert_runtime.format.probes import Probes
from support.safetensors_files import save_file
from support.tiny_artifact import MATRIX, STEM, manifest_of, reseal, toy_tensors, write_toy
from support.toy_probes import original_tensors, toy_probe_tensors

OTHER = MATRIX.replace("layers.0", "layers.1")
OTHER_STEM = OTHER.removesuffix(".weight")
M, N, R = 6, 5, 3
INTERPOLATIVE = form_of("interpolative")
OWN = {STEM: 2, OTHER_STEM: 1}
NAMES = (MATRIX, OTHER)

rng = np.random.default_rng(0)
FACTORS: dict[str, Any] = {
    f"{STEM}.R": rng.standard_normal((3, 5)).astype(np.float32),
    f"{STEM}.T": rng.standard_normal((4, 3)).astype(np.float32),
    f"{STEM}.rows": np.array([4, 1], np.int32),
    f"{STEM}.order": np.array([3, 1, 4, 5, 0, 6], np.int32),
    f"{OTHER_STEM}.T": rng.standard_normal((5, 3)).astype(np.float32),
    f"{OTHER_STEM}.rows": np.array([3], np.int32),
    f"{OTHER_STEM}.order": np.array([3, 4, 5, 2, 6, 7], np.int32),
}


def pair(folder: Path, changed: dict[str, Any] | None = None, edit: Callable[[list[Any]], Any] | None = None) -> Path:
    """Write the toy with two matrices on one R, some tensors changed (None: left out), rows of the manifest too."""
    tensors = {name: value for name, value in toy_tensors().items() if not name.startswith(STEM)}
    tensors |= {name: value for name, value in (FACTORS | (changed or {})).items() if value is not None}
    write_toy(folder, tensors)

    def describe(manifest: dict[str, Any]) -> None:
        row = manifest["matrices"][0]
        rows = []
        for name, own in zip(NAMES, OWN.values(), strict=True):
            shared = {"matrices": list(NAMES), "rows": own}
            after = INTERPOLATIVE.parameters((M, N), R, Shared(NAMES, own), name)
            form = {"form": "interpolative", "basis": "subspace", "rank": R, "parameters_after": after}
            rows.append({**row, "name": name, **form, "shared": shared})
        manifest["matrices"] = rows
        manifest["model"]["parameters_after"] = sum(
            value.size for name, value in tensors.items() if value.dtype != np.int32
        )
        if edit:
            edit(rows)

    reseal(folder, describe)
    return folder


def test_numbers_and_names() -> None:
    """r(n + m₁ + m₂ − r) in all; R once, under the first one's name."""
    first, second = (Shared(NAMES, own) for own in OWN.values())
    assert INTERPOLATIVE.shapes((M, N), R, second) == {"R": (3, 5), "T": (5, 3)}
    assert INTERPOLATIVE.index_lengths((M, N), R, second) == {"rows": 1, "order": 6}
    assert INTERPOLATIVE.parameters((M, N), R, first, MATRIX) == 3 * 5 + 4 * 3
    assert INTERPOLATIVE.parameters((M, N), R, second, OTHER) == 5 * 3
    assert INTERPOLATIVE.tensor_names(OTHER, second) == {
        "R": f"{STEM}.R",
        "T": f"{OTHER_STEM}.T",
        "rows": f"{OTHER_STEM}.rows",
        "order": f"{OTHER_STEM}.order",
    }


def test_a_pair_opens_and_multiplies_out(tmp_path: Path) -> None:
    """Each row is one of R's, or a combination of all of them."""
    artifact = Artifact.open(pair(tmp_path / "out"))
    for matrix in artifact.manifest["matrices"]:
        names = INTERPOLATIVE.tensor_names(matrix["name"], Shared.of(matrix))
        tensors = {suffix: np.asarray(artifact.tensor(name), np.float64) for suffix, name in names.items()}
        indices = {suffix: tensors[suffix].astype(int) for suffix in ("rows", "order")}
        product = INTERPOLATIVE.multiply((M, N), tensors | indices)
        common = FACTORS[f"{STEM}.R"].astype(np.float64)
        stem = matrix["name"].removesuffix(".weight")
        first = 0 if matrix["name"] == MATRIX else 2
        rows = FACTORS[f"{stem}.rows"].tolist()
        np.testing.assert_array_equal(product[rows], common[first : first + len(rows)])
        others = [row for row in range(M) if row not in rows]
        np.testing.assert_allclose(product[others], FACTORS[f"{stem}.T"].astype(np.float64) @ common)


def test_the_parameters_are_counted_once(tmp_path: Path) -> None:
    """R counts for its owner; a manifest that counts it twice fails."""

    def counts(folder: Path) -> bool:
        save_file(toy_probe_tensors(toy_tensors(), original_tensors()), folder / "probes.safetensors")
        reseal(folder)
        artifact = Artifact.open(folder)
        checks = {check.name: check.passed for check in structure_checks(artifact, Probes.load(artifact).compressed)}
        return checks["structure.counts"]

    assert counts(pair(tmp_path / "sound"))
    assert not counts(pair(tmp_path / "twice", edit=lambda rows: rows[1].update(parameters_after=5 * 3 + 3 * 5)))


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "no R": ({f"{STEM}.R": None}, f"{STEM}.R' is missing"),
    "R of another width": ({f"{STEM}.R": np.zeros((3, 4), np.float32)}, "[3, 4]"),
    "T as if not shared": ({f"{STEM}.T": np.zeros((3, 3), np.float32)}, "[3, 3]"),
    "too many rows": ({f"{STEM}.rows": np.array([4, 1, 0], np.int32)}, "[3]"),
    "a row twice": ({f"{STEM}.rows": np.array([4, 4], np.int32)}, ".rows' must hold distinct indices below 6"),
    "a place twice": ({f"{STEM}.order": np.array([3, 1, 4, 4, 0, 6], np.int32)}, "distinct indices below 7"),
    "a place beyond": ({f"{STEM}.order": np.array([3, 1, 4, 5, 0, 7], np.int32)}, "distinct indices below 7"),
    "a place below": ({f"{STEM}.order": np.array([3, 1, 4, -1, 0, 6], np.int32)}, "distinct indices below 7"),
    "a row outside R": ({f"{STEM}.order": np.array([3, 4, 1, 5, 0, 6], np.int32)}, "does not lead to the rows"),
    "another row inside R": ({f"{STEM}.order": np.array([3, 1, 4, 5, 0, 2], np.int32)}, "does not lead to the rows"),
    "the other's row": (
        {f"{OTHER_STEM}.order": np.array([3, 4, 5, 1, 6, 7], np.int32)},
        "rows of the common R are not divided between its two matrices",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_unsound_tensors_are_refused(tmp_path: Path, name: str) -> None:
    """Though every hash agrees."""
    changed, message = TENSORS[name]
    with pytest.raises(IntegrityError) as error:
        Artifact.open(pair(tmp_path / "out", changed))
    assert message in str(error.value)


def shared(row: int, **values: Any) -> Callable[[list[Any]], Any]:
    """Return an edit of what a row says of its partner."""
    return lambda rows: rows[row]["shared"].update(values)


ROWS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "the other one is not there": (lambda rows: rows.pop(), "does not share it back"),
    "one's own name twice": (shared(0, matrices=[MATRIX, MATRIX]), "non-unique"),
    "another order": (shared(1, matrices=[OTHER, MATRIX]), f"{OTHER_STEM}.R' is missing"),
    "three": (shared(0, matrices=[MATRIX, OTHER, OTHER + "x.weight"]), "shared"),
    "no rows": (shared(0, rows=0), "shared"),
    "all rows": (shared(0, rows=3), "cannot be interpolative of rank 3"),
    "a rank of its own": (lambda rows: rows[1].update(rank=4), "[3, 5]"),
    "rank beyond the inputs": (lambda rows: rows[0].update(rank=6), "cannot be interpolative of rank 6"),
    "another form": (lambda rows: rows[1].update(form="two_factor", basis=None), "'subspace' was expected"),
    "rows of the original": (lambda rows: rows[1].update(basis="rows"), "subspace"),
    "an unknown key": (shared(0, T="x"), "shared"),
}


@pytest.mark.parametrize("name", ROWS)
def test_unsound_rows_are_refused(tmp_path: Path, name: str) -> None:
    """Both rows must say the same, and what is stored."""
    edit, message = ROWS[name]
    with pytest.raises(IntegrityError) as error:
        Artifact.open(pair(tmp_path / "out", edit=edit))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_stranger_may_not_take_a_pairs_r(tmp_path: Path) -> None:
    """A third matrix that names two others."""
    third = MATRIX.replace("gate", "up")
    stem = third.removesuffix(".weight")
    extra = {f"{stem}.{suffix}": FACTORS[f"{OTHER_STEM}.{suffix}"] for suffix in ("T", "rows", "order")}
    folder = pair(tmp_path / "out", extra, lambda rows: rows.append({**rows[1], "name": third}))
    assert len(manifest_of(folder)["matrices"]) == 3
    with pytest.raises(IntegrityError, match="does not share it back"):
        Artifact.open(folder)
