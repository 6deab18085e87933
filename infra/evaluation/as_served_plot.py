"""The plot of ``driftline evaluate demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from cloud_worker.evaluation.bootstrap import Interval
from infra.evaluation.as_served import ArmAgain
from infra.evaluation.plots import error_bars, figure

METRIC: Final = "ndcg@10"
SERVED, OFFLINE, SAME = "#555555", "#0072b2", "#e69f00"
_CELLS: Final = 40


def plot_as_served(path: Path, dataset: str, arms: Sequence[ArmAgain]) -> None:
    """Each arm's NDCG@10 in the demo and offline, their paired difference, and rank against rank."""
    with figure(path, f"The demo and the offline evaluation: {dataset}", 1, 3) as (fig, axes):
        at = np.arange(len(arms))
        panels: list[tuple[str, list[tuple[str, str, list[Interval]]]]] = [
            (
                "NDCG@10",
                [
                    ("demo", SERVED, [each.offline.served[METRIC] for each in arms]),
                    ("offline", OFFLINE, [each.offline.again[METRIC] for each in arms]),
                ],
            ),
            (
                "offline less the demo, paired (grey: the demo's interval)",
                [
                    ("offline", OFFLINE, [each.offline.difference[METRIC] for each in arms]),
                    ("offline, embeddings as sent", SAME, [each.same.difference[METRIC] for each in arms]),
                ],
            ),
        ]
        for axis, (title, series) in zip(axes, panels, strict=False):
            for nth, (label, colour, found) in enumerate(series):
                means = [each.mean for each in found]
                error = error_bars(found)
                place = at + 0.2 * nth - 0.1
                axis.errorbar(
                    place, means, error, color=colour, marker="o", ms=6, lw=0, elinewidth=2, capsize=4, label=label
                )
            axis.set(title=title, xticks=at, xticklabels=[each.arm for each in arms])
            axis.set_xlim(-0.6, len(arms) - 0.4)
        axes[0].set_ylim(bottom=0)
        axes[1].axhline(0, color=SERVED, lw=1)
        for nth, each in enumerate(arms):  # what the table itself leaves open: differences are to be seen against it
            own = each.offline.served[METRIC]
            axes[1].fill_between(
                [nth - 0.3, nth + 0.3], own.low - own.mean, own.high - own.mean, color=SERVED, alpha=0.12, lw=0
            )
        served_ranks, offline_ranks = (
            np.concatenate([each.ranks[which] for each in arms if each.embedded > 0] or [arms[0].ranks[which]])
            for which in (0, 1)
        )
        both = (served_ranks > 0) & (offline_ranks > 0)
        last = int(max(served_ranks.max(initial=1), offline_ranks.max(initial=1)))
        edges = np.geomspace(1, last + 1, _CELLS)
        counts = np.histogram2d(served_ranks[both], offline_ranks[both], [edges, edges])[0]
        mesh = axes[2].pcolormesh(edges, edges, np.where(counts > 0, np.log10(np.maximum(counts, 1)), np.nan).T)
        fig.colorbar(mesh, ax=axes[2], label="recommendations, log10", shrink=0.8)
        axes[2].set(
            title="rank of what was taken, arms that refresh",
            xlabel="demo",
            ylabel="offline",
            xscale="log",
            yscale="log",
        )
        handles = {
            label: handle for axis in axes[:2] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        fig.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False)
