"""Questions about everything in a picture at once. One answer takes as many look-ups as a dozen single questions: so
it is learned sooner to find a shape by one thing that is known of it, and to say another."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .captions import PLACES, name_of, place_of, size_word
from .questions import SIDES, Name, Turn, fits, is_beside, names_of
from .scenes import COLOURS, SHAPES, Pair, Scene, Thing
from .wordings import LIST, vary


FACTS: dict[str, Callable[[Scene, Thing], str]] = {
    "colour": lambda scene, thing: thing.colour,
    "shape": lambda scene, thing: thing.shape,
    "place": lambda scene, thing: place_of(thing.x, thing.y, scene.width, scene.height),
    "size": lambda scene, thing: size_word(thing.radius),
}


def draw_list(rng: random.Random, scene: Scene, allowed: Sequence[Pair], *, is_told: bool = False) -> Turn:
    """One question about all shapes of the scene; it names no pair that is not `allowed`. `is_told`: of a scene in
    words, which do not settle every side."""
    kinds = [facts_of_all, counts_of, places_of, sides_of]
    return rng.choices(kinds, (3, 1, 1, 0 if is_told else 3))[0](rng, scene, allowed)


def facts_of_all(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> Turn:
    """Some facts about every shape, in the order asked for; the shapes in any order."""
    facts = rng.sample([*FACTS], rng.choice((2, 3, 3, 4)))
    things = rng.sample(scene.things, len(scene.things))
    answer = "; ".join(", ".join(FACTS[fact](scene, thing) for fact in facts) for thing in things)
    return Turn("list", vary(rng, rng.choice(LIST["facts"]).format(", ".join(facts))), answer)


def counts_of(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> Turn:
    """How many of several kinds there are."""
    names = draw_names(rng, scene, allowed)
    answer = ", ".join(f"{words(name)} {len(fitting(scene, name))}" for name in names)
    return Turn("list", vary(rng, rng.choice(LIST["counts"]).format(", ".join(map(words, names)))), answer)


def places_of(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> Turn:
    """Where several kinds are, of which there is one or none."""
    names = [name for name in draw_names(rng, scene, allowed) if len(fitting(scene, name)) < 2]
    found = [(words(name), [FACTS["place"](scene, thing) for thing in fitting(scene, name)]) for name in names]
    if not found:
        return facts_of_all(rng, scene, allowed)
    answer = ", ".join(f"{name} {places[0] if places else 'nowhere'}" for name, places in found)
    return Turn("list", vary(rng, rng.choice(LIST["places"]).format(", ".join(map(words, names)))), answer)


def sides_of(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> Turn:
    """On which side of one shape each of the others is, nearly diagonal ones left out; in any order."""
    found = []
    for index, seat in enumerate(scene.things):
        sides = [
            f"{name_of(other)} {side.removesuffix(' of')}"
            for other in rng.sample(scene.things, len(scene.things))
            for side in SIDES
            if other is not seat and is_beside(other, seat, side, straight=1.5)
        ]
        found += [(name, sides) for name in names_of(scene.things, index) if sides]
    if not found:
        return facts_of_all(rng, scene, allowed)
    name, sides = rng.choice(found)
    return Turn("list", vary(rng, rng.choice(LIST["sides"]).format(name)), ", ".join(sides))


def grid_of(rng: random.Random, scene: Scene) -> Turn:
    """What is at each of nine places, row by row. Where to look follows from the turn, as in a sheet."""
    cells = [
        [name_of(thing) for thing in scene.things if FACTS["place"](scene, thing) == PLACES[column, row]]
        for row in range(3)
        for column in range(3)
    ]
    told = [" and ".join(cell) or "nothing" for cell in cells]
    answer = "; ".join(", ".join(told[start : start + 3]) for start in (0, 3, 6))
    return Turn("list", vary(rng, rng.choice(LIST["grid"])), answer)


def draw_names(rng: random.Random, scene: Scene, allowed: Sequence[Pair]) -> list[Name]:
    """Names of what is there and of what is not, in any order."""
    there = [name for thing in scene.things for name in (thing.pair, (thing.shape, None), (None, thing.colour))]
    others = [*allowed, *((shape, None) for shape in SHAPES), *((None, colour) for colour in COLOURS)]
    names = rng.sample(there, min(3, len(there))) + [rng.choice(others) for _ in range(2)]
    return rng.sample([*dict.fromkeys(names)], len({*names}))


def fitting(scene: Scene, name: Name) -> list[Thing]:
    return [thing for thing in scene.things if fits(name, thing)]


def words(name: Name) -> str:
    return " ".join(part for part in reversed(name) if part)
