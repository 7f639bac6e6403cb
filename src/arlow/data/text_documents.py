"""Plain documents for text pretraining: the world of the questions in prose, with nothing of what is held out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from .described import draw_described
from .questions import Turn
from .text_questions import (
    DAYS,
    MONTHS,
    MOST_COMPARED,
    comparison_is_in,
    draw_sum,
    draw_text_turns,
    draw_word,
)


def questions_document(rng: random.Random, split: str) -> str:
    """Two to six questions with their answers."""
    return written(rng, draw_text_turns(rng, split, rng.randint(2, 6)))


# What stands before a question, between question and answer, and after it. The last is that of conversations, without
# their control tokens: there, too, a line begins with the answer, and a tokenizer that never saw that would take most
# answers to pieces ("s", "quar", "e").
LAYOUTS = (
    ("Question: ", "\nAnswer: ", "\n"),
    ("Q: ", "\nA: ", "\n"),
    ("", " ", "\n"),
    ("user\n", "\nassistant\n", "\n"),
)
LAYOUT_WEIGHTS = (1, 1, 1, 5)


def written(rng: random.Random, turns: list[Turn]) -> str:
    """Questions and answers in one of the layouts."""
    before, between, end = rng.choices(LAYOUTS, LAYOUT_WEIGHTS)[0]
    return end.join(f"{before}{turn.question}{between}{turn.reply}" for turn in turns)


def described_document(rng: random.Random, split: str) -> str:
    """Pictures or a clip in words, and questions about them."""
    description, turns = draw_described(rng, split, rng.randint(2, 8))
    return f"{description}\n{written(rng, turns)}"


def number_document(rng: random.Random, split: str) -> str:
    """Counting, sums, or numbers in order."""
    kind = rng.randrange(4)
    if kind == 0:
        start, step = rng.randint(0, 40), rng.choice([1, 1, 1, 2, 5, 10, -1])
        return ", ".join(str(start + step * index) for index in range(rng.randint(5, 12)) if start + step * index >= 0)
    if kind < 3:
        sums = [draw_sum(rng, split) for _ in range(rng.randint(3, 8))]
        form = rng.choice(["{} + {} = {}", "{} plus {} is {}", "The sum of {} and {} is {}."])
        return "\n".join(form.format(first, second, first + second) for first, second in sums)
    lines = []
    for _ in range(rng.randint(2, 6)):
        first, second = sorted(rng.sample(range(MOST_COMPARED + 1), 2))
        if comparison_is_in(split, first, second):
            lines.append(rng.choice([f"{second} is larger than {first}.", f"{first} is smaller than {second}."]))
    return "\n".join(lines) or "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"


def spelling_document(rng: random.Random, split: str) -> str:
    """Words with their letters, forwards and backwards; or a piece of the alphabet."""
    if rng.random() < 0.1:
        letters = "abcdefghijklmnopqrstuvwxyz"
        start = rng.randrange(20)
        piece = letters[start : start + rng.randint(5, 26)]
        return " ".join(piece if rng.random() < 0.7 else reversed(piece))
    form = rng.choice(["{0}: {1}. Backwards: {2}.", "{0} is spelled {1} and backwards {2}.", "{0} = {1} | {2}"])
    words = [draw_word(rng, split) for _ in range(rng.randint(2, 6))]
    return "\n".join(form.format(word, " ".join(word), " ".join(reversed(word))) for word in words)


def calendar_document(rng: random.Random, split: str) -> str:
    """Days or months in order."""
    names = rng.choice([DAYS, MONTHS])
    start, count = rng.randrange(len(names)), rng.randint(3, len(names))
    run = [names[(start + index) % len(names)] for index in range(count)]
    if rng.random() < 0.5:
        return ", ".join(run) + "."
    return " ".join(f"After {one} comes {two}." for one, two in itertools.pairwise(run))


DOCUMENTS: dict[Callable[[random.Random, str], str], float] = {
    questions_document: 3.0,
    described_document: 7.0,
    number_document: 1.0,
    spelling_document: 1.5,
    calendar_document: 0.4,
}


def draw_document(rng: random.Random, split: str) -> str:
    """One document of any kind."""
    return rng.choices([*DOCUMENTS], [*DOCUMENTS.values()])[0](rng, split)
