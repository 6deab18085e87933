"""From history windows to cloud embeddings and candidates: the port, and the blend of three parts behind it.

*Text*: what the titles mean (`text_part`). *Sequence*: a network over items, their texts and time gaps (`sequence`).
*Live*: what others who took the same did lately (`live`). `blend` mixes what they say into one distribution, the
teacher, and fits the one vector that says it to a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from cloud_worker import blend as blending
from cloud_worker.blend import Blend
from cloud_worker.encoder import Encoder
from cloud_worker.history import History
from cloud_worker.retrieval import NearestItems, Shortlist, top_of
from cloud_worker.sequence import SequenceModel
from cloud_worker.text_part import TextPart
from streams.bundle import Bundle
from streams.clock import Clock
from streams.errors import BundleError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

SCORES_AT_ONCE: Final = 1 << 22
"""Scores of a part held in memory: 16 MiB of float32, whatever the catalogue's size; half a dozen such exist."""
NAMED_BY_A_PART: Final = 256
"""Items that each part may put on a user's shortlist, where the catalogue is too large to look at whole."""
USERS_OF_A_SHORTLIST: Final = 8
"""So it stays below the size above which `blend.fit` would leave items out."""
_WORTH_THREADS: Final = 1 << 28
"""Multiplications of one product from which several threads are faster: 64 users and 32,000 items of d = 128."""
_LARGEST_HALF: Final = 65_504.0


@dataclass(frozen=True)
class UserVectors:
    """The answer for B histories, and what it cost.

    Parameters
    ----------
    vectors
        (B, d) float32 embeddings e of the shared space, with no more than float16's digits.
    candidates
        B arrays of item indexes, best first.
    tokens
        (B,) tokens encoded on behalf of each; 0 where another's equal text or the cache answered.
    encoded
        Texts that the encoder encoded.
    cached
        Texts that the cache knew.
    shared
        Histories whose text equals that of an earlier one in the batch.
    seconds
        What each part took for all of them: ``encode``, ``sequence``, ``live``, ``fit``; a part that was not asked
        is missing.
    """

    vectors: Floats
    candidates: list[npt.NDArray[np.int32]]
    tokens: Ints
    encoded: int
    cached: int
    shared: int
    seconds: Mapping[str, float]


class UserModel(Protocol):
    """Embeds users in the shared space and names candidates for them."""

    @property
    def model_id(self) -> str:
        """Of the model that stands in embeddings as their origin."""
        ...

    def embed(self, histories: Sequence[History], candidates: int) -> UserVectors:
        """Embed (B,) histories and name so many candidates for each.

        Raises
        ------
        EncoderError
            The text encoder failed; trying again later may help.
        """
        ...


class LiveScores(Protocol):
    """What is asked of the live index (`cloud_worker.live.shared.SharedIndex`)."""

    def scores(self, histories: Sequence[npt.NDArray[np.integer]], keys: Sequence[int], now_ms: Ints) -> Floats:
        """(B, N) scores, at least 0."""
        ...

    def taken_before(self, key: int, time_ms: int) -> Ints:
        """What a user took before an event time, as far as it is known."""
        ...


@dataclass
class _Stopwatch:
    clock: Clock
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = self.clock.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.clock.monotonic() - started


@dataclass(frozen=True)
class _Asked:
    """A batch, or some rows of it, as the mixture needs it: (B, d) e_seq and e_text, B arrays of items taken."""

    histories: Sequence[History]
    sequence: Floats
    text: Floats | None
    taken: Sequence[npt.NDArray[np.integer]]

    def rows(self, start: int, stop: int) -> _Asked:
        text = None if self.text is None else self.text[start:stop]
        return _Asked(self.histories[start:stop], self.sequence[start:stop], text, self.taken[start:stop])


@contextmanager
def _threads_for(multiplications: int) -> Iterator[None]:
    """One thread for small products.

    Threads that wait for each other at every step save little, and where other processes keep the cores busy they cost
    ten times what they save.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if multiplications >= _WORTH_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class BlendedUserModel:
    """Text, sequence and live part, mixed into a teacher and fitted to one embedding.

    A part that the bundle gives no weight is not asked: without text there is no encoder call. The candidates are the
    top of the *teacher's* mixture, in its order, and not of ⟨e, v⟩ + b: N numbers cannot be said with d, so for the
    same bytes the list recalls more of what the parts know than the embedding that goes with it. Where the bundle
    excludes what was seen, neither the live part nor the list names what is in the window, or what the live index knows
    that the user took before it. What he took after it is not left out, though the index may know it already: to the
    device that asked, it is still to come.

    Catalogues above `retrieval.EXACT_UP_TO` items are looked at through a `Shortlist` of a few users at a time.

    Parameters
    ----------
    bundle
        With its cloud part.
    encoder
        Must be the one that the bundle was trained with.
    live
        Who took what lately.
    clock
        Times the parts.
    nearest
        Of the bundle's item vectors; None: every item is scored.

    Raises
    ------
    BundleError
        The bundle was made with another encoder, was loaded without its cloud part, or its blend is none.
    """

    def __init__(
        self, bundle: Bundle, encoder: Encoder, live: LiveScores, clock: Clock, nearest: NearestItems | None = None
    ) -> None:
        manifest = bundle.manifest
        self._text = TextPart(bundle, encoder)
        self._blend = blend_of(bundle)
        self._network = SequenceModel.from_tensors(bundle.cloud)
        self._inputs = self._network.table().detach()
        self._table = torch.from_numpy(np.array(bundle.device["item_vectors"], np.float32))
        self._bias = torch.from_numpy(np.array(bundle.device["item_bias"], np.float32))
        self._live = live
        self._clock = clock
        self._nearest = nearest
        self._window = manifest.window
        self._exclude_seen = manifest.exclude_seen

    @property
    def model_id(self) -> str:
        """The encoder's."""
        return self._text.model_id

    @torch.inference_mode()
    def embed(self, histories: Sequence[History], candidates: int) -> UserVectors:
        """Embed (B,) histories and name so many candidates for each.

        Raises
        ------
        EncoderError
            The encoder failed.
        """
        watch = _Stopwatch(self._clock)
        text = None
        if self._blend.text:
            with watch.part("encode"):
                text = self._text.embed(histories)
        with watch.part("sequence"), _threads_for(0):
            sequence = self._network.embed(
                [each.items[-self._window :] for each in histories],
                [each.times_ms[-self._window :] for each in histories],
                self._inputs,
            )
        asked = _Asked(histories, sequence, None if text is None else text.vectors, [*map(self._taken, histories)])
        vectors, lists = np.zeros_like(sequence), []
        step = USERS_OF_A_SHORTLIST if self._nearest else max(1, SCORES_AT_ONCE // len(self._bias))
        for start in range(0, len(histories), step):
            e, ranked = self._mixed(asked.rows(start, start + step), candidates, watch)
            vectors[start : start + step] = e
            lists += ranked
        return UserVectors(
            vectors=vectors,
            candidates=lists,
            tokens=np.zeros(len(histories), np.int64) if text is None else text.tokens,
            encoded=0 if text is None else text.encoded,
            cached=0 if text is None else text.cached,
            shared=0 if text is None else text.shared,
            seconds=watch.seconds,
        )

    def _taken(self, history: History) -> npt.NDArray[np.integer]:
        """What is not to be recommended: the window, and if it is full, what the live index knows from before it."""
        if not self._exclude_seen:
            return np.zeros(0, np.int64)
        if len(history.items) < self._window:
            return history.items
        return np.concatenate([history.items, self._live.taken_before(history.key, int(history.times_ms.min()))])

    def _mixed(self, asked: _Asked, candidates: int, watch: _Stopwatch) -> tuple[Floats, list[npt.NDArray[np.int32]]]:
        live = None
        if self._blend.live:
            with watch.part("live"):
                live = self._live_scores(asked)
        with watch.part("fit"), _threads_for(len(asked.sequence) * self._table.numel()):
            if self._nearest is None:
                table, bias, taken = self._table, self._bias, asked.taken
                stands_for = None
            else:
                short = self._shortlist(self._nearest, asked, live)
                items = torch.from_numpy(short.items)
                stands_for = torch.from_numpy(short.stands_for)
                table, bias = self._table[items], self._bias[items] + stands_for.log()
                taken = [short.places_of(each) for each in asked.taken]
                live = None if live is None else live[:, short.items]
            start = torch.from_numpy(asked.sequence)
            teacher = blending.teacher(
                torch.addmm(bias, start, table.T),
                None if asked.text is None else torch.addmm(bias, torch.from_numpy(asked.text), table.T),
                None if live is None else torch.from_numpy(live),
                self._blend,
            )
            e = blending.fit(teacher, table, bias, start).clamp(-_LARGEST_HALF, _LARGEST_HALF)
            each_item = teacher if stands_for is None else teacher / stands_for
            ranked = top_of(each_item.numpy(), candidates, taken)
            if self._nearest is not None:
                ranked = [short.items[places].astype(np.int32) for places in ranked]
        return e.half().float().numpy(), ranked

    def _live_scores(self, asked: _Asked) -> Floats:
        scores = self._live.scores(
            [each.items for each in asked.histories],
            [each.key for each in asked.histories],
            np.array([each.at_ms for each in asked.histories], np.int64),
        )
        for row, taken in enumerate(asked.taken):
            scores[row, taken] = 0.0
        return scores

    def _shortlist(self, nearest: NearestItems, asked: _Asked, live: Floats | None) -> Shortlist:
        vectors = asked.sequence if asked.text is None else np.concatenate([asked.sequence, asked.text])
        named: list[npt.NDArray[np.integer]] = [nearest.top(vectors, NAMED_BY_A_PART)]
        if live is not None:
            best = top_of(live, NAMED_BY_A_PART)
            named += [items[scores[items] > 0] for items, scores in zip(best, live, strict=True)]
        return Shortlist.of(len(self._bias), named)


def blend_of(bundle: Bundle) -> Blend:
    """The weights of the parts, from the manifest.

    Raises
    ------
    BundleError
        They are no weights.
    """
    try:
        blend = msgspec.convert(bundle.manifest.blend, Blend)
    except msgspec.ValidationError as exc:
        raise BundleError(f"bundle {bundle.id}: its blend is none: {exc}") from exc
    weights = np.array([blend.sequence, blend.text, blend.live])
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise BundleError(f"bundle {bundle.id}: its blend has the weights {weights.tolist()}")
    return blend
