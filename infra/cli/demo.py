"""`driftline demo`: the whole pipeline on a real dataset, from start to table."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli._console import print_whole, table_console
from infra.cli._context import CliContext
from infra.cli._options import ExperimentOption

ARMS = ("never", "every-n=every-n:n=25", "drift=drift:rate=0.04")
"""Nobody asks; everybody asks at the same steady rate; the same rate, spent where the embedding has drifted."""


def demo(
    ctx: typer.Context,
    dataset: Annotated[str | None, typer.Option(help="As `driftline data list` shows it.")] = None,
    events: Annotated[int | None, typer.Option(min=1, help="At most so many events of the test period.")] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help=f"An arm, [NAME=]POLICY[:KEY=VALUE,…]; repeat. Default: {', '.join(ARMS)}."),
    ] = None,
    experiment: ExperimentOption = None,
    design: Annotated[
        str, typer.Option(help="paired: each device runs all arms. split: each device has one. Of arms by flag.")
    ] = "paired",
    speed: Annotated[
        str | None, typer.Option(metavar="K|max", help="Event time passes K times as fast as wall time. [250 events/s]")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, max=64, help="Device workers.")] = 2,
    clouds: Annotated[int, typer.Option(min=1, max=64, help="Cloud workers.")] = 1,
    keep_topics: Annotated[bool, typer.Option("--keep-topics", help="Leave this run's topics in Kafka.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Replay a dataset's test period through Kafka, devices and cloud, and compare refresh policies."""
    from infra.demo.run import DemoOptions, run_demo
    from infra.experiments import choose_experiment
    from infra.launch import like_ctrl_c
    from streams.experiment.report import render_table, report_json, summary_lines

    context: CliContext = ctx.obj
    settings = context.settings
    options = DemoOptions(
        dataset=dataset or settings.dataset,
        experiment=choose_experiment(experiment, arm, ARMS, name="demo", design=design, salt="demo"),
        events=events,
        speed=_speed(speed),
        devices=devices,
        clouds=clouds,
        keep_topics=keep_topics,
    )
    shown = table_console(stderr=True)
    with like_ctrl_c():
        result = run_demo(settings, options, shown)
    report = result.report
    out = shown if json else table_console()
    print_whole(out, render_table(report))
    for line in summary_lines(report) + result.notes:
        out.print(line, highlight=False, markup=False)
    if json:
        typer.echo(report_json(report))
    if report.lost or report.repeated or report.double_applied:
        raise typer.Exit(1)


def _speed(text: str | None) -> float | None:
    from streams.errors import SettingsError

    if text is None:
        return None
    try:
        speed = float("inf") if text == "max" else float(text)
    except ValueError:
        speed = -1.0
    if not speed > 0:
        raise SettingsError(f"--speed {text} is neither a positive number nor max")
    return speed
