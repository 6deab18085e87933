"""Training one network of a bundle: early stopping on the validation period, then on to the end of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final, TypeVar

import numpy as np
import torch

from cloud_worker.sequence import SequenceModel
from cloud_worker.training import evaluate, next_item, srm
from cloud_worker.training.data import Ints
from cloud_worker.training.networks import sequence_embeddings
from cloud_worker.training.options import FitOptions
from cloud_worker.training.run import Run
from streams.experiment.ranking_metrics import ndcg_at

WATCHED: Final = 700
"""Moments of the validation period that early stopping looks at."""
PATIENCE: Final = 3

Model = TypeVar("Model", srm.Srm, SequenceModel)


def train_network(run: Run, stage: str, build: Callable[[], Model], options: FitOptions) -> Model:
    """Train a network on the training period; the epoch that was best on the validation period is kept."""
    generator = run.generator(stage)
    run.seed_torch(stage)
    model = build().to(run.device)
    if run.checkpoints.load(stage, model):
        model.eval()
        return model
    epochs = _epochs(run, options.epochs, run.histories.trained)
    watch = _watch(run, model, run.generator("watched"))
    best: dict[str, Any] = {"worth": -1.0}

    def after_epoch(epoch: int, loss: float) -> bool:
        note = ""
        if 2 * epoch >= epochs and watch is not None:
            worth = watch()
            note = f", NDCG@10 {worth:.4f}"
            if worth > best["worth"]:
                best.update(worth=worth, epoch=epoch, state=copy.deepcopy(model.state_dict()))
        run.say(stage, epoch, epochs, loss, note)
        return "state" in best and epoch - best["epoch"] >= PATIENCE

    next_item.fit(
        model,
        run.histories,
        options,
        lengths=run.histories.trained,
        epochs=epochs,
        exclude_seen=run.exclude_seen,
        generator=generator,
        after_epoch=after_epoch,
    )
    if "state" in best:
        model.load_state_dict(best["state"])
    run.checkpoints.save(stage, model)
    model.eval()
    return model


def go_on(run: Run, stage: str, model: srm.Srm | SequenceModel, options: FitOptions) -> None:
    """Warm start over both periods, in place: what is served next follows the validation period."""
    if run.checkpoints.load(stage, model):
        return
    run.seed_torch(stage)
    epochs = _epochs(run, options.final_epochs, run.histories.lengths)

    def after_epoch(epoch: int, loss: float) -> bool:
        run.say(stage, epoch, epochs, loss)
        return False

    next_item.fit(
        model,
        run.histories,
        options,
        lengths=run.histories.lengths,
        epochs=epochs,
        exclude_seen=run.exclude_seen,
        generator=run.generator(stage),
        after_epoch=after_epoch,
    )
    run.checkpoints.save(stage, model)


def _watch(run: Run, model: srm.Srm | SequenceModel, generator: np.random.Generator) -> Callable[[], float] | None:
    """NDCG@10 on some moments of the validation period; None where there are none."""
    histories = run.histories
    users, positions = histories.draw_valid(WATCHED, generator)
    if not len(users):
        return None

    def watch() -> float:
        if isinstance(model, SequenceModel):
            states = sequence_embeddings(model, histories, users, positions, run.options.window)
        else:
            states = model.running_states(histories, users, positions)
        with torch.no_grad():
            table, bias = model.table().cpu().numpy(), model.bias.detach().cpu().numpy()
        catalogue = evaluate.Catalogue(table, bias, table, bias)
        moments = evaluate.Moments(histories, users, positions, states, run.exclude_seen)
        return float(ndcg_at(evaluate.ranks(catalogue, moments, None, 0.0)).mean())

    return watch


def _epochs(run: Run, wanted: int, lengths: Ints) -> int:
    """No more than the data need: of large datasets fewer epochs see as many interactions."""
    positions = max(1, int(lengths.sum()))
    return min(wanted, max(2, run.options.most_positions // positions))
