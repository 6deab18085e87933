"""What each policy promises, and what a wrong arm is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.policies import registry
from device_agent.policies.base import NEVER_MS, BasePolicy, Decision, Signals
from device_agent.policies.fixed import uniform
from device_agent.policies.registry import BUILT_IN, build_policy, policy_names
from device_agent.staleness import COS_RECENT, StalenessModel
from device_agent.worth import WorthModel
from streams.bundle import PHI
from streams.errors import SettingsError
from streams.experiment.arms import ArmSpec, parse_arm
from tests.device_agent.core_helpers import small_bundle

MODEL, WORTH = StalenessModel(small_bundle().device), WorthModel(small_bundle().device)


def signals(n=1, *, cos_recent=1.0, agreement=1.0, **given):
    phi = np.zeros((n, len(PHI)), np.float32)
    phi[:, COS_RECENT] = cos_recent
    phi[:, PHI.index("agreement")] = agreement
    defaults = {
        "count": 10,
        "has_embedding": True,
        "gap": 1,
        "age_ms": 0,
        "since_request": 1,
        "since_request_ms": 0,
        "in_flight": False,
        "event_time_ms": 0,
    } | given
    defaults["gap"] = np.where(defaults["has_embedding"], defaults["gap"], -1)
    hashes = np.asarray(defaults.pop("event_hash", np.arange(1, n + 1)), np.uint64)
    arrays = {name: np.broadcast_to(np.asarray(value), n) for name, value in defaults.items()}
    return Signals(phi=phi, score=MODEL, gain=WORTH, event_hash=hashes, **arrays)


def decide(arm, told, scratch=None):
    n = len(told.count)
    return build_policy(parse_arm(arm)).decide(told, np.zeros((n, 8), np.float32) if scratch is None else scratch)


ARMS = [
    "never",
    "always",
    "every-n:n=3",
    "ttl:seconds=60",
    "drift:threshold=0.3",
    "drift:rate=0.2",
    "reliability:threshold=0.3",
    "reliability:rate=0.2",
    "worth:threshold=0.05",
    "worth:rate=0.2",
    "disagreement:rate=0.2",
    "random:p=0.5",
]


@pytest.mark.parametrize("arm", ARMS)
def test_answers_have_one_entry_a_device_and_scores_are_numbers(arm):
    policy = build_policy(parse_arm(arm))
    told = signals(6, has_embedding=[True, False] * 3, age_ms=[5, NEVER_MS] * 3, since_request_ms=[5, NEVER_MS] * 3)
    decision = policy.decide(told, np.zeros((6, 8), np.float32))
    assert decision.request.shape == decision.score.shape == decision.reason.shape == (6,)
    assert np.isfinite(decision.score).all()
    assert decision.reason.max() < len(policy.reasons)


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "never"])
def test_device_without_embedding_asks_for_the_first_one(arm):
    told = signals(2, has_embedding=[False, True], age_ms=NEVER_MS, since_request_ms=NEVER_MS, since_request=0)
    decision = decide(arm, told)
    assert decision.request[0]
    assert build_policy(parse_arm(arm)).reasons[decision.reason[0]] == "initial"


@pytest.mark.parametrize("arm", ["every-n:n=3", "ttl:seconds=60", "drift:threshold=0", "drift:rate=0.2", "never"])
def test_without_initial_it_does_not(arm):
    told = signals(has_embedding=False, age_ms=NEVER_MS, since_request_ms=NEVER_MS, since_request=0)
    assert not decide(f"{arm}{',' if ':' in arm else ':'}initial=false", told).request[0]


def test_a_policy_can_ask_for_staleness_reliability_and_worth():
    told = signals(3, has_embedding=[True, False, True], gap=[5, -1, 0])
    assert told.worth[0] not in (0, 1)
    assert told.worth[1:].tolist() == [1, 0]
    assert 0 < told.staleness[0] < 1
    assert told.staleness[1:].tolist() == [1, 0]
    assert np.allclose(told.reliability, 1 - told.staleness)


def test_never_and_always():
    assert not decide("never", signals(has_embedding=[True])).request[0]
    assert not decide("never", signals(has_embedding=[False])).request[0]
    assert decide("never:initial=true", signals(has_embedding=[False])).request[0]
    assert decide("always", signals()).request[0]


def test_every_n_counts_from_request_to_request():
    assert decide("every-n:n=3", signals(4, since_request=[1, 2, 3, 4])).request.tolist() == [False, False, True, True]


def test_ttl_counts_from_the_newer_of_request_and_embedding():
    told = signals(4, age_ms=[59_999, 60_000, 90_000, 90_000], since_request_ms=[90_000, 90_000, 10, NEVER_MS])
    assert decide("ttl:seconds=60", told).request.tolist() == [False, True, False, True]


def test_drift_asks_at_its_threshold():
    assert decide("drift:threshold=0.5", signals(cos_recent=0.6)).request.tolist() == [False]
    assert decide("drift:threshold=0.5", signals(cos_recent=0.5)).request.tolist() == [True]


def test_reliability_asks_where_the_head_says_that_a_refresh_pays():
    told = signals(60, cos_recent=np.linspace(-1, 1, 60))
    asked = decide("reliability:threshold=0.5", told)
    assert (asked.request == (told.staleness >= 0.5)).all()
    assert (asked.score == told.staleness).all()
    assert not decide("reliability:threshold=0", signals(has_embedding=False, age_ms=NEVER_MS)).reason[0]


def test_worth_asks_where_a_refresh_gains_more_than_its_price():
    told = signals(60, cos_recent=np.linspace(-1, 1, 60))
    price = float(np.median(told.worth.clip(0.001)))
    asked = decide(f"worth:threshold={price}", told)
    assert 0 < asked.request.sum() < 60
    assert (asked.request == (told.worth >= np.float32(price))).all()


def test_disagreement_asks_where_both_models_part():
    told = signals(3, agreement=[1.0, 0.2, -0.9])
    assert decide("disagreement:threshold=0.7", told).request.tolist() == [False, True, True]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.3]), st.floats(0.05, 0.5))
def test_drift_with_a_rate_finds_it_whatever_the_scale_of_the_scores(seed, rate, scale):
    rng, devices, steps = np.random.default_rng(seed), 5, 2000
    policy, scratch = build_policy(ArmSpec("d", "drift", {"rate": rate})), np.zeros((devices, 8), np.float32)
    asked = np.zeros(devices)
    for _ in range(steps):
        told = signals(devices, cos_recent=1 - rng.exponential(scale, devices).clip(0, 2))
        asked += policy.decide(told, scratch).request
    # The docstring's bound: |theta_T - theta_0| / (step * T), with theta in [0, 2].
    assert np.abs(asked / steps - rate).max() <= 2 / (0.05 * steps)
    assert np.isfinite(scratch).all()


def test_drift_does_not_count_wishes_that_were_not_heard():
    heard, unheard = np.zeros((1, 8), np.float32), np.zeros((1, 8), np.float32)
    decide("drift:rate=0.1", signals(cos_recent=0.0), heard)
    decide("drift:rate=0.1", signals(cos_recent=0.0, in_flight=True), unheard)
    assert heard[0, 0] > 0 > unheard[0, 0]


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_drift_with_a_rate_never_spends_more_than_its_rate_however_far_the_user_went(rate):
    policy, scratch = build_policy(ArmSpec("d", "drift", {"rate": rate})), np.zeros((1, 8), np.float32)
    asked = 0
    for step in range(1, 201):
        asked += int(policy.decide(signals(cos_recent=-1.0), scratch).request.sum())
        assert asked <= 1 + rate * step + 1e-3


def test_random_is_the_same_in_every_batch_and_has_its_rate():
    hashes = np.random.default_rng(0).integers(1, 2**63, 20_000)
    together = decide("random:p=0.2,seed=4", signals(20_000, event_hash=hashes)).request
    assert abs(together.mean() - 0.2) < 0.01
    for at in range(50):
        assert decide("random:p=0.2,seed=4", signals(1, event_hash=hashes[at : at + 1])).request[0] == together[at]
    other = decide("random:p=0.2,seed=5", signals(20_000, event_hash=hashes)).request
    assert abs((together & other).mean() - 0.04) < 0.01
    assert decide("random:p=1", signals(100)).request.all()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(-(2**40), 2**40))
def test_dice_are_shares(hashes, seed):
    dice = uniform(np.array(hashes, np.uint64), seed)
    assert ((dice >= 0) & (dice < 1)).all()


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ("every-n", "n"),
        ("every-n:n=0", ">= 1"),
        ("every-n:n=2.5", "int"),
        ("every-n:n=3,m=4", "m"),
        ("ttl:seconds=-1", "0"),
        ("ttl:seconds=nan", "0"),
        ("ttl:seconds=inf", "1000000000000"),
        ("drift", "exactly one"),
        ("drift:threshold=0.1,rate=0.1", "exactly one"),
        ("drift:threshold=nan", "0"),
        ("drift:rate=1", "1"),
        ("reliability:threshold=1.5", "largest"),
        ("disagreement", "exactly one"),
        ("random:p=0", "0"),
        ("random:p=1.5", "1"),
        ("random:p=nan", "0"),
        ("random:p=yes", "float"),
        ("never:initial=3", "bool"),
    ],
)
def test_wrong_parameters_are_refused_with_what_exists(arm, says):
    with pytest.raises(SettingsError, match=r"its parameters are: .*initial") as caught:
        build_policy(parse_arm(arm))
    assert says in caught.value.message
    assert parse_arm(arm).policy in caught.value.message


def test_unknown_policy_is_refused_with_those_that_exist():
    with pytest.raises(SettingsError, match="every-n") as caught:
        build_policy(ArmSpec("a", "oracle", {}))
    assert all(name in str(caught.value) for name in BUILT_IN)


class Odd(BasePolicy, frozen=True):
    """A user's policy: asks for devices with an odd count."""

    @property
    def due_reason(self):
        return "odd"

    def due(self, told, scratch):
        return told.count % 2 == 1, np.ones(len(told.count), np.float32)


class Bare:
    """A user's policy that knows nothing of ours but the port."""

    reasons = ("bare",)

    def __init__(self, factor=1):
        self.factor = factor

    def decide(self, told, scratch):
        n = len(told.count)
        return Decision(np.ones(n, bool), np.full(n, self.factor, np.float32), np.zeros(n, np.uint8))


class Entry:
    def __init__(self, name, loaded):
        self.name, self.loaded, self.value = name, loaded, f"{__name__}:{name}"

    def load(self):
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


@pytest.fixture
def installed(monkeypatch):
    entries = [
        Entry("odd", Odd),
        Entry("bare", Bare),
        Entry("never", Bare),
        Entry("gone", ImportError("no module")),
        Entry("number", 3),
        Entry("none", dict),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == "driftline.policies" else [])


def test_installed_policies_stand_beside_ours_and_cannot_replace_them(installed):
    assert {"odd", "bare", "gone"} < set(policy_names())
    assert decide("odd", signals(2, count=[3, 4])).request.tolist() == [True, False]
    assert decide("bare:factor=2", signals()).score.tolist() == [2]
    assert not decide("never", signals()).request[0]


@pytest.mark.parametrize(
    ("arm", "says"),
    [("odd:x=1", "x"), ("bare:x=1", "x"), ("gone", "cannot be imported"), ("number", "callable"), ("none", "policy")],
)
def test_broken_installed_policies_are_refused(installed, arm, says):
    with pytest.raises(SettingsError, match=says):
        build_policy(parse_arm(arm))
