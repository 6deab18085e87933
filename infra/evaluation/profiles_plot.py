"""The plot beside the table of profile templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from infra.evaluation.plots import COLOURS, figure

if TYPE_CHECKING:
    from cloud_worker.evaluation.bootstrap import Interval


def plot_profiles(
    path: Path, *, dataset: str, values: Mapping[str, Interval], characters: Mapping[str, float], ours: str
) -> None:
    """NDCG@10 of each template with its 95 % interval, over what a text costs.

    Parameters
    ----------
    values, characters
        By template.
    ours
        The one that is served.
    """
    with figure(path, f"Ways to write a profile: {dataset}", 1, 1) as (_, axes):
        for name, each in values.items():
            axes[0].errorbar(
                characters[name],
                each.mean,
                yerr=[[each.mean - each.low], [each.high - each.mean]],
                color=COLOURS["fused fresh"] if name == ours else COLOURS["SRM"],
                marker="o",
                ms=6,
                lw=2,
                capsize=3,
            )
            axes[0].annotate(name, (characters[name], each.mean), xytext=(7, 5), textcoords="offset points")
        axes[0].set(title="the text part alone", xlabel="characters of a text", ylabel="NDCG@10")
        axes[0].set_ylim(bottom=0)
        axes[0].set_xlim(left=0)
