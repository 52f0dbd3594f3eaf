"""Draws the plot of a sweep. Only this module needs matplotlib, so it is imported only when a sweep runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from curconvert.base.counted import counted
from curconvert.base.display import one_line
from curconvert.jobs.sweep.table import Point, Sweep


def draw(sweep: Sweep, path: Path) -> None:
    """Draw KL divergence against size and against decoding speed, one line per method.

    Speed is the artifact's divided by the original's. Both were measured alternately, so slow changes of the machine's
    speed cancel. Bars span the rounds.

    Args:
        sweep: The sweep; points without numbers are left out.
        path: PNG file to write.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)  # renders without a display
    size, speed = figure.subplots(1, 2, sharey=True)
    measured = [point for point in sweep.points if point.to_json()["kl_mean"] is not None]
    for method in dict.fromkeys(point.method for point in measured):
        points = sorted((point for point in measured if point.method == method), key=lambda point: point.keep)
        _line(size, method, points, [(point.bytes or 0) / 1e6 for point in points])
        ratios = [_ratios(point) for point in points]
        _line(speed, method, points, [middle for _, middle, _ in ratios])
        spans = [[middle - low for low, middle, _ in ratios], [high - middle for _, middle, high in ratios]]
        divergences = [point.kl_mean or 0.0 for point in points]
        speed.errorbar(
            [middle for _, middle, _ in ratios], divergences, xerr=spans, fmt="none", ecolor="gray", alpha=0.6
        )
    size.axvline(sweep.bytes_before / 1e6, color="gray", linestyle=":", label="original")
    speed.axvline(1.0, color="gray", linestyle=":", label="original")
    exact = bool(measured) and all(point.kl_exact for point in measured)
    size.set_ylabel(f"mean KL(original ‖ compressed), nats per token{'' if exact else chr(10) + '(lower bound)'}")
    size.set_xlabel("weights, MB")
    decode = sweep.decode
    speed.set_xlabel(
        f"decode speed / original's (median and range of {counted(decode['rounds'], 'round')})\n"
        f"batch {decode['batch']}, prompt {decode['prompt_tokens']}, {decode['generated_tokens']} generated, "
        f"{decode['provider']}"
    )
    if measured and all(point.kl_mean for point in measured):
        size.set_yscale("log")
    for axes in (size, speed):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.suptitle(one_line(f"{sweep.model}: {sweep.text}"), parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # if the font lacks a character of a file name, a box is good enough
        figure.savefig(path, format="png", dpi=120)


def _ratios(point: Point) -> tuple[float, float, float]:
    return point.decode_ratio_min or 0.0, point.decode_ratio or 0.0, point.decode_ratio_max or 0.0


def _line(axes: Axes, method: str, points: Sequence[Point], values: Sequence[float]) -> None:
    axes.plot(values, [point.kl_mean or 0.0 for point in points], marker="o", label=method)
    for point, value in zip(points, values, strict=True):
        axes.annotate(f"{point.keep:g}", (value, point.kl_mean or 0.0), xytext=(4, 4), textcoords="offset points")
