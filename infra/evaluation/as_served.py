"""A demo's recommendations, made again offline: the comparison behind ``driftline evaluate demo``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cloud_worker.encoder import Encoder
from cloud_worker.evaluation.agreement import Agreement, agreement, over_first
from cloud_worker.evaluation.as_served import AsServed, Moments, open_as_served
from cloud_worker.evaluation.bootstrap import Interval
from cloud_worker.evaluation.test_period import OnProgress
from infra.demo.record import ServedRun
from streams.bundle import Bundle
from streams.datasets import Prepared
from streams.errors import BundleError, DatasetError, SettingsError
from streams.experiment.arms import parse_arm

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ArmAgain:
    """One arm, as it was served and as it is made again.

    Attributes
    ----------
    embedded
        Share of its recommendations that were made with an embedding.
    offline
        Everything made again offline, the embeddings too; of all recommendations, and of those with an embedding.
    same
        Made again with the embeddings that were really sent: what is left is the device's side alone. Of those
        recommendations whose embedding the record has, or that had none.
    staleness
        The largest difference of s, with the embeddings that were sent.
    cosine
        Mean cosine of the embeddings that were sent and those made again, over recommendations.
    ranks
        (Q,) served and (Q,) offline.
    """

    arm: str
    embedded: float
    offline: Agreement
    offline_embedded: Agreement
    same: Agreement
    staleness: float
    cosine: float
    ranks: tuple[Ints, Ints]


@dataclass(frozen=True)
class OverFirst:
    """What an arm has over the first one at the same moments, by metric: served, and made again offline."""

    served: dict[str, Interval]
    offline: dict[str, Interval]


@dataclass(frozen=True)
class Compared:
    """All arms. ``over_first`` is empty where devices had one arm each."""

    arms: list[ArmAgain]
    over_first: dict[str, OverFirst]
    users: int
    moments: int
    repeated: int
    """Recommendations beyond the first of an event and arm: left out."""


def check_comparable(run: ServedRun, bundle: Bundle, prepared: Prepared) -> None:
    """Refuse what cannot be compared.

    Raises
    ------
    BundleError
        The demo ran with another bundle.
    DatasetError
        It replayed other data.
    SettingsError
        It ranked the cloud's candidates only.
    """
    served = run.manifest
    if served.bundle != bundle.id:
        raise BundleError(
            f"the demo in {run.path} ran with bundle {served.bundle}, {bundle.path} holds {bundle.id}",
            remedy=f"name that bundle with --bundle (it was in {served.bundle_path}), or run the demo again",
        )
    if served.dataset_hash != prepared.manifest.hash:
        raise DatasetError(
            f"the demo in {run.path} replayed other data: {served.dataset} {served.dataset_hash[:12]}, prepared is "
            f"{prepared.manifest.name} {prepared.manifest.hash[:12]}",
            remedy="prepare the data that were replayed, or run the demo again",
        )
    if served.ranking != "catalogue":
        raise SettingsError(
            f"the demo in {run.path} ranked the cloud's {served.ranking} only; offline the whole catalogue is ranked",
            remedy="run it with device.ranking = 'catalogue'",
        )


def compare(
    run: ServedRun,
    bundle: Bundle,
    prepared: Prepared,
    encoder: Encoder,
    *,
    seed: int,
    on_progress: OnProgress = lambda _stage, _done, _total: None,
) -> Compared:
    """Make every recommendation of a demo again.

    Raises
    ------
    BundleError, DatasetError, SettingsError
        The demo's record does not fit the bundle or the data.
    """
    check_comparable(run, bundle, prepared)
    outcomes = run.outcomes.unique(["row", "arm"], keep="first", maintain_order=True)
    if outcomes.is_empty():
        raise DatasetError(f"the demo in {run.path} served nothing", remedy="run it again")
    rows, as_of, trends_as_of_ms, ranks = (
        outcomes[name].to_numpy().astype(np.int64) for name in ("row", "as_of", "trends_as_of_ms", "rank")
    )
    pipeline, moments = open_as_served(bundle, prepared, encoder, rows, as_of, trends_as_of_ms, on_progress=on_progress)
    _check_devices(run, prepared, outcomes, moments)
    names = [parse_arm(flag).name for flag in run.manifest.arms]
    found, offline = [], np.zeros(len(outcomes), np.int64)
    for nth, name in enumerate(names):
        on_progress("serving again", nth, len(names))
        at = np.flatnonzero((outcomes["arm"] == name).to_numpy())
        if not len(at):
            continue
        again = _arm(name, run, outcomes[at], pipeline, moments.take(at), ranks[at], seed)
        offline[at] = again.ranks[1]
        found.append(again)
    on_progress("serving again", len(names), len(names))
    over = {}
    if run.manifest.design == "paired" and found:
        over = _over_first(outcomes, moments, ranks, offline, [each.arm for each in found], seed)
    return Compared(
        found,
        over,
        len(np.unique(moments.users)),
        int(outcomes["row"].n_unique()),
        len(run.outcomes) - len(outcomes),
    )


def _arm(
    name: str,
    run: ServedRun,
    outcomes: pl.DataFrame,
    pipeline: AsServed,
    moments: Moments,
    served: Ints,
    seed: int,
) -> ArmAgain:
    has = moments.as_of >= 0
    offline = pipeline.ranks(moments)
    sent = run.vectors(name, outcomes["device_id"], outcomes["as_of"], pipeline.bundle.manifest.d)
    known = ~has | np.isfinite(sent).all(axis=1)
    same = pipeline.ranks(moments.take(known), sent[known])
    staleness = np.abs(outcomes["staleness"].to_numpy()[known] - same.staleness)
    users = moments.users
    return ArmAgain(
        name,
        float(has.mean()),
        agreement(users, served, offline.ranks, seed),
        agreement(users[has], served[has], offline.ranks[has], seed),
        agreement(users[known], served[known], same.ranks, seed),
        float(staleness.max(initial=0.0)),
        _cosine(sent[known & has], pipeline.embeddings(moments.take(known & has))),
        (served, offline.ranks),
    )


def _cosine(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Mean over rows (Q, d); NaN without any."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(axis=1) / np.maximum(lengths, 1e-30)).mean()) if len(one) else float("nan")


def _check_devices(run: ServedRun, prepared: Prepared, outcomes: pl.DataFrame, moments: Moments) -> None:
    """The record names devices and gaps; the data must say the same."""
    owners = prepared.events["device_id"].gather(outcomes["row"])
    wrong = (owners != outcomes["device_id"]).to_numpy() | (moments.gap != outcomes["gap"].to_numpy())
    if wrong.any():
        first = outcomes.row(int(np.flatnonzero(wrong)[0]), named=True)
        raise DatasetError(
            f"{run.path}: interaction {first['row']} was served to device {first['device_id']} at gap {first['gap']}, "
            "which the data do not bear out",
            remedy="run the demo again; if it stays, events were lost or counted twice",
        )


def _over_first(
    outcomes: pl.DataFrame, moments: Moments, served: Ints, offline: Ints, arms: list[str], seed: int
) -> dict[str, OverFirst]:
    """Each arm's differences to the first at the interactions that both served."""
    rows = outcomes["row"].to_numpy()
    places = {name: np.flatnonzero((outcomes["arm"] == name).to_numpy()) for name in arms}
    first, found = places[arms[0]], {}
    for name in arms[1:]:
        other = places[name]
        _, mine, theirs = np.intersect1d(rows[first], rows[other], assume_unique=True, return_indices=True)
        one, two = first[mine], other[theirs]
        found[name] = OverFirst(
            over_first(moments.users[one], served[one], served[two], seed),
            over_first(moments.users[one], offline[one], offline[two], seed),
        )
    return found
