"""Samples: media in memory with questions about them, one function per task."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial

from .captions import (
    PLACES,
    certain_place,
    certain_size,
    describe_digits,
    describe_scene,
    describe_story,
)
from .clips import (
    DIRECTIONS,
    Story,
    digit_ground,
    draw_colour_turn,
    draw_story,
    render_digits,
    render_story,
)
from .digits import digit_mask
from .lists import draw_list, grid_of
from .questions import (
    SCENE_ANSWERS,
    Option,
    Turn,
    options_of,
    pick_option,
    pick_turns,
)
from .sample import Clip, Picture, Sample, film, in_turn, picture_of, shoot
from .scenes import (
    COLOURS,
    SHAPES,
    UNSEEN_PAIRS,
    Scene,
    allowed_pairs,
    draw_pairs,
    draw_scene,
    finish,
    make_plain,
    render_ground,
    side_of,
)
from .sheets import GRIDS, SINGLE, draw_sheet
from .text_questions import draw_text_turns, unknown_turn
from .two_media import make_image_and_clip, make_two_images
from .wordings import CAPTION, SHEET, ask, vary


# A picture of shapes


SCENE_WEIGHTS = {
    "shape": 1.3, "colour": 1.5, "count": 1.7, "larger": 1.2, "position": 1.8, "side": 2.2, "position_yes_no": 1.8,
    "exists": 1.0, "absent": 1.0,
}  # fmt: skip
CLUE_WEIGHTS = {"place": 1.0, "size": 0.3}
MOST_OF_PICTURE = 4  # turns that a scene answers


def make_picture(rng: random.Random, split: str, most: int, *, plain: bool = False) -> Sample:
    """One to four shapes. Type and answer of the first question are drawn first, then scenes until one fits."""
    kind = draw_kind(rng, SCENE_WEIGHTS, even=most == 1)
    answers = SCENE_ANSWERS.get(kind)
    if split == "unseen" and kind == "colour":
        answers = tuple(sorted(colour for _, colour in UNSEEN_PAIRS))
    answer = rng.choice(answers) if answers else None
    first = None
    while first is None:
        scene = draw_scene_of(rng, split)
        scene = make_plain(scene) if plain else scene
        first = draw_fitting(rng, scene, split, kind, answer)
    turns = [first.turn]
    if most > 1:
        weights = SCENE_WEIGHTS | CLUE_WEIGHTS
        pools = {other: options_of(rng, scene, other, allowed=allowed_pairs(split)) for other in weights}
        turns = pick_turns(rng, first, pools, min(most, rng.randint(2, MOST_OF_PICTURE)), weights=weights)
        if len(turns) < most and rng.random() < 0.06:
            turns.append(unknown_turn(rng, split, without_media=False))
    return Sample([picture_of(rng, scene)], turns)


def draw_kind(rng: random.Random, weights: dict[str, float], *, even: bool) -> str:
    """A type of question: as often as its weight says, or all as often (for evaluation)."""
    return rng.choice([*weights]) if even else rng.choices([*weights], [*weights.values()])[0]


def draw_scene_of(rng: random.Random, split: str) -> Scene:
    """A scene of one to four shapes; in "unseen" at least one is a pair that training never shows."""
    pairs = draw_pairs(rng, rng.choices((1, 2, 3, 4), (2, 4, 4, 3))[0], allowed_pairs(split))
    if split == "unseen" and not UNSEEN_PAIRS & {*pairs}:  # none of these is black or white
        pairs[rng.randrange(len(pairs))] = rng.choice(sorted(UNSEEN_PAIRS))
    return draw_scene(rng, pairs)


def draw_fitting(rng: random.Random, scene: Scene, split: str, kind: str, answer: str | None) -> Option | None:
    """A question of this type with this answer (None: any), if the scene allows one; in "unseen" about unseen pairs
    where it is about one shape, and naming one where it can."""
    options = options_of(rng, scene, kind, allowed=allowed_pairs(split))
    fitting = [option for option in options if answer in (None, option.turn.answer)]
    if split == "unseen" and kind in ("shape", "colour"):
        unseen = {(kind, index) for index, thing in enumerate(scene.things) if thing.pair in UNSEEN_PAIRS}
        fitting = [option for option in fitting if option.asks & unseen]
    elif split == "unseen":
        fitting = [option for option in fitting if names_unseen(option.turn)] or fitting
    return pick_option(rng, fitting) if fitting else None


def names_unseen(turn: Turn) -> bool:
    """Whether question or answer names a pair that training never shows; a working names whatever there is."""
    words = f"{turn.question} {turn.answer}".lower()
    return any(f"{colour} {shape}" in words for shape, colour in UNSEEN_PAIRS)


SPOT_KINDS = ("place", "size", "shape", "colour")


def make_spot(rng: random.Random, split: str, most: int) -> Sample:
    """One plain shape on one colour: where it is (drawn first: every place as often), how large, and what."""
    spot = rng.choice([*PLACES.values()])
    scene = None
    while scene is None or certain_place(scene.things[0].x, scene.things[0].y, scene.width, scene.height) != spot:
        scene = draw_scene(rng, draw_pairs(rng, 1, allowed_pairs(split)))
    scene = make_plain(scene)
    pools = [options_of(rng, scene, kind, allowed=()) for kind in SPOT_KINDS]
    turns = [rng.choice(pool).turn for pool in pools if pool]
    return Sample([picture_of(rng, scene)], in_turn(rng, turns[0], turns[1:], most))


def make_list(rng: random.Random, split: str, most: int, *, plain: bool = False) -> Sample:
    """Two to four shapes, and one question about all of them."""
    scene = draw_scene(rng, draw_pairs(rng, rng.randint(2, 4), allowed_pairs(split)))
    scene = make_plain(scene) if plain else scene
    return Sample([picture_of(rng, scene)], [draw_list(rng, scene, allowed_pairs(split))])


def make_sizes(rng: random.Random, split: str, most: int) -> Sample:
    """Two to four shapes, which of two is larger, and how large they are: what is asked of scenes too seldom."""
    larger: list[Option] = []
    while not larger:
        scene = draw_scene(rng, draw_pairs(rng, rng.randint(2, 4), allowed_pairs(split)))
        larger = options_of(rng, scene, "larger", allowed=())
    chosen = rng.sample(larger, min(2, len(larger)))
    sizes = options_of(rng, scene, "size", allowed=())
    chosen += rng.sample(sizes, min(2, len(sizes)))
    first, *others = (option.turn for option in chosen)
    return Sample([picture_of(rng, scene)], in_turn(rng, first, others, most))


def make_grid(rng: random.Random, split: str, most: int) -> Sample:
    """One to four shapes at places that nobody would argue about, half of them plain, read like a sheet."""
    scene = None
    while scene is None or any(
        certain_place(thing.x, thing.y, scene.width, scene.height) is None for thing in scene.things
    ):
        scene = draw_scene(rng, draw_pairs(rng, rng.randint(1, 4), allowed_pairs(split)))
    scene = make_plain(scene) if rng.random() < 0.5 else scene
    return Sample([picture_of(rng, scene)], [grid_of(rng, scene)])


# Digits


DIGIT_WEIGHTS = {"digit": 1.0, "digit_sum": 1.0, "digit_larger": 0.7}


def make_digit(rng: random.Random, split: str, most: int) -> Sample:
    """One handwritten digit, or two side by side."""
    kind = draw_kind(rng, DIGIT_WEIGHTS, even=most == 1)
    if kind == "digit":
        digit = rng.randrange(10)
        return Sample([picture_of_digits(rng, [digit], split)], [Turn("digit", ask(rng, "digit"), str(digit))])
    left, right = (rng.randrange(10) for _ in range(2))
    if kind == "digit_larger":
        left, right = rng.sample(range(10), 2)
    turns = {"digit_sum": Turn("digit_sum", ask(rng, "digit_sum"), f"{left} + {right} = {left + right}")}
    if left != right:
        working = f"{left}, {right}"
        turns["digit_larger"] = Turn("digit_larger", ask(rng, "digit_larger"), str(max(left, right)), working)
    for side, digit in (("left", left), ("right", right)):
        turns[side] = Turn("digit", ask(rng, "digit_side", side), str(digit))
    first = turns.pop(kind)
    return Sample([picture_of_digits(rng, [left, right], split)], in_turn(rng, first, [*turns.values()], most))


def picture_of_digits(rng: random.Random, digits: Sequence[int], split: str) -> Picture:
    """A picture of these digits, from left to right, on any background, in dark or light ink."""
    width = len(digits) * rng.uniform(0.85, 1.3)
    height = rng.uniform(1.0, 1.4)
    short = min(width, height)
    side = side_of(rng, width / short, height / short) / short  # pixels of one digit's cell
    ground, ink = digit_ground(rng)
    canvas = render_ground(rng, ground, round(width * side), round(height * side))
    # One size for all: asked is which number is larger, not which is written larger.
    size = round(side * rng.uniform(0.7, 0.95) * min(1.0, width / len(digits)))
    for index, digit in enumerate(digits):
        mask = digit_mask(rng, digit, split=split, side=size)
        cell = canvas.width // len(digits)
        left = index * cell + rng.randint(0, max(0, cell - size))
        canvas.paste(ink, (left, rng.randint(0, max(0, canvas.height - size))), mask)
    return shoot(rng, finish(rng, canvas))


# Clips


CLIP_WEIGHTS = {
    "video_direction": 1.2, "video_colour": 0.5, "video_shape": 0.5, "video_size": 2.4, "video_changes": 2.2,
    "video_digit": 1.2, "absent": 0.6,
}  # fmt: skip
STILL = {"video_direction": "it does not move", "video_size": "neither"}


def make_clip(rng: random.Random, split: str, most: int) -> Sample:
    """A shape that moves, changes its size or its colour, or digits in turn."""
    weights = {kind: weight for kind, weight in CLIP_WEIGHTS.items() if split != "unseen" or kind != "video_digit"}
    kind = draw_kind(rng, weights, even=most == 1)
    if kind == "video_digit":
        digits = draw_digit_turn(rng)
        clip = film(rng, *render_digits(rng, digits, split=split))
        clue = Turn("video_digits", ask(rng, "video_digits"), ", then ".join(map(str, digits)))
        return Sample([clip], in_turn(rng, Turn(kind, ask(rng, kind), str(digits[-1])), [clue], most))
    story = draw_story_about(rng, split, kind)
    shape = story.thing.shape
    name = f"the {shape}" if kind != "video_shape" and rng.random() < 0.3 else rng.choice(["the shape", "it"])
    first, *others = clip_turns(rng, story, kind, name)
    return Sample([film(rng, render_story(rng, story), story.fps)], in_turn(rng, first, others, most))


def clip_turns(rng: random.Random, story: Story, kind: str, name: str) -> list[Turn]:
    """The questions a story allows, about the shape by this name: one of type `kind`, then the others by chance."""
    is_steady, colours = len(story.colours) == 1, ", then ".join(story.colours)
    asks_changes = kind == "video_changes" or not is_steady
    facts = {
        "video_direction": story.direction,
        "video_colour": story.colours[0] if is_steady else None,
        "video_shape": story.thing.shape if name in ("it", "the shape") else None,
        "video_size": story.size,
        "video_changes": str(len(story.colours) - 1) if asks_changes else None,
        "video_colours": colours if asks_changes else None,
    }
    if kind == "video_changes":  # one colour asked for would mean no change
        facts["video_colour"] = None
    turns = [
        Turn(asked, ask(rng, asked, name), answer, colour_changes(story) if asked == "video_changes" else "")
        for asked, answer in facts.items()
        if answer is not None
    ]
    turns += story_clues(rng, story, name)
    # What does not happen: the answers are those of questions that take it for granted that it does.
    nothing = [(asked, answer) for asked, answer in STILL.items() if facts[asked] is None]
    if nothing and (kind == "absent" or rng.random() < 0.5):
        asked, answer = nothing[0] if rng.random() < 0.7 else nothing[-1]
        turns.append(Turn("absent", ask(rng, asked, name), answer))
    rng.shuffle(turns)
    return sorted(turns, key=lambda turn: turn.type != kind)


LOOKS = 8  # frames of a clip that the model of `recipes/tiny` is shown


def colours_over_time(story: Story) -> str:
    """The colour in frames spread evenly from the first to the last: "red red red red blue blue blue blue"."""
    shown = [round(look * (story.frames - 1) / (LOOKS - 1)) for look in range(LOOKS)]
    return " ".join(story.colours[story.colour_of(frame)] for frame in shown)


def colour_changes(story: Story) -> str:
    """What is seen, and what follows one another: "red red red red red blue blue blue; red, blue"."""
    return f"{colours_over_time(story)}; {', '.join(story.colours)}"


def story_clues(rng: random.Random, story: Story, name: str) -> list[Turn]:
    """Where the shape starts and ends, and how large: always where that changes, now and then where it does not."""
    x, y = story.thing.x, story.thing.y
    across, down = DIRECTIONS[story.direction] if story.direction else (0, 0)
    ends = {"start": (x, y), "end": (x + across * story.way, y + down * story.way)}
    radii = {"start": story.thing.radius, "end": story.thing.radius * story.growth}
    facts: dict[str, str | None] = {}
    if story.direction or rng.random() < 0.3:
        facts |= {f"video_{end}": certain_place(*spot, story.width, story.height) for end, spot in ends.items()}
    if story.size or rng.random() < 0.2:
        facts |= {f"video_size_{end}": certain_size(radius) for end, radius in radii.items()}
    return [Turn(kind, ask(rng, kind, name), answer) for kind, answer in facts.items() if answer]


def draw_digit_turn(rng: random.Random) -> list[int]:
    """Two or three digits, neighbours in time differ."""
    digits = [rng.randrange(10)]
    for _ in range(rng.randint(1, 2)):
        digits.insert(0, rng.choice([digit for digit in range(10) if digit != digits[0]]))
    return digits


def draw_story_about(rng: random.Random, split: str, kind: str | None) -> Story:
    """A story to which a question of this type can be put; other things happen in it by chance."""
    allowed = sorted(UNSEEN_PAIRS) if split == "unseen" else allowed_pairs(split)
    changes = 0
    if kind == "video_changes":
        changes = rng.randint(0, 3)
    elif kind in ("video_direction", "video_size", "video_shape") and rng.random() < 0.2:
        changes = rng.randint(1, 2)
    direction = rng.choice([*DIRECTIONS]) if kind == "video_direction" or rng.random() < 0.4 else None
    chance = 1.0 if kind == "video_size" else 0.2
    size = rng.choice(["grows", "shrinks"]) if rng.random() < chance else None
    if kind == "absent" and direction and size:
        direction, size = rng.choice([(None, size), (direction, None)])
    if changes:
        pairs = draw_colour_turn(rng, changes, allowed_pairs(split), some_of=UNSEEN_PAIRS if split == "unseen" else ())
    else:
        shape = rng.choice(SHAPES)
        colour = rng.choice(COLOURS) if split != "unseen" else ""
        pairs = [pair for pair in allowed if pair[0] == shape and colour in ("", pair[1])]
        if not pairs:
            pairs = [rng.choice([pair for pair in allowed if colour == pair[1]])]
        pairs = [rng.choice(pairs)]
    while True:
        story = draw_story(rng, pairs, direction=direction, size=size)
        seen = [colour for colour, _ in itertools.groupby(colours_over_time(story).split())]
        if seen == [*story.colours]:  # of a long slow clip two looks can lie on both sides of a short colour
            return story


# Captions and text


def make_caption(rng: random.Random, split: str, most: int) -> Sample:
    """One picture or clip, described. The wording of the question settles the form of the description."""
    form = rng.randrange(len(CAPTION))
    chance = rng.random() * (0.75 if split == "unseen" else 1)
    media: Picture | Clip
    if chance < 0.55:
        pairs = draw_pairs(rng, rng.randint(1, 4), allowed_pairs(split))
        if split == "unseen":
            pairs = [rng.choice(sorted(UNSEEN_PAIRS))]
        scene = draw_scene(rng, pairs)
        media, answer, name = picture_of(rng, scene), describe_scene(scene, form), "picture"
    elif chance < 0.75:
        story = draw_story_about(rng, split, rng.choice(["video_direction", "video_size", "video_changes"]))
        media, answer, name = film(rng, render_story(rng, story), story.fps), describe_story(story, form), "video"
    elif chance < 0.9:
        digits = [rng.randrange(10) for _ in range(rng.randint(1, 2))]
        media, answer, name = picture_of_digits(rng, digits, split), describe_digits(digits, form), "picture"
    else:
        digits = draw_digit_turn(rng)
        media = film(rng, *render_digits(rng, digits, split=split))
        answer, name = describe_digits(digits, form, clip=True), "video"
    return Sample([media], [Turn("caption", CAPTION[form].format(f"the {name}"), answer)])


def make_sheet(rng: random.Random, split: str, most: int, *, grids: Sequence[tuple[int, int]] = GRIDS) -> Sample:
    """A sheet of little pictures, read row by row."""
    pixels, answer = draw_sheet(rng, split, grids=grids)
    return Sample([shoot(rng, pixels)], [Turn("sheet", vary(rng, rng.choice(SHEET)), answer)])


def make_text(rng: random.Random, split: str, most: int) -> Sample:
    """Questions without media."""
    return Sample([], draw_text_turns(rng, split, rng.randint(1, most)))


MAKERS: dict[str, Callable[[random.Random, str, int], Sample]] = {
    "picture": make_picture,
    "digit": make_digit,
    "clip": make_clip,
    "two_images": make_two_images,
    "image_and_clip": make_image_and_clip,
    "text": make_text,
    "caption": make_caption,
    "sheet": make_sheet,
    # First lessons: one thing alone; whole, upright shapes on one colour.
    "single": partial(make_sheet, grids=SINGLE),
    "spot": make_spot,
    "plain_picture": partial(make_picture, plain=True),
    "list": make_list,
    "plain_list": partial(make_list, plain=True),
    "grid": make_grid,
    "sizes": make_sizes,
    "plain_two_images": partial(make_two_images, plain=True),
    "plain_text": make_text,
}
