"""Measures the exact divergence from the original on a text. The original runs once; its logits are kept in a file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import model_arguments, model_name
from curconvert import CalibrationOptions, SourceOptions, export
from curconvert_runtime import load
from curconvert_runtime.checks.fidelity import exact_fidelity, text_windows
from curconvert_runtime.checks.metrics import Fidelity
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.session import Session


class Recorded:
    """The original's logits on the windows, computed once and kept in a file."""

    def __init__(self, session: Session, windows: NDArray[np.int64], path: Path) -> None:
        shape = (*windows.shape, session.vocab_size)
        self._logits = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        self._rows = {row.tobytes(): index for index, row in enumerate(windows)}
        for index, row in enumerate(windows):
            self._logits[index] = session.logits(row)

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (tokens, vocabulary) of one of the windows."""
        return np.asarray(self._logits[self._rows[ids.tobytes()]])


class Yardstick:
    """The original in float32 on the windows of a text, as the reference for other artifacts.

    Attributes:
        path: Folder of the exported original.
        artifact: The opened artifact of this folder.
        text: The whole text.
        windows: Token ids, (windows, tokens).
        recorded: The original's logits on the windows.
    """

    def __init__(self, folder: Path, given: Namespace) -> None:
        """Export the original and run it.

        Args:
            folder: Folder for temporary files.
            given: Values of the options of `text_arguments`.
        """
        self.path = folder / "original"
        export(SourceOptions(str(given.model)), self.path, dtype="float32")
        self.artifact = Artifact.open(self.path)
        self.text: str = given.text.read_text(encoding="utf-8")
        self.windows, _ = text_windows(self.artifact, self.text, given.window, given.max_tokens)
        self.recorded = Recorded(load(self.path, graph="portable"), self.windows, folder / "logits")

    def fidelity(self, session: Session) -> Fidelity:
        """Compare a model with the original."""
        return exact_fidelity(session, self.recorded, self.windows)  # type: ignore[arg-type]  # it has `logits` too


def figures(fidelity: Fidelity) -> dict[str, float]:
    """Return the figures of a fidelity with the names that results use."""
    kl = fidelity.kl
    return {
        "kl": kl.mean, "kl_error": kl.standard_error or 0.0, "kl_median": kl.median, "kl_p90": kl.p90,
        "kl_p99": kl.p99, "kl_max": kl.max, "top1": fidelity.top1,
        "perplexity": fidelity.perplexity_compressed, "perplexity_original": fidelity.perplexity_original,
    }  # fmt: skip


def text_arguments(name: str, description: str | None) -> ArgumentParser:
    """Return an argument parser with a model, a calibration text and an evaluation text."""
    parser = model_arguments(name, description)
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--calibration", default="builtin", help="calibration text, not the evaluation text")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    parser.add_argument("--scratch", type=Path, help="folder for temporary files; the original's logits take gigabytes")
    return parser


def calibration_name(calibration: CalibrationOptions) -> str:
    """Return the name of a calibration text in results."""
    return f"{calibration.sequences} × {calibration.tokens_per_sequence} tokens of {Path(str(calibration.source)).name}"


def text_setting(given: Namespace, calibration: CalibrationOptions) -> dict[str, Any]:
    """Return the setting of figures on a text."""
    return {
        "model": model_name(given.model), "dtype": "float32", "calibration": calibration_name(calibration),
        "text": given.text.name, "window": given.window, "tokens": given.max_tokens,
    }  # fmt: skip
