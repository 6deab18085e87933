"""Our SRM beside rankers of others: the same moments and ranks as elsewhere, nothing of the test period in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from cloud_worker.evaluation import staleness
from cloud_worker.evaluation.drawn import draw_moments
from cloud_worker.evaluation.gru4rec_settings import CANDIDATES, walks
from cloud_worker.evaluation.references import Trained, compare, reference_ranks
from cloud_worker.evaluation.test_period import load_test_period
from cloud_worker.evaluation.tuning import PATIENCE, train_tuned
from cloud_worker.training.data import make_histories
from cloud_worker.training.evaluate import Moments
from cloud_worker.training.served import histories_of
from streams.errors import TrainingError
from tests.cloud_worker.evaluation_data import N_ITEMS, HashEncoder, prepared_of

POPULAR = np.arange(6, dtype=np.float32)[::-1].copy()


class NextOnTheRing:
    """Knows how the made-up users walk; `learned` notes what it was given."""

    def __init__(self, histories) -> None:
        self.learned = histories

    def scores(self, sequences):
        found = np.zeros((len(sequences), N_ITEMS), np.float32)
        for row, each in enumerate(sequences):
            found[row, (each[-1] + 1) % N_ITEMS], found[row, (each[-1] + 7) % N_ITEMS] = 2, 1
        return found


def trained(histories) -> Trained:
    return Trained("ring", NextOnTheRing(histories), 1.5, 9.0, "none")


class Fixed:
    """Gives the rows that it was made with, in order."""

    def __init__(self, *rows: Sequence[float]) -> None:
        self.rows, self.asked = [np.array(row, np.float32) for row in rows], list[list[int]]()

    def scores(self, sequences):
        self.asked += [each.tolist() for each in sequences]
        return np.stack([self.rows.pop(0) for _ in sequences])


def moments_of(histories_items: list[list[int]], at: list[tuple[int, int]], *, exclude_seen: bool) -> Moments:
    users = np.repeat([f"u{nth}" for nth in range(len(histories_items))], [len(each) for each in histories_items])
    items = np.concatenate(histories_items)
    histories = make_histories(users, items, np.arange(len(items)), 6, 0)
    user, position = (np.array(column) for column in zip(*at, strict=True))
    return Moments(histories, user, position, np.zeros((len(at), 0), np.float32), exclude_seen)


def test_ranks_by_a_reference_are_pessimistic_over_the_whole_catalogue():
    asked = moments_of([[0, 1, 2], [3, 4]], [(0, 1), (0, 2), (1, 1)], exclude_seen=False)
    scorer = Fixed([9, 5, 1, 1, 7, 0], [2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 1, 0])
    ranks, stood_in = reference_ranks(scorer, asked, POPULAR)
    assert ranks.tolist() == [3, 6, 1]  # behind 9 and 7; tied with all; first
    assert scorer.asked == [[0], [0, 1], [3]]
    assert stood_in == 0


def test_what_was_taken_before_is_left_out_only_where_the_dataset_has_no_repeats():
    at = [(0, 1), (0, 2)]
    rows = ([9, 5, 1, 1, 7, 0], [9, 8, 1, 0, 7, 0])
    assert reference_ranks(Fixed(*rows), moments_of([[0, 1, 2]], at, exclude_seen=True), POPULAR)[0].tolist() == [2, 2]
    assert reference_ranks(Fixed(*rows), moments_of([[0, 1, 2]], at, exclude_seen=False), POPULAR)[0].tolist() == [3, 4]


def test_items_that_a_reference_does_not_know_stand_behind_all_that_it_knows():
    no = -np.inf
    asked = moments_of([[0, 1], [0, 2]], [(0, 1), (1, 1)], exclude_seen=False)
    ranks, stood_in = reference_ranks(Fixed([1, no, 2, 3, no, no], [1, no, 2, 3, no, no]), asked, POPULAR)
    assert ranks.tolist() == [6, 2]
    assert stood_in == 0


def test_where_a_reference_can_say_nothing_popularity_ranks_and_it_is_counted():
    asked = moments_of([[5, 1], [0, 2]], [(0, 1), (1, 1)], exclude_seen=True)
    ranks, stood_in = reference_ranks(Fixed([-np.inf] * 6, [0, 0, 1, 0, 0, 0]), asked, POPULAR)
    assert ranks.tolist() == [2, 1]
    assert stood_in == 1


@pytest.mark.parametrize("rows", [([0.0, np.nan, 0, 0, 0, 0],), ([0.0, 1.0],)])
def test_scores_that_are_no_numbers_or_not_one_an_item_are_refused(rows):
    with pytest.raises(TrainingError, match=r"the reference gave scores of shape"):
        reference_ranks(Fixed(*rows), moments_of([[0, 1]], [(0, 1)], exclude_seen=False), POPULAR)


def test_all_methods_stand_at_the_moments_of_the_other_tables_with_the_same_ranks(bundle, data):
    found = compare(bundle, data[0], trained, moments=100, seed=3)
    period = load_test_period(bundle, data[0], HashEncoder(), moments=100, seed=3, gaps=[0])
    (column,) = staleness.columns(period, None, [0])
    assert (
        [each.name for each in found.methods] == list(found.column.ranks) == ["popularity", "item-kNN", "ring", "SRM"]
    )
    assert np.array_equal(found.column.users, column.users)
    assert np.array_equal(found.column.repeated, column.repeated)
    for method in ("popularity", "item-kNN", "SRM"):
        assert np.array_equal(found.column.ranks[method], column.ranks[method]), method
    less = staleness.difference(found.column, "SRM", "ring", "mrr")
    assert less.high < 0, "who knows the ring is better than a network of seconds"


def test_the_moments_say_how_much_is_known_and_begin_with_the_test_period(bundle, data):
    drawn = draw_moments(bundle, data[0], moments=10_000, seed=0)
    at = drawn.histories.starts[drawn.users] + drawn.positions
    assert len(drawn) == data[1].test.interactions
    assert (drawn.histories.times_ms[at] >= data[1].test.start_ms).all()


def test_a_reference_is_given_nothing_of_the_test_period_and_knows_where_validation_begins(bundle, data):
    prepared, split = data
    given = []
    compare(bundle, prepared, lambda histories: given.append(histories) or trained(histories), moments=10, seed=0)
    (histories,) = given
    assert len(histories.items) == split.train.interactions + split.valid.interactions
    assert histories.times_ms.max() < split.test.start_ms
    assert histories.trained.sum() == split.train.interactions
    later = pl.col("event_time_ms") >= split.test.start_ms
    changed = prepared.events.with_columns(item_id=pl.when(later).then(pl.lit("i3")).otherwise("item_id"))
    again = histories_of(bundle, prepared_of(changed, prepared.manifest.hash))
    assert np.array_equal(histories.items, again.items)


class Rehearsed:
    """Gets better until the epoch that its options name, then worse; the right answer is the next on a ring of six."""

    made: list[Rehearsed]

    def __init__(self, best: int, sequences) -> None:
        self.best, self.sequences, self.epochs = best, sequences, 0
        Rehearsed.made.append(self)

    @classmethod
    def fit(cls, best, sequences, epochs, after_epoch):
        model = cls(best, sequences)
        for _ in range(epochs):
            model.epochs += 1
            if after_epoch(model):
                break
        return model

    def scores(self, sequences):
        """The next item is at place 1 + how far the best epoch is."""
        found = np.zeros((len(sequences), 6), np.float32)
        for row, each in enumerate(sequences):
            order = (each[-1] + 1 + np.arange(6)) % 6
            place = min(5, abs(self.best - self.epochs))
            found[row, np.concatenate([order[1 : 1 + place], order[:1], order[1 + place :]])] = np.arange(6, 0, -1)
        return found


@pytest.fixture
def ring():
    """Ten users go around a ring of six, twelve steps each; the last four lie in the validation period."""
    Rehearsed.made = []
    items = np.concatenate([(start + np.arange(12)) % 6 for start in range(10)])
    return make_histories(np.repeat(np.arange(10).astype(str), 12), items, np.tile(np.arange(12), 10), 6, 8)


def test_the_candidate_and_its_epochs_that_were_best_on_validation_are_trained_anew_on_everything(ring):
    tuned = train_tuned("r", Rehearsed.fit, [30, 4, 7], ring, exclude_seen=False, most_epochs=12, seed=0)
    assert [(trial.options, trial.epochs) for trial in tuned.trials[:2]] == [(4, 4), (7, 7)]
    assert tuned.trials[0].ndcg == tuned.trials[1].ndcg == 1
    final = tuned.trained.scorer
    assert final is Rehearsed.made[-1]
    assert (final.best, final.epochs) == (4, 4)
    assert all(len(each) == 12 for each in final.sequences)
    assert all(len(each) == 8 for model in Rehearsed.made[:-1] for each in model.sequences)
    assert tuned.watched == 40


def test_a_candidate_that_gets_no_better_ends_before_the_last_epoch(ring):
    train_tuned("r", Rehearsed.fit, [3], ring, exclude_seen=False, most_epochs=50, seed=0)
    assert Rehearsed.made[0].epochs == 3 + PATIENCE


def test_without_a_validation_period_there_is_nothing_to_choose_by(ring):
    histories = make_histories(np.repeat(["a", "b"], 3), np.arange(6), np.arange(6), 6, 100)
    with pytest.raises(TrainingError, match="nothing to choose settings by"):
        train_tuned("r", Rehearsed.fit, [3], histories, exclude_seen=False, most_epochs=5, seed=0)


def test_sequences_that_continue_one_another_are_walked_once():
    rng = np.random.default_rng(0)
    histories = [rng.integers(5, size=rng.integers(1, 9)) for _ in range(30)]
    asked = [each[:length] for each in histories for length in sorted(rng.integers(1, 1 + len(each), size=2))]
    found = walks(asked)
    assert len(found) <= len(histories)
    answered = {
        row: walk.longest[:length] for walk in found for row, length in zip(walk.rows, walk.lengths, strict=True)
    }
    assert [answered[row].tolist() for row in range(len(asked))] == [each.tolist() for each in asked]


def test_candidates_differ_in_what_they_say_of_themselves():
    assert len({str(each) for each in CANDIDATES}) == len(CANDIDATES) > 1
