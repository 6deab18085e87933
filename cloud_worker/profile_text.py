"""What the encoder reads about a user and about an item: pure functions from titles and times to text.

CDA4Rec (arXiv 2509.01551) lets the cloud reconstruct a user's semantics from the recent behaviour a device sends, and
SCaLRec (arXiv 2601.22543) puts recency first; only their abstracts are known to us, so this is a reconstruction from
the abstract. The template is::

    Recently, newest first. today: Heat (crime, drama); Toy Story (animation). 3 days before: Alien (horror).

Titles stand under their coarse age, counted back from the newest of them and never from the wall clock: equal
histories give equal texts, on which the cache and coalescing rest. A change of the template makes every trained
projector wrong, so it goes together with new bundles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from streams.topics import DAY_MS

OPENING: Final = "Recently, newest first."
TITLE_LIMIT: Final = 160
"""Characters of a title or of its categories: one very long title must not push the others out of the encoder."""
_UNITS: Final = ((365, "year"), (30, "month"), (7, "week"), (1, "day"))

Indexes = Sequence[int] | npt.NDArray[np.integer]


def item_text(title: str, categories: str) -> str:
    """One item as the encoder reads it: ``"Heat (crime, drama)"``.

    Parameters
    ----------
    title
        As the catalogue has it; may be empty.
    categories
        One or several, separated by ``|`` or commas; may be empty.
    """
    name, kinds = _clean(title), _clean(categories.replace("|", ", "))
    if name and kinds:
        return f"{name} ({kinds})"
    return name or kinds


def profile_text(
    items: Indexes, times_ms: Indexes, titles: Sequence[str], categories: Sequence[str], *, last: int
) -> str:
    """The profile text of one history window.

    Parameters
    ----------
    items
        (n,) item indexes, oldest first: the order in which the device saw them, which is what "newest" goes by.
    times_ms
        (n,) their event times; the ages are coarse, and a time that goes backwards counts as no age at all.
    titles, categories
        Of every item of the catalogue, in index order.
    last
        Titles in the text; what lies further back does not change it.

    Returns
    -------
    str
        Empty for an empty window.

    Raises
    ------
    ValueError
        `items` and `times_ms` differ in length, or `last` is not positive.
    IndexError
        An index lies outside the catalogue.
    """
    if len(items) != len(times_ms):
        raise ValueError(f"a window of {len(items)} items has {len(times_ms)} times")
    if last < 1:
        raise ValueError(f"a profile of {last} titles")
    recent = [int(item) for item in items[-last:]][::-1]
    if not recent:
        return ""
    if min(recent) < 0:
        raise IndexError(f"item index {min(recent)}")
    times = [int(time) for time in times_ms[-last:]][::-1]
    newest = max(times)
    texts = (item_text(titles[item], categories[item]) for item in recent)
    parts = _under_ages(texts, [age_words(newest - time) for time in times])
    return " ".join([OPENING, *parts])


def age_words(age_ms: int) -> str:
    """A coarse age: ``today``, ``1 day before``, ``2 weeks before``, ``5 months before``, ``3 years before``."""
    days = max(age_ms, 0) // DAY_MS
    if days == 0:
        return "today"
    size, unit = next(each for each in _UNITS if days >= each[0])
    count = days // size
    return f"{count} {unit}{'s' if count > 1 else ''} before"


def _under_ages(texts: Iterator[str], ages: Sequence[str]) -> Iterator[str]:
    """Neighbours of the same age share one heading: fewer tokens, which are the cost."""
    group: list[str] = []
    for index, text in enumerate(texts):
        group.append(text or "untitled")
        if index + 1 == len(ages) or ages[index + 1] != ages[index]:
            yield f"{ages[index]}: {'; '.join(group)}."
            group = []


def _clean(text: str) -> str:
    """One line, single spaces, bounded."""
    return " ".join(text.split())[:TITLE_LIMIT].rstrip()
