"""Records the finished steps of a conversion, and the state that the next step needs.

A step is recorded by one rename, after its results are on the disk. So a run can stop at any moment, and another run
can resume from its journal. The resumed run computes with exactly the same numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from curconvert.base.durable import fsync, replace_text
from curconvert.base.errors import InputError
from curconvert.base.layout import TensorSpec, encoded_header, raw_bytes
from curconvert.base.tensors_file import opened_tensors
from curconvert.journal.tensor_list import TensorList
from curconvert_runtime.format.hashing import sha256
from curconvert_schemas import strict

JOURNAL = "journal.json"
JOURNAL_VERSION = 2
_DATA = "data"


@dataclass(frozen=True)
class State:
    """State that a loop passes from one step to the next.

    Attributes:
        data: Values that JSON can store.
        tensors: Lists of tensors, by name.
    """

    data: Mapping[str, Any]
    tensors: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    def restored(self, name: str) -> list[Tensor]:
        """Return the list of tensors with a name; empty lists are not stored, so a missing name gives an empty one."""
        return list(self.tensors.get(name, ()))

    def save(self, path: Path) -> None:
        """Write it to a safetensors file, which has the data as its metadata.

        The safetensors library needs all tensors at once, which may not fit in memory. So this writes the header first,
        and then one tensor after the other.
        """
        parts = [(name, number) for name, tensors in self.tensors.items() for number in range(len(tensors))]
        specs = [_spec(name, number, self.tensors[name][number]) for name, number in parts]
        # Wide dtypes first, so that each tensor starts at a multiple of its element size.
        order = sorted(range(len(parts)), key=lambda index: -specs[index].dtype.itemsize)
        with path.open("wb") as file:
            file.write(encoded_header([specs[index] for index in order], {_DATA: json.dumps(self.data)}))
            for name, number in (parts[index] for index in order):
                file.write(raw_bytes(self.tensors[name][number]))

    @classmethod
    def load(cls, path: Path) -> State:
        """Return the state that `save` wrote. Tensors are read when they are used, so keep the file until then."""
        with opened_tensors(path, "pt") as stored:
            data = json.loads(stored.metadata()[_DATA])
            counts = Counter(key.rpartition(".")[0] for key in stored.keys())  # noqa: SIM118 - it is no mapping
        return cls(data, {name: _Stored(path, name, count) for name, count in counts.items()})


class _Stored(TensorList):
    """A list of tensors that are stored in a file."""

    def __init__(self, path: Path, name: str, count: int) -> None:
        self._path, self._name, self._count = path, name, count

    def __len__(self) -> int:
        return self._count

    def at(self, index: int) -> Tensor:
        """Read one tensor into torch's own memory, because results of some kernels depend on the alignment."""
        with opened_tensors(self._path, "pt") as stored:
            found: Tensor = stored.get_tensor(_key(self._name, index)).clone()
        return found


def _key(name: str, number: int) -> str:
    return f"{name}.{number}"


def _spec(name: str, number: int, tensor: Tensor) -> TensorSpec:
    return TensorSpec(_key(name, number), tensor.dtype, tuple(tensor.shape))


class Journal:
    """Records the finished steps of one conversion; without a folder it records nothing.

    Args:
        folder: Folder of the journal's files.
        fingerprint: What the conversion's result depends on, by name.
    """

    def __init__(self, folder: Path | None = None, fingerprint: Mapping[str, str] | None = None) -> None:
        self._folder, self._fingerprint = folder, dict(fingerprint or {})
        self._stages: dict[str, dict[str, Any]] = {}

    @classmethod
    def create(cls, folder: Path, fingerprint: Mapping[str, str]) -> Self:
        """Return a new journal in an empty folder."""
        journal = cls(folder, fingerprint)
        journal._commit()
        return journal

    @classmethod
    def open(cls, folder: Path, fingerprint: Mapping[str, str]) -> Self:
        """Return the journal in a folder.

        Raises:
            InputError: It is damaged, or its fingerprint differs; the message names the first difference.
        """
        journal, path = cls(folder, fingerprint), folder / JOURNAL
        try:
            content = strict.loads(path.read_bytes())
            if content["journal_version"] != JOURNAL_VERSION:
                raise ValueError(f"journal_version {content['journal_version']!r:.20}, expected {JOURNAL_VERSION}")
            found = dict(content["fingerprint"])
            journal._stages = dict(content["stages"])
            damaged = [s["file"] for s in journal._stages.values() if sha256(folder / s["file"]) != s["sha256"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: damaged ({' '.join(str(error).split())}); {_START_OVER}") from None
        if damaged:
            raise InputError(f"{folder / damaged[0]}: sha256 differs from {JOURNAL}'s; {_START_OVER}")
        for name in {**found, **journal._fingerprint}:
            was, now = found.get(name, "absent"), journal._fingerprint.get(name, "absent")
            if was != now:
                raise InputError(
                    f"{folder}: holds an unfinished conversion with another {name}: {was}, now {now}; "
                    f"restore the old value, or {_START_OVER}"
                )
        return journal

    def recall(self, stage: str) -> State | None:
        """Return the last recorded state of a stage, or None."""
        if self._folder is None or stage not in self._stages:
            return None
        return State.load(self._folder / self._stages[stage]["file"])

    def record(self, stage: str, state: State, durable: Sequence[Callable[[], None]] = ()) -> None:
        """Record a finished step, and drop the previous state of its stage.

        Args:
            stage: Name of the stage.
            state: State that the next step needs.
            durable: Called first; they flush the step's other files to the disk.
        """
        if self._folder is None:
            return
        for flush in durable:
            flush()
        last = self._stages.get(stage)
        step = last["step"] + 1 if last else 1
        path = self._folder / f"{stage}.{step}.safetensors"
        state.save(path)
        fsync(path)
        self._stages[stage] = {"step": step, "file": path.name, "sha256": sha256(path)}
        self._commit()
        if last:
            (self._folder / last["file"]).unlink(missing_ok=True)

    def _commit(self) -> None:
        assert self._folder is not None
        content = {"journal_version": JOURNAL_VERSION, "fingerprint": self._fingerprint, "stages": self._stages}
        replace_text(self._folder / JOURNAL, json.dumps(content, indent=1) + "\n")


_START_OVER = "pass --no-resume to start over"
UNRECORDED = Journal()
"""Journal for work that needs no resuming: it records nothing."""
