"""Hidden states on the disk: the same bytes, and no more memory than was allowed."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from curconvert.artifact.workspace import workspace_of
from curconvert.base.errors import InputError
from curconvert.calibration.batches import FileBatches
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.cli import main
from curconvert.cli.options import Size
from curconvert.estimate import memory as estimate_memory
from curconvert.estimate.rates import Machine
from curconvert.estimate.total import estimate, store_within
from curconvert.jobs.convert import convert
from curconvert.jobs.prepare import first_plan
from curconvert.jobs.sweep.options import SweepOptions
from curconvert.jobs.sweep.run import sweep
from curconvert.methods.core.options import ConvertOptions, options_for_size
from curconvert.options.execution import ExecutionOptions
from curconvert.options.source import SourceOptions
from support.families import make_checkpoint
from support.tiny_runs import LENGTH, add_tokenizer, tiny_options

MEBIBYTE = 2**20
KINDS = {
    "cur": ("cur", {}),
    "sequential": ("pifa", {"sequential": True}),
    "auto": ("auto", {"rank": None, "keep": 0.9, "rank_multiple": 4, "self_text": 0.0}),
    "modegpt": ("modegpt", {"rank": None, "density": 0.6}),
}


def resident() -> int:
    """Bytes of files that are mapped and resident."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssFile", "RssShmem")))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the length of each list of batches in a file."""
    made: list[int] = []
    initial = FileBatches.__init__
    monkeypatch.setattr(
        FileBatches, "__init__", lambda self, *given: (initial(self, *given), made.append(len(self)))[0]
    )
    return made


def estimated(folder: Path, options: ConvertOptions) -> int:
    """Return the memory that a conversion with one worker is estimated to take."""
    checkpoint, machine = open_checkpoint(folder), Machine(*[1e11] * 10, workers=1)
    return estimate(checkpoint, first_plan(checkpoint, options), options, machine).peak_memory_bytes


def on_the_disk(monkeypatch: pytest.MonkeyPatch) -> ExecutionOptions:
    """Let states go to the disk, though those of tiny models are not what decides."""
    monkeypatch.setattr(estimate_memory, "peak", lambda *_given, spilled=False: 1.0 if spilled else 2.0)
    return ExecutionOptions(workers=1, memory_limit=1)


def test_what_is_written_stays_and_one_batch_is_resident(tmp_path: Path) -> None:
    """Two passes over 64 batches of 2 MiB, of uneven size, written in place."""
    given = [torch.full((1, 8, 2**16 + index), float(index)) for index in range(64)]
    kept = FileBatches(iter(given), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(kept) == 64
    before, most = resident(), 0
    for _ in range(2):
        for batch in kept:
            batch.add_(1)
            most = max(most, resident() - before)
    assert most < 10 * MEBIBYTE
    assert all(torch.equal(batch, wanted + 2) for batch, wanted in zip(kept, given, strict=True))
    assert [batch.shape for batch in kept[62:]] == [batch.shape for batch in given[62:]]
    assert torch.equal(kept[-1], given[-1] + 2)
    assert all(batch.data_ptr() % 64 == 0 for batch in kept)
    with pytest.raises(IndexError):
        kept[64]
    kept.clear()
    assert len(kept) == 0
    assert not FileBatches([], tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_the_same(tmp_path: Path, tokens: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the states on the disk, stopped halfway and gone on with."""
    method, values = KINDS[kind]
    model = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=4).folder
    options = tiny_options(tokens, method, **values)
    execution = on_the_disk(monkeypatch)
    convert(SourceOptions(str(model)), tmp_path / "memory", options)
    made = counted(monkeypatch)

    def stopping(_stage: str, _done: int, _total: int) -> None:
        calls.append(None)
        if len(calls) == 6:
            raise KeyboardInterrupt

    calls: list[None] = []
    with pytest.raises(KeyboardInterrupt):
        convert(SourceOptions(str(model)), tmp_path / "disk", options, execution=execution, progress=stopping)
    convert(SourceOptions(str(model)), tmp_path / "disk", options, execution=execution)
    assert max(made) == 2  # 12 sequences
    for path in (tmp_path / "memory").iterdir():
        assert path.read_bytes() == (tmp_path / "disk" / path.name).read_bytes(), path.name


def test_states_go_to_the_disk_where_the_estimate_is_above_the_limit(tmp_path: Path, tokens: Path) -> None:
    """By one byte; at the estimate they stay in memory."""
    model = make_checkpoint(tmp_path / "model", "llama").folder
    options, checkpoint = tiny_options(tokens), open_checkpoint(model)
    needed, plan = estimated(model, options), first_plan(checkpoint, options)
    found = [
        store_within(checkpoint, plan, options, ExecutionOptions(workers=1, memory_limit=limit), tmp_path)
        for limit in (needed + 1, needed - 1)
    ]
    assert [store.on_disk for store in found] == [False, True]
    assert found[1].folder == tmp_path


def test_too_little_is_refused_before_anything_is_written(tmp_path: Path, tokens: Path) -> None:
    """It is said what is needed; fewer matrices at the same time are proposed where they suffice."""
    model = make_checkpoint(tmp_path / "model", "llama").folder
    options, out = tiny_options(tokens), tmp_path / "out"
    with pytest.raises(InputError, match=r"0.00 GB, but about 0\.\d\d GB are needed .* raise the limit, or use less"):
        convert(SourceOptions(str(model)), out, options, execution=ExecutionOptions(memory_limit=10**6))
    large = make_checkpoint(tmp_path / "large", "llama", hidden_size=256, intermediate_size=1024, head_dim=64).folder
    alone = ExecutionOptions(workers=16, memory_limit=estimated(large, options) - 1)
    with pytest.raises(InputError, match="--workers 1 or less"):
        convert(SourceOptions(str(large)), out, options, execution=alone)
    assert not out.exists()
    assert not workspace_of(out).exists()


def test_a_sweep_stays_within_it(tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a folder that is not there yet; the artifact is the one that `convert` makes in memory."""
    model = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=3).folder
    add_tokenizer(model)
    text = tiny_options(tokens).calibration
    settings = {"calibration": text, "rank_multiple": 4, "self_text": 0.0}
    size = int(0.8 * total_parameters(open_checkpoint(model)))
    alone = options_for_size(open_checkpoint(model), "auto", size, **settings)
    convert(SourceOptions(str(model)), tmp_path / "alone", alone)
    made = counted(monkeypatch)
    with pytest.raises(InputError, match="--memory-limit"):
        asked = SweepOptions((0.8,), ("auto",), settings=settings)
        sweep(SourceOptions(str(model)), tmp_path / "no", asked, execution=ExecutionOptions(memory_limit=10**6))
    assert not (tmp_path / "no").exists()
    asked = SweepOptions((0.8,), ("auto",), keep_artifacts=True, settings=settings)
    sweep(SourceOptions(str(model)), tmp_path / "new" / "out", asked, execution=on_the_disk(monkeypatch))
    assert max(made) == 2
    swept = tmp_path / "new" / "out" / "auto-0.8" / "model.safetensors"
    assert swept.read_bytes() == (tmp_path / "alone" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("4GB", 4 * 10**9), ("1.5GiB", 3 * 2**29), ("500 mb", 5 * 10**8), ("2K", 2000), ("12345", 12345)],
)
def test_sizes_as_people_write_them(text: str, wanted: int) -> None:
    """Powers of 1000, and of 1024 with an i."""
    assert Size().convert(text, None, None) == wanted


@pytest.mark.parametrize("text", ["much", "-4GB", "4XB", "GB", "1e9", ""])
def test_other_sizes_are_refused(text: str) -> None:
    """With two that are none."""
    with pytest.raises(click.BadParameter, match="expected a size such as 4GB or 500MiB"):
        Size().convert(text, None, None)


def test_the_command_line_passes_it_on(tmp_path: Path, tokens: Path) -> None:
    """Exit code 2 and one line."""
    model = make_checkpoint(tmp_path / "model", "llama").folder
    words = [str(model), "-o", str(tmp_path / "out"), "--calibration", str(tokens), "--memory-limit", "20MB"]
    words += [
        "--calibration-tokens",
        str(LENGTH),
        "--calibration-sequences",
        "12",
        "--probe-sequences",
        "2",
        "--layers",
        "all",
    ]
    result = CliRunner().invoke(main, ["convert", *words])
    assert result.exit_code == 2
    assert "--memory-limit: 0.02 GB, but about" in result.output
    assert not (tmp_path / "out").exists()
