"""Makes artifacts for measurements of speed: of the demo model, and of random numbers in Llama's shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.suite.random_artifacts import hollow, make_random
from benchmarks.suite.scale import SHAPES

# Compressed models keep half of the numbers of every linear, with little calibration, because only speed counts here.
FORMS: dict[str, tuple[str, ...]] = {
    "dense": (),
    "cur": ("--method", "curing", "--select", "lu"),
    "pifa": ("--method", "pifa"),
}
STORED = ("float32", "int8", "int4")
SHAPE = "1B"
COMPRESSED = "half of the numbers of every linear, 4 × 64 calibration tokens"
_SMALLER = (
    "--density", "0.5", "--layers", "all", "--targets", "all", "--calibration-sequences", "4",
    "--calibration-tokens", "64", "--probe-sequences", "2", "--no-verify",
)  # fmt: skip


def make(form: str, model: Path, scratch: Path, stored: str = "float32") -> Path:
    """Return the folder of a form's artifact; make the artifact if it does not exist.

    Args:
        form: A key of `FORMS`.
        model: The original.
        scratch: Folder of the artifacts.
        stored: One of `STORED`.
    """
    out = scratch / f"{form}-{stored}"
    if not out.exists():
        method = FORMS[form]
        command = ["convert", *method, *_SMALLER] if method else ["export"]
        quantized = () if stored == "float32" else ("--quantize", stored)
        nearest = ("--rounding", "nearest") if quantized and method else ()
        made = [*command, str(model), "-o", str(out), "--dtype", "float32", "--quiet", *quantized, *nearest]
        subprocess.run([sys.executable, "-m", "curconvert", *made], check=True)
    return out


def make_layers(layers: int, forms: tuple[str, ...], scratch: Path) -> tuple[str, dict[str, Path]]:
    """Return a name for a model with some layers of `SHAPE`, and its artifacts of random numbers by form.

    Args:
        layers: Number of layers.
        forms: Forms of `random_artifacts`.
        scratch: Folder of the artifacts.
    """
    home = scratch / f"{SHAPE}-{layers}"
    checkpoint = hollow(home / "source", SHAPE, layers)
    made = {form: make_random(form, checkpoint, home / form) for form in forms}
    return f"{layers} of the {SHAPES[SHAPE][2]} layers of Llama 3.2 {SHAPE}", made
