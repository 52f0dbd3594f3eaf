"""Writes an artifact's README (model card) and HTML report from its manifest."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from curconvert.base.display import one_line
from curconvert.base.packing import stored_types
from curconvert_runtime.format.forms import form_of

_TEMPLATES = {"README.md": "README.md.j2", "report.html": "report.html.j2"}


def write_reports(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write README.md and report.html into an artifact folder.

    Args:
        folder: The artifact.
        manifest: The artifact's manifest; `metrics` may be null.
    """
    environment = Environment(
        loader=PackageLoader("curconvert.artifact"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: one_line(value) if isinstance(value, str) else value,
    )
    environment.filters |= {"code": _code, "prose": _prose}
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["error"] = lambda value: "" if value is None else f"{value:.4f}"
    compressed = [m for m in manifest["matrices"] if form_of(m["form"]).is_compressed]
    model = manifest["model"]
    values = {
        "manifest": manifest,
        "model": model,
        "text": (manifest["metrics"] or {}).get("text"),
        "fidelity": _fidelity_rows(manifest["metrics"]),
        "compressed": compressed,
        "quantized": _quantized(manifest.get("quantization")),
        "widths": (manifest.get("quantization") or {}).get("widths"),
        "kept_dense": [m for m in manifest["matrices"] if m["reason"] not in (None, "not selected")],
        "kept": model["parameters_after"] / model["parameters_before"],
    }
    for name, template in _TEMPLATES.items():
        (folder / name).write_text(environment.get_template(template).render(values), encoding="utf-8")


def _code(value: object) -> str:
    """Return a name from a file as Markdown code, where neither markup nor HTML nor an address has an effect."""
    if isinstance(value, int | float):
        return str(value)
    text = one_line(str(value))
    runs = {len(run) for run in re.findall("`+", text)}
    fence = "`" * next(length for length in itertools.count(1) if length not in runs)
    room = "" if text and text.strip("` ") == text else " "  # Markdown removes one space at each end
    return f"{fence}{room}{text}{room}{fence}"


def _prose(text: str) -> str:
    """Return a sentence that may hold a file's name, with Markdown's and HTML's characters escaped."""
    return re.sub(r"([\\`*_\[\]<>&|~$])", r"\\\1", one_line(text))


def _quantized(found: Mapping[str, Any] | None) -> str | None:
    """Return a sentence that describes an artifact's quantization; None if nothing is quantized."""
    if found is None:
        return None
    bits = 8 * found["bytes"] / found["parameters"]
    zeros = "symmetric" if found["symmetric"] else "with zero points"
    return (
        f"{found['parameters']:,} of these parameters are stored in {stored_types(found)}, {zeros}: "
        f"{bits:.2f} bits each, including scales; rounding: {found['rounding']}."
    )


def _fidelity_rows(metrics: Mapping[str, Any] | None) -> list[tuple[str, float]]:
    """Return the quality numbers as (label, value), in the order of all tables of the project."""
    if metrics is None:
        return []
    kl = "kl" if "kl" in metrics else "kl_lower_bound"
    label = "KL(original ‖ compressed)" + (", lower bound" if kl != "kl" else "")
    rows = [(f"{label}, {key}", metrics[kl][key]) for key in ("mean", "median", "p90", "p99", "max")]
    rows += [(key.replace("_", " "), metrics[key]) for key in ("perplexity_original", "perplexity_compressed")]
    return [*rows, ("perplexity ratio", metrics["perplexity_ratio"]), ("top-1 agreement", metrics["top1"])]
