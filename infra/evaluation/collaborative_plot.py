"""The plot of `driftline evaluate collaborative`, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloud_worker.evaluation.collaborative import RANDOM
from cloud_worker.training.collaborative import ADAPTIVE, COOPERATIVE
from cloud_worker.training.list_fusion import SRM_ONLY
from infra.evaluation.plots import error_bars, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cloud_worker.evaluation.bootstrap import Interval

ASKER_COLOURS: Final = ("#999999", "#e69f00", "#cc79a7", "#009e73", "#000000")
TRAINING_COLOURS: Final[Mapping[str, str]] = {COOPERATIVE: "#0072b2", ADAPTIVE: "#d55e00"}
_COLUMNS: Final = 3


def plot_collaborative(
    path: Path,
    dataset: str,
    cells: Mapping[str, Mapping[str, Sequence[Interval]]],
    trained: Mapping[tuple[str, str], Sequence[Interval]],
    ratios: Sequence[float],
) -> None:
    """NDCG@10 over the share that asks, a panel a fusion rule, a line for each way to choose who asks.

    These are of the independent SRM. Where there are other trainings, two panels more say what each has over it.

    Parameters
    ----------
    cells
        By rule and who asks, at each ratio. A rule that no embedding concerns is a line in every panel.
    trained
        By training and rule, at each ratio: the paired difference to the independent SRM. The first ratio is that
        nobody asks, the last that everybody does.
    """
    rules = [rule for rule in cells if rule != SRM_ONLY]
    compared = {"nobody asks": 0, "everybody asks": len(ratios) - 1} if trained else {}
    panels = len(rules) + len(compared)
    title = f"Fusion rules, and who asks for a fresh embedding: {dataset}"
    with figure(path, title, -(-panels // _COLUMNS), min(_COLUMNS, panels)) as (fig, axes):
        alone = cells[SRM_ONLY][RANDOM][0].mean
        for axis, rule in zip(axes, rules, strict=False):
            axis.axhline(alone, color="#555555", lw=1, ls=":", label="SRM only")
            for (who, intervals), colour in zip(cells[rule].items(), ASKER_COLOURS, strict=True):
                means = [each.mean for each in intervals]
                axis.plot(ratios, means, color=colour, marker="o", ms=3, lw=1.6, label=who)
            axis.set(title=rule, xlabel="share of moments that asks", ylabel="NDCG@10")
        _same_height(axes[: len(rules)])
        for axis, (what, at) in zip(axes[len(rules) :], compared.items(), strict=False):
            _trainings(axis, trained, at)
            axis.set(title=f"what the SRM's training changes: {what}", ylabel="NDCG@10 less the independent SRM's")
        if compared:
            _same_height(axes[len(rules) : panels])
        for axis in axes[panels:]:
            axis.set_axis_off()
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)


def _trainings(axis: Axes, trained: Mapping[tuple[str, str], Sequence[Interval]], at: int) -> None:
    """A mark with its interval for each rule and training."""
    rules = list(dict.fromkeys(rule for _, rule in trained))
    axis.axhline(0, color="#555555", lw=1, ls=":")
    for (training, colour), aside in zip(TRAINING_COLOURS.items(), (-0.12, 0.12), strict=True):
        shown = [trained[training, rule][at] for rule in rules]
        axis.errorbar(
            [place + aside for place in range(len(rules))],
            [each.mean for each in shown],
            yerr=error_bars(shown),
            fmt="o",
            ms=4,
            lw=1.4,
            capsize=2,
            color=colour,
            label=training,
        )
    axis.set_xticks(range(len(rules)), [rule.replace(" (", "\n(") for rule in rules], rotation=30, fontsize=8)
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def _same_height(axes: Sequence[Axes]) -> None:
    low, high = (each(axis.get_ylim()[end] for axis in axes) for each, end in ((min, 0), (max, 1)))
    for axis in axes:
        axis.set_ylim(low, high)
