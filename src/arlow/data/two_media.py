"""Samples of two media: one scene drawn twice, with or without a change, and a picture beside a clip."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from .captions import certain_place, in_reading_order, name_of, spot_of
from .clips import DIRECTIONS, draw_story, render_story
from .questions import Turn, full_name, looked_over, with_verdict
from .sample import Clip, Picture, Sample, draw_side, film, in_turn, picture_of, shoot
from .scenes import (
    LINE,
    UNSEEN_PAIRS,
    Pair,
    Scene,
    Thing,
    allowed_pairs,
    are_distinct,
    colour_value,
    corners,
    draw_ground,
    draw_pairs,
    draw_scene,
    make_plain,
    place,
    render,
    stands_out,
)
from .wordings import ask, vary


CHANGES = ("colour", "shape", "number", "position")
COMMON = ("colour", "shape", "both", "nothing")
MOST_OF_PAIR = 4  # turns about two pictures: they say the same things again and again
SAME_SIZE = 0.85  # chance of each of two pictures to be of the usual size


def make_two_images(rng: random.Random, split: str, most: int, *, plain: bool = False) -> Sample:
    """One scene drawn twice, at different qualities and sometimes sizes, or with one change in between."""
    kind = rng.choice(["same_different", "what_changed"])
    change = rng.choice(CHANGES) if kind == "what_changed" or rng.random() < 0.5 else None
    drawn = None
    while drawn is None:
        drawn = draw_change(rng, split, change)
    *scenes, thing = drawn
    scenes = [make_plain(scene) for scene in scenes] if plain else scenes
    turns = pair_turns(rng, scenes, thing, change)
    side = draw_side(rng, *scenes)
    sides = [side if rng.random() < SAME_SIZE else draw_side(rng, scene) for scene in scenes]
    pictures = [shoot(rng, render(rng, scene, side)) for scene, side in zip(scenes, sides, strict=True)]
    first, others = turns.pop(kind), [*turns.values()]
    rng.shuffle(others)
    return Sample([*pictures], in_turn(rng, first, others, min(most, MOST_OF_PAIR)))


def pair_turns(rng: random.Random, scenes: Sequence[Scene], thing: Thing, change: str | None) -> dict[str, Turn]:
    """Every question about two scenes, of which the second is the first after a change of `thing` (None: the same)."""
    compared, verdict = compare(*scenes), "different" if change else "same"
    turns = {"same_different": Turn("same_different", ask(rng, "same_different"), verdict, compared)}
    if change:
        turns["what_changed"] = Turn("what_changed", ask(rng, "what_changed"), change, compared)
        which = "which_is_new" if change == "number" else "which_changed"
        if all(sum(one.pair == thing.pair for one in scene.things) <= 1 for scene in scenes):
            turns[which] = Turn(which, ask(rng, which), full_name(thing))
    for scene, name in zip(scenes, ("first", "second"), strict=True):
        shapes = looked_over(scene)
        turns[name] = Turn("inventory", ask(rng, "inventory", name), shapes)
        question = f"How many {rng.choice(['shapes', 'objects'])} are in the {name} picture?"
        turns[f"count {name}"] = Turn("count", vary(rng, question), str(len(scene.things)), shapes)
        single = [one for one in scene.things if sum(other.pair == one.pair for other in scene.things) == 1]
        moved = [one for one in single if one.pair == thing.pair and change == "position"]
        for one in moved or single[:1]:
            if spot := certain_place(one.x, one.y, scene.width, scene.height):
                turns[f"place {name}"] = Turn("place_in", ask(rng, "place_in", full_name(one), name), spot)
    return turns


def compare(before: Scene, after: Scene) -> str:
    """Everything in the first picture, then in the second, there beside what the first has at the same place, and how
    many there are: "1 top red star, left blue circle; 2 top red red same, star star same, right blue circle nothing;
    2 2 same"."""
    looks = []
    for thing, old in zip(in_reading_order(after), partners(before, after), strict=True):
        if old is None:
            told = f"{name_of(thing)} nothing"
        else:
            told = f"{with_verdict(thing.colour, old.colour)}, {with_verdict(thing.shape, old.shape)}"
        looks.append(f"{spot_of(after, thing)} {told}")
    # A number stands first, for the tokenizer, too: each of the words compared is " red", never "red".
    counts = with_verdict(str(len(before.things)), str(len(after.things)))
    return f"1 {looked_over(before)}; 2 {', '.join(looks)}; {counts}"


def partners(before: Scene, after: Scene) -> list[Thing | None]:
    """What the first picture has in the same ninth, for each shape of the second in reading order: its like, or else
    one that has no like there. None: nothing."""
    olds, news = in_reading_order(before), in_reading_order(after)
    found: list[Thing | None] = [None] * len(news)
    for is_enough in (False, True):  # to be in the same ninth
        for index, thing in enumerate(news):
            fitting = (
                old
                for old in olds
                if spot_of(before, old) == spot_of(after, thing) and (is_enough or old.pair == thing.pair)
            )
            if found[index] is None and (old := next(fitting, None)):
                found[index] = old
                olds.remove(old)
    return found


def side_by_side(one: Pair, other: Pair) -> str:
    """Two things by colour and by shape: "colour red red same, shape star circle other"."""
    return f"colour {with_verdict(one[1], other[1])}, shape {with_verdict(one[0], other[0])}"


def draw_change(rng: random.Random, split: str, change: str | None) -> tuple[Scene, Scene, Thing] | None:
    """A scene before and after a change (None: the same twice) of one shape, and this shape before it, or None where
    chance did not allow it."""
    allowed = allowed_pairs(split)
    pairs = draw_pairs(rng, rng.randint(1, 3), allowed)
    at = rng.randrange(len(pairs))
    if split == "unseen":
        pairs[at] = rng.choice(sorted(UNSEEN_PAIRS))
    before = draw_scene(rng, pairs, least_radius=0.12)
    after = list(before.things)
    thing = after[at] = replace(after[at], outline=None)
    before = replace(before, things=tuple(after))
    if change in ("colour", "shape"):
        kinds = [
            pair for pair in allowed
            if (pair[0] == thing.shape and are_distinct(pair[1], thing.colour) if change == "colour"
                else pair[1] == thing.colour and pair[0] != thing.shape)
        ]  # fmt: skip
        if not kinds:
            return None
        after[at] = changed(rng, thing, rng.choice(kinds))
    elif change == "position":
        spot = place(rng, after[:at] + after[at + 1 :], thing.radius, before.width, before.height)
        if spot is None or max(abs(spot[0] - thing.x), abs(spot[1] - thing.y)) < max(0.3, 1.2 * thing.radius):
            return None
        after[at] = replace(thing, x=spot[0], y=spot[1])
        if spot_of(before, thing) == spot_of(before, after[at]):
            return None
    elif change == "number":
        if len(after) == 1:
            return None
        del after[at]
    both = [*before.things, *after]
    if {"black", "white"} <= {one.colour for one in both}:
        return None
    ground = draw_ground(rng, both)
    if not stands_out([one.rgb for one in both], ground):
        return None
    scenes = replace(before, ground=ground), replace(before, things=tuple(after), ground=ground)
    first, second = scenes if change != "number" or rng.random() < 0.5 else scenes[::-1]
    return first, second, thing


def changed(rng: random.Random, thing: Thing, pair: Pair) -> Thing:
    """`thing` where it is, of another shape or colour."""
    if pair[0] != thing.shape:
        line = thing.line / LINE[thing.shape] * LINE[pair[0]]
        return replace(thing, shape=pair[0], points=corners(rng, pair[0]), line=line)
    return replace(thing, colour=pair[1], rgb=colour_value(rng, pair[1]))


def make_image_and_clip(rng: random.Random, split: str, most: int) -> Sample:
    """A picture of one shape and a clip of one shape that share colour, shape, both or nothing."""
    common = rng.choice(COMMON)
    allowed = allowed_pairs(split)
    shape, colour = rng.choice(sorted(UNSEEN_PAIRS) if split == "unseen" else allowed)
    pairs = [
        pair for pair in allowed
        if (pair[0] == shape) == (common in ("shape", "both"))
        and (pair[1] == colour if common in ("colour", "both") else are_distinct(pair[1], colour))
    ]  # fmt: skip
    scene = draw_scene(rng, [(shape, colour)], least_radius=0.12)
    direction = rng.choice([*DIRECTIONS]) if rng.random() < 0.7 else None
    story = draw_story(rng, [rng.choice(pairs)], direction=direction)
    media: list[Picture | Clip] = [picture_of(rng, scene), film(rng, render_story(rng, story), story.fps)]
    shown = [(shape, colour), (story.thing.shape, story.colours[0])]  # in the picture and in the clip
    if rng.random() < 0.5:
        media.reverse()
        shown.reverse()
    first = Turn("in_common", ask(rng, "in_common"), common, side_by_side(*shown))
    others = [
        Turn("colour", vary(rng, "What colour is the shape in the picture?"), colour, looked_over(scene)),
        Turn("shape", vary(rng, "What shape is in the picture?"), shape, looked_over(scene)),
        Turn("video_colour", vary(rng, "What colour is the shape in the video?"), story.colours[0]),
        Turn("video_shape", vary(rng, "What shape is in the video?"), story.thing.shape),
    ]
    rng.shuffle(others)
    return Sample(media, in_turn(rng, first, others, most))
