"""The plot of `driftline evaluate collaborative`, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloud_worker.evaluation.collaborative import PER_DEVICE, RANDOM, SRM_ONLY
from cloud_worker.training.collaborative import ADAPTIVE, COOPERATIVE, INDEPENDENT
from infra.evaluation.plots import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cloud_worker.evaluation.bootstrap import Interval

ASKER_COLOURS: Final = ("#999999", "#e69f00", "#cc79a7", "#009e73", "#000000")
TRAINING_COLOURS: Final[Mapping[str, str]] = {INDEPENDENT: "#555555", COOPERATIVE: "#0072b2", ADAPTIVE: "#d55e00"}
_COLUMNS: Final = 3

Rules = Mapping[str, Mapping[str, Sequence["Interval"]]]


def plot_collaborative(path: Path, dataset: str, cells: Mapping[str, Rules], ratios: Sequence[float]) -> None:
    """NDCG@10 over the share that asks, a panel a fusion rule, a line for each way to choose who asks.

    These are of the independent SRM; where there are more trainings, two panels compare them: nobody asks, all ask.

    Parameters
    ----------
    cells
        By training, rule and who asks, at each ratio. A rule that no embedding concerns is a line in every panel.
    """
    own = cells[INDEPENDENT]
    rules = [rule for rule in own if rule != SRM_ONLY]
    compared = {"nobody asks": 0, "everybody asks": len(ratios) - 1} if len(cells) > 1 else {}
    panels = len(rules) + len(compared)
    title = f"Fusion rules, and who asks for a fresh embedding: {dataset}"
    with figure(path, title, -(-panels // _COLUMNS), min(_COLUMNS, panels)) as (fig, axes):
        alone = own[SRM_ONLY][RANDOM][0].mean
        for axis, rule in zip(axes, rules, strict=False):
            axis.axhline(alone, color="#555555", lw=1, ls=":", label="SRM only")
            for (who, intervals), colour in zip(own[rule].items(), ASKER_COLOURS, strict=True):
                means = [each.mean for each in intervals]
                axis.plot(ratios, means, color=colour, marker="o", ms=3, lw=1.6, label=who)
            axis.set(title=rule, xlabel="share of moments that asks", ylabel="NDCG@10")
        low, high = (each(axis.get_ylim()[end] for axis in axes[: len(rules)]) for each, end in ((min, 0), (max, 1)))
        for axis in axes[: len(rules)]:
            axis.set_ylim(low, high)
        for axis, (what, at) in zip(axes[len(rules) :], compared.items(), strict=False):
            _trainings(axis, cells, at)
            axis.set(title=f"by the SRM's training: {what}", ylabel="NDCG@10, 95 % interval")
        for axis in axes[panels:]:
            axis.set_axis_off()
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)


def _trainings(axis: Axes, cells: Mapping[str, Rules], at: int) -> None:
    """Every rule that all trainings have, a mark with its interval for each training."""
    rules = [rule for rule in cells[INDEPENDENT] if all(rule in found for found in cells.values())]
    for nth, (training, found) in enumerate(cells.items()):
        shown = [found[rule][PER_DEVICE][at] for rule in rules]
        axis.errorbar(
            [place + 0.22 * (nth - (len(cells) - 1) / 2) for place in range(len(rules))],
            [each.mean for each in shown],
            yerr=[[each.mean - each.low for each in shown], [each.high - each.mean for each in shown]],
            fmt="o",
            ms=4,
            lw=1.4,
            capsize=2,
            color=TRAINING_COLOURS[training],
            label=training,
        )
    axis.set_xticks(range(len(rules)), [rule.replace(" (", "\n(") for rule in rules], rotation=30, fontsize=8)
    axis.legend(frameon=False, fontsize=8)
