"""The plots beside the tables, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cloud_worker.evaluation.reliability import curve
from streams.errors import EnvironmentProblem

if TYPE_CHECKING:
    from cloud_worker.evaluation.bootstrap import Interval
    from cloud_worker.evaluation.reliability import Bin, Decision, Sample
    from cloud_worker.evaluation.staleness import Cell, Column
    from infra.evaluation.runtime import Timing

COLOURS: Final[Mapping[str, str]] = {
    "SRM": "#555555",
    "item-kNN": "#b0b0b0",
    "control: second SRM seed": "#cc79a7",
    "control: distilled head, no cloud": "#e69f00",
    "cloud stale": "#f0b8a0",
    "calibrated": "#9fd4c0",
    "fused stale": "#d55e00",
    "fused stale, α by s": "#e8a06a",
    "fused calibrated": "#009e73",
    "fused fresh": "#0072b2",
}
"""Of a palette that the colour-blind can tell apart (Okabe & Ito 2008); its paler shades for what is shown beside."""
SCORE_COLOURS: Final[Mapping[str, str]] = {
    "random": "#999999",
    "gap": "#e69f00",
    "age": "#f0e442",
    "1 - cos(e, m)": "#56b4e9",
    "disagreement": "#cc79a7",
    "staleness s": "#0072b2",
    "expected gain w": "#009e73",
}
_PALE: Final = {"item-kNN", "cloud stale", "calibrated", "fused stale, α by s"}


def plot_staleness(path: Path, dataset: str, columns: Sequence[Column], cells: Sequence[Mapping[str, Cell]]) -> None:
    """NDCG@10 over the gap, and its paired difference to the SRM, each with 95 % bands.

    Parameters
    ----------
    cells
        Of each column, by method.
    """
    gaps = [column.gap for column in columns]
    at = range(len(gaps))
    with figure(path, f"What staleness costs: {dataset}", 1, 2) as (fig, axes):
        for method, colour in COLOURS.items():
            if method not in cells[0]:
                continue
            values, over = ([getattr(each[method], which) for each in cells] for which in ("value", "over_srm"))
            pale = method in _PALE
            style: dict[str, Any] = {
                "color": colour,
                "marker": "o",
                "ms": 3,
                "lw": 1.2 if pale else 2,
                "ls": "--" if pale else "-",
            }
            axes[0].plot(at, [each.mean for each in values], label=method, **style)
            if pale or method == "SRM":
                continue
            low, high = [each.low for each in values], [each.high for each in values]
            axes[0].fill_between(at, low, high, color=colour, alpha=0.07, lw=0)
            axes[1].plot(at, [each.mean for each in over], **style)
            low, high = [each.low for each in over], [each.high for each in over]
            axes[1].fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
        axes[1].axhline(0, color=COLOURS["SRM"], lw=1)
        for axis, title in zip(axes, ("NDCG@10", "NDCG@10 less the SRM's, paired"), strict=True):
            axis.set(title=title, xlabel="interactions since the embedding was made", xticks=list(at), xticklabels=gaps)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def plot_reliability(
    path: Path,
    dataset: str,
    found: Sample,
    diagrams: Mapping[str, Sequence[Bin]],
    decisions: Sequence[Decision],
) -> None:
    """The reliability diagram; what refreshes add to all pairs, by the share refreshed; and what one brings.

    Parameters
    ----------
    diagrams
        For each thing that is served without a refresh.
    """
    rates = [step / 50 for step in range(51)]
    with figure(path, f"Do staleness s and expected gain w say when a refresh pays? {dataset}", 1, 3) as (fig, axes):
        largest = 0.0
        for (without, bins), colour in zip(diagrams.items(), ("#d55e00", "#009e73"), strict=True):
            x, y = [each.predicted for each in bins], [each.observed.mean for each in bins]
            error = error_bars([each.observed for each in bins])
            axes[0].errorbar(
                x, y, error, color=colour, marker="o", ms=4, lw=1.5, capsize=2, label=f"instead: {without}"
            )
            largest = max(largest, *x, *(each.observed.high for each in bins))
        axes[0].plot([0, largest], [0, largest], color="#999999", lw=1, ls=":", label="as predicted")
        axes[0].set(title="reliability diagram", xlabel="staleness s", ylabel="share where a refresh pays")
        axes[0].legend(frameon=False, fontsize=8)
        offset = -0.3
        for score, colour in SCORE_COLOURS.items():
            if score in found.scores:
                width = 2.2 if score == "expected gain w" else 1.2
                axes[1].plot(rates, curve(found, score, rates), label=score, color=colour, lw=width)
                each = [decision for decision in decisions if decision.score == score]
                at = [nth + offset for nth in range(len(each))]
                error = error_bars([decision.gain for decision in each])
                means = [decision.gain.mean for decision in each]
                axes[2].errorbar(at, means, error, color=colour, marker="o", ms=4, lw=0, elinewidth=1.5, label=score)
                offset += 0.1
        axes[1].set(title="NDCG@10 that refreshes add to all pairs with a gap", xlabel="share of them refreshed")
        kept = list(dict.fromkeys(decision.rate for decision in decisions))
        axes[2].axhline(0, color="#555555", lw=0.8)
        axes[2].set(
            title="NDCG@10 that one refresh brings",
            xlabel="share of pairs refreshed",
            xticks=range(len(kept)),
            xticklabels=[f"{rate:.0%}" for rate in kept],
        )
        fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)


def plot_runtime(path: Path, dataset: str, timings: Sequence[Timing]) -> None:
    """Time of one event, alone and in a wave, a panel a ranking."""
    rankings = list(dict.fromkeys(each.ranking for each in timings))
    names = list(dict.fromkeys((each.runtime, each.item_vectors) for each in timings))
    with figure(path, f"Time to serve an event: {dataset}", 1, len(rankings)) as (fig, axes):
        for axis, ranking in zip(axes, rankings, strict=True):
            for nth, rows in enumerate(sorted({each.rows for each in timings})):
                by = {
                    (each.runtime, each.item_vectors): each.us_per_call / each.rows
                    for each in timings
                    if each.ranking == ranking and each.rows == rows
                }
                at = [place + 0.4 * nth - 0.2 for place in range(len(names))]
                label = "alone" if rows == 1 else f"in a wave of {rows}"
                bars = axis.bar(at, [by[name] for name in names], 0.38, color=("#0072b2", "#56b4e9")[nth], label=label)
                axis.bar_label(bars, fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}", fontsize=8)
            axis.set(title=ranking, ylabel="µs an event", yscale="log", xticks=range(len(names)))
            axis.set_xticklabels([f"{name}\n{kind}" for name, kind in names])
            axis.set_ylim(bottom=1)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def error_bars(intervals: Sequence[Interval]) -> npt.NDArray[np.float64]:
    """(2, n) how far each interval goes down and up, as matplotlib wants it."""
    return np.array([each.reach for each in intervals], np.float64).reshape(-1, 2).T


@contextmanager
def figure(path: Path, title: str, rows: int, columns: int) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure and its axes, written to `path` at the end.

    Raises
    ------
    EnvironmentProblem
        The file cannot be written.
    """
    fig = Figure(figsize=(5.0 * columns, 0.8 + 4.2 * rows), layout="constrained")
    FigureCanvasAgg(fig)  # no window system is asked for
    fig.suptitle(title)
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.5)
    yield fig, axes
    try:
        fig.savefig(path, dpi=130)
    except OSError as exc:
        raise EnvironmentProblem(f"the plot cannot be written to {path}: {exc.strerror}") from exc
