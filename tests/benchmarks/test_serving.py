"""What serving's figures say: speeds of ours, and how many times as long the others take."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.suite import serving
from support.families import make_checkpoint
from support.tiny_runs import add_tokenizer


def answers(*seconds: tuple[float, float, float]) -> list[dict[str, float]]:
    """Rounds of prefill, decode and start."""
    names = ("prefill", "decode", "start")
    return [{**dict(zip(names, turn, strict=True)), "peak": 100.0 + at} for at, turn in enumerate(seconds)]


def test_a_ratio_is_of_medians_and_its_range_of_rounds() -> None:
    """By hand: medians are 2 and 3 seconds of prefill, rounds give 3, 1.5 and 0.5."""
    workload = (2, 10)
    ours, theirs = answers((1, 4, 1), (2, 4, 1), (4, 8, 1)), answers((3, 4, 2), (3, 2, 2), (2, 8, 3))
    row = serving.row_of({("curconvert", workload): ours, ("genai", workload): theirs}, workload, generated=8)
    assert row["prefill"] == {"median": 10.0, "least": 5.0, "most": 20.0}
    assert row["decode"] == {"median": 4.0, "least": 2.0, "most": 4.0}
    assert row["peak"] == 102.0
    assert row["genai"]["prefill"] == {"median": 1.5, "least": 0.5, "most": 3.0}
    assert row["genai"]["decode"] == {"median": 1.0, "least": 0.5, "most": 1.0}
    assert row["genai"]["start"] == {"median": 2.0, "least": 2.0, "most": 3.0}


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four rows of a tiny model, beside onnxruntime-genai and with huge pages asked for."""
    make_checkpoint(tmp_path / "model", "llama")
    add_tokenizer(tmp_path / "model")
    out = tmp_path / "serving.json"
    given = {"--model": tmp_path / "model", "--scratch": tmp_path / "scratch", "--out": out}
    sizes = {"--rounds": 1, "--prompt": 16, "--generated": 4}
    arguments = [str(part) for option in {**given, **sizes}.items() for part in option]
    monkeypatch.setattr(sys, "argv", ["serving", *arguments])
    serving.main()
    rows = json.loads(out.read_text(encoding="utf-8"))["tables"]["serving"]
    assert [row["artifact"] for row in rows] == ["dense, float32", "dense, int4", "cur, float32", "cur, int4"]
    for row in rows:
        assert row["prefill"]["median"] > 0
        assert all(row[peer][part]["median"] > 0 for peer in ("hugetlb", "genai") for part in serving.PARTS)
