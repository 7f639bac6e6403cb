"""Questions about everything at once: every part of an answer is true of the picture, and nothing is left out."""

from __future__ import annotations

import random
import re

import pytest

from arlow.data.captions import PLACES, size_word
from arlow.data.described import described_list
from arlow.data.lists import FACTS, draw_list, grid_of
from arlow.data.questions import Turn
from arlow.data.scenes import COLOURS, SHAPES, UNSEEN_PAIRS, Scene, allowed_pairs, draw_pairs, draw_scene


def scene_of(rng: random.Random) -> Scene:
    return draw_scene(rng, draw_pairs(rng, rng.randint(1, 4), allowed_pairs("train")))


def named(words: str, scene: Scene) -> list:
    """The shapes of the scene that fit a name such as "red circle", "red" or "circle"."""
    parts = [part for part in words.split() if part != "shape"]
    return [thing for thing in scene.things if all(part in (thing.colour, thing.shape) for part in parts)]


@pytest.mark.parametrize("seed", range(30))
def test_lists_are_true(seed: int) -> None:
    """Facts in the order asked for, of every shape once; counts of every name asked for; places, or nowhere."""
    rng = random.Random(seed)
    for _ in range(10):
        scene = scene_of(rng)
        turn = draw_list(rng, scene, allowed_pairs("train"))
        question = turn.question.lower().rstrip("?.")
        assert not any(f"{colour} {shape}" in turn.question for shape, colour in UNSEEN_PAIRS)
        if "seen from" in question or "which side of" in question:
            check_sides(turn, scene)
            continue
        asked = re.split(r"by |: ", question, maxsplit=1)[1].split(", ")
        if all(part in FACTS for part in asked):
            expected = [", ".join(FACTS[fact](scene, thing) for fact in asked) for thing in scene.things]
            assert sorted(turn.answer.split("; ")) == sorted(expected), turn
            continue
        for name, part in zip(asked, turn.answer.split(", "), strict=True):
            assert part.startswith(name + " ")
            found, said = named(name, scene), part.removeprefix(name + " ")
            if said.isdigit():
                assert int(said) == len(found), turn
            elif said == "nowhere":
                assert not found, turn
            else:
                [thing] = found
                column, row = next(place for place, words in PLACES.items() if words == said)
                assert column / 3 <= thing.x / scene.width <= (column + 1) / 3
                assert row / 3 <= thing.y / scene.height <= (row + 1) / 3


def check_sides(turn: Turn, scene: Scene) -> None:
    """Every side is true of some shape of that name, and clearly more so than any other side."""
    asked = re.split(r"seen from the |side of the ", turn.question.lower().rstrip("?."))[1]
    (seat,) = named(asked, scene)
    for part in turn.answer.split(", "):
        name, _, side = part.rpartition(" ")
        ways = [
            {"left": seat.x - one.x, "right": one.x - seat.x, "above": seat.y - one.y, "below": one.y - seat.y}
            for one in named(name, scene)
        ]
        assert any(way[side] == max(way.values()) > 0 for way in ways), turn


def test_grids_show_where_everything_is() -> None:
    """Every shape stands in the cell in which its centre lies; the other cells hold nothing."""
    rng = random.Random(2)
    for _ in range(100):
        scene = scene_of(rng)
        rows = [row.split(", ") for row in grid_of(rng, scene).answer.split("; ")]
        assert [len(row) for row in rows] == [3, 3, 3]
        found = sorted((name, x, y) for y, row in enumerate(rows) for x, cell in enumerate(row)
                       for name in cell.split(" and ") if name != "nothing")  # fmt: skip
        third = [(int(3 * thing.x / scene.width), int(3 * thing.y / scene.height)) for thing in scene.things]
        assert found == sorted((f"{t.colour} {t.shape}", *spot) for t, spot in zip(scene.things, third, strict=True))


def test_described_lists_ask_what_the_words_tell() -> None:
    """Colours, shapes, sizes and places of the answers stand in the description."""
    rng = random.Random(1)
    for _ in range(50):
        description, turns = described_list(rng, "train")
        for turn in turns:
            for word in (*COLOURS, *SHAPES, *{size_word(radius) for radius in (0.1, 0.2, 0.3)}):
                if word in turn.answer and ";" in turn.answer:
                    assert word in description, (description, turn)
