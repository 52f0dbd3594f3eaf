"""The plot of a sweep. The only module that needs matplotlib; it is imported when a sweep runs."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from curconvert.sweep.table import Point, Sweep


def draw(sweep: Sweep, path: Path) -> None:
    """Draw divergence against size and against decode speed, one line per method.

    Args:
        sweep: Its points; those without numbers are left out.
        path: PNG file to write.
    """
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)  # renders without a display
    size, speed = figure.subplots(1, 2, sharey=True)
    measured = [point for point in sweep.points if point.to_json()["kl_mean"] is not None]
    for method in dict.fromkeys(point.method for point in measured):
        points = sorted((point for point in measured if point.method == method), key=lambda point: point.keep)
        _line(size, method, points, [(point.bytes or 0) / 1e6 for point in points])
        _line(speed, method, points, [point.decode_compressed or 0.0 for point in points])
    size.axvline(sweep.bytes_before / 1e6, color="grey", linestyle=":", label="original")
    speeds = [point.decode_original for point in measured if point.decode_original]
    if speeds:
        speed.axvspan(min(speeds), max(speeds), color="grey", alpha=0.3, label="original")
    exact = bool(measured) and all(point.kl_exact for point in measured)
    size.set_ylabel(f"mean KL(original ‖ compressed){'' if exact else ', lower bound'}, nats per token")
    size.set_xlabel("weights, MB")
    decode = sweep.decode
    speed.set_xlabel(
        f"decode, tokens/s (batch {decode['batch']}, prompt {decode['prompt_tokens']}, "
        f"{decode['generated_tokens']} generated, {decode['provider']})"
    )
    for axes in (size, speed):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    if measured and all(point.kl_mean for point in measured):
        size.set_yscale("log")
    figure.suptitle(f"{sweep.model}: {sweep.text}", parse_math=False)
    figure.savefig(path, format="png", dpi=120)


def _line(axes: Axes, method: str, points: list[Point], values: list[float]) -> None:
    axes.plot(values, [point.kl_mean or 0.0 for point in points], marker="o", label=method)
    for point, value in zip(points, values, strict=True):
        axes.annotate(f"{point.keep:g}", (value, point.kl_mean or 0.0), xytext=(4, 4), textcoords="offset points")
