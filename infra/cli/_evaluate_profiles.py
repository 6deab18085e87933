"""``driftline evaluate profiles``: ways to write the profile text that the cloud's encoder reads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from infra.cli._console import print_whole
from infra.cli._evaluate import (
    BundleOption,
    DatasetOption,
    JsonOption,
    MomentsOption,
    OutOption,
    SeedOption,
    columns_of,
    compared,
    evaluation,
    signed,
    with_half_width,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cloud_worker.evaluation.bootstrap import Interval
    from cloud_worker.evaluation.profiles import Profiles

METRIC: Final = "ndcg@10"


def profiles(
    ctx: typer.Context,
    dataset: DatasetOption = None,
    bundle: BundleOption = None,
    moments: MomentsOption = 1_000,
    learn: Annotated[int, typer.Option(min=1, help="Profiles that each projector learns from.")] = 800,
    seed: SeedOption = 0,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """The text part of the cloud alone, with profiles written in different ways.

    Each template has a projector of its own into the bundle's space, trained on what lies before the test period.
    NDCG@10, HR@10 and MRR over the whole catalogue; intervals resample users.
    """
    options = {"moments": moments, "learn": learn, "seed": seed}
    with evaluation(ctx, "profiles", dataset=dataset, bundle=bundle, out=out, as_json=as_json, options=options) as run:
        from cloud_worker.evaluation.profile_templates import SERVED
        from cloud_worker.evaluation.profiles import compare
        from cloud_worker.evaluation.staleness import METRICS, difference
        from infra.evaluation.opening import open_encoder
        from infra.evaluation.paired_plot import plot_paired

        judged = run.judged
        with open_encoder(judged.settings) as encoder:
            found = compare(
                judged.bundle,
                judged.prepared,
                encoder,
                moments=moments,
                profiles=learn,
                seed=seed,
                on_progress=run.bars.show,
            )
        column = found.column
        values = {name: found.column.means(name) for name in METRICS}
        over = {
            (template, name): difference(column, template, SERVED, name)
            for template in column.ranks
            if template != SERVED
            for name in METRICS
        }
        run.notes.append(
            f"{len(column.users)} moments of {column.resamples.n_users} users; each projector learned from "
            f"{found.learned_from} profiles before the test period; a text has at most "
            f"{judged.bundle.manifest.profile_items} titles"
        )
        run.warn_of_few_users(column.resamples.n_users)
        result = {
            "rows": [_row(found, template, values) for template in column.ranks],
            "differences": [
                {"template": template, "other": SERVED, "metric": name} | compared("difference", interval)
                for (template, name), interval in over.items()
            ],
        }
        plot = partial(
            plot_paired,
            title=f"Ways to write a profile, text part alone: {judged.bundle.manifest.dataset}",
            values=values[METRIC],
            differences={template: each for (template, name), each in over.items() if name == METRIC},
            ours=SERVED,
            less="template less the served one",
        )
        run.finish(result, plot, lambda console: _show(console, found, values, over))


def _row(found: Profiles, template: str, cells: dict[str, dict[str, Interval]]) -> dict[str, Any]:
    """A template with its measures."""
    row: dict[str, Any] = {"template": template, "moments": len(found.column.users)}
    row |= {"users": found.column.resamples.n_users, "characters": found.characters[template]}
    for name, values in cells.items():
        row |= columns_of(name, values[template])
    return row


def _show(
    console: Console, found: Profiles, cells: dict[str, dict[str, Interval]], over: dict[tuple[str, str], Interval]
) -> None:
    from rich.table import Table

    table = Table(
        title="ways to write a profile: the text part of the cloud alone",
        caption="± half the width of the 95 % interval over users; * the interval leaves out 0",
    )
    table.add_column("template", no_wrap=True)
    table.add_column("characters", justify="right")
    for name in cells:
        table.add_column(name.upper(), justify="right", no_wrap=True)
    table.add_column(f"less the served one,\n{METRIC.upper()}", justify="right", no_wrap=True)
    for template in found.column.ranks:
        values = [with_half_width(each[template]) for each in cells.values()]
        less = over.get((template, METRIC))
        table.add_row(template, f"{found.characters[template]:.0f}", *values, "" if less is None else signed(less))
    print_whole(console, table)
