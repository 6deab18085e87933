"""The four trainings of small models in a bundle: the SRM's and the control's, each on one period, then on both."""

from __future__ import annotations

from cloud_worker.training.one_network import go_on, train_network
from cloud_worker.training.run import Run
from cloud_worker.training.srm import Srm, make_srm


def train_srm(run: Run) -> Srm:
    """Train the device's small model on the training period."""
    return train_network(run, "SRM", lambda: _untrained(run), run.options.srm)


def srm_to_the_end(run: Run, model: Srm) -> None:
    """Let it go on over both periods, in place."""
    go_on(run, "SRM to the end", model, run.options.srm)


def train_second(run: Run) -> Srm:
    """Train the control, another one of its kind, on the training period."""
    return train_network(run, "second SRM", lambda: _untrained(run), run.options.srm)


def second_to_the_end(run: Run, model: Srm) -> None:
    """Let it go on over both periods, in place."""
    go_on(run, "second to the end", model, run.options.srm)


def _untrained(run: Run) -> Srm:
    options = run.options
    return make_srm(
        options.srm_kind,
        run.histories.n_items,
        options.srm.dim,
        window=options.window,
        dropout=options.srm.dropout,
    )
