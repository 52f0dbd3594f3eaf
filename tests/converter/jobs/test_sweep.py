"""`sweep` on tiny random models: one calibration, each point what a conversion gives, and a folder all or nothing."""

from __future__ import annotations

import csv
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from curconvert import SourceOptions, convert
from curconvert.base.errors import InputError, VerificationError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.cli import main
from curconvert.jobs import produce as production
from curconvert.jobs.sweep import run
from curconvert.jobs.sweep.options import SweepOptions
from curconvert.jobs.sweep.run import sweep
from curconvert.methods.auto import Auto
from curconvert.methods.core.options import ConvertOptions, options_for_size
from curconvert.options.calibration import CalibrationOptions
from curconvert_runtime import Artifact, VerifyOptions, verify
from curconvert_schemas import validate
from support.families import VOCABULARY, make_checkpoint
from support.tiny_runs import add_tokenizer

TABLES = {"sweep.csv", "sweep.json", "sweep.png"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a checkpoint that has a tokenizer, token ids and a text; no test may change them."""
    folder = tmp_path_factory.mktemp("home")
    make_checkpoint(folder / "model", "llama", num_hidden_layers=3)
    add_tokenizer(folder / "model")
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (40, 40))
    save_file({"input_ids": ids}, folder / "ids.safetensors")
    (folder / "text.txt").write_text("".join(chr(32 + n % 60) for n in range(300)), encoding="utf-8")
    return folder


def options(home: Path, **values: Any) -> SweepOptions:
    calibration = CalibrationOptions(
        source=str(home / "ids.safetensors"), sequences=16, tokens_per_sequence=40, probe_sequences=4
    )
    settings = {"calibration": calibration, "rank_multiple": 4}
    return SweepOptions(**{"keep": (0.9, 0.8), "methods": ("auto", "pifa"), "settings": settings, **values})


def call(home: Path, out: Path, *arguments: str | Path) -> Result:
    words = ["sweep", home / "model", "-o", out, "--calibration", home / "ids.safetensors", "--rank-multiple", "4"]
    words += ["--calibration-tokens", "40", "--calibration-sequences", "16", "--probe-sequences", "4", *arguments]
    return CliRunner().invoke(main, [str(word) for word in words])


def test_one_calibration_serves_every_point(home: Path, tmp_path: Path) -> None:
    """Each artifact is the one that `convert` makes, the tables agree, and the passes ran once."""
    seen: Counter[tuple[str, int]] = Counter()
    source = SourceOptions(str(home / "model"))
    result = sweep(
        source, tmp_path / "out", options(home, keep_artifacts=True),
        progress=lambda stage, done, _: seen.update([(stage, done)]),
    )  # fmt: skip
    assert seen["sensitivity", 1] == seen["original", 1] == seen["export", 1] == 1
    assert seen["compress", 1] == 4
    assert [(p.method, p.keep) for p in result.points] == [(m, k) for m in ("auto", "pifa") for k in (0.9, 0.8)]
    names = {p.folder for p in result.points}
    assert {path.name for path in (tmp_path / "out").iterdir()} == TABLES | names
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for point in result.points:
        folder = tmp_path / "out" / point.folder
        assert verify(folder).passed
        assert point.status == "ok"
        assert point.parameters == Artifact.open(folder).manifest["model"]["parameters_after"]
        assert point.bytes == (folder / "model.safetensors").stat().st_size
        assert point.kept is not None
        assert point.keep - 0.06 < point.kept <= point.keep
        assert point.kl_exact is False
        assert (point.kl_mean or 0) > 0
        assert (point.decode_ratio or 0) > 0
    assert converted_alone(home, tmp_path, "pifa") == (tmp_path / "out/pifa-0.8/model.safetensors").read_bytes()

    document = json.loads((tmp_path / "out/sweep.json").read_text(encoding="utf-8"))
    validate(document, "sweep-1.0")
    assert document["text"] == "4 held-out calibration sequences of 40 tokens"
    assert str(tmp_path) not in json.dumps(document)
    assert str(home) not in json.dumps(document)
    with (tmp_path / "out/sweep.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["parameters"]) for row in rows] == [p.parameters for p in result.points]
    assert list(rows[0]) == list(document["points"][0])
    assert (tmp_path / "out/sweep.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def converted_alone(home: Path, tmp_path: Path, method: str) -> bytes:
    """Return the weights that `convert` makes at 0.8, on the calibration text of a sweep."""
    size = int(0.8 * total_parameters(open_checkpoint(home / "model")))
    settings = {"self_text": Auto.defaults["self_text"], **options(home).settings}
    chosen = options_for_size(open_checkpoint(home / "model"), method, size, **settings)
    convert(SourceOptions(str(home / "model")), tmp_path / method, chosen)
    return (tmp_path / method / "model.safetensors").read_bytes()


@pytest.mark.parametrize("methods", [("auto",), ("fwsvd",), ("fwsvd", "svd-llm")])
def test_artifacts_are_those_of_convert(methods: tuple[str, ...], home: Path, tmp_path: Path) -> None:
    """Bit for bit, whether statistics are gathered once for all methods or as one needs them."""
    asked = options(home, keep=(0.8,), methods=methods, keep_artifacts=True)
    sweep(SourceOptions(str(home / "model")), tmp_path / "out", asked)
    for method in methods:
        swept = (tmp_path / f"out/{method}-0.8/model.safetensors").read_bytes()
        assert converted_alone(home, tmp_path, method) == swept


def test_one_pass_back_serves_all_methods_that_need_gradients(home: Path, tmp_path: Path) -> None:
    """`fwsvd` beside `auto`, and one calibration."""
    seen: Counter[tuple[str, int]] = Counter()
    asked = options(home, keep=(0.8,), methods=("fwsvd", "auto"), keep_artifacts=True)
    sweep(
        SourceOptions(str(home / "model")), tmp_path / "out", asked,
        progress=lambda stage, done, _: seen.update([(stage, done)]),
    )  # fmt: skip
    assert seen["sensitivity", 3] == seen["original", 3] == 1
    # Beside a method that needs exact Gram matrices auto works with these, so its last bits are not those of convert.
    alone = ConvertOptions.for_method("auto", keep=0.8, **options(home).settings)
    convert(SourceOptions(str(home / "model")), tmp_path / "alone", alone)
    swept, single = (Artifact.open(folder).manifest for folder in (tmp_path / "out/auto-0.8", tmp_path / "alone"))
    assert swept["model"] == single["model"]
    for first, second in zip(swept["matrices"], single["matrices"], strict=True):
        assert (first["form"], first["rank"]) == (second["form"], second["rank"])
        error = second["relative_output_error"]
        assert first["relative_output_error"] == (None if error is None else pytest.approx(error, rel=1e-4, abs=1e-6))


def test_on_a_text_fidelity_is_that_of_verify_against(home: Path, tmp_path: Path) -> None:
    """Exact, and without artifacts only the tables remain; without auto nothing is differentiated."""
    stages: set[str] = set()
    asked = options(home, keep=(0.85,), methods=("svd-llm", "neurons"), text=home / "text.txt", window=30)
    result = sweep(
        SourceOptions(str(home / "model")), tmp_path / "out", asked, progress=lambda stage, *_: stages.add(stage)
    )
    assert "sensitivity" not in stages
    assert result.text == "text.txt: 10 windows of 30 tokens"
    assert all(point.kl_exact and point.status == "ok" for point in result.points)
    assert {path.name for path in (tmp_path / "out").iterdir()} == TABLES
    kept = sweep(SourceOptions(str(home / "model")), tmp_path / "kept", SweepOptions(
        asked.keep, ("neurons",), asked.text, asked.window, keep_artifacts=True, settings=asked.settings,
    ))  # fmt: skip
    from curconvert import export

    export(SourceOptions(str(home / "model")), tmp_path / "original")
    gates = VerifyOptions(against=tmp_path / "original", text=home / "text.txt", window=30)
    found = verify(tmp_path / "kept/neurons-0.85", gates).fidelity
    assert found is not None
    assert found.kl.mean == kept.points[0].kl_mean == pytest.approx(result.points[1].kl_mean)


def test_an_impossible_point_is_a_row_with_its_reason(home: Path, tmp_path: Path) -> None:
    """Some are known to be from shapes alone, others when sizes are allocated; the sweep goes on."""
    result = call(home, tmp_path / "out", "--keep", "0.8,0.05", "--methods", "auto,neurons")
    assert result.exit_code == 0, result.output
    points = json.loads((tmp_path / "out/sweep.json").read_text(encoding="utf-8"))["points"]
    statuses = {(p["method"], p["keep"]): p["status"] for p in points}
    assert statuses["auto", 0.8] == statuses["neurons", 0.8] == "ok"
    assert statuses["auto", 0.05] == statuses["neurons", 0.05] == "impossible"
    assert all((p["reason"] is None) == (p["status"] == "ok") for p in points)
    assert "neurons at 0.05 is impossible" in result.stdout
    assert "keep more" in result.stdout
    assert "decode: batch 1, prompt 32, 32 generated" in result.stdout


def test_a_size_that_allocation_refuses_is_a_row(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the passes can tell does not end the sweep either, and costs no exit code."""
    real = Auto.decide

    def decide(method: Auto, context: Any, measured: Any) -> Any:
        if method.keep == 0.8:
            raise InputError("the smallest sizes store more; keep more")
        return real(method, context, measured)

    monkeypatch.setattr(Auto, "decide", decide)
    result = sweep(SourceOptions(str(home / "model")), tmp_path / "out", options(home, methods=("auto",)))
    assert [(p.status, p.reason) for p in result.points] == [
        ("ok", None), ("impossible", "the smallest sizes store more; keep more"),
    ]  # fmt: skip
    result.raise_for_failures()


def test_a_sharded_point_counts_every_file(tmp_path: Path) -> None:
    """Large models have their weights in several files; the probes are none of them."""
    for name, size in (("model-00001-of-00002", 3), ("model-00002-of-00002", 4), ("probes", 9)):
        (tmp_path / f"{name}.safetensors").write_bytes(b"x" * size)
    assert run._weight_bytes(tmp_path) == 7


@pytest.mark.parametrize("name", ["模型$x$_{", "not UTF-8 \udcff", "\x1b[31m\n"])
def test_any_name_is_drawn_in_silence(tmp_path: Path, name: str) -> None:
    """Files are called anything; a dollar sign is no formula, and a plot without points is a plot."""
    from curconvert.jobs.sweep.plot import draw
    from curconvert.jobs.sweep.table import Point, Sweep

    decode = {"batch": 1, "prompt_tokens": 8, "generated_tokens": 8, "rounds": 5, "graph": "fused", "provider": "cpu"}
    points = (Point("auto", 0.9, "impossible", "too small"),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(Sweep(tmp_path, name, 9, 36, "текст", decode, {}, {}, points), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_no_point_at_all_is_an_error(home: Path, tmp_path: Path) -> None:
    """Before any tensor is read, and nothing is written."""
    with pytest.raises(InputError, match="no point is possible"):
        sweep(SourceOptions(str(home / "model")), tmp_path / "out", options(home, keep=(0.01,)))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_point_is_a_row_and_exit_code_3(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is published all the same; no passing folder's name is in it."""
    real = run.produce

    def produce(work: Path, *arguments: Any) -> Any:
        if work.parent.name.startswith(".pifa"):
            raise VerificationError(f"{work}: 1 of 9 checks failed")
        return real(work, *arguments)

    monkeypatch.setattr(run, "produce", produce)
    result = call(home, tmp_path / "out", "--keep", "0.8", "--methods", "pifa,row-id", "--keep-artifacts", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["points"][0]["reason"] == "pifa-0.8: 1 of 9 checks failed"
    assert "1 of 2 points failed" in result.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == TABLES | {"row-id-0.8"}


def test_only_a_sweep_is_overwritten(home: Path, tmp_path: Path) -> None:
    """Not without --overwrite; and neither an artifact nor somebody else's sweep.json with it."""
    out = tmp_path / "out"
    small = ("--keep", "0.8", "--methods", "row-id", "--quiet")
    assert call(home, out, *small).exit_code == 0
    before = (out / "sweep.csv").read_bytes()
    refused = call(home, out, *small)
    assert refused.exit_code == 2
    assert "pass --overwrite" in refused.stderr
    assert (out / "sweep.csv").read_bytes() == before
    assert call(home, out, *small, "--overwrite").exit_code == 0
    for marker in ("sweep.json", "curconvert.json"):
        (tmp_path / marker.replace(".", "-")).mkdir()
        (tmp_path / marker.replace(".", "-") / marker).write_text("{}")
        refused = call(home, tmp_path / marker.replace(".", "-"), *small, "--overwrite")
        assert refused.exit_code == 2
        assert "so it is no sweep" in refused.stderr
    assert call(home, home / "model" / "out", *small).exit_code == 2


def test_ctrl_c_leaves_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of the second point, with the first one finished."""
    calls: list[Path] = []
    real = production.compress

    def compress(*arguments: Any) -> Any:
        calls.append(tmp_path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(production, "compress", compress)
    result = call(home, tmp_path / "out", "--keep", "0.9,0.8", "--methods", "row-id", "--keep-artifacts")
    assert result.exit_code == 130
    assert result.stderr.strip().splitlines()[-1] == "error: interrupted; nothing was written"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keep", "1.2"), "--keep 1.2"),
        (("--keep", "0.9,x"), "expected shares"),
        (("--keep", "0.9,0.90"), "twice"),
        (("--keep", ","), "--keep is empty"),
        (("--methods", "magic"), "--methods 'magic'"),
        (("--text", "missing.txt"), "missing.txt"),
        (("--window", "1"), "--window 1"),
    ],
)
def test_a_wrong_option_is_named(home: Path, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    """In one line, before any work."""
    result = call(home, tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []
