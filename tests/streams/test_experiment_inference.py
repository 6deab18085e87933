import numpy as np
import pytest
from scipy import stats

from streams.errors import DriftlineError
from streams.experiment.inference import difference, paired_difference, unpaired_difference
from streams.experiment.outcomes import DeviceSums


def _paired(rng, devices=60, effect=0.0):
    """Correlated events: a device has its own level, its own taste for the arm, and its own number of events."""
    events = rng.geometric(0.08, devices).astype(float)
    level = rng.normal(0.3, 0.15, devices)
    taste = rng.normal(effect, 0.1, devices)
    noise = rng.normal(0, 0.3, (2, devices)) * np.sqrt(events)
    return events, events * (level + taste) + noise[0], events, events * level + noise[1]


def test_with_one_event_a_device_it_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    arm, base = rng.normal(0.3, 1, 40), rng.normal(0.1, 1, 40)
    ones = np.ones(40)
    found = paired_difference(ones, arm, ones, base)
    expected = stats.ttest_rel(arm, base).confidence_interval(0.95)
    assert found.estimate == pytest.approx(arm.mean() - base.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.degrees == 39


def test_unpaired_with_one_event_a_device_it_is_welchs_t_test():
    rng = np.random.default_rng(2)
    arm, base = rng.normal(0.3, 2, 35), rng.normal(0.1, 1, 50)
    found = unpaired_difference(np.ones(35), arm, np.ones(50), base)
    expected = stats.ttest_ind(arm, base, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.degrees == pytest.approx(expected.df)


def test_the_standard_error_is_that_of_the_cluster_robust_regression_on_events():
    """Reference: the sandwich of OLS of the metric on an arm dummy, meat summed within devices (CR0 times D/(D-1))."""
    rng = np.random.default_rng(3)
    devices = 30
    rows = []
    for device in range(devices):
        level = rng.normal()
        rows += [(device, arm, level + 0.3 * arm + rng.normal()) for arm in (0, 1) for _ in range(rng.integers(1, 9))]
    who, arm, y = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    design = np.stack([np.ones_like(arm), arm], axis=1)
    bread = np.linalg.inv(design.T @ design)
    residual = y - design @ (bread @ design.T @ y)
    scores = np.stack([(design[who == d] * residual[who == d, None]).sum(0) for d in range(devices)])
    variance = (bread @ scores.T @ scores @ bread)[1, 1] * devices / (devices - 1)

    def sums(which, what):
        return np.array([what[(who == d) & (arm == which)].sum() for d in range(devices)])

    one = np.ones_like(y)
    found = paired_difference(sums(1, one), sums(1, y), sums(0, one), sums(0, y))
    assert found.standard_error == pytest.approx(np.sqrt(variance))


def test_the_interval_is_close_to_a_cluster_bootstraps():
    rng = np.random.default_rng(4)
    events, sums, base_events, base_sums = _paired(rng, devices=200, effect=0.05)
    found = paired_difference(events, sums, base_events, base_sums)
    picks = rng.integers(0, 200, (4000, 200))
    draws = sums[picks].sum(1) / events[picks].sum(1) - base_sums[picks].sum(1) / base_events[picks].sum(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    width = found.high - found.low
    assert found.low == pytest.approx(low, abs=0.1 * width)
    assert found.high == pytest.approx(high, abs=0.1 * width)
    assert found.standard_error == pytest.approx(draws.std(ddof=1), rel=0.1)


def test_unpaired_interval_is_close_to_a_bootstrap_that_draws_each_arm_by_itself():
    rng = np.random.default_rng(5)
    events, sums, _, _ = _paired(rng, devices=150, effect=0.1)
    _, _, base_events, base_sums = _paired(rng, devices=250)
    found = unpaired_difference(events, sums, base_events, base_sums)
    picks, base_picks = rng.integers(0, 150, (4000, 150)), rng.integers(0, 250, (4000, 250))
    draws = sums[picks].sum(1) / events[picks].sum(1) - base_sums[base_picks].sum(1) / base_events[base_picks].sum(1)
    assert found.standard_error == pytest.approx(draws.std(ddof=1), rel=0.1)


def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(6)
    runs, effect, covered, split_covered, naive_covered = 3000, 0.05, 0, 0, 0
    for _ in range(runs):
        events, sums, base_events, base_sums = _paired(rng, devices=80, effect=effect)
        found = paired_difference(events, sums, base_events, base_sums)
        covered += found.low <= effect <= found.high
        half = slice(None, 40), slice(40, None)
        split = unpaired_difference(events[half[0]], sums[half[0]], base_events[half[1]], base_sums[half[1]])
        split_covered += split.low <= effect <= split.high
        # As if events were independent: what this module must not do.
        naive = np.sqrt(2 * 0.3**2 / events.sum())
        naive_covered += abs(found.estimate - effect) < 1.96 * naive
    assert 0.93 <= covered / runs <= 0.97
    assert 0.92 <= split_covered / runs <= 0.97
    assert naive_covered / runs < 0.90


def test_arms_that_did_the_same_differ_by_exactly_nothing():
    rng = np.random.default_rng(7)
    events, sums, _, _ = _paired(rng)
    found = paired_difference(events, sums, events, sums)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_pairing_within_devices_narrows_the_interval():
    rng = np.random.default_rng(8)
    data = _paired(rng, devices=100)
    paired, unpaired = paired_difference(*data), unpaired_difference(*data)
    assert paired.estimate == pytest.approx(unpaired.estimate)
    assert paired.high - paired.low < 0.9 * (unpaired.high - unpaired.low)


def _table(devices, events, ndcg):
    return DeviceSums(devices, np.array(events, dtype=float), {"ndcg@10": np.array(ndcg, dtype=float)})


def test_devices_are_matched_by_name_not_by_place():
    arm = _table(["a", "b", "c"], [2, 4, 6], [1, 2, 3])
    base = _table(["b", "c", "d"], [4, 6, 5], [1, 2, 3])
    found = difference(arm, base, "ndcg@10", paired=True)
    by_hand = paired_difference(
        np.array([2.0, 4, 6, 0]), np.array([1.0, 2, 3, 0]), np.array([0.0, 4, 6, 5]), np.array([0.0, 1, 2, 3])
    )
    assert found == by_hand
    assert found.devices == 4


@pytest.mark.parametrize("paired", [True, False])
def test_one_device_gives_an_estimate_and_says_why_there_is_no_interval(paired):
    found = difference(_table(["a"], [4], [2]), _table(["a"], [4], [1]), "ndcg@10", paired=paired)
    assert found.estimate == pytest.approx(0.25)
    assert found.low is None
    assert "no interval" in found.warning


def test_few_devices_and_lopsided_ones_are_warned_of():
    rng = np.random.default_rng(9)
    assert "only 10 devices" in paired_difference(*_paired(rng, devices=10)).warning
    assert paired_difference(*_paired(rng, devices=300)).warning == ""
    events = np.ones(100)
    events[0] = 10_000
    lopsided = paired_difference(events, 0.2 * events, events, 0.1 * events + rng.normal(size=100))
    assert "a few devices carry most events" in lopsided.warning


def test_an_arm_without_events_cannot_be_compared():
    with pytest.raises(DriftlineError, match="baseline has no events"):
        difference(_table(["a"], [4], [2]), _table([], [], []), "ndcg@10", paired=True)
