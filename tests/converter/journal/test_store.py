"""The journal's own promises: states come back exactly, and only what is recorded counts."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from curconvert.base.errors import InputError
from curconvert.journal.store import JOURNAL, JOURNAL_VERSION, UNRECORDED, Journal, State
from curconvert.journal.tensor_list import TensorList

FINGERPRINT = {"option rank": "8"}


def test_a_state_comes_back_exactly(tmp_path: Path) -> None:
    """Bits, dtypes, shapes and order, of more tensors than ten; floats of the data too; empty lists as empty."""
    generator = torch.Generator().manual_seed(0)
    hidden = [torch.randn(number + 1, 3, generator=generator) for number in range(12)]
    hidden[4][0] = torch.tensor([torch.nan, torch.inf, -0.0])
    ids = [torch.arange(4)]
    data = {"blocks": 3, "scores": {"rank": [0.1, 1 / 3, 1e-310]}}
    journal = Journal.create(tmp_path, FINGERPRINT)
    journal.record("original", State(data, {"hidden": hidden, "keys.0": ids, "none": []}))
    found = Journal.open(tmp_path, FINGERPRINT).recall("original")
    assert found is not None
    assert found.data == data
    assert found.restored("none") == []
    for name, wanted in (("hidden", hidden), ("keys.0", ids)):
        for ours, theirs in zip(found.restored(name), wanted, strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            assert ours.numpy().tobytes() == theirs.numpy().tobytes()


def test_any_layout_is_stored_as_its_elements_stand(tmp_path: Path) -> None:
    """Transposed, strided, single and no elements, of several sizes; the format's own library reads the same."""
    grid = torch.arange(12.0).reshape(3, 4)
    tensors = [torch.tensor(3, dtype=torch.uint8), grid.T, grid[:, ::2], grid[:0], grid.to(torch.bfloat16)]
    tensors.append(torch.arange(3))
    State({}, {"mixed": tensors}).save(tmp_path / "state.safetensors")
    found, theirs = State.load(tmp_path / "state.safetensors"), load_file(tmp_path / "state.safetensors")
    for number, (wanted, ours) in enumerate(zip(tensors, found.restored("mixed"), strict=True)):
        assert ours.dtype == wanted.dtype
        assert ours.shape == wanted.shape
        assert torch.equal(ours, wanted)
        assert torch.equal(theirs[f"mixed.{number}"], wanted)


class Fetched(TensorList):
    """Ten tensors, made when they are asked for; counts those that somebody holds."""

    held = most = 0

    def __len__(self) -> int:
        return 10

    def at(self, index: int) -> torch.Tensor:
        tensor = torch.full((1000,), float(index))
        self.held += 1
        self.most = max(self.most, self.held)
        weakref.finalize(tensor, self._drop)
        return tensor

    def _drop(self) -> None:
        self.held -= 1


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    """Hidden states may be larger than it."""
    tensors = Fetched()
    State({}, {"hidden": tensors}).save(tmp_path / "state.safetensors")
    assert tensors.most <= 2
    stored = State.load(tmp_path / "state.safetensors").tensors["hidden"]
    assert [float(stored[number][0]) for number in range(10)] == list(range(10))


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    """Its states are files of another format."""
    Journal.create(tmp_path, FINGERPRINT)
    path = tmp_path / JOURNAL
    path.write_text(path.read_text().replace(f'"journal_version": {JOURNAL_VERSION}', '"journal_version": 1'))
    with pytest.raises(InputError, match=r"journal_version 1, expected \d.*--no-resume"):
        Journal.open(tmp_path, FINGERPRINT)


def test_the_last_step_of_each_stage_is_kept(tmp_path: Path) -> None:
    """The one before it goes, after the new one counts."""
    journal = Journal.create(tmp_path, FINGERPRINT)
    for block in (1, 2, 3):
        journal.record("original", State({"blocks": block}))
    journal.record("compress", State({"blocks": 1}))
    assert {path.name for path in tmp_path.iterdir()} == {JOURNAL, "original.3.safetensors", "compress.1.safetensors"}
    again = Journal.open(tmp_path, FINGERPRINT)
    again.record("compress", State({"blocks": 2}))
    recalled = [Journal.open(tmp_path, FINGERPRINT).recall(stage) for stage in ("original", "compress", "search-1")]
    assert [state and state.data["blocks"] for state in recalled] == [3, 2, None]


def test_what_a_step_leaves_elsewhere_is_durable_first(tmp_path: Path) -> None:
    """A step whose other files cannot be flushed does not count."""
    journal = Journal.create(tmp_path, FINGERPRINT)
    journal.record("compress", State({"blocks": 1}))

    def broken() -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        journal.record("compress", State({"blocks": 2}), [broken])
    found = Journal.open(tmp_path, FINGERPRINT).recall("compress")
    assert found is not None
    assert found.data == {"blocks": 1}


def test_without_a_folder_nothing_is_kept() -> None:
    """Nor is anything flushed."""
    UNRECORDED.record("compress", State({"blocks": 1}), [lambda: pytest.fail("flushed")])
    assert UNRECORDED.recall("compress") is None


def test_the_journal_is_plain_json(tmp_path: Path) -> None:
    """A person can read what is finished."""
    Journal.create(tmp_path, FINGERPRINT).record("compress", State({"blocks": 1}))
    content = json.loads((tmp_path / JOURNAL).read_text(encoding="utf-8"))
    assert content["fingerprint"] == FINGERPRINT
    assert content["stages"]["compress"]["file"] == "compress.1.safetensors"
