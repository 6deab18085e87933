"""GRU4Rec as the package Cornac publishes it: its authors' own PyTorch code behind Cornac's interface.

Hidasi et al., arXiv 1511.06939, and Hidasi & Karatzoglou, arXiv 1706.03847. The network, the losses, the sampling of
negatives, Adagrad and the loop over epochs are the package's (`cornac.models.GRU4Rec.fit`); a session is a user's
whole history. What is ours: histories are walked side by side when it scores, where the package goes through each by
itself, with the same numbers (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from cornac.data import SequentialDataset
from cornac.models import GRU4Rec

from cloud_worker.evaluation.gru4rec_settings import Gru4RecOptions, walks
from cloud_worker.evaluation.references import Scorer
from cloud_worker.evaluation.tuning import OnEpoch, Tuned, train_tuned
from cloud_worker.training.data import Histories, Ints


def tuned_gru4rec(
    histories: Histories,
    candidates: Sequence[Gru4RecOptions],
    *,
    exclude_seen: bool,
    most_epochs: int,
    seed: int,
    on_epoch: OnEpoch,
) -> Tuned[Gru4RecOptions]:
    """Choose settings and epochs on the validation period, and train on everything (`train_tuned`)."""

    def fit(
        options: Gru4RecOptions, sequences: Sequence[Ints], epochs: int, after: Callable[[Scorer], bool]
    ) -> CornacGru4Rec:
        return CornacGru4Rec.fit(options, sequences, histories.n_items, epochs=epochs, seed=seed, after_epoch=after)

    return train_tuned(
        f"GRU4Rec (Cornac {metadata.version('cornac')})",
        fit,
        candidates,
        histories,
        exclude_seen=exclude_seen,
        most_epochs=most_epochs,
        seed=seed,
        on_epoch=on_epoch,
    )


class CornacGru4Rec:
    """The package's model behind `cloud_worker.evaluation.references.Scorer`.

    Parameters
    ----------
    items
        (K,) item index of each of the package's own.
    n_items
        N, more than K where items were never taken.
    """

    def __init__(self, model: GRU4Rec, items: Ints, n_items: int) -> None:
        self._model, self._items = model, items
        self._own = np.full(n_items, -1, np.int64)
        self._own[items] = np.arange(len(items))

    @classmethod
    def fit(
        cls,
        options: Gru4RecOptions,
        sequences: Sequence[Ints],
        n_items: int,
        *,
        epochs: int,
        seed: int,
        after_epoch: Callable[[Scorer], bool],
    ) -> CornacGru4Rec:
        """Train on users' sequences.

        Parameters
        ----------
        after_epoch
            Called after each epoch; True: it is enough.
        """
        torch.manual_seed(seed)
        rows = [
            (session, int(item), place) for session, each in enumerate(sequences) for place, item in enumerate(each)
        ]
        data = SequentialDataset.build(rows, fmt="SIT", seed=seed)
        model = GRU4Rec(
            layers=[options.width],
            loss=options.loss,
            batch_size=min(options.batch, len(sequences)),
            dropout_p_embed=options.dropout_embed,
            dropout_p_hidden=options.dropout_hidden,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
            sample_alpha=options.sample_alpha,
            n_sample=options.samples,
            constrained_embedding=True,
            n_epochs=epochs,
            logq=options.logq,
            seed=seed,
        )
        trained = cls(model, np.fromiter(data.iid_map, np.int64), n_items)
        sessions, done = data.s_iter, 0

        def each_epoch(*arguments: Any, **keywords: Any) -> Iterator[Any]:
            """Hand out the sessions, as the package asks for them at the beginning of each epoch."""
            nonlocal done
            if done and after_epoch(trained):
                raise _Enough
            done += 1
            model.model.train()
            return iter(sessions(*arguments, **keywords))

        data.s_iter = each_epoch
        try:
            model.fit(data)
        except _Enough:
            return trained
        after_epoch(trained)
        return trained

    @torch.no_grad()
    def scores(self, sequences: Sequence[Ints]) -> npt.NDArray[np.float32]:
        """(B, N) scores after each sequence; -inf for items that it never met, and where it met none of a history."""
        found = np.full((len(sequences), len(self._own)), -np.inf, np.float32)
        network = self._model.model.eval()
        known = [own[own >= 0] for own in (self._own[each] for each in sequences)]
        asked = sorted((walk for walk in walks(known) if len(walk.longest)), key=lambda walk: -len(walk.longest))
        lengths = np.array([len(walk.longest) for walk in asked], np.int64)
        wanted: dict[int, list[tuple[int, int]]] = {}
        for at, walk in enumerate(asked):
            for row, length in zip(walk.rows, walk.lengths, strict=True):
                wanted.setdefault(length, []).append((at, row))
        hidden = [torch.zeros(len(asked), self._model.layers[0])]
        for step in range(int(lengths.max(initial=0))):
            going = int((lengths > step).sum())
            hidden[0] = hidden[0][:going]
            items = torch.from_numpy(np.array([walk.longest[step] for walk in asked[:going]]))
            vectors, table, bias = network.embed(items, hidden)
            state = network.hidden_step(vectors, hidden)
            if step + 1 in wanted:
                places, rows = (list(column) for column in zip(*wanted[step + 1], strict=True))
                scores = network.score_items(state[places], table, bias)[:, : len(self._items)].numpy()
                found[np.ix_(rows, self._items)] = scores
        return found


class _Enough(Exception):
    """Training need not go on."""
