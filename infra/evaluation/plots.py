"""The plots beside the tables, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from streams.errors import EnvironmentProblem

if TYPE_CHECKING:
    from cloud_worker.evaluation.staleness import Cell, Column

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


@contextmanager
def figure(path: Path, title: str, rows: int, columns: int) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure and its axes, written to `path` at the end.

    Raises
    ------
    EnvironmentProblem
        The file cannot be written.
    """
    fig = Figure(figsize=(5.5 * columns, 0.8 + 4.2 * rows), layout="constrained")
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
