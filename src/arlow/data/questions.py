"""Questions about scenes of shapes, and their answers. Only what is certain is asked: a question whose answer could be
argued about (nearly as large, diagonally placed) is never an option.

Each `*_options` function gives every question of one type that a scene allows. Wordings stand in `WORDINGS`; the
answer's form is the same for all wordings of a type.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .scenes import COLOURS, SHAPES, Pair, Scene, Thing
from .wordings import article, ask


@dataclass(frozen=True)
class Turn:
    """One question and its only right answer."""

    type: str
    question: str
    answer: str


@dataclass(frozen=True)
class Option:
    """A question that may be asked. `tells` are facts that question and answer together give away, `asks` the facts
    that must not have been told before."""

    turn: Turn
    tells: frozenset = frozenset()
    asks: frozenset = frozenset()


PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "star": "stars"}
LARGER_AREA, LARGER_RADIUS = 1.5, 1.15  # both must differ by this before one shape is called larger
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SIDE_WORDS = {"left of": ["left of", "to the left of"], "right of": ["right of", "to the right of"],
              "above": ["above", "over"], "below": ["below", "under"]}  # fmt: skip
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def full_name(thing: Thing) -> str:
    """The form of every answer that names a shape: "the red circle"."""
    return f"the {thing.colour} {thing.shape}"


def names_of(things: Sequence[Thing], index: int) -> dict[str, frozenset]:
    """Every way to name one shape that fits no other, and the facts each tells."""
    thing = things[index]
    shape, colour = frozenset({("shape", index)}), frozenset({("colour", index)})
    names: dict[str, frozenset] = {}
    if sum(other.pair == thing.pair for other in things) == 1:
        names[full_name(thing)] = shape | colour
    if sum(other.shape == thing.shape for other in things) == 1:
        names[f"the {thing.shape}"] = shape
    if sum(other.colour == thing.colour for other in things) == 1:
        names[f"the {thing.colour} shape"] = colour
    return names


# Options of a scene, by type


def shape_options(rng: random.Random, scene: Scene) -> list[Option]:
    """What shape: of the only one, or of the only one of its colour."""
    things = scene.things
    options = []
    for index, thing in enumerate(things):
        fact = frozenset({("shape", index)})
        if len(things) == 1:
            options.append(Option(Turn("shape", ask(rng, "shape_alone"), thing.shape), fact, fact))
        if sum(other.colour == thing.colour for other in things) == 1:
            name = f"the {thing.colour} " + rng.choice(["one", "object", "thing"])
            tells = fact | {("colour", index)}
            options.append(Option(Turn("shape", ask(rng, "shape", name), thing.shape), tells, fact))
    return options


def colour_options(rng: random.Random, scene: Scene) -> list[Option]:
    """What colour: of the only shape, or of the only one of its kind."""
    things = scene.things
    options = []
    for index, thing in enumerate(things):
        fact = frozenset({("colour", index)})
        if len(things) == 1:
            options.append(Option(Turn("colour", ask(rng, "colour_alone"), thing.colour), fact, fact))
        if sum(other.shape == thing.shape for other in things) == 1:
            tells = fact | {("shape", index)}
            options.append(Option(Turn("colour", ask(rng, "colour", f"the {thing.shape}"), thing.colour), tells, fact))
    return options


def count_options(rng: random.Random, scene: Scene) -> list[Option]:
    """How many: in all, of a shape, of a colour, of both."""
    things = scene.things
    words: list[tuple[str, int, object]] = [(rng.choice(["shapes", "objects"]), len(things), "all")] * 3
    words += [(PLURALS[shape], sum(thing.shape == shape for thing in things), shape) for shape in SHAPES]
    for colour in {*(thing.colour for thing in things), rng.choice(COLOURS)}:
        words.append((f"{colour} shapes", sum(thing.colour == colour for thing in things), colour))
    for shape, colour in {thing.pair for thing in things}:
        number = sum(thing.pair == (shape, colour) for thing in things)
        if number > 1:
            words.append((f"{colour} {PLURALS[shape]}", number, (shape, colour)))
    return [
        Option(Turn("count", ask(rng, "count", word), str(number)), facts, facts)
        for word, number, what in sorted(words, key=str)
        for facts in [frozenset({("count", what)})]
    ]


def larger_options(rng: random.Random, scene: Scene) -> list[Option]:
    """Which of two is larger; the answer is the name as the question gave it."""
    options = []
    for one, first in enumerate(scene.things):
        for two, second in enumerate(scene.things):
            if not is_larger(first, second):
                continue
            names = [
                (a, b, told_a | told_b)
                for a, told_a in names_of(scene.things, one).items()
                for b, told_b in names_of(scene.things, two).items()
                if len(a.split()) == len(b.split()) and a.endswith("shape") == b.endswith("shape")
            ]
            if names:
                larger, smaller, tells = rng.choice(names)
                fact = frozenset({("larger", frozenset((one, two)))})
                question = ask(rng, "larger", *rng.sample([larger, smaller], 2))
                options.append(Option(Turn("larger", question, larger), tells | fact, fact))
    return options


def is_larger(first: Thing, second: Thing) -> bool:
    """Whether anyone would call `first` the larger of the two."""
    return first.area > LARGER_AREA * second.area and first.radius > LARGER_RADIUS * second.radius


def is_beside(first: Thing, second: Thing, side: str) -> bool | None:
    """Whether `first` is left of (right of, above, below) `second`; None when it could be argued about."""
    across, down = SIDES[side]
    along = across * (first.x - second.x) + down * (first.y - second.y)
    off = abs(down * (first.x - second.x) + across * (first.y - second.y))
    if along >= first.radius + second.radius and along >= off:
        return True
    return False if along <= 0.3 * max(first.radius, second.radius) else None


def position_options(rng: random.Random, scene: Scene) -> list[Option]:
    """What is left of (right of, above, below) a shape, where exactly one is."""
    things = scene.things
    options = []
    for index, thing in enumerate(things):
        names = names_of(things, index)
        for side in SIDES if names else ():
            beside = {other: is_beside(things[other], thing, side) for other in range(len(things)) if other != index}
            if sorted(beside.values(), key=str) != [False] * (len(beside) - 1) + [True]:
                continue
            found = next(other for other, is_it in beside.items() if is_it)
            name = rng.choice([*names])
            question = ask(rng, "position", rng.choice(SIDE_WORDS[side]), name)
            facts = frozenset({("shape", found), ("colour", found)})
            turn = Turn("position", question, full_name(things[found]))
            options.append(Option(turn, names[name] | facts | {("side", frozenset((index, found)))}, facts))
    return options


def position_yes_no_options(rng: random.Random, scene: Scene) -> list[Option]:
    """Whether one shape is left of (right of, above, below) another."""
    things = scene.things
    options = []
    for one, first in enumerate(things):
        for two, second in enumerate(things):
            if one == two or not names_of(things, one) or not names_of(things, two):
                continue
            for side in SIDES:
                beside = is_beside(first, second, side)
                if beside is None:
                    continue
                (a, told_a), (b, told_b) = (rng.choice([*names_of(things, index).items()]) for index in (one, two))
                fact = frozenset({("side", frozenset((one, two)))})
                question = ask(rng, "position_yes_no", a, rng.choice(SIDE_WORDS[side]), b)
                options.append(Option(Turn("position_yes_no", question, yes_no(beside)), told_a | told_b | fact, fact))
    return options


def yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def exists_options(rng: random.Random, scene: Scene, *, allowed: Sequence[Pair]) -> list[Option]:
    """Is there a ...: what is there, and as many near misses: right in shape or in colour, but not both."""
    things = scene.things
    # Sorted: a set of words has another order in every process.
    shapes, colours = sorted({thing.shape for thing in things}), sorted({thing.colour for thing in things})
    pairs = sorted({thing.pair for thing in things})
    present: list[tuple[str, object]] = [(article(f"{c} {s}"), (s, c)) for s, c in pairs]
    present += [(article(shape), shape) for shape in shapes]
    present += [(rng.choice([f"anything {colour}", article(f"{colour} shape")]), colour) for colour in colours]
    misses = [pair for pair in allowed if pair not in pairs and (pair[0] in shapes) + (pair[1] in colours)]
    absent: list[tuple[str, object]] = [(article(f"{c} {s}"), (s, c)) for s, c in misses]
    absent = rng.sample(absent, min(len(absent), 4))
    absent += [(article(shape), shape) for shape in SHAPES if shape not in shapes]
    gone = [colour for colour in COLOURS if colour not in colours]
    absent += [(rng.choice([f"anything {c}", article(f"{c} shape")]), c) for c in rng.sample(gone, 2)]
    options = []
    for words, what, truth in [(*item, True) for item in present] + [(*item, False) for item in absent]:
        facts = {
            (kind, index)
            for index, thing in enumerate(things)
            for kind in ("shape", "colour")
            if truth and what in (thing.pair, thing.shape, thing.colour)
        }
        turn = Turn("exists", ask(rng, "exists", words), yes_no(truth))
        fact = frozenset({("exists", what)})
        options.append(Option(turn, frozenset(facts) | fact, frozenset(facts) | fact))
    return sorted(options, key=lambda option: option.turn.answer + option.turn.question)


SCENE_OPTIONS: dict[str, Callable[..., list[Option]]] = {
    "shape": shape_options,
    "colour": colour_options,
    "count": count_options,
    "larger": larger_options,
    "position": position_options,
    "position_yes_no": position_yes_no_options,
    "exists": exists_options,
}
# Whose answers are drawn first, each as often: a model that always says the same is right as often as chance.
SCENE_ANSWERS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "count": ("0", "1", "2", "3", "4"),
    "position_yes_no": ("yes", "no"),
    "exists": ("yes", "no"),
}


def options_of(rng: random.Random, scene: Scene, kind: str, *, allowed: Sequence[Pair]) -> list[Option]:
    """Every question of type `kind` that this scene allows."""
    if kind == "exists":
        return exists_options(rng, scene, allowed=allowed)
    return SCENE_OPTIONS[kind](rng, scene)


def pick_turns(
    rng: random.Random, first: Option, pools: dict[str, list[Option]], most: int, *, weights: dict[str, float]
) -> list[Turn]:
    """`first` and up to `most - 1` others, each type at most twice: types by weight, nothing asked that an earlier
    question told, and yes or no only where both could be the answer (else "no" would lead)."""
    chosen, told = [first], set(first.tells)
    order = sorted([*pools] * 2, key=lambda kind: rng.random() ** (1 / weights[kind]), reverse=True)
    for kind in order:
        if len(chosen) >= most:
            break
        fresh = [option for option in pools[kind] if not option.asks & told]
        counts = Counter(option.turn.answer for option in fresh)
        if not fresh or (counts.keys() < {"yes", "no"}):
            continue
        option = rng.choices(fresh, [1 / counts[option.turn.answer] for option in fresh])[0]
        chosen.append(option)
        told |= option.tells
    return [option.turn for option in chosen]
