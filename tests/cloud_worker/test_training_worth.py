"""What a refresh is expected to gain, from the whole distribution that a fresh embedding stands for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from cloud_worker.training import worth
from cloud_worker.training.data import make_histories
from cloud_worker.training.evaluate import Catalogue, Moments
from cloud_worker.training.options import HeadOptions
from streams.bundle import PHI

N, D, H, USERS, LENGTH = 30, 4, 3, 6, 5


def serving(seed: int, *, exclude_seen: bool) -> tuple[Catalogue, Moments, np.random.Generator]:
    rng = np.random.default_rng(seed)
    items = np.concatenate([rng.permutation(N)[:LENGTH] for _ in range(USERS)])
    users = np.repeat([f"u{each}" for each in range(USERS)], LENGTH)
    histories = make_histories(users, items, np.arange(len(items)), N, 10**6)
    catalogue = Catalogue(*(rng.normal(size=shape).astype(np.float32) for shape in ((N, D), (N,), (N, H), (N,))))
    hidden = rng.normal(size=(USERS, H)).astype(np.float32)
    return catalogue, Moments(histories, np.arange(USERS), np.full(USERS, 3), hidden, exclude_seen), rng


def z(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean()) / scores.std()


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_expected_gain_is_the_sum_over_the_catalogue(exclude_seen: bool) -> None:
    catalogue, moments, rng = serving(1, exclude_seen=exclude_seen)
    fresh, served = rng.normal(size=(2, USERS, D)).astype(np.float32)
    alphas = rng.uniform(0.2, 0.9, USERS)
    betas, said = rng.uniform(0, 1, USERS), rng.normal(size=(USERS, N)).astype(np.float32)
    after = worth.Served(fresh, np.full(USERS, 0.8), np.full(USERS, 0.3))
    found = worth.expected_gains(
        catalogue, moments, after, worth.Served(served, alphas, betas), lambda rows: said[rows]
    )
    for user in range(USERS):
        may = np.ones(N, bool)
        if exclude_seen:
            may[moments.histories.of(user, 3)] = False
        srm = z(catalogue.srm_out @ moments.hidden[user] + catalogue.srm_bias)
        raw = catalogue.vectors @ fresh[user] + catalogue.bias
        other = z(catalogue.vectors @ served[user] + catalogue.bias)
        own = (catalogue.srm_out @ moments.hidden[user] + catalogue.srm_bias)[may]
        gains = []
        for beta, both in (
            (0.3, z(0.8 * z(raw) + 0.2 * srm)),
            (betas[user], z(alphas[user] * other + (1 - alphas[user]) * srm)),
        ):
            scores = both + beta * said[user]
            rank = (scores[may][None] >= scores[may][:, None]).sum(axis=1)
            gains.append(1 / np.log2(1 + rank))
        by_model = [float(np.exp(each) @ (gains[0] - gains[1]) / np.exp(each).sum()) for each in (raw[may], own)]
        assert found.by_model[:, user] == pytest.approx(by_model, abs=1e-4)
        mixed = found.cloud_share * by_model[0] + (1 - found.cloud_share) * by_model[1]
        assert found.gains[user] == pytest.approx(mixed, abs=1e-4)


def test_the_models_are_mixed_so_that_what_was_taken_is_likeliest() -> None:
    """Of two models the one that knows what comes is believed, and of two alike each as much."""
    _, moments, rng = serving(4, exclude_seen=False)
    vectors, none = rng.normal(size=(N, D)).astype(np.float32), np.zeros(N, np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    catalogue = Catalogue(vectors, none, vectors, none)

    def share(embeddings: np.ndarray, hidden: np.ndarray) -> float:
        at = Moments(moments.histories, moments.users, moments.positions, hidden, False)
        served = worth.Served(embeddings, np.full(USERS, 0.5), np.zeros(USERS))
        nothing = np.zeros((USERS, N), np.float32)
        return worth.expected_gains(catalogue, at, served, served, lambda rows: nothing[rows]).cloud_share

    knows = 30 * vectors[moments.targets]
    guesses = rng.normal(size=(USERS, D)).astype(np.float32)
    assert share(knows, guesses) > 0.9
    assert share(guesses, knows) < 0.1
    assert share(guesses, guesses) == pytest.approx(0.5)


def test_a_refresh_that_brings_what_is_there_gains_nothing() -> None:
    catalogue, moments, rng = serving(2, exclude_seen=True)
    e = rng.normal(size=(USERS, D)).astype(np.float32)
    said = rng.normal(size=(USERS, N)).astype(np.float32)
    now = worth.Served(e, np.full(USERS, 0.7), np.full(USERS, 0.4))
    assert np.abs(worth.expected_gains(catalogue, moments, now, now, lambda rows: said[rows]).by_model).max() == 0


def test_the_head_finds_what_decides_in_the_unit_of_the_gains_that_were_had() -> None:
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(4_000, len(PHI))).astype(np.float32)
    truth = 0.05 + 0.04 * np.tanh(phi[:, 5])
    realised = truth + rng.normal(0, 0.2, len(phi))
    gaps = np.where(np.arange(len(phi)) % 8, 3, 0)
    truth[gaps == 0] = realised[gaps == 0] = 0
    found = worth.fit(phi, gaps, 3 * truth - 0.1, realised, np.arange(4_000) // 20, HeadOptions(epochs=30), seed=0)
    assert np.corrcoef(found.predicted, truth)[0, 1] > 0.95
    assert found.predicted.mean() == pytest.approx(realised.mean(), abs=1e-6)
    top = np.argsort(-found.predicted)[:400]
    assert found.predicted[top].mean() == pytest.approx(truth[top].mean(), abs=0.02)
    assert np.corrcoef(found.head.values(phi)[gaps > 0], truth[gaps > 0])[0, 1] > 0.95
    assert not found.predicted[gaps == 0].any()


def test_the_head_is_never_turned_around_and_survives_no_moments() -> None:
    rng = np.random.default_rng(1)
    phi = rng.normal(size=(400, len(PHI))).astype(np.float32)
    expected = phi[:, 2].astype(np.float64)
    gaps = np.ones(len(phi), np.int64)
    found = worth.fit(phi, gaps, expected, -expected, np.arange(400) // 4, HeadOptions(epochs=30), seed=0)
    assert np.corrcoef(found.predicted, expected)[0, 1] > 0.5
    nothing = worth.fit(phi[:0], gaps[:0], expected[:0], expected[:0], np.zeros(0, int), HeadOptions(epochs=2), seed=0)
    assert np.isfinite(nothing.head.values(phi)).all()


def test_what_the_tables_tell_everybody_is_no_gain_of_a_refresh() -> None:
    """A table that names the next items as loudly as both embeddings disagree leaves little for a refresh to bring."""
    catalogue, moments, rng = serving(3, exclude_seen=False)
    fresh, served = rng.normal(size=(2, USERS, D)).astype(np.float32)
    known = fresh @ catalogue.vectors.T + catalogue.bias

    def gains(beta: float) -> float:
        after, now = (worth.Served(e, np.full(USERS, 0.9), np.full(USERS, beta)) for e in (fresh, served))
        return float(worth.expected_gains(catalogue, moments, after, now, lambda rows: known[rows]).by_model[0].mean())

    assert 0 < gains(3.0) < 0.5 * gains(0.0)
