"""What devices served is made again offline: the same ranks, in either runtime; and what cannot be compared."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from infra.demo.record import (
    EMBEDDINGS,
    MANIFEST,
    OUTCOMES,
    ServedLog,
    ServedRun,
    newest_run,
    read_served,
    write_served,
)
from infra.evaluation.as_served import compare
from streams.errors import BundleError, DatasetError, SettingsError
from streams.experiment.ranking_metrics import ndcg_at
from tests.bundles import make_bundle
from tests.cloud_worker.evaluation_data import HashEncoder, made_up, made_up_data, train_made_up
from tests.command import Command
from tests.in_process import TABLE_MS, InProcess

ARMS = ("never", "steady=every-n:n=3", "drift=drift:rate=0.3")


@pytest.fixture(scope="module")
def data():
    return made_up_data()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return train_made_up(tmp_path_factory.mktemp("bundle") / "b")


def served_by(folder: Path, *arguments, **options) -> ServedRun:
    """Serve in process, write the record and read it again."""
    folder.mkdir(parents=True, exist_ok=True)
    write_served(folder, *InProcess(*arguments, **options).run())
    return read_served(folder)


@pytest.fixture(scope="module")
def serve(data, bundle, tmp_path_factory):
    @cache
    def once(runtime: str) -> ServedRun:
        return served_by(tmp_path_factory.mktemp("served"), bundle, data[0], HashEncoder(), ARMS, runtime)

    return once


@pytest.fixture(params=["numpy", "onnx"])
def either(request, serve):
    if request.param == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("no onnxruntime")
    return serve(request.param)


@pytest.fixture
def run(serve):
    return serve("numpy")


def test_what_a_device_served_is_made_again_offline_with_the_same_ranks(either, data, bundle):
    """Devices, calibrator, staleness head, fusion and neighbour tables; text, sequence and live part of the cloud: all
    made twice."""
    found = compare(either, bundle, data[0], HashEncoder(), seed=0)
    assert [each.arm for each in found.arms] == ["never", "steady", "drift"]
    for each in found.arms:
        assert each.offline.moments == data[1].test.interactions
        assert each.same.moments == each.offline.moments, "the record has every embedding"
        assert each.same.equal == 1.0
        assert each.staleness < 1e-4
        assert each.offline.equal >= 0.99
        assert each.offline.near >= each.offline.equal
        assert abs(each.offline.difference["ndcg@10"].mean) < 1e-3
        assert all(each.offline.within(metric) for metric in ("ndcg@10", "hr@10", "mrr"))
    never, steady, drift = found.arms
    assert never.embedded == 0
    assert np.isnan(never.cosine)
    assert min(steady.cosine, drift.cosine) > 1 - 1e-6
    assert never.offline.equal == 1.0
    assert steady.embedded > 0.3
    assert drift.embedded > 0.1


def test_devices_served_with_several_tables(either):
    """Otherwise the test above would say nothing about them."""
    tables = either.outcomes["trends_as_of_ms"]
    assert (tables == -1).any(), "before the first one came"
    assert tables.n_unique() > 3
    assert (tables <= either.outcomes["event_time_ms"]).all()


@pytest.mark.parametrize(
    ("weights", "table"),
    [
        ([0.1, 0.1], pl.col("trends_as_of_ms")),
        (None, pl.lit(-1)),
        (None, pl.when(pl.col("trends_as_of_ms") >= 0).then(pl.col("trends_as_of_ms") - 6 * TABLE_MS).otherwise(-1)),
    ],
    ids=["weight", "none", "older"],
)
def test_other_tables_than_those_served_with_give_other_ranks(run, data, bundle, weights, table):
    other = dataclasses.replace(run, outcomes=run.outcomes.with_columns(trends_as_of_ms=table.cast(pl.Int64)))
    if weights is not None:
        device = {**bundle.device, "fusion.trends": np.array(weights, np.float32)}
        bundle = dataclasses.replace(bundle, device=device)
    found = compare(other, bundle, data[0], HashEncoder(), seed=0)
    assert all(each.same.equal < 0.9 for each in found.arms)


def test_devices_without_tables_are_made_again_without(data, bundle, tmp_path):
    without = served_by(tmp_path, bundle, data[0], HashEncoder(), ARMS, trends=False)
    assert (without.outcomes["trends_as_of_ms"] == -1).all()
    assert all(each.same.equal == 1.0 for each in compare(without, bundle, data[0], HashEncoder(), seed=0).arms)


def test_the_record_says_what_ran(either, data, bundle, request):
    run, manifest = either, either.manifest
    assert manifest.runtimes == {"device-1": request.node.callspec.params["either"]}
    assert (manifest.bundle, manifest.dataset_hash) == (bundle.id, data[0].manifest.hash)
    assert manifest.recommendations == len(run.outcomes) == 3 * data[1].test.interactions
    assert manifest.embeddings == len(run.embeddings) == run.outcomes["refreshed"].sum()


def test_the_means_are_those_of_the_served_ranks(run, data, bundle):
    found = compare(run, bundle, data[0], HashEncoder(), seed=0)
    for each in found.arms:
        ranks = run.outcomes.filter(pl.col("arm") == each.arm)["rank"].to_numpy()
        assert each.offline.served["ndcg@10"].mean == pytest.approx(ndcg_at(ranks).mean())
    mean = {each.arm: each.offline.served["ndcg@10"].mean for each in found.arms}
    assert found.over_first["drift"].served["ndcg@10"].mean == pytest.approx(mean["drift"] - mean["never"])


def test_another_embedding_than_the_one_sent_gives_other_ranks(run, data, bundle):
    """Otherwise the test above could not fail."""
    turned = run.embeddings.with_columns(vector=pl.col("vector").reverse())
    found = compare(dataclasses.replace(run, embeddings=turned), bundle, data[0], HashEncoder(), seed=0)
    for each in found.arms[1:]:
        assert each.same.equal < 0.9
        assert each.offline.equal >= 0.99, "offline does not look at what was sent"


def test_ranks_that_were_not_served_so_do_not_agree(run, data, bundle):
    worse = run.outcomes.with_columns(rank=pl.when(pl.col("arm") == "drift").then(40).otherwise("rank").cast(pl.Int32))
    found = compare(dataclasses.replace(run, outcomes=worse), bundle, data[0], HashEncoder(), seed=0)
    agrees = {each.arm: each.offline.within("ndcg@10") for each in found.arms}
    assert agrees == {"never": True, "steady": True, "drift": False}
    assert found.arms[2].offline.difference["ndcg@10"].significant


def test_embeddings_that_the_record_lacks_are_left_out_of_the_second_comparison_alone(run, data, bundle):
    few = run.embeddings.filter(pl.col("arm") != "steady")
    found = compare(dataclasses.replace(run, embeddings=few), bundle, data[0], HashEncoder(), seed=0)
    _, steady, drift = found.arms
    assert steady.same.moments == round((1 - steady.embedded) * steady.offline.moments)
    assert steady.offline.equal >= 0.99
    assert drift.same.moments == drift.offline.moments


def test_of_repeated_recommendations_the_first_counts(run, data, bundle):
    again = pl.concat([run.outcomes, run.outcomes.head(5).with_columns(rank=pl.lit(50, pl.Int32))])
    found = compare(dataclasses.replace(run, outcomes=again), bundle, data[0], HashEncoder(), seed=0)
    assert found.repeated == 5
    assert all(each.offline.equal >= 0.99 for each in found.arms)


def test_an_index_that_reads_ahead_changes_embeddings_and_little_else(data, bundle, tmp_path):
    """As in a running demo: what the live index had read is not just what happened before. The device's side is, and
    what a table was made of."""
    ahead = served_by(tmp_path, bundle, data[0], HashEncoder(), ARMS, ahead=40)
    found = compare(ahead, bundle, data[0], HashEncoder(), seed=0)
    for each in found.arms:
        assert each.same.equal == 1.0
        assert each.offline.equal > 0.9
    assert all(0.9 < each.cosine < 1 - 1e-5 for each in found.arms[1:])


def test_a_demo_of_another_bundle_is_refused(run, data, tmp_path):
    other = make_bundle(tmp_path / "other")
    with pytest.raises(BundleError, match=rf"ran with bundle {run.manifest.bundle}, .* holds {other.id}") as caught:
        compare(run, other, data[0], HashEncoder(), seed=0)
    assert "--bundle" in caught.value.remedy


def test_a_demo_of_other_data_is_refused(run, bundle):
    with pytest.raises(DatasetError, match="replayed other data"):
        compare(run, bundle, made_up(seed=1), HashEncoder(), seed=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"row": pl.col("row") + 100_000}, "the dataset has"),
        ({"gap": pl.col("gap") + 1}, "do not bear out"),
        ({"as_of": pl.lit(500, pl.Int64)}, "with an embedding of 500 interactions"),
        ({"device_id": pl.lit("u0")}, "served to device u0"),
        ({"trends_as_of_ms": pl.col("event_time_ms") + 1}, "table as of .* is later"),
    ],
)
def test_a_record_that_the_data_do_not_bear_out_is_refused(run, data, bundle, change, words):
    other = dataclasses.replace(run, outcomes=run.outcomes.with_columns(**change))
    with pytest.raises(DatasetError, match=words):
        compare(other, bundle, data[0], HashEncoder(), seed=0)


def test_a_demo_that_ranked_candidates_only_is_refused(run, data, bundle):
    manifest = msgspec.structs.replace(run.manifest, ranking="candidates")
    with pytest.raises(SettingsError, match="the whole catalogue is ranked"):
        compare(dataclasses.replace(run, manifest=manifest), bundle, data[0], HashEncoder(), seed=0)


def test_a_demo_that_served_nothing_is_refused(run, data, bundle):
    with pytest.raises(DatasetError, match="served nothing"):
        compare(dataclasses.replace(run, outcomes=run.outcomes.clear()), bundle, data[0], HashEncoder(), seed=0)


def copied(run: ServedRun, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in (OUTCOMES, EMBEDDINGS, MANIFEST):
        (folder / name).write_bytes((run.path / name).read_bytes())
    return folder


def test_a_folder_without_a_record_says_what_it_lacks(tmp_path):
    with pytest.raises(DatasetError, match="there is no run folder"):
        read_served(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no record of what was served") as caught:
        read_served(tmp_path)
    assert "newest" in caught.value.remedy


def test_a_damaged_record_is_refused(run, tmp_path):
    folder = copied(run, tmp_path / "cut")
    (folder / OUTCOMES).write_bytes((folder / OUTCOMES).read_bytes()[:100])
    with pytest.raises(DatasetError, match="damaged"):
        read_served(folder)
    folder = copied(run, tmp_path / "newer")
    for number in (1, 99):  # written before tables were, and by what is yet to come
        (folder / MANIFEST).write_text(json.dumps(msgspec.to_builtins(run.manifest) | {"format": number}))
        with pytest.raises(DatasetError, match=f"format {number}, this version reads 2") as caught:
            read_served(folder)
        assert "run the demo again" in caught.value.remedy
    folder = copied(run, tmp_path / "without")
    run.outcomes.drop("as_of").write_parquet(folder / OUTCOMES)
    with pytest.raises(DatasetError, match="no column as_of"):
        read_served(folder)


def test_the_newest_demo_that_ran_to_its_end_is_taken(run, tmp_path):
    with pytest.raises(DatasetError, match="no demo that ran to its end"):
        newest_run(tmp_path)
    for name in ("demo-20260101-000000-aaaa", "demo-20260201-000000-aaaa"):
        copied(run, tmp_path / "runs" / name)
    (tmp_path / "runs" / "demo-20260301-000000-aaaa").mkdir()  # interrupted
    assert newest_run(tmp_path).name == "demo-20260201-000000-aaaa"


def test_the_command_says_what_to_do_where_there_is_nothing_to_compare(tmp_path):
    command = Command(tmp_path / "home")
    for arguments, words in (((), "run `driftline demo` first"), ((str(tmp_path / "none"),), "there is no run folder")):
        done = command.run("evaluate", "demo", *arguments)
        assert done.returncode == 1
        assert words in done.stderr
    assert not (command.home / "evaluations").exists()


def test_events_of_another_replay_are_no_part_of_the_record(run):
    log = ServedLog("mine")
    template = {"device_id": "u0", "arm": "never"}
    from streams.events import Recommendation

    for event_id in ("mine:3", "other:4", "mine:x"):
        log.add(
            Recommendation(
                2, "r", event_id, template["device_id"], template["arm"], "never", [], 1, 9, 1.0, 0.0, -1, -1, -1, -1,
                False, "", 5, 6, 0.1, 4,
            )
        )  # fmt: skip
    assert log.frame()["row"].to_list() == [3]
    assert log.frame()["trends_as_of_ms"].to_list() == [4]
    assert len(ServedLog("mine").frame()) == 0
    assert log.frame().schema == run.outcomes.schema
    assert ServedLog("mine").frame().schema == run.outcomes.schema
    assert np.isclose(log.frame()["staleness"][0], 1.0)
