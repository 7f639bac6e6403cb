"""Pictures in words: every answer can be found in the words, by reading them."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest
from shapes_reader import compared, looked_over

from arlow.data.captions import PLACES
from arlow.data.described import described_clip, described_pair, described_scene, make_described
from arlow.data.questions import Turn, options_of
from arlow.data.samples import draw_scene_of
from arlow.data.scenes import COLOURS, SHAPES, Scene, allowed_pairs, draw_scene, draw_thing
from arlow.data.two_media import compare


SIZES = ("small", "medium", "large")
WHERE = {words: place for place, words in PLACES.items()}
# "at the top left" begins with "at the top": the longest that fits.
THING = re.compile(
    rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}),? "
    rf"({'|'.join(sorted(PLACES.values(), key=len, reverse=True))})"
)


def read(description: str) -> list[tuple[str, str, str, tuple[int, int]]]:
    """Size, colour, shape and place (column, row) of everything a description names."""
    return [(size, colour, shape, WHERE[place]) for size, colour, shape, place in THING.findall(description)]


def spot(place: tuple[int, int]) -> str:
    """How the working of an answer calls a place: "top left"."""
    return PLACES[place].removeprefix("at the ").removeprefix("on the ").removeprefix("in the ")


def inventory(things: list) -> str:
    return ", ".join(f"{thing[1]} {thing[2]} {spot(thing[3])}" for thing in things)


def asked_about(question: str, things: list) -> list:
    """Whatever the words of a question fit."""
    words = set(re.findall(r"[a-z]+", question.lower()))
    shapes = {shape for shape in SHAPES if words & {shape, shape + "s"}}
    colours = {colour for colour in COLOURS if colour in words}
    return [thing for thing in things if (not shapes or thing[2] in shapes) and (not colours or thing[1] in colours)]


@pytest.mark.parametrize("seed", range(40))
def test_what_is_asked_is_told(seed: int) -> None:
    """Counts, colours, shapes, places, sides and sizes are those of the words."""
    rng = random.Random(seed)
    for _ in range(10):
        description, turns = described_scene(rng, "train", 8)
        things = read(description)
        assert 1 <= len(things) <= 4 and len({thing[3] for thing in things}) == len(things)
        for turn in turns:
            found = asked_about(turn.question, things)
            if turn.type in ("count", "exists", "colour", "shape"):
                check_over(turn, things, found)
            if turn.type == "count":
                assert turn.answer == str(len(found)), (description, turn)
            elif turn.type in ("side", "position_yes_no"):
                check_sides(turn, things)
            elif turn.type == "exists":
                assert turn.answer == ("yes" if found else "no"), (description, turn)
            elif turn.type == "place":
                assert [turn.answer] == [PLACES[thing[3]] for thing in found], (description, turn)
            elif turn.type in ("colour", "shape"):
                assert [turn.answer] == [thing[1 if turn.type == "colour" else 2] for thing in found], (
                    description,
                    turn,
                )
            elif turn.type == "position":
                assert turn.answer in {f"the {thing[1]} {thing[2]}" for thing in things}, (description, turn)
            elif turn.type == "larger":
                assert len({thing[0] for thing in things}) > 1, (description, turn)


def check_over(turn: Turn, things: list, found: list) -> None:
    """The working names everything that the words name, in their order, and picks what is asked for."""
    told = looked_over(turn.working, turn.question)
    assert len(told) == len(things), (things, turn)
    for (words, verdict), thing in zip(told, things, strict=True):
        assert words in (inventory([thing]), f"{thing[1]} shape {spot(thing[3])}"), (things, turn)
        names_any = re.search("|".join(SHAPES + COLOURS), turn.question.lower())
        assert verdict == (thing in found if names_any else None), (things, turn)


def check_sides(turn: Turn, things: list) -> None:
    """The working finds both shapes, the one asked about first, in what there is in reading order, and then has their
    places side by side; the answer follows from those."""
    *scans, both = turn.working.split("; ")
    places = []
    for scan, where in zip(scans, both.split(", "), strict=True):
        told = looked_over(scan, turn.question)
        assert [verdict for _, verdict in told] == [False] * (len(told) - 1) + [True], (things, turn)
        for (words, _), thing in zip(told, things, strict=False):
            assert words in (inventory([thing]), f"{thing[1]} shape {spot(thing[3])}"), (things, turn)
        _, colour, shape, place = things[len(told) - 1]
        names = (f"the {colour} {shape}", f"the {shape}", f"the {colour} shape")
        assert any(name in turn.question.lower() for name in names), (things, turn)
        assert where == spot(place), (things, turn)
        places.append(place)
    (column, row), (other_column, other_row) = places
    left, above = other_column - column, other_row - row  # by how much the first lies further that way
    ways = {"left": left, "right": -left, "above": above, "over": above, "below": -above, "under": -above}
    if turn.type == "side":
        assert ways[turn.answer] == max(ways.values()) > 0, (things, turn)
        assert abs(left) != abs(above), (things, turn)
    else:
        (way,) = set(re.findall(r"\b(left|right|above|over|below|under)\b", turn.question.lower()))
        assert turn.answer == ("yes" if ways[way] > 0 else "no"), (things, turn)


def test_sides_follow_from_the_places_of_a_drawn_scene() -> None:
    """Of shapes anywhere in a picture, a side is asked only where the thirds they lie in tell it."""
    rng, asked = random.Random(5), Counter()
    for _ in range(150):
        scene = draw_scene_of(rng, "train")
        shapes = sorted(scene.things, key=lambda one: (int(3 * one.y / scene.height), one.x))
        places = [(int(3 * one.x / scene.width), int(3 * one.y / scene.height)) for one in shapes]
        things = [("", one.colour, one.shape, place) for one, place in zip(shapes, places, strict=True)]
        for kind in ("side", "position_yes_no"):
            for option in options_of(rng, scene, kind, allowed=allowed_pairs("train")):
                check_sides(option.turn, things)
                asked[kind, option.turn.answer] += 1
    assert len(asked) == 6 and min(asked.values()) > 10


@pytest.mark.parametrize("seed", range(20))
def test_two_pictures_differ_in_their_words(seed: int) -> None:
    """What changed follows from the working, which tells both pictures as their descriptions do."""
    rng = random.Random(seed)
    for _ in range(10):
        description, turns = described_pair(rng, "train", 12)
        first, second = (line.partition(": ")[2] for line in description.splitlines())
        (same,) = (turn for turn in turns if turn.type == "same_different")
        befores, pairs = compared(same.working)
        assert ", ".join(befores) == inventory(read(first)), (description, same)
        assert ", ".join(now for now, _ in pairs) == inventory(read(second)), (description, same)
        unlike = [(now, before) for now, before in pairs if now != before]
        assert len(unlike) <= 1
        if len(befores) != len(pairs):
            change = "number"
        elif unlike:
            (now, before), *_ = unlike
            change = "position" if not before else "colour" if now.split()[1] == before.split()[1] else "shape"
        else:
            change = "same"
        assert same.answer == ("same" if change == "same" else "different"), (description, same)
        for turn in turns:
            if turn.type == "what_changed":
                assert turn.answer == change, (description, turn)
                assert turn.working == same.working
            if turn.type == "count":
                assert turn.answer == str(len(read(first if "first" in turn.question else second)))


def test_what_is_twice_at_one_place_is_compared_with_its_like() -> None:
    """A yellow triangle that stays in the middle is not taken for the blue circle that comes to stand before it."""
    rng = random.Random(0)
    ground = draw_scene(rng, [("circle", "red")]).ground
    triangle = draw_thing(rng, ("triangle", "yellow"), x=0.6, y=0.5, radius=0.1)
    circle = draw_thing(rng, ("circle", "blue"), x=0.4, y=0.5, radius=0.1)
    before, after = (Scene(1.0, 1.0, things, ground) for things in ((triangle,), (circle, triangle)))
    assert compare(before, after) == (
        "1 middle yellow triangle; 2 middle blue circle nothing, middle yellow yellow same, triangle triangle same; "
        "1 2 other"
    )
    assert compare(after, before) == (
        "1 middle blue circle, middle yellow triangle; 2 middle yellow yellow same, triangle triangle same; 2 1 other"
    )
    star = draw_thing(rng, ("star", "yellow"), x=0.6, y=0.5, radius=0.1)
    assert compare(after, Scene(1.0, 1.0, (circle, star), ground)) == (
        "1 middle blue circle, middle yellow triangle; "
        "2 middle blue blue same, circle circle same, middle yellow yellow same, star triangle other; 2 2 same"
    )


@pytest.mark.parametrize("seed", range(20))
def test_clips(seed: int) -> None:
    """Answers about a clip are words of its description, and as many changes as it names."""
    rng = random.Random(seed)
    for _ in range(10):
        description, turns = described_clip(rng, "train", 8)
        for turn in turns:
            if turn.type == "video_changes":
                colours = re.findall("|".join(COLOURS), description)
                looks, _, follow = turn.working.rpartition("; ")
                is_timed = re.match(rf"Video: (?:(?:{'|'.join(COLOURS)}) ){{8}}", description)
                assert looks.split() == (colours if is_timed else [])
                assert follow == ", ".join(colour for colour, _ in itertools.groupby(colours))
                assert turn.answer == str(follow.count(","))
            else:
                assert turn.answer in description


def test_the_description_stands_before_the_first_question() -> None:
    """As a conversation: one text, then at most as many turns as asked for."""
    for seed in range(30):
        sample = make_described(random.Random(seed), "train", 3)
        assert not sample.media and 1 <= len(sample.turns) <= 3
        first, *others = sample.turns
        assert re.match("(Picture|Video|First picture): ", first.question)
        assert not any("icture: " in turn.question for turn in others)
