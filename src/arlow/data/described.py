"""Pictures and clips in words, with the questions that are asked about real ones. To look up, compare and count is
learned sooner from words than from pixels, and serves for both."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from .captions import describe_scene, describe_story, size_word, third
from .lists import draw_list
from .questions import SCENE_OPTIONS, Turn, options_of, pick_turns
from .sample import Sample
from .samples import SCENE_WEIGHTS, colour_changes, colours_over_time, draw_story_about
from .scenes import Scene, allowed_pairs, draw_pairs, draw_scene
from .two_media import CHANGES, draw_change, pair_turns, side_by_side
from .wordings import ask


Described = tuple[str, list[Turn]]  # what is there to see, and questions about it

# So unlike that each is clearly larger than the one before.
WORD_RADIUS = {"small": 0.03, "medium": 0.06, "large": 0.12}
WEIGHTS = SCENE_WEIGHTS | {"place": 1.0}
LISTED = 0.2  # share of the conversations that are about everything at once
# What two things have in common: by whether their shapes and their colours are alike.
COMMONS = {(True, True): "both", (False, True): "colour", (True, False): "shape", (False, False): "nothing"}


def make_described(rng: random.Random, split: str, most: int) -> Sample:
    """A conversation about what its first question describes."""
    listed = most > 1 and rng.random() < LISTED
    description, (first, *others) = described_list(rng, split) if listed else draw_described(rng, split, most)
    return Sample([], [replace(first, question=f"{description}\n{first.question}"), *others])


def draw_described(rng: random.Random, split: str, most: int) -> Described:
    """Pictures or a clip in words, and up to `most` questions about them."""
    return rng.choices([*DESCRIPTIONS], [*DESCRIPTIONS.values()])[0](rng, split, most)


def described_scene(rng: random.Random, split: str, most: int) -> Described:
    """A picture, and up to `most` questions."""
    while True:
        drawn = draw_scene(rng, draw_pairs(rng, rng.randint(1, 4), allowed_pairs(split)))
        scene = as_told(drawn)
        if len({(thing.x, thing.y) for thing in scene.things}) == len(scene.things):
            break
    pools = {kind: options_of(rng, scene, kind, allowed=allowed_pairs(split)) for kind in (*SCENE_OPTIONS, "place")}
    first = rng.choice(pools[rng.choice([kind for kind, pool in pools.items() if pool])])
    turns = pick_turns(rng, first, pools, most, weights=WEIGHTS)
    return f"Picture: {describe_scene(drawn, rng.randrange(3))}", turns


def described_list(rng: random.Random, split: str) -> Described:
    """A picture, and one or two questions about all of its shapes."""
    scene = draw_scene(rng, draw_pairs(rng, rng.randint(2, 4), allowed_pairs(split)))
    turns = [draw_list(rng, scene, allowed_pairs(split), is_told=True) for _ in range(rng.randint(1, 2))]
    return f"Picture: {describe_scene(scene, rng.randrange(3))}", turns


def as_told(scene: Scene) -> Scene:
    """The scene as far as a caption tells it: every shape in the centre of its ninth, of one of three sizes."""
    things = tuple(
        replace(
            thing,
            x=(third(thing.x / scene.width) + 0.5) / 3 * scene.width,
            y=(third(thing.y / scene.height) + 0.5) / 3 * scene.height,
            radius=WORD_RADIUS[size_word(thing.radius)],
        )
        for thing in scene.things
    )
    return replace(scene, things=things)


def described_clip(rng: random.Random, split: str, most: int) -> Described:
    """A clip, told by what happens in it, or by the colour at several times."""
    story = draw_story_about(rng, split, rng.choice(["video_direction", "video_size", "video_changes", None]))
    shape, colour, changes = story.thing.shape, story.colours[0], str(len(story.colours) - 1)
    is_timed = rng.random() < 0.5
    working = colour_changes(story) if is_timed else ", ".join(story.colours)
    turns = [
        Turn("video_changes", ask(rng, "video_changes", "the shape"), changes, working),
        Turn("video_shape", ask(rng, "video_shape", "the shape"), shape),
    ]
    if len(story.colours) == 1:
        turns.append(Turn("video_colour", ask(rng, "video_colour", f"the {shape}"), colour))
    if story.direction and not is_timed:
        turns.append(Turn("video_direction", ask(rng, "video_direction", "it"), story.direction))
    if story.size and not is_timed:
        turns.append(Turn("video_size", ask(rng, "video_size", "it"), story.size))
    rng.shuffle(turns)
    told = f"{colours_over_time(story)} {shape}" if is_timed else describe_story(story, rng.randrange(3))
    return f"Video: {told}", turns[:most]


def described_pair(rng: random.Random, split: str, most: int) -> Described:
    """Two pictures, and what is the same."""
    while True:
        change = rng.choice([None, *CHANGES])
        drawn = draw_change(rng, split, change)
        if drawn is None:
            continue
        *scenes, thing = drawn
        first, second = (describe_scene(scene, 2) for scene in scenes)
        if (first == second) == (change is None):
            break
    turns = [*pair_turns(rng, scenes, thing, change).values()]
    rng.shuffle(turns)
    return f"First picture: {first}\nSecond picture: {second}", turns[:most]


def described_picture_and_clip(rng: random.Random, split: str, most: int) -> Described:
    """A picture and a clip of one shape each, and what they have in common."""
    shape, colour = rng.choice(allowed_pairs(split))
    alike = [pair for pair in allowed_pairs(split) if shape in pair or colour in pair]
    other, hue = rng.choice(rng.choice([alike, allowed_pairs(split), [(shape, colour)]]))
    turn = Turn(
        "in_common",
        ask(rng, "in_common"),
        COMMONS[shape == other, colour == hue],
        working=side_by_side((shape, colour), (other, hue)),
    )
    return f"Picture: {colour} {shape}.\nVideo: {hue} {other}.", [turn]


DESCRIPTIONS: dict[Callable[[random.Random, str, int], Described], float] = {
    described_scene: 3.0,
    described_pair: 1.8,
    described_clip: 1.0,
    described_picture_and_clip: 0.8,
}
