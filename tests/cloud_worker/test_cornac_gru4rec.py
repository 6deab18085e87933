"""The published GRU4Rec behind our port. It is an optional extra, which no set-up installs by itself."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cornac", reason="the extra `compare` is not installed: uv pip install -e '.[compare]'")

from cloud_worker.evaluation.cornac_gru4rec import CornacGru4Rec
from cloud_worker.evaluation.gru4rec_settings import Gru4RecOptions

N = 40
SMALL = Gru4RecOptions(width=16, batch=8, dropout_embed=0.0, dropout_hidden=0.0, samples=32)


def ring(users: int, length: int) -> list[np.ndarray]:
    """Walks around a ring of N - 1 items, from different places: item N - 1 is never taken."""
    return [(start * 7 + np.arange(length)) % (N - 1) for start in range(users)]


def trained(options=SMALL, epochs=2, seed=0, after_epoch=lambda _: False, sequences=None) -> CornacGru4Rec:
    given = ring(30, 12) if sequences is None else sequences
    return CornacGru4Rec.fit(options, given, N, epochs=epochs, seed=seed, after_epoch=after_epoch)


def test_it_learns_what_comes_next():
    scores = trained(epochs=15).scores([np.array([4, 5, 6, 7]), np.array([20, 21])])
    assert scores.shape == (2, N)
    assert scores.argmax(axis=1).tolist() == [8, 22]


def test_scores_are_the_packages_own():
    model = trained()
    sequences = [np.array([3]), np.array([3, 4, 9]), np.array([30, 2]), np.array([30, 2, 5, 6, 7]), np.array([11])]
    found = model.scores(sequences)
    package, own = model._model, model._own
    for row, each in zip(found, sequences, strict=True):
        theirs = package.score(0, own[each].tolist())
        assert np.allclose(row[model._items], theirs, atol=1e-5)


def test_what_it_never_met_has_no_score_and_a_history_of_nothing_else_no_row():
    scores = trained().scores([np.array([1, 2]), np.array([N - 1]), np.array([1, N - 1, 2])])
    assert np.isneginf(scores[:, N - 1]).all()
    assert np.isfinite(scores[[0, 2], : N - 1]).all()
    assert np.isneginf(scores[1]).all()
    assert np.allclose(scores[0], scores[2])


def test_every_epoch_is_told_and_training_ends_when_it_is_enough():
    told = []
    trained(epochs=5, after_epoch=lambda scorer: told.append(scorer.scores([np.array([1])])) or len(told) == 3)
    assert len(told) == 3
    assert not np.array_equal(told[0], told[2])
    every = []
    trained(epochs=4, after_epoch=lambda _: every.append(1))
    assert len(every) == 4


def test_looking_at_it_after_an_epoch_changes_nothing_about_the_next():
    dropping = Gru4RecOptions(width=16, batch=8, samples=32)
    looked = trained(dropping, after_epoch=lambda scorer: scorer.scores([np.array([1, 2])]) is None)
    alone = trained(dropping)
    assert np.array_equal(looked.scores([np.arange(5)]), alone.scores([np.arange(5)]))


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    found = [trained(seed=seed).scores([np.arange(3)])[0, : N - 1] for seed in (0, 0, 1)]
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_fewer_users_than_a_batch_are_learned_from():
    assert np.isfinite(trained(sequences=ring(3, 6)).scores([np.array([0, 1])])[0, 1])
