"""Clips: a short story of one shape, or of digits in turn, drawn frame by frame and encoded as H.264 in MP4.

Legend: T frames, H x W pixels.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from PIL import Image

from .digits import digit_mask, draw_ink
from .scenes import (
    Ground,
    Pair,
    Thing,
    add_noise,
    are_distinct,
    colour_value,
    draw_frame,
    draw_size,
    draw_thing,
    finish,
    ground_for,
    paste_thing,
    render_ground,
    side_of,
    stands_out,
)


DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MIN_SIDE, MAX_SIDE = 64, 320  # pixels
MIN_SECONDS, MAX_SECONDS = 2.0, 5.0
MIN_COLOUR_SECONDS = 0.7  # no colour and no digit is shown more briefly: samplers at 2 frames a second see each
MIN_WAY = 0.4  # of the side along which a shape moves


@dataclass(frozen=True)
class Story:
    """What happens in a clip of one shape. `thing` is its look at the start; `colours` follow one another for equal
    or nearly equal times, ending at `ends` (0..1 of the clip)."""

    thing: Thing
    width: float
    height: float
    ground: Ground
    seconds: float
    fps: int
    colours: tuple[str, ...]
    rgbs: tuple[tuple[int, int, int], ...]
    ends: tuple[float, ...]
    direction: str | None = None
    way: float = 0.0  # how far it moves, in units of the short side
    growth: float = 1.0  # radius at the end over radius at the start
    starts: float = 0.0  # it rests until then (0..1 of the clip) ...
    stops: float = 1.0  # ... and from then on
    is_eased: bool = False  # it gathers speed and slows down

    @property
    def size(self) -> str | None:
        """How the size changes: "grows", "shrinks" or None."""
        return None if self.growth == 1 else "grows" if self.growth > 1 else "shrinks"

    @property
    def frames(self) -> int:
        """How many frames it takes."""
        return round(self.seconds * self.fps)

    def colour_of(self, frame: int) -> int:
        """Which of its colours the frame of this number shows."""
        return span_at(self.ends, frame / self.frames)

    def progress(self, time: float) -> float:
        """How much of way and growth is behind it (0..1) at a time in 0..1 of the clip."""
        done = min(1.0, max(0.0, (time - self.starts) / (self.stops - self.starts)))
        return (1 - math.cos(math.pi * done)) / 2 if self.is_eased else done


def draw_story(
    rng: random.Random,
    pairs: Sequence[Pair],
    *,
    direction: str | None = None,
    size: str | None = None,
) -> Story:
    """A story of one shape that takes the colours of `pairs` (all of one shape) in turn, and moves or changes its size
    as asked."""
    width, height = draw_size(rng)
    seconds = rng.uniform(max(MIN_SECONDS, (MIN_COLOUR_SECONDS + 0.1) * len(pairs)), MAX_SECONDS)
    radius, growth = math.exp(rng.uniform(math.log(0.13), math.log(0.24))), 1.0
    if size is not None:
        # Where it moves too, it must leave room to move in.
        growth = rng.uniform(1.8, 2.6) if direction is None else rng.uniform(1.6, 1.9)
        radius = rng.uniform(0.1, 0.15 if direction is None else 0.13)
        if size == "shrinks":
            radius, growth = radius * growth, 1 / growth
    largest = radius * max(1, growth) + 0.02
    box = [[largest, width - largest], [largest, height - largest]]
    way = 0.0
    if direction is not None:
        axis = 0 if direction in ("left", "right") else 1
        room = box[axis][1] - box[axis][0]
        way = rng.uniform(min(MIN_WAY * (width, height)[axis], room), room)
        box[axis] = (
            [box[axis][0], box[axis][1] - way]
            if direction in ("right", "down")
            else [box[axis][0] + way, box[axis][1]]
        )
    x, y = (rng.uniform(low, high) for low, high in box)
    colours = tuple(colour for _, colour in pairs)
    while True:
        thing = draw_thing(rng, pairs[0], x=x, y=y, radius=radius)
        if len(pairs) > 1:
            thing = replace(thing, outline=None)
        rgbs = (thing.rgb, *(colour_value(rng, colour) for colour in colours[1:]))
        ground = ground_for(rng, rgbs, colours=colours, tint=0.0 if thing.hollow else 0.1)
        if stands_out(rgbs, ground):
            break
    room = 0.02  # what `largest` leaves free
    return Story(
        thing=thing,
        width=width,
        height=height,
        ground=replace(ground, frame=draw_frame(rng, ground, room)),
        seconds=seconds,
        fps=rng.randint(6, 15),
        colours=colours,
        rgbs=rgbs,
        ends=draw_ends(rng, len(pairs), MIN_COLOUR_SECONDS / seconds),
        direction=direction,
        way=way,
        growth=growth,
        starts=rng.choice([0.0, 0.0, rng.uniform(0, 0.25)]),
        stops=rng.choice([1.0, 1.0, rng.uniform(0.75, 1)]),
        is_eased=rng.random() < 0.25,
    )


def draw_ends(rng: random.Random, count: int, least: float) -> tuple[float, ...]:
    """Ends of `count` spans that fill 0..1, each at least `least` long."""
    spare = 1 - least * count
    cuts = sorted(rng.uniform(0, spare) for _ in range(count - 1))
    return (*(cut + least * (index + 1) for index, cut in enumerate(cuts)), 1.0)


def draw_colour_turn(
    rng: random.Random, changes: int, allowed: Sequence[Pair], *, some_of: Collection[Pair] = ()
) -> list[Pair]:
    """`changes + 1` pairs of one shape whose neighbours in time differ clearly in colour; never black and white; at
    least one of `some_of`, if there are any."""
    while True:
        shape = rng.choice(allowed)[0]
        choice = [pair for pair in allowed if pair[0] == shape]
        pairs = [rng.choice(choice) for _ in range(changes + 1)]
        neighbours = all(are_distinct(a[1], b[1]) for a, b in itertools.pairwise(pairs))
        wanted = not some_of or any(pair in some_of for pair in pairs)
        if neighbours and wanted and not {"black", "white"} <= {colour for _, colour in pairs}:
            return pairs


def span_at(ends: Sequence[float], time: float) -> int:
    """Which of the spans with these ends a time in 0..1 lies in."""
    return next(number for number, end in enumerate(ends) if time < end)


def render_story(rng: random.Random, story: Story) -> np.ndarray:
    """The frames, (T, H, W, 3) uint8; H and W are even."""
    side = side_of(rng, story.width, story.height, most=MAX_SIDE, least=MIN_SIDE)
    ground = render_ground(rng, story.ground, even(story.width * side), even(story.height * side))
    ground = Image.fromarray(finish(rng, ground))
    count = story.frames
    step = DIRECTIONS[story.direction] if story.direction else (0, 0)
    frames = np.empty((count, ground.height, ground.width, 3), dtype=np.uint8)  # [T, H, W, 3]
    for index in range(count):
        done = story.progress(index / (count - 1))
        thing = replace(
            story.thing,
            x=story.thing.x + step[0] * story.way * done,
            y=story.thing.y + step[1] * story.way * done,
            radius=story.thing.radius * (1 + (story.growth - 1) * done),
            rgb=story.rgbs[story.colour_of(index)],
        )
        canvas = ground.copy()
        paste_thing(canvas, thing, side)
        frames[index] = np.asarray(canvas)
    return film_noise(rng, frames)


def film_noise(rng: random.Random, frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 with a camera's noise, new in every frame, by chance."""
    if rng.random() < 0.2:
        strength = rng.uniform(1, 6)
        for frame in frames:
            frame[:] = add_noise(rng, frame, strength)
    return frames


def render_digits(rng: random.Random, digits: Sequence[int], *, split: str) -> tuple[np.ndarray, int]:
    """Frames, (T, H, W, 3) uint8, that show these digits one after another, and the frames per second."""
    width, height = draw_size(rng)
    side = side_of(rng, width, height, most=MAX_SIDE, least=MIN_SIDE)
    seconds, fps = rng.uniform(max(MIN_SECONDS, 0.9 * len(digits)), MAX_SECONDS), rng.randint(6, 15)
    ground, ink = digit_ground(rng)
    canvas = render_ground(rng, ground, even(width * side), even(height * side))
    stills = []
    for digit in digits:
        mask = digit_mask(rng, digit, split=split, side=round(side * rng.uniform(0.6, 0.95)))
        still = canvas.copy()
        still.paste(
            ink, (rng.randint(0, canvas.width - mask.width), rng.randint(0, canvas.height - mask.height)), mask
        )
        stills.append(finish(rng, still))
    count = round(seconds * fps)
    ends = draw_ends(rng, len(digits), MIN_COLOUR_SECONDS / seconds)
    shown = [span_at(ends, index / count) for index in range(count)]
    return film_noise(rng, np.stack(stills)[shown]), fps  # [T, H, W, 3]


def digit_ground(rng: random.Random) -> tuple[Ground, tuple[int, int, int]]:
    """A background and an ink that stands out against all of it."""
    while True:
        ink = draw_ink(rng, rng.choice([(255, 255, 255), (0, 0, 0)]))
        ground = ground_for(rng, [ink], colours=["white" if sum(ink) > 384 else "black"])
        if sum(ink) > 384 or min(min(corner) for corner in ground.corners) > 120:
            return ground, ink


def even(length: float) -> int:
    """The even number nearest to `length`: H.264 with halved colour has no odd sizes."""
    return 2 * round(length / 2)


def write_clip(path: Path, frames: np.ndarray, *, fps: int, quality: int = 23) -> None:
    """Encode frames (T, H, W, 3) uint8 as H.264, yuv420p, in MP4. `quality` is x264's CRF: 0 best, 51 worst.

    One thread and no clock: the same frames give the same bytes."""
    options = {"preset": "ultrafast", "crf": str(quality), "threads": "1", "g": "30"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
