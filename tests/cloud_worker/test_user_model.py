"""From histories to embeddings and candidates by way of three parts."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from cloud_worker import blend as blending
from cloud_worker import user_model
from cloud_worker.blend import Blend
from cloud_worker.history import History
from cloud_worker.live.index import LiveIndex
from cloud_worker.live.reader import live_options
from cloud_worker.live.shared import SharedIndex
from cloud_worker.profile_text import profile_text
from cloud_worker.retrieval import NearestItems
from cloud_worker.text_part import Projector
from cloud_worker.user_model import BlendedUserModel
from streams.bundle import load_bundle
from streams.clock import ManualClock
from streams.errors import BundleError, EncoderError
from tests.bundles import make_bundle
from tests.encoders import HashEncoder

N = 80


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b", n_items=N, profile_items=3, window=6)


@pytest.fixture
def live(bundle):
    """Some others, each of whom took five items of a row of neighbouring ones."""
    index = LiveIndex(N, live_options(bundle))
    for user in range(18):
        items = (np.arange(5) + 4 * user) % N
        index.observe(np.full(5, 100 + user, np.uint64), items, 1000 * np.arange(5))
    return SharedIndex(index)


def history(*items: int, key: int = 1) -> History:
    return History(np.array(items, np.int32), 1000 * np.arange(len(items), dtype=np.int64), key, 1000 * len(items))


def model_of(bundle, live, *, encoder=None, nearest=None, blend=None) -> BlendedUserModel:
    if blend:
        blend = {"sequence": 0.0, "text": 0.0, "live": 0.0} | blend
        bundle = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, blend=blend))
    return BlendedUserModel(bundle, encoder or HashEncoder(), live, ManualClock(), nearest)


def scores(bundle, vectors):
    return vectors @ bundle.device["item_vectors"].T + bundle.device["item_bias"]


def best(values, n=10):
    return np.argsort(-values, axis=1, kind="stable")[:, :n].tolist()


def test_projector_equals_torch():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    mine = Projector(*(net.state_dict()[name].numpy() for name in ("0.weight", "0.bias", "2.weight", "2.bias")))
    texts = np.random.default_rng(0).normal(0, 2, (50, 24)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(mine(texts), net(torch.from_numpy(texts)).numpy(), atol=1e-5)
    assert mine(texts).dtype == np.float32


def test_equal_texts_are_encoded_once_and_the_first_bears_the_cost(bundle, live):
    encoder = HashEncoder()
    model = model_of(bundle, live, encoder=encoder)
    users = model.embed([history(1, 2, 3), history(4), history(9, 1, 2, 3), history(1, 2, 3)], 10)
    texts = [profile_text([*items], [0] * len(items), bundle.items.titles, bundle.items.categories, last=3)
             for items in ((1, 2, 3), (4,))]  # fmt: skip
    assert encoder.asked == [texts]
    np.testing.assert_array_equal(users.vectors[0], users.vectors[3])
    assert not np.array_equal(users.vectors[0], users.vectors[2]), "the same titles, another sequence"
    assert users.tokens[0] > 0
    assert users.tokens[2:].tolist() == [0, 0]
    assert (users.encoded, users.cached, users.shared) == (2, 0, 2)
    assert users.vectors.shape == (4, 128)
    assert set(users.seconds) == {"encode", "sequence", "live", "fit"}


def test_the_embedding_says_what_the_teacher_says(bundle, live):
    """The best ten of ⟨e, v⟩ + b are those of the mixture that e was fitted to, but for one or two."""
    histories = [history(*range(start, start + 5), key=start) for start in range(0, 60, 3)]
    users = model_of(bundle, live).embed(histories, N)
    everything = [np.setdiff1d(np.arange(N), each.items) for each in histories]
    assert [sorted(each.tolist()) for each in users.candidates] == [each.tolist() for each in everything]
    common = []
    for row, each in enumerate(histories):
        said = scores(bundle, users.vectors[row : row + 1])
        said[0, each.items] = -np.inf
        common.append(len({*best(said)[0]} & {*users.candidates[row][:10].tolist()}))
    assert np.mean(common) >= 8
    assert min(common) >= 6


def test_the_mixture_is_the_one_that_training_makes(bundle, live):
    """What is served equals what `cloud_worker.training.networks.fitted` computes from the same parts."""
    asked = history(1, 2, 3, 4)
    alone = {
        part: model_of(bundle, live, blend={part: 1.0}).embed([asked], N) for part in ("sequence", "text")
    }  # their fitted e, near to e_seq and e_text
    assert best(scores(bundle, alone["sequence"].vectors))[0] != best(scores(bundle, alone["text"].vectors))[0]
    model = model_of(bundle, live)
    table, bias = (torch.from_numpy(bundle.device[name].copy()) for name in ("item_vectors", "item_bias"))
    sequence = model._network.embed([asked.items], [asked.times_ms], model._inputs)
    text = model._text.embed([asked]).vectors
    of_others = live.scores([asked.items], [asked.key], np.array([asked.at_ms]))
    of_others[0, asked.items] = 0
    assert of_others.any()
    target = blending.teacher(
        *(torch.addmm(bias, torch.from_numpy(e), table.T) for e in (sequence, text)),
        torch.from_numpy(of_others),
        msgspec.convert(bundle.manifest.blend, Blend),
    )
    e = blending.fit(target, table, bias, torch.from_numpy(sequence)).half().float().numpy()
    users = model.embed([asked], 10)
    np.testing.assert_allclose(users.vectors, e, atol=1e-3)
    left = target.numpy().copy()
    left[0, asked.items] = -1
    assert users.candidates[0].tolist() == best(left)[0]


def test_each_part_can_be_asked_alone(bundle, live):
    asked = [history(1, 2, 3), history(40, 41, key=2)]
    encoder = HashEncoder()
    sequence = model_of(bundle, live, encoder=encoder, blend={"sequence": 1.0})
    users = sequence.embed(asked, 10)
    own = sequence._network.embed([each.items for each in asked], [each.times_ms for each in asked], sequence._inputs)
    wanted = scores(bundle, own)
    for row, each in enumerate(asked):
        wanted[row, each.items] = -np.inf
    assert [each.tolist() for each in users.candidates] == best(wanted)
    assert encoder.asked == [], "a part without weight costs nothing"
    assert set(users.seconds) == {"sequence", "fit"}

    users = model_of(bundle, live, encoder=encoder, blend={"text": 1.0}).embed(asked, 10)
    assert len(encoder.asked) == 1
    assert set(users.seconds) == {"encode", "sequence", "fit"}

    users = model_of(bundle, live, blend={"live": 1.0}).embed(asked, 10)
    of_others = live.scores([each.items for each in asked], [1, 2], np.array([3000, 2000]))
    for row, each in enumerate(asked):
        of_others[row, each.items] = 0
        count = min(10, np.count_nonzero(of_others[row]))
        assert users.candidates[row][:count].tolist() == best(of_others)[row][:count]
    assert np.isfinite(users.vectors).all()


def test_a_user_whom_the_live_part_does_not_know_is_left_to_the_others(bundle, live):
    """Nobody else took 79: the answer is the one of a cloud without a live part."""
    asked = [history(79)]
    assert not live.scores([np.array([79])], [1], np.array([0])).any()
    weights = bundle.manifest.blend
    without = model_of(bundle, live, blend=weights | {"live": 0.0}).embed(asked, 10)
    users = model_of(bundle, live).embed(asked, 10)
    np.testing.assert_allclose(users.vectors, without.vectors, atol=1e-3)
    assert users.candidates[0].tolist() == without.candidates[0].tolist()
    alone = model_of(bundle, live, blend={"live": 1.0}).embed(asked, 10)
    assert np.isfinite(alone.vectors).all()
    assert len(alone.candidates[0]) == 10


def test_a_new_user_without_history_has_an_embedding_and_candidates(bundle, live):
    users = model_of(bundle, live).embed([history(), history(1, 2)], 10)
    assert np.isfinite(users.vectors).all()
    assert [len(each) for each in users.candidates] == [10, 10]


def test_what_the_user_took_before_the_window_is_not_recommended_but_what_is_to_come_is(bundle, live):
    """The index knows more of a user than a full window says; of what it read ahead of the request it says nothing."""
    me = 7
    live.observe(np.full(2, me, np.uint64), np.array([50, 60]), np.array([500, 9000]))
    window = History(np.arange(6, dtype=np.int32), 1000 + 1000 * np.arange(6), me, 6000)
    candidates = model_of(bundle, live).embed([window], N).candidates[0].tolist()
    assert sorted(candidates) == [each for each in range(6, N) if each != 50]
    part_of_a_window = replace(window, items=window.items[1:], times_ms=window.times_ms[1:])
    assert 50 in model_of(bundle, live).embed([part_of_a_window], N).candidates[0].tolist()


def test_vectors_survive_the_topic(bundle, live):
    """Float16 loses nothing, even of an embedding that is beyond all measure."""
    huge = replace(bundle, cloud={**bundle.cloud, "sequence.out.bias": np.full(128, 1e6, np.float32)})
    for each in (bundle, huge):
        vectors = model_of(each, live).embed([history(1, 2, 3)], 10).vectors
        assert np.isfinite(vectors).all()
        np.testing.assert_array_equal(vectors, vectors.astype(np.float16).astype(np.float32))


def test_a_batch_in_pieces_is_the_same_batch(bundle, live, monkeypatch):
    histories = [history(*range(n, n + 4), key=n) for n in range(9)]
    whole = model_of(bundle, live).embed(histories, 10)
    monkeypatch.setattr(user_model, "SCORES_AT_ONCE", 2 * N)
    pieces = model_of(bundle, live).embed(histories, 10)
    np.testing.assert_allclose(pieces.vectors, whole.vectors, atol=2e-3)
    assert [each.tolist() for each in pieces.candidates] == [each.tolist() for each in whole.candidates]


def test_a_shortlist_answers_as_the_whole_catalogue_does(tmp_path):
    """Of a catalogue that is looked at through a graph, the candidates are nearly those of an exact look."""
    n_items = 12_000
    bundle = make_bundle(tmp_path / "b", n_items=n_items, d=16)
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(n_items, 16)).astype(np.float32)
    bundle = replace(
        bundle, device={**bundle.device, "item_vectors": vectors}, cloud={**bundle.cloud, "sequence.table": vectors}
    )
    live = SharedIndex(LiveIndex(n_items, live_options(bundle)))
    for user in range(30):
        live.observe(np.full(10, 50 + user, np.uint64), np.arange(10) + 10 * user, 1000 * np.arange(10))
    histories = [history(*range(n, n + 5), key=n) for n in range(0, 200, 10)]
    exact = model_of(bundle, live).embed(histories, 100)
    # One thread: several build another graph each time, and now and then one of the best five is not in it.
    nearest = NearestItems(vectors, bundle.device["item_bias"], threads=1)
    listed = model_of(bundle, live, nearest=nearest).embed(histories, 100)
    for asked, one, other in zip(histories, exact.candidates, listed.candidates, strict=True):
        assert len(np.intersect1d(one, other)) >= 90
        assert one[:5].tolist() == other[:5].tolist()
        assert not np.isin(asked.items, other).any()
    one, other = scores(bundle, exact.vectors), scores(bundle, listed.vectors)
    assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)]) > 0.95


def test_an_encoder_that_fails_is_an_encoder_error(bundle, live):
    encoder = HashEncoder()
    encoder.failing = EncoderError("away")
    with pytest.raises(EncoderError):
        model_of(bundle, live, encoder=encoder).embed([history(1)], 10)


def test_another_encoder_than_the_bundles_is_refused(bundle, live):
    with pytest.raises(BundleError, match=r"trained with the encoder test-encoder of dimension 384.*other-model"):
        model_of(bundle, live, encoder=HashEncoder(model_id="other-model"))
    with pytest.raises(BundleError, match="dimension 12"):
        model_of(bundle, live, encoder=HashEncoder(dim=12))
    with pytest.raises(BundleError, match="without its cloud part"):
        model_of(load_bundle(bundle.path, part="device"), live)


@pytest.mark.parametrize(
    "blend", [{"sequence": -1.0, "text": 1.0}, {"live": float("nan")}, {"sequence": 0.0}, {"magic": 1.0}]
)
def test_a_blend_that_is_none_is_refused(bundle, live, blend):
    with pytest.raises(BundleError, match="its blend"):
        model_of(bundle, live, blend=blend)
