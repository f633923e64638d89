"""Pictures for the page on how it works, each computed from a small seeded example."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STYLE = {
    "svg.hashsalt": "exprune",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_DONE, _PRUNED, _LIMIT = "#3949ab", "#b0bec5", "#e65100"


def draw() -> dict[str, str]:
    """SVG by the picture's name."""
    makers: dict[str, Callable[[Axes], None]] = {
        "stages": _stages,
        "prefix": _prefix,
        "bound": _bound,
        "head": _head,
        "walk": _walk,
    }
    drawn = {}
    for name, make in makers.items():
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(7, 3), facecolor="white", layout="constrained")
            make(figure.add_subplot())
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        drawn[name] = buffer.getvalue()
    return drawn


def _layer() -> tuple[np.ndarray, np.ndarray]:
    """``[N, G + 1]`` partial sums of a layer over its groups, and whether its outputs end below 0."""
    rng = np.random.default_rng(7)
    terms = rng.normal(-0.12, 1.0, (24, 32)) * np.linspace(1.6, 0.3, 32)
    sums = np.concatenate([np.zeros((24, 1)), np.cumsum(terms, axis=1)], axis=1)
    return sums, sums[:, -1] < 0


def _stages(axes: Axes) -> None:
    sums, _ = _layer()
    ends, work = (8, 16, 32), np.zeros((24, 32))
    undecided = np.ones(24, bool)
    for start, end in zip((0, *ends), ends, strict=False):
        work[undecided, start:end] = 1
        undecided &= sums[:, end] > -1.5
    shown = np.where(work > 0, 0.8, 0.15)
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for end in ends[:-1]:
        axes.axvline(end - 0.5, color=_LIMIT, linewidth=1.5)
    axes.set(xlabel="what the sum runs over, in chunks (orange: a test)", ylabel="outputs", yticks=[])
    axes.set_title(f"computed: {work.mean():.0%} of the layer; pale: never computed", fontsize=10)


def _prefix(axes: Axes) -> None:
    sums, negative = _layer()
    end, limit = 8, -1.5
    for row, below in zip(sums, negative, strict=True):
        pruned = row[end] < limit
        last = end + 1 if pruned else len(row)
        axes.plot(range(last), row[:last], color=_PRUNED if pruned else _DONE, linewidth=1)
        if pruned and not below:
            axes.plot(range(end, len(row)), row[end:], color=_LIMIT, linewidth=1, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.plot([end, end], [limit, sums.min()], color=_LIMIT, linewidth=2.5)
    axes.set(xlabel="terms of the sum", ylabel="sum so far", xlim=(0, 32))
    axes.set_title("after 8 terms, sums below the limit (orange) are taken for negative: grey", fontsize=10)


def _bound(axes: Axes) -> None:
    rng = np.random.default_rng(3)
    exact = np.sort(rng.normal(-1.2, 1.2, 28))
    reach = rng.uniform(0.15, 0.4, 28)
    estimate = exact + rng.uniform(-1, 1, 28) * reach
    for index in range(28):
        clear = estimate[index] + reach[index] < 0
        colour = _PRUNED if clear else _DONE
        axes.plot(
            [index, index], [estimate[index] - reach[index], estimate[index] + reach[index]], color=colour
        )
        axes.plot(index, estimate[index], marker="o", markersize=3, color=colour)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="outputs", ylabel="integer estimate ± bound", xticks=[])
    axes.set_title(
        "wholly below 0: the ReLU's zero is proven (grey). The rest is computed exactly", fontsize=10
    )


def _head(axes: Axes) -> None:
    rng = np.random.default_rng(5)
    estimate = rng.normal(0, 1, 40)
    reach = rng.uniform(0.1, 0.3, 40)
    best = (estimate - reach).max()
    for index in range(40):
        colour = _DONE if estimate[index] + reach[index] >= best else _PRUNED
        axes.plot(
            [index, index], [estimate[index] - reach[index], estimate[index] + reach[index]], color=colour
        )
    axes.axhline(best, color=_LIMIT, linewidth=1.2)
    axes.set(xlabel="classes", ylabel="score: between these", xticks=[])
    axes.set_title("classes that cannot reach the best lower end (orange) are out: grey", fontsize=10)


def _walk(axes: Axes) -> None:
    step = np.arange(1, 9)
    drop = np.array([0.0003, 0.0008, 0.0016, 0.003, 0.0052, 0.0078, 0.0121, 0.0185])
    upper = drop + 0.0025
    holds = upper <= 0.01
    last = int(np.argmin(holds)) - 1
    axes.errorbar(step, drop, yerr=[np.zeros(8), upper - drop], fmt="o", color=_PRUNED, capsize=3)
    axes.errorbar(
        step[: last + 1],
        drop[: last + 1],
        yerr=[np.zeros(last + 1), (upper - drop)[: last + 1]],
        fmt="o",
        color=_DONE,
        capsize=3,
    )
    axes.axhline(0.01, color=_LIMIT, linewidth=1.2)
    axes.set(xlabel="steps, from the safest on", ylabel="drop, and its upper limit", xticks=step)
    axes.set_title("the walk stops at the first step that is not shown to keep --max-drop", fontsize=10)
