"""Other ways to write a user's profile than the one that is served, to be compared with it.

Every template is told the device's whole window, oldest first, and writes at most ``last`` titles::

    served   Recently, newest first. today: Heat (crime, drama); Toy Story (animation). 3 days before: Alien (horror).
    no ages  Recently, newest first. Heat (crime, drama); Toy Story (animation); Alien (horror).
    titles   Heat; Toy Story; Alien.
    tastes   Mostly drama, crime, horror. Recently, newest first. Heat; Toy Story; Alien.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cloud_worker.profile_text import OPENING, Indexes, item_text, profile_text

Template = Callable[[Indexes, Indexes, Sequence[str], Sequence[str], int], str]
"""Items and their times (n,), oldest first; titles and categories of the catalogue; titles in the text."""

SERVED: Final = "served"
LEADING: Final = 5
"""Categories that `tastes` names."""


def served(items: Indexes, times_ms: Indexes, titles: Sequence[str], categories: Sequence[str], last: int) -> str:
    """Titles with their categories under coarse ages: `cloud_worker.profile_text.profile_text`."""
    return profile_text(items, times_ms, titles, categories, last=last)


def no_ages(items: Indexes, _times_ms: Indexes, titles: Sequence[str], categories: Sequence[str], last: int) -> str:
    """Titles with their categories, newest first, without a word of when."""
    texts = [item_text(titles[item], categories[item]) or "untitled" for item in reversed(items[-last:])]
    return f"{OPENING} {'; '.join(texts)}." if texts else ""


def titles_only(items: Indexes, _times_ms: Indexes, titles: Sequence[str], _: Sequence[str], last: int) -> str:
    """Nothing but titles, newest first."""
    texts = [item_text(titles[item], "") or "untitled" for item in reversed(items[-last:])]
    return f"{'; '.join(texts)}." if texts else ""


def tastes(items: Indexes, times_ms: Indexes, titles: Sequence[str], categories: Sequence[str], last: int) -> str:
    """What the window's items mostly are, then titles: the long term in a few words, the short term by name."""
    counts = Counter(kind for item in items for kind in _kinds(categories[item]))
    recent = titles_only(items, times_ms, titles, categories, last)
    if not counts:
        return recent
    mostly = ", ".join(kind for kind, _ in counts.most_common(LEADING))
    return f"Mostly {mostly}. {OPENING} {recent}"


TEMPLATES: Final[Mapping[str, Template]] = {
    SERVED: served,
    "no ages": no_ages,
    "titles": titles_only,
    "tastes": tastes,
}


def _kinds(categories: str) -> list[str]:
    return [kind for part in categories.replace("|", ",").split(",") if (kind := part.strip())]
