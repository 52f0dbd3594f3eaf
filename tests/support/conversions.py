"""Real conversions of tiny random checkpoints, in about a second each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from curconvert.jobs.convert import convert
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.source import SourceOptions
from support.families import VOCABULARY, make_checkpoint


def convert_tiny(
    folder: Path,
    model_type: str,
    *,
    method: str = "cur",
    dtype: str | None = None,
    form: str | None = None,
    target: str | None = None,
    **settings: Any,
) -> tuple[Path, Path]:
    """Make a random checkpoint and compress every layer's q, k and gate projections, or the method's, to rank 6.

    Args:
        folder: Gets the checkpoint and the artifact.
        model_type: Family.
        method: Compression method.
        dtype: Deployed dtype.
        form: How C·U·R is stored.
        target: Where it is to be served.
        settings: Config values that replace the tiny defaults.

    Returns:
        The checkpoint's and the artifact's folder.
    """
    source, out, ids = folder / "source", folder / "out", folder / "ids.safetensors"
    make_checkpoint(source, model_type, **settings)
    save_file({"input_ids": np.random.default_rng(0).integers(3, VOCABULARY, (40, 40))}, ids)
    calibration = CalibrationOptions(source=str(ids), sequences=16, tokens_per_sequence=40, probe_sequences=4)
    size = {"density": 0.6} if method == "modegpt" else {"rank": 6}
    options = ConvertOptions.for_method(
        method, layers="all", calibration=calibration, dtype=dtype, stored=form, target=target, **size
    )
    convert(SourceOptions(str(source)), out, options)
    return source, out
