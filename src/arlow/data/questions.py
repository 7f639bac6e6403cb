"""Questions about scenes of shapes, and their answers. Only what is certain is asked: a question whose answer could be
argued about (nearly as large, diagonally placed) is never an option. The places in a working are by thirds of the
picture, also near their borders; of sides (`side`, `position_yes_no`) they settle the answer.

Each `*_options` function gives every question of one type that a scene allows. Wordings stand in `WORDINGS`; the
answer's form is the same for all wordings of a type.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..bundled import ANSWER_AFTER
from .captions import certain_place, certain_size, in_reading_order, name_of, spot_of, third
from .scenes import COLOURS, SHAPES, Pair, Scene, Thing
from .wordings import article, ask, plain


@dataclass(frozen=True)
class Turn:
    """One question and its only right answer. `working` is what it follows from: said first, it turns one hard step
    into several easy ones."""

    type: str
    question: str
    answer: str
    working: str = ""

    @property
    def reply(self) -> str:
        """What is said: "left red circle, right blue circle: 2", or the answer alone."""
        return f"{self.working}{ANSWER_AFTER}{self.answer}" if self.working else self.answer


@dataclass(frozen=True)
class Option:
    """A question that may be asked. `tells` are facts that question and answer together give away (not what a working
    says besides), `asks` the facts that must not have been told before."""

    turn: Turn
    tells: frozenset = frozenset()
    asks: frozenset = frozenset()


Name = tuple[str | None, str | None]  # shape and colour; None: any
ANY: Name = (None, None)
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


def fits(name: Name, thing: Thing) -> bool:
    """Whether the shape and the colour of a name, as far as it has them, are those of the thing."""
    return name[0] in (None, thing.shape) and name[1] in (None, thing.colour)


# Workings


def with_verdict(one: str, other: str) -> str:
    """Two words and whether they are the same: "red red same", "star circle other". Equality is learned in hundreds of
    steps where the two stand side by side with the verdict right after them, and otherwise not in thousands."""
    return f"{one} {other} {'same' if one == other else 'other'}"


def looked_over(scene: Scene, name: Name = ANY, *, until: Thing | None = None) -> str:
    """Everything, or what comes first and `until` itself, in reading order, its place first, each beside the name that
    is looked for: "top left star red blue other, middle circle blue blue same"; without one: "top left red star".
    All are told whatever is looked for, so that none is taken for another that is half like it."""
    things = in_reading_order(scene)
    things = things if until is None else things[: things.index(until) + 1]
    return ", ".join(f"{spot_of(scene, thing)} {beside_name(thing, name)}" for thing in things)


def found_at(scene: Scene, index: int, name: str) -> str:
    """The shapes up to the one of this index, which the question calls `name`: "top left red circle star other, middle
    blue star star same". Where it is stands before it; to go from a name to its place is learned far later."""
    thing, words = scene.things[index], name.split()
    shape, colour = (part if part in words else None for part in thing.pair)
    return looked_over(scene, (shape, colour), until=thing)


def beside_name(thing: Thing, name: Name) -> str:
    """What a thing is, with the verdict on a name: of a colour and a shape the colour first, the shape if it is that
    colour."""
    shape, colour = name
    if colour is None:
        return name_of(thing) if shape is None else f"{thing.colour} {with_verdict(thing.shape, shape)}"
    verdict = with_verdict(thing.colour, colour)
    if shape is None:
        return f"{thing.shape} {verdict}"
    return verdict if thing.colour != colour else f"{colour} {colour} {with_verdict(thing.shape, shape)}"


# Options of a scene, by type


def shape_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """What shape: of the only one, or of the only one of its colour."""
    things = scene.things
    options = []
    for index, thing in enumerate(things):
        fact = frozenset({("shape", index)})
        if len(things) == 1:
            turn = Turn("shape", ask(rng, "shape_alone"), thing.shape, looked_over(scene))
            options.append(Option(turn, fact, fact))
        if sum(other.colour == thing.colour for other in things) == 1:
            name = f"the {thing.colour} " + rng.choice(["one", "object", "thing"])
            tells = fact | {("colour", index)}
            working = looked_over(scene, (None, thing.colour))
            options.append(Option(Turn("shape", ask(rng, "shape", name), thing.shape, working), tells, fact))
    return options


def colour_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """What colour: of the only shape, or of the only one of its kind."""
    things = scene.things
    options = []
    for index, thing in enumerate(things):
        fact = frozenset({("colour", index)})
        if len(things) == 1:
            turn = Turn("colour", ask(rng, "colour_alone"), thing.colour, looked_over(scene))
            options.append(Option(turn, fact, fact))
        if sum(other.shape == thing.shape for other in things) == 1:
            tells = fact | {("shape", index)}
            question, working = ask(rng, "colour", f"the {thing.shape}"), looked_over(scene, (thing.shape, None))
            options.append(Option(Turn("colour", question, thing.colour, working), tells, fact))
    return options


def count_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """How many: in all, of a shape, of a colour, of both; also of one or two pairs that are not there."""
    things = scene.things
    doubtful = doubtful_colours(scene)
    pairs = {thing.pair for thing in things}
    gone = [pair for pair in allowed if pair not in pairs and pair[1] not in doubtful]
    colours = {thing.colour for thing in things} | ({rng.choice(COLOURS)} - doubtful)
    words: list[tuple[str, Name]] = [(rng.choice(["shapes", "objects"]), ANY)] * 3
    words += [(PLURALS[shape], (shape, None)) for shape in SHAPES]
    words += [(f"{colour} shapes", (None, colour)) for colour in sorted(colours)]
    words += [
        (f"{colour} {PLURALS[shape]}", (shape, colour)) for shape, colour in [*sorted(pairs), *rng.sample(gone, 2)]
    ]
    options = []
    for word, name in words:
        counted = [index for index, thing in enumerate(things) if fits(name, thing)]
        fact = frozenset({("count", name)})
        tells: frozenset = fact | {("exists", name)}
        # What takes a further step from there (other counts, sides) may still be asked.
        tells |= {(kind, index) for index in counted for kind in ("shape", "colour", "place")}
        turn = Turn("count", ask(rng, "count", word), str(len(counted)), looked_over(scene, name))
        options.append(Option(turn, tells, fact))
    return options


def doubtful_colours(scene: Scene) -> set[str]:
    """Colours that no shape has, but that an outline, a frame or the inside of an unfilled shape may show."""
    seen = {"black"} if scene.ground.frame or any(thing.outline for thing in scene.things) else set()
    return (seen | {"black", "white"} if any(thing.hollow for thing in scene.things) else seen) - {
        thing.colour for thing in scene.things
    }


def larger_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
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


def projected(dx: float, dy: float, side: str) -> tuple[float, float]:
    """How far a step of (dx, dy) goes to that side, and how far across."""
    across, down = SIDES[side]
    return across * dx + down * dy, abs(down * dx + across * dy)


def is_beside(first: Thing, second: Thing, side: str, *, straight: float = 1.0) -> bool | None:
    """Whether `first` is left of (right of, above, below) `second`, `straight` times as far that way as across; None
    when it could be argued about."""
    along, off = projected(first.x - second.x, first.y - second.y, side)
    if along >= first.radius + second.radius and along >= straight * off:
        return True
    return False if along <= 0.02 * max(first.radius, second.radius) else None


def thirds_beside(scene: Scene, first: Thing, second: Thing, side: str) -> tuple[float, float]:
    """How many thirds of the picture `first` is left of (right of, above, below) `second`, and how many across."""
    columns = third(first.x / scene.width) - third(second.x / scene.width)
    rows = third(first.y / scene.height) - third(second.y / scene.height)
    return projected(columns, rows, side)


def position_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
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
            turn = Turn("position", question, full_name(things[found]), seen_from(scene, index, name, side))
            options.append(Option(turn, names[name] | facts | {("side", frozenset((index, found)))}, facts))
    return options


def seen_from(scene: Scene, index: int, name: str, side: str) -> str:
    """Where the shape of this index is, which the question calls `name`, and what else there is, each with the side if
    it lies there: "middle red star star same; left blue circle left, bottom red square other"."""
    seat, word = scene.things[index], side.removesuffix(" of")
    others = [
        f"{spot_of(scene, thing)} {name_of(thing)} {word if is_beside(thing, seat, side) else 'other'}"
        for thing in in_reading_order(scene)
        if thing is not seat
    ]
    here = found_at(scene, index, name)
    return f"{here}; {', '.join(others)}" if others else here


def side_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """On which side of one shape another is, where their places tell."""
    things = scene.things
    options = []
    for one, first in enumerate(things):
        for two, second in enumerate(things):
            sides = [side for side in SIDES if one != two and is_beside(first, second, side, straight=2)]
            if len(sides) != 1 or not names_of(things, one) or not names_of(things, two):
                continue
            along, off = thirds_beside(scene, first, second, sides[0])
            if along <= off:
                continue
            (a, told_a), (b, told_b) = (rng.choice([*names_of(things, index).items()]) for index in (one, two))
            fact = frozenset({("side", frozenset((one, two)))})
            working, places = both_places(scene, {one: a, two: b})
            turn = Turn("side", ask(rng, "side", a, b), sides[0].removesuffix(" of"), working)
            options.append(Option(turn, told_a | told_b | places | fact, fact))
    return options


def position_yes_no_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """Whether one shape is left of (right of, above, below) another, where their places tell."""
    things = scene.things
    options = []
    for one, first in enumerate(things):
        for two, second in enumerate(things):
            if one == two or not names_of(things, one) or not names_of(things, two):
                continue
            for side in SIDES:
                beside = is_beside(first, second, side)
                if beside is None or beside != (thirds_beside(scene, first, second, side)[0] > 0):
                    continue
                (a, told_a), (b, told_b) = (rng.choice([*names_of(things, index).items()]) for index in (one, two))
                fact = frozenset({("side", frozenset((one, two)))})
                question = ask(rng, "position_yes_no", a, rng.choice(SIDE_WORDS[side]), b)
                working, places = both_places(scene, {one: a, two: b})
                turn = Turn("position_yes_no", question, yes_no(beside), working)
                options.append(Option(turn, told_a | told_b | places | fact, fact))
    return options


def both_places(scene: Scene, names: dict[int, str]) -> tuple[str, frozenset]:
    """How shapes are found, by index and name of the question, and their places side by side: "top left red star star
    same; top left red star circle other, middle blue circle circle same; top left, middle". And what that tells."""
    found = [found_at(scene, index, name) for index, name in names.items()]
    places = [spot_of(scene, scene.things[index]) for index in names]
    return "; ".join([*found, ", ".join(places)]), frozenset(("place", index) for index in names)


def yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def exists_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """Is there a ...: what is there, and near misses: pairs whose shape or colour is there, or each of them but not
    together; shapes and colours that are not there. Not asked is what an outline or the ground could be taken for."""
    things, doubtful = scene.things, doubtful_colours(scene)
    # Sorted: a set of words has another order in every process.
    shapes, colours = sorted({thing.shape for thing in things}), sorted({thing.colour for thing in things})
    pairs = sorted({thing.pair for thing in things})
    present: list[tuple[str, Name]] = [(article(f"{c} {s}"), (s, c)) for s, c in pairs]
    present += [(article(shape), (shape, None)) for shape in shapes]
    present += [(of_colour(rng, colour, scene), (None, colour)) for colour in colours]
    misses = [
        pair for pair in allowed
        if pair not in pairs and pair[1] not in doubtful and (pair[0] in shapes or pair[1] in colours)
    ]  # fmt: skip
    absent: list[tuple[str, Name]] = [(article(f"{c} {s}"), (s, c)) for s, c in misses]
    absent = rng.sample(absent, min(len(absent), 4))
    absent += [(article(shape), (shape, None)) for shape in SHAPES if shape not in shapes]
    gone = [colour for colour in COLOURS if colour not in colours and colour not in doubtful]
    absent += [(of_colour(rng, colour, scene), (None, colour)) for colour in rng.sample(gone, 2)]
    options = []
    for words, name, truth in [(*item, True) for item in present] + [(*item, False) for item in absent]:
        facts = {
            (kind, index) for index, thing in enumerate(things) for kind in ("shape", "colour") if fits(name, thing)
        }
        turn = Turn("exists", ask(rng, "exists", words), yes_no(truth), looked_over(scene, name))
        asks = frozenset(facts) | {("exists", name)}
        options.append(Option(turn, asks if truth else asks | {("count", name)}, asks))
    return sorted(options, key=lambda option: option.turn.answer + option.turn.question)


def of_colour(rng: random.Random, colour: str, scene: Scene) -> str:
    """A shape of this colour; "anything" only where background, frame and outlines cannot be of it."""
    shape = article(f"{colour} shape")
    return shape if colour in ("black", "white") or scene.ground.tinted else rng.choice([f"anything {colour}", shape])


def absent_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """Questions that take for granted what is not so: the colour or shape of something absent, what lies on a side
    where nothing does."""
    things, options = scene.things, []
    doubtful = doubtful_colours(scene)
    names: list[Name] = [(shape, None) for shape in SHAPES]
    names += [(None, colour) for colour in COLOURS if colour not in doubtful]
    for gone in (name for name in names if not any(fits(name, thing) for thing in things)):
        shape, colour = gone
        if shape is not None:
            question, answer = ask(rng, "colour", f"the {shape}"), f"there is no {shape}"
        else:
            words = f"the {colour} " + rng.choice(["one", "object", "thing"])
            question, answer = ask(rng, "shape", words), f"there is no {colour} shape"
        fact = frozenset({("exists", gone)})
        turn = Turn("absent", question, answer, looked_over(scene, gone))
        options.append(Option(turn, fact | {("count", gone)}, fact))
    for index, thing in enumerate(things):
        own_names = names_of(things, index)
        others = [other for other in range(len(things)) if other != index]
        for side in SIDES if own_names else ():
            if all(is_beside(things[other], thing, side) is False for other in others):
                name = rng.choice([*own_names])
                question = ask(rng, "position", rng.choice(SIDE_WORDS[side]), name)
                sides = frozenset(("side", frozenset((index, other))) for other in others)
                turn = Turn("absent", question, "nothing", seen_from(scene, index, name, side))
                options.append(Option(turn, own_names[name] | sides, sides))
    return options


def place_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """In which part of the picture a shape is."""
    places = [certain_place(thing.x, thing.y, scene.width, scene.height) for thing in scene.things]
    return named_options(rng, scene, "place", places)


def size_options(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Option]:
    """How large a shape is."""
    return named_options(rng, scene, "size", [certain_size(thing.radius) for thing in scene.things])


def named_options(rng: random.Random, scene: Scene, kind: str, answers: Sequence[str | None]) -> list[Option]:
    """One question of this kind about each shape that has a name and an answer."""
    options = []
    for index, answer in enumerate(answers):
        names = names_of(scene.things, index)
        if names and answer:
            name, fact = rng.choice([*names]), frozenset({(kind, index)})
            options.append(Option(Turn(kind, ask(rng, kind, name), answer), names[name] | fact, fact))
    return options


SCENE_OPTIONS: dict[str, Callable[..., list[Option]]] = {
    "shape": shape_options,
    "colour": colour_options,
    "count": count_options,
    "larger": larger_options,
    "position": position_options,
    "side": side_options,
    "position_yes_no": position_yes_no_options,
    "exists": exists_options,
    "absent": absent_options,
}
CLUE_OPTIONS = {"place": place_options, "size": size_options}  # asked in training only, as in `CLUES`
OPTIONS = SCENE_OPTIONS | CLUE_OPTIONS
# Whose answers are drawn first, each as often: a model that always says the same is right as often as chance.
SCENE_ANSWERS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "count": ("0", "1", "2", "3", "4"),
    "side": ("left", "right", "above", "below"),
    "position_yes_no": ("yes", "no"),
    "exists": ("yes", "no"),
    "absent": (
        *["nothing"] * 6, *[f"there is no {shape}" for shape in SHAPES] * 2,
        *[f"there is no {colour} shape" for colour in COLOURS],
    ),
}  # fmt: skip


MOST_LOOKED_OVER = 2  # turns with a working: what was said once is only repeated, and nothing is seen for it
MOST_OF_TYPE = 2  # turns of each type
FREE = 0.3  # share of conversations that also ask what earlier answers settle
RARITY = {"0": 0.4, "1": 0.5, "nothing": 6.0}  # weights of these answers, to others 1


def options_of(rng: random.Random, scene: Scene, kind: str, *, allowed: Sequence[Pair]) -> list[Option]:
    """Every question of type `kind` that this scene allows, naming no pair as absent that is not `allowed`."""
    return OPTIONS[kind](rng, scene, allowed)


def pick_turns(
    rng: random.Random, first: Option, pools: dict[str, list[Option]], most: int, *, weights: dict[str, float]
) -> list[Turn]:
    """`first` and up to `most - 1` others: types by weight among those that can be asked now, and yes or no only where
    both could be the answer (else "no" would lead). Mostly nothing is asked that an earlier question told; sometimes
    it may be: to conclude from words is learned sooner than from pixels, and helps with those."""
    is_free = rng.random() < FREE
    chosen, told = [first], set() if is_free else set(first.tells)
    used = Counter([first.turn.type])
    while len(chosen) < most:
        asked = {plain(option.turn.question) for option in chosen}
        looked = sum(bool(option.turn.working) for option in chosen)
        fresh = {
            kind: [
                option
                for option in pool
                if plain(option.turn.question) not in asked
                and not option.asks & told
                and (looked < MOST_LOOKED_OVER or not option.turn.working)
            ]
            for kind, pool in pools.items()
            if used[kind] < MOST_OF_TYPE
        }
        kinds = [
            kind for kind, pool in fresh.items() if pool and not {one.turn.answer for one in pool} < {"yes", "no"}
        ]
        if not kinds:
            break
        kind = rng.choices(kinds, [weights[kind] / (1 + used[kind]) for kind in kinds])[0]
        option = pick_option(rng, fresh[kind])
        chosen.append(option)
        if not is_free:
            told |= option.tells
        used[kind] += 1
    return [option.turn for option in chosen]


def pick_option(rng: random.Random, options: Sequence[Option]) -> Option:
    """One of these: every answer as often, however many questions have it."""
    counts = Counter(option.turn.answer for option in options)
    weights = [RARITY.get(option.turn.answer, 1.0) / counts[option.turn.answer] for option in options]
    return rng.choices(options, weights)[0]
