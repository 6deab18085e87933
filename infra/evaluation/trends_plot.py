"""The plot of `driftline evaluate trends`, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloud_worker.evaluation.staleness import CALIBRATED, FRESH, SRM
from cloud_worker.evaluation.trends import ADDED
from infra.evaluation.plots import COLOURS, figure

if TYPE_CHECKING:
    from cloud_worker.evaluation.bootstrap import Interval

LINES: Final[Mapping[str, str]] = dict(zip(ADDED, (":", "--", "-"), strict=True))


def plot_trends(
    path: Path,
    *,
    dataset: str,
    gaps: Sequence[int],
    values: Mapping[str, Sequence[Interval]],
    refreshed: Mapping[str, Mapping[float, Interval]],
    gap: int,
) -> None:
    """NDCG@10 over the gap by method, and over the share of refreshes by what is added.

    Parameters
    ----------
    values
        At each gap, by method.
    refreshed
        By what is added, then by share; at ``gap``.
    """
    with figure(path, f"What the broadcast to all devices is worth: {dataset}", 1, 2) as (_, axes):
        for served in (SRM, CALIBRATED, FRESH):
            for added, line in LINES.items():
                method = f"{served}{added}"
                means = [each.mean for each in values[method]]
                axes[0].plot(range(len(gaps)), means, color=COLOURS[served], ls=line, marker="o", ms=4, label=method)
        axes[0].set(title="by gap", xlabel="interactions since the embedding", ylabel="NDCG@10")
        axes[0].set_xticks(range(len(gaps)), [str(each) for each in gaps])
        for added, by_share in refreshed.items():
            shares = [100 * share for share in by_share]
            found = list(by_share.values())
            colour, label = COLOURS[CALIBRATED], f"{CALIBRATED}{added}"
            axes[1].plot(shares, [e.mean for e in found], color=colour, ls=LINES[added], marker="o", label=label)
            axes[1].fill_between(shares, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.08)
        axes[1].set(title=f"by refreshes, handed out by w, gap {gap}", xlabel="% of moments refreshed")
        for axis in axes:
            axis.set_ylim(bottom=0)
            axis.legend(fontsize=7, loc="lower left")
