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


Draw = random.Random
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "star": "stars"}
LARGER_AREA, LARGER_RADIUS = 1.5, 1.15  # both must differ by this before one shape is called larger
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
SIDE_WORDS = {"left of": ["left of", "to the left of"], "right of": ["right of", "to the right of"],
              "above": ["above", "over"], "below": ["below", "under"]}  # fmt: skip
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

WORDINGS = {
    "shape_alone": ["What shape is this?", "What shape is in the picture?", "Which shape do you see?",
                    "Name the shape.", "What is the shape in the image?", "What shape is shown?"],
    "shape": ["What shape is {}?", "What is the shape of {}?", "What kind of shape is {}?"],
    "colour_alone": ["What colour is the shape?", "What color is it?", "Which colour does the shape have?",
                     "What is the colour of the shape?", "What color is the shape in the picture?", "Name the colour."],
    "colour": ["What colour is {}?", "What color is {}?", "Which colour does {} have?", "What is the colour of {}?",
               "Name the colour of {}."],
    "count": ["How many {} are there?", "How many {} do you see?", "Count the {}.", "How many {} are in the picture?",
              "What is the number of {}?"],
    "larger": ["Which is larger, {} or {}?", "Which is bigger, {} or {}?", "What is larger: {} or {}?",
               "Which one is larger, {} or {}?", "Is {} or {} larger?"],
    "position": ["What is {} {}?", "Which shape is {} {}?", "What do you see {} {}?", "Name the shape {} {}."],
    "position_yes_no": ["Is {0} {1} {2}?", "Does {0} lie {1} {2}?", "Is it true that {0} is {1} {2}?"],
    "exists": ["Is there {}?", "Do you see {}?", "Is there {} in the picture?", "Can you see {}?",
               "Does the picture show {}?"],
}  # fmt: skip


def vary(rng: Draw, question: str) -> str:
    """`question` as people type it: mostly as written, sometimes in lower case or without its mark."""
    question = question[0].upper() + question[1:]
    chance = rng.random()
    if chance < 0.1:
        return question.lower().rstrip("?.")
    return question.lower() if chance < 0.15 else question


def ask(rng: Draw, kind: str, *parts: str) -> str:
    """A question of this kind in one of its wordings."""
    return vary(rng, rng.choice(WORDINGS[kind]).format(*parts))


def article(words: str) -> str:
    """`words` with "a" or "an"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


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


def shape_options(rng: Draw, scene: Scene) -> list[Option]:
    """What shape: of the only one, or of the only one of its colour."""
    things = scene.things
    options = []
    for index, thing in enumerate(things):
        fact = frozenset({("shape", index)})
        if len(things) == 1:
            options.append(Option(Turn("shape", ask(rng, "shape_alone"), thing.shape), fact, fact))
        if sum(other.colour == thing.colour for other in things) == 1:
            name = rng.choice([f"the {thing.colour} shape", f"the {thing.colour} one", f"the {thing.colour} object"])
            tells = fact | {("colour", index)}
            options.append(Option(Turn("shape", ask(rng, "shape", name), thing.shape), tells, fact))
    return options


def colour_options(rng: Draw, scene: Scene) -> list[Option]:
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


def count_options(rng: Draw, scene: Scene) -> list[Option]:
    """How many: in all, of a shape, of a colour, of both."""
    things = scene.things
    words = [(rng.choice(["shapes", "objects"]), len(things), "all")] * 3
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


def larger_options(rng: Draw, scene: Scene) -> list[Option]:
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


def position_options(rng: Draw, scene: Scene) -> list[Option]:
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


def position_yes_no_options(rng: Draw, scene: Scene) -> list[Option]:
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


def exists_options(rng: Draw, scene: Scene, *, allowed: Sequence[Pair]) -> list[Option]:
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


def options_of(rng: Draw, scene: Scene, kind: str, *, allowed: Sequence[Pair]) -> list[Option]:
    """Every question of type `kind` that this scene allows."""
    if kind == "exists":
        return exists_options(rng, scene, allowed=allowed)
    return SCENE_OPTIONS[kind](rng, scene)


def pick_turns(rng: Draw, first: Option, pools: dict[str, list[Option]], most: int) -> list[Turn]:
    """`first` and up to `most - 1` others in random order: types in turn, answers of a type as often as each other,
    and nothing asked that an earlier question told."""
    chosen = [first]
    told = set(first.tells)
    kinds = rng.sample(sorted(pools), len(pools)) * 2
    for kind in kinds:
        if len(chosen) >= most:
            break
        fresh = [option for option in pools[kind] if not option.asks & told]
        if fresh:
            counts = Counter(option.turn.answer for option in fresh)
            weights = [1 / counts[option.turn.answer] for option in fresh]
            option = rng.choices(fresh, weights)[0]
            chosen.append(option)
            told |= option.tells
    return [option.turn for option in chosen]
