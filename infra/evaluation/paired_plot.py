"""Methods one above the other, each with its interval, and beside them their paired differences to one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infra.evaluation.plots import COLOURS, error_bars, figure

if TYPE_CHECKING:
    from cloud_worker.evaluation.bootstrap import Interval


def plot_paired(
    path: Path, *, title: str, values: Mapping[str, Interval], differences: Mapping[str, Interval], ours: str, less: str
) -> None:
    """NDCG@10 of each method, and differences to ours, each with its 95 % interval.

    Parameters
    ----------
    values
        By method, ours among them.
    differences
        By method, ours not among them.
    less
        What the differences are.
    """
    with figure(path, title, 1, 2) as (_, axes):
        places = {name: -place for place, name in enumerate(values)}
        panels = (("each method", values), (f"{less}, paired", differences))
        for axis, (heading, found) in zip(axes, panels, strict=True):
            for name, each in found.items():
                error = error_bars([each])
                colour = COLOURS["fused fresh"] if name == ours else COLOURS["SRM"]
                axis.errorbar(each.mean, places[name], xerr=error, color=colour, marker="o", ms=6, lw=2, capsize=3)
                axis.annotate(
                    f"{each.mean:+.4f}" if found is differences else f"{each.mean:.4f}",
                    (each.mean, places[name]),
                    xytext=(0, 7),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
            axis.set(title=heading, xlabel="NDCG@10", yticks=list(places.values()))
            axis.set_yticklabels(places if found is values else [])
            axis.set_ylim(-len(places) + 0.5, 0.6)
            axis.locator_params(axis="x", nbins=6)
        axes[0].set_xlim(left=0)
        axes[1].axvline(0, color=COLOURS["SRM"], lw=1)
