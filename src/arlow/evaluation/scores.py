"""Scores: answers made comparable, exact match, intervals, and what a guesser would have got.

Nothing here knows of models: strings and booleans in, numbers out.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from .rows import Row


Z_95 = 1.959963984540054  # of the normal distribution: 95 % lie within
NUMBERS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
ARTICLES = {"a", "an", "the"}


def normalise(answer: str) -> str:
    """An answer as it is compared, after the rules of the VQA challenge (arXiv 1505.00468, its evaluation code).

    Unicode NFKC and case folding; punctuation becomes a space, except a point or comma between digits (the comma
    goes), a minus before a digit, and an apostrophe inside a word; the words zero to twelve become digits; the
    articles a, an, the go; white space is one space. An answer that holds nothing else keeps its articles, and so does
    one of single letters ("p a l m"), where an a is a letter.
    """
    text = unicodedata.normalize("NFKC", answer).casefold().replace("\u2019", "'").replace("\u2212", "-")
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", " ", text)
    text = re.sub(r"(?<!\w)'|'(?!\w)", " ", text)
    text = re.sub(r"(?<=\w)-|-(?!\d)", " ", text)
    words = [NUMBERS.get(word, word) for word in re.sub(r"[^\w\s.'-]", " ", text).split()]
    spelled = len(words) > 1 and all(len(word) == 1 and word.isalpha() for word in words)
    return " ".join(words if spelled else [word for word in words if word not in ARTICLES] or words)


def final_answer(text: str, after: str | None) -> str:
    """What follows `after` the last time it stands in the text: "2" of "left red circle, right blue star: 2". The
    whole text where it does not stand there, or nothing follows it, or nothing is to be cut off."""
    return (text.rpartition(after)[2] if after else "") or text


def is_right(answer: str, wanted: Iterable[str]) -> bool:
    """Exact match with any of the right answers, after `normalise`."""
    return normalise(answer) in {normalise(each) for each in wanted}


def wilson(right: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of a share (Wilson 1927): where the true one lies with 95 % confidence. (0, 1) of no rows."""
    if total == 0:
        return 0.0, 1.0
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(marks: Sequence[bool]) -> dict[str, float | int | None]:
    """`n`, `right`, `accuracy` and its interval `low`, `high`; without rows the accuracy is `None`."""
    low, high = wilson(sum(marks), len(marks))
    share = sum(marks) / len(marks) if marks else None
    return {"n": len(marks), "right": sum(marks), "accuracy": share, "low": low, "high": high}


def majority(rows: Sequence[Row]) -> dict[str, str]:
    """Each type's most frequent answer among these rows, normalised: the best that a constant can do."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for kind in row.types:
            counts.setdefault(kind, Counter())[normalise(row.answers[0])] += 1
    return {kind: count.most_common(1)[0][0] for kind, count in counts.items()}


def shuffled(rows: Sequence[Row], *, seed: int = 0) -> list[Row | None]:
    """Every row with the media of another row of the same types and media kinds. `None` where a row has no media, or
    where nobody like it has other media."""
    groups: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        if row.media:
            groups.setdefault((row.types, tuple(kind for kind, _ in row.media)), []).append(index)
    mixed: list[Row | None] = [None] * len(rows)
    for members in groups.values():
        random.Random(seed).shuffle(members)
        for place, index in enumerate(members):
            own = _names(rows[index])
            others = (rows[other] for other in members[place + 1 :] + members[:place])
            donor = next((other for other in others if _names(other) != own), None)
            if donor is not None:
                mixed[index] = rows[index].with_media(source for _, source in donor.media)
    return mixed


def _names(row: Row) -> list[str | int]:
    return [source if isinstance(source, str) else id(source) for _, source in row.media]
