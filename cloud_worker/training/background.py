"""The thread beside a training: it encodes texts, asks the live index about the past, and then has SRMs trained."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from cloud_worker.encoder import Encoder
from cloud_worker.live.index import LiveOptions
from cloud_worker.training import blending, evaluate, live, text
from cloud_worker.training.options import Progress
from cloud_worker.training.run import Run
from cloud_worker.training.snapshots import Snapshots, choose
from cloud_worker.training.srm_process import SrmProcess
from streams.errors import TrainingError

Floats = npt.NDArray[np.float32]
LIVE_TRIALS: Final = 700
"""Moments that the live formulas are compared on."""


class Background:
    """The thread, from its beginning to its end.

    Our training steps are too small for two threads: they would wait for each other, and on a machine with other work
    a training took five times as long. So they have one core, and this thread the others; when it is done with texts
    and live index, it watches over the process that trains the last of the SRMs.
    """

    def __init__(self, run: Run, encoder: Encoder, titles: list[str], categories: list[str]) -> None:
        self.run, self.snapshots = run, _snapshots(run, titles, categories)
        self._stop, self._threads = threading.Event(), torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "encoding")
        self._process = SrmProcess(run)
        threads = max(1, self._threads - 1)
        encode = partial(_encode, run, encoder, threads=threads, stop=self._stop)
        encoded = self.snapshots.take(self.snapshots.encoded)
        profiles = text.profile_texts(run.histories, encoded, titles, categories, run.options.profile_items)
        self.item_text: Future[Floats] = self._pool.submit(encode, text.item_texts(titles, categories), "item texts")
        self.live: Future[tuple[LiveOptions, live.SparseScores, list[float]]] = self._pool.submit(self._live)
        self.profiles: Future[Floats] = self._pool.submit(encode, profiles, "profile texts")
        self.srms: Future[None]

    def finish_srms(self) -> None:
        """Let a process do what is left of the SRMs; theirs is trained on the training period."""
        self.srms = self._pool.submit(self._process.follow)

    def __enter__(self) -> Background:
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._process.end()
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads)

    def _live(self) -> tuple[LiveOptions, live.SparseScores, list[float]]:
        """Choose the formula on some moments of the validation period, and ask it about all snapshots."""
        run, snapshots = self.run, self.snapshots

        def on_done(done: int, total: int) -> None:
            if self._stop.is_set():
                raise TrainingError("training was stopped")
            run.on_progress(Progress("live index", done, total))

        rows = np.flatnonzero(snapshots.judged)
        if len(rows) > LIVE_TRIALS:
            rows = np.sort(run.generator("live").choice(rows, LIVE_TRIALS, replace=False))
        users, positions = snapshots.users[rows], snapshots.positions[rows]
        trials = live.scores_at(run.histories, users, positions, live.CHOICES, exclude_seen=run.exclude_seen)
        moments = evaluate.Moments.without_states(run.histories, users, positions, exclude_seen=run.exclude_seen)
        best, values = blending.best_live(trials, moments)
        chosen = live.CHOICES[best]
        (everywhere,) = live.scores_at(
            run.histories,
            snapshots.users,
            snapshots.positions,
            [chosen],
            exclude_seen=run.exclude_seen,
            on_done=on_done,
        )
        return chosen, everywhere, values


def _snapshots(run: Run, titles: list[str], categories: list[str]) -> Snapshots:
    """As many encoded ones as the characters of their profiles allow, judged by the mean length of an item's text."""
    popularity = run.histories.popularity(valid=False)
    lengths = np.array([len(each) for each in text.item_texts(titles, categories)])
    mean_items = min(run.options.profile_items, float(np.mean(run.histories.lengths)))
    per_profile = mean_items * float((lengths * popularity).sum() / max(int(popularity.sum()), 1)) + 40
    return choose(run.histories, run.options.moments, per_profile, run.generator("snapshots"))


def _encode(run: Run, encoder: Encoder, texts: list[str], stage: str, *, threads: int, stop: threading.Event) -> Floats:
    """(n, T) vectors of texts, in a thread of its own that ends soon after `stop`."""
    torch.set_num_threads(threads)  # counts for this thread only

    def on_done(done: int, total: int) -> None:
        if stop.is_set():
            raise TrainingError("training was stopped")
        run.on_progress(Progress(stage, done, total))

    return text.encode_all(encoder, texts, on_done)
