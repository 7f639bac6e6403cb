"""Scenes of coloured shapes: what is where is drawn by chance first, then the pixels with Pillow.

Lengths are in units of the picture's short side, so that one scene can be drawn at any size; x to the right, y down.
Colours are ranges of hue, saturation and value that do not touch, and a background is taken only when every shape
stands out against it.

Legend: H x W pixels of a picture.
"""

from __future__ import annotations

import colorsys
import functools
import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter


RGB = tuple[int, int, int]
Pair = tuple[str, str]  # shape, colour

SHAPES = ("circle", "square", "triangle", "star")
# Hue in degrees, saturation and value in 0..1. They hold the colours of CSS and of plotting programs that everybody
# would call so (gold, navy, forestgreen, tab:blue, ...), with gaps between neighbours; not cyan, pink, brown or grey.
COLOUR_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-12, 8), (0.75, 1), (0.5, 1)),
    "orange": ((24, 39), (0.85, 1), (0.9, 1)),
    "yellow": ((47, 61), (0.7, 1), (0.8, 1)),
    "green": ((80, 160), (0.5, 1), (0.35, 1)),
    "blue": ((198, 245), (0.55, 1), (0.45, 1)),
    "purple": ((262, 302), (0.42, 1), (0.4, 0.95)),
    "black": ((0, 360), (0, 0.15), (0, 0.2)),
    "white": ((0, 360), (0, 0.05), (0.93, 1)),
}
DARK, DARK_SATURATION = 0.55, 0.75  # below this value a colour is at least this saturated: else it looks grey or black
COLOURS = tuple(COLOUR_RANGES)
# Neighbours on the colour circle: where a difference in colour is the answer, these two never make it.
NEAR_COLOURS = frozenset(
    frozenset(pair)
    for pair in [
        ("red", "orange"),
        ("orange", "yellow"),
        ("yellow", "green"),
        ("green", "blue"),
        ("blue", "purple"),
        ("red", "purple"),
    ]
)
# Never in a training picture: each shape and each colour is seen, these four together are not.
UNSEEN_PAIRS: frozenset[Pair] = frozenset(
    {("circle", "purple"), ("square", "orange"), ("triangle", "blue"), ("star", "green")}
)
ALL_PAIRS: tuple[Pair, ...] = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
SEEN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in ALL_PAIRS if pair not in UNSEEN_PAIRS)

MIN_RADIUS = 0.1  # of the short side
MIN_HOLLOW = 0.14  # radius of the smallest unfilled shape
LARGEST_RADIUS = {1: 0.44, 2: 0.3, 3: 0.26, 4: 0.23}  # by how many shapes there are
MIN_CONTRAST = 175  # redmean distance wanted between a shape and its background; black to white is 765
LEAST_CONTRAST = 150  # where several colours on one background leave no more
MIN_SIDE, MAX_SIDE = 64, 512  # pixels
NOISE_SIDE = 768


@dataclass(frozen=True, eq=False)
class Thing:
    """One shape. `radius` is that of the circle around it, `points` (K, 2) are its corners within the unit circle."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    rgb: RGB
    points: np.ndarray
    outline: RGB | None = None
    hollow: bool = False  # only a line in its colour, the ground shows within
    line: float = 0.08  # width of outline or line, in radii
    shade: float = 1.0  # brightness of one side, the other is 1
    shade_turn: int = 0  # which side, in quarter turns
    sharp: bool = False  # drawn without antialiasing

    @property
    def pair(self) -> Pair:
        return self.shape, self.colour

    @functools.cached_property
    def area(self) -> float:
        """In units of the short side squared."""
        x, y = self.points[:, 0], self.points[:, 1]
        return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2 * self.radius**2


@dataclass(frozen=True)
class Frame:
    """A thin line around the picture, as charts have one. Lengths in units of the short side."""

    inset: float  # from the edge of the picture
    rgb: RGB
    is_whole: bool  # or only the axes on the left and at the bottom
    ticks: int = 0  # on each axis, outwards


@dataclass(frozen=True)
class Ground:
    """A background: four corner colours (all the same: plain), and how strong its noise is, in grey levels."""

    corners: tuple[RGB, RGB, RGB, RGB]
    noise: float = 0.0
    grain: int = 1  # pixels per grain of noise
    tinted: bool = False  # a colour that has a name, not a pale one
    frame: Frame | None = None


@dataclass(frozen=True)
class Scene:
    """Shapes on a background of `width` x `height`; the shorter of the two is 1."""

    width: float
    height: float
    things: tuple[Thing, ...]
    ground: Ground


def allowed_pairs(split: str) -> tuple[Pair, ...]:
    """The (shape, colour) pairs that pictures of `split` may hold."""
    return ALL_PAIRS if split == "unseen" else SEEN_PAIRS


def are_distinct(first: str, second: str) -> bool:
    """Whether two colours differ so that nobody takes one for the other."""
    return first != second and frozenset((first, second)) not in NEAR_COLOURS


def colour_value(rng: random.Random, colour: str) -> RGB:
    """One RGB colour of the named range; its ends, the named colours of most programs, come up often."""
    hue, saturation, value = (
        min(high, max(low, rng.uniform(low - 0.1 * (high - low), high + 0.2 * (high - low))))
        for low, high in COLOUR_RANGES[colour]
    )
    if colour == "purple" and hue > 288:
        value = min(value, 0.75)  # brighter is pink
    if colour == "yellow" and hue < 51:
        value = max(value, 0.92)  # darker is brown
    if value < DARK and colour not in ("black", "white"):
        saturation = max(saturation, DARK_SATURATION)
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def contrast(first: RGB, second: RGB) -> float:
    """Redmean distance of two colours, 0..765 (T. Riemersma, "Colour metric")."""
    mean = (first[0] + second[0]) / 2
    red, green, blue = (a - b for a, b in zip(first, second, strict=True))
    return math.sqrt((2 + mean / 256) * red * red + 4 * green * green + (2 + (255 - mean) / 256) * blue * blue)


# Layout


LINE = {"circle": 1.0, "square": 0.8, "triangle": 0.6, "star": 0.4}  # how thick lines may be, by how narrow a shape is


def draw_thing(rng: random.Random, pair: Pair, *, x: float, y: float, radius: float) -> Thing:
    """A shape of this pair with chance for everything else: turn, proportions, exact colour, and how it is drawn."""
    shape, colour = pair
    rgb = colour_value(rng, colour)
    return Thing(shape, colour, x, y, radius, rgb, corners(rng, shape), **draw_look(rng, pair, radius, rgb))


def draw_look(rng: random.Random, pair: Pair, radius: float, rgb: RGB) -> dict[str, Any]:
    """How a shape is drawn, as fields of `Thing`: filled or not, with an outline or not, shaded, with hard edges."""
    shape, colour = pair
    look: dict[str, Any] = {"sharp": rng.random() < 0.1}
    is_coloured = colour not in ("black", "white")
    if radius > MIN_HOLLOW and rng.random() < 0.05:
        look |= {"hollow": True, "line": rng.uniform(0.14, 0.28) * LINE[shape]}
    elif is_coloured and rng.random() < 0.12:
        look["outline"] = rng.choice([(0, 0, 0), (rgb[0] // 2, rgb[1] // 2, rgb[2] // 2)])
        look["line"] = rng.choice([0.08, rng.uniform(0.05, 0.15)]) * LINE[shape]
    if is_coloured and rng.random() < 0.1:
        look |= {"shade": rng.uniform(0.8, 0.95), "shade_turn": rng.randrange(4)}
    return look


def corners(rng: random.Random, shape: str) -> np.ndarray:
    """(K, 2) corners of one `shape` within the unit circle around its middle, turned and stretched a little."""
    turn = rng.choices([0.0, rng.gauss(0, 0.12), rng.uniform(-math.pi, math.pi)], (6, 3, 1))[0]
    stretch = rng.uniform(0.96, 1.0)
    if shape == "circle":
        points = REGULAR["circle"]
    elif shape == "square":
        points = rounded_square(rng.uniform(0.08, 0.18)) if rng.random() < 0.05 else REGULAR["square"]
    elif shape == "triangle":
        points = triangle(rng, rng.choices(["equilateral", "right", "scalene"], (18, 1, 1))[0])
        stretch = rng.choice([1.0, rng.uniform(0.8, 1.0)])
    else:
        tips = rng.choices([4, 5, 6], (1, 17, 2))[0]
        fat = {4: (0.25, 0.45), 5: (0.3, 0.5), 6: (0.36, 0.56)}[tips]
        inner = rng.choice([0.38 if tips == 5 else sum(fat) / 2, rng.uniform(*fat)])
        radii = np.where(np.arange(2 * tips) % 2 == 0, 1.0, inner)
        points = on_circle(np.arange(2 * tips) * math.pi / tips - math.pi / 2) * radii[:, None]
    axis = rng.randrange(2)
    points = points * np.where(np.arange(2) == axis, stretch, 1.0)
    cosine, sine = math.cos(turn), math.sin(turn)
    return points @ np.array([[cosine, sine], [-sine, cosine]])  # [K, 2]


def on_circle(angles: np.ndarray) -> np.ndarray:
    """(K, 2) points of the unit circle at (K,) angles in radians."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


# Whole and upright, (K, 2) corners of each shape within the unit circle.
REGULAR: dict[str, np.ndarray] = {
    "circle": on_circle(np.linspace(0, 2 * math.pi, 72, endpoint=False)),
    "square": on_circle(np.arange(4) * math.pi / 2 + math.pi / 4),
    "triangle": on_circle(np.arange(3) * 2 * math.pi / 3 - math.pi / 2),
    "star": on_circle(np.arange(10) * math.pi / 5 - math.pi / 2) * np.where(np.arange(10) % 2, 0.38, 1.0)[:, None],
}


def triangle(rng: random.Random, kind: str) -> np.ndarray:
    """(3, 2) corners, with the centroid in the middle: no corner is sharper than 30 degrees."""
    first, second = math.pi / 3, math.pi / 3
    if kind == "right":
        first, second = math.pi / 2, rng.uniform(math.pi / 6, math.pi / 3)
    elif kind == "scalene":
        while True:
            first, second = rng.uniform(0.6, 1.5), rng.uniform(0.6, 1.5)
            if 0.6 < math.pi - first - second < 1.5:
                break
    # The angle at the centre is twice that at the circle.
    points = on_circle(np.array([0, 2 * first, 2 * (first + second)]) + (math.pi / 2 + math.pi - first - second))
    points[:, 1] *= -1
    return centred(points)


def rounded_square(part: float) -> np.ndarray:
    """(K, 2) outline of a square whose corners are quarter circles of `part` of its side."""
    arcs = []
    for quarter in range(4):
        angles = quarter * math.pi / 2 + np.linspace(0, math.pi / 2, 7)
        middle = on_circle(np.array([quarter * math.pi / 2 + math.pi / 4])) * math.sqrt(2) * (0.5 - part)
        arcs.append(middle + on_circle(angles) * part)
    return centred(np.concatenate(arcs))


def centred(points: np.ndarray) -> np.ndarray:
    """(K, 2) points moved and enlarged so that the unit circle around their mean just holds them."""
    points = points - points.mean(axis=0)
    return points / np.hypot(points[:, 0], points[:, 1]).max()


def draw_pairs(rng: random.Random, count: int, allowed: Sequence[Pair]) -> list[Pair]:
    """`count` pairs out of few colours and few shapes, so that both repeat often; never black beside white."""
    while True:
        shapes = rng.sample(SHAPES, rng.randint(1, 4))
        colours = rng.sample(COLOURS, rng.randint(1, 4))
        choice = [pair for pair in allowed if pair[0] in shapes and pair[1] in colours]
        if not choice:
            continue
        pairs = [rng.choice(choice) for _ in range(count)]
        if not {"black", "white"} <= {colour for _, colour in pairs}:
            return pairs


def draw_size(rng: random.Random) -> tuple[float, float]:
    """Width and height in units of the short side: square, of common proportions, or odd."""
    aspect = rng.choice([1.0, 1.0, 4 / 3, 1.5, rng.uniform(1, 2.2)])
    return (aspect, 1.0) if rng.random() < 0.6 else (1.0, aspect)


def place(
    rng: random.Random, others: Sequence[Thing], radius: float, width: float, height: float
) -> tuple[float, float] | None:
    """A centre for a circle of this radius, inside the picture and clear of the others, or None."""
    edge = radius + 0.02
    for _ in range(40):
        x, y = rng.uniform(edge, width - edge), rng.uniform(edge, height - edge)
        if all(math.hypot(x - other.x, y - other.y) > radius + other.radius + 0.03 for other in others):
            return x, y
    return None


def draw_scene(
    rng: random.Random,
    pairs: Sequence[Pair],
    *,
    least_radius: float = MIN_RADIUS,
    size: tuple[float, float] | None = None,
) -> Scene:
    """A scene of these pairs, in this order: sizes, places and background by chance, nothing overlaps. `size`: width
    and height, the shorter 1; default: by chance."""
    while True:
        width, height = size or draw_size(rng)
        things: list[Thing] = []
        for pair in pairs:
            low, high = math.log(least_radius), math.log(LARGEST_RADIUS[len(pairs)])
            radius = math.exp(rng.uniform(low, high))
            spot = place(rng, things, radius, width, height)
            if spot is None:
                break
            things.append(draw_thing(rng, pair, x=spot[0], y=spot[1], radius=radius))
        if len(things) == len(pairs):
            ground = draw_ground(rng, things)
            if not stands_out([thing.rgb for thing in things], ground):
                continue  # such as dark blue beside white
            room = min(min(one.x, width - one.x, one.y, height - one.y) - one.radius for one in things)
            return Scene(width, height, tuple(things), replace(ground, frame=draw_frame(rng, ground, room)))


def make_plain(scene: Scene) -> Scene:
    """The scene with whole, upright shapes on one colour."""
    look: dict[str, Any] = {"hollow": False, "outline": None, "shade": 1.0, "sharp": False}
    things = tuple(replace(thing, points=REGULAR[thing.shape], **look) for thing in scene.things)
    return replace(scene, things=things, ground=Ground((scene.ground.corners[0],) * 4))


def stands_out(inks: Sequence[RGB], ground: Ground) -> bool:
    """Whether each colour differs clearly from every corner of the background."""
    return all(contrast(ink, corner) > LEAST_CONTRAST for ink in inks for corner in ground.corners)


def draw_frame(rng: random.Random, ground: Ground, room: float) -> Frame | None:
    """Mostly none; else one that leaves `room`, the least distance of a shape from the edge, half free."""
    if rng.random() > 0.1 or room < 0.02:
        return None
    bright = sum(map(sum, ground.corners)) / 12
    level = rng.randint(0, 90) if bright > 120 else rng.randint(180, 255)
    ticks = rng.choice([0, 4, 5, 6, 10])
    inset = min(0.1, rng.uniform(0.2 if ticks else 0.0, 0.5) * room)
    return Frame(inset, (level, level, level), rng.random() < 0.6, ticks)


def draw_ground(rng: random.Random, things: Collection[Thing]) -> Ground:
    """A plain, noisy or gradient background against which each of these shapes stands out. White asks for a dark one,
    black for one that is not."""
    inks = [thing.rgb for thing in things]
    # The ground within an unfilled shape must not look like its colour.
    tint = 0.0 if any(thing.hollow for thing in things) else 0.1
    return ground_for(rng, inks, colours={thing.colour for thing in things}, tint=tint)


def ground_for(rng: random.Random, inks: Sequence[RGB], *, colours: Collection[str] = (), tint: float = 0.0) -> Ground:
    """As `draw_ground`, for colours of `inks` whose names are `colours`; one that has a colour with chance `tint`."""
    if rng.random() < tint:
        for _ in range(40):
            base = _tint(rng, is_dark="white" in colours or ("black" not in colours and rng.random() < 0.5))
            if all(contrast(ink, base) > MIN_CONTRAST and _hues_differ(ink, base) for ink in inks):
                return Ground((base,) * 4, rng.choice([0.0, rng.uniform(2, 10)]), rng.choice([1, 2, 3]), tinted=True)
    bands = {"light": (0.75, 1.0), "middle": (0.4, 0.6), "dark": (0.0, 0.25)}
    if "white" in colours:
        bands = {"dark": bands["dark"], "dusk": (0.1, 0.3)}
    elif "black" in colours:
        bands.pop("dark")
    kind = rng.choices(["plain", "noisy", "gradient", "gradient, noisy"], (5, 2, 2, 1))[0]
    for attempt in range(200):
        low, high = bands[rng.choice(["light", *bands])] if "light" in bands else bands[rng.choice([*bands])]
        base = _ground_colour(rng, low, high)
        corner_colours = [base] * 4
        if "gradient" in kind:
            corner_colours = _gradient(rng, base, _ground_colour(rng, low, high, near=base))
        if all(contrast(ink, corner) > MIN_CONTRAST - attempt // 4 for ink in inks for corner in corner_colours):
            break
    one, two, three, four = corner_colours
    noise = rng.uniform(4, 14) if "noisy" in kind else 0.0
    return Ground((one, two, three, four), noise, rng.choice([1, 1, 2, 3, 4]))


def _tint(rng: random.Random, *, is_dark: bool) -> RGB:
    """A dark, saturated colour (navy, maroon, ...) or a light one (light blue, beige, ...)."""
    saturation, value = (rng.uniform(0.6, 1), rng.uniform(0.25, 0.5)) if is_dark else (
        rng.uniform(0.2, 0.5), rng.uniform(0.85, 1)
    )  # fmt: skip
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _hues_differ(first: RGB, second: RGB) -> bool:
    """Whether two colours are 60 degrees of hue apart, or one of them is grey."""
    (one, grey, _), (two, pale, _) = (colorsys.rgb_to_hsv(*(level / 255 for level in rgb)) for rgb in (first, second))
    return min(grey, pale) < 0.1 or sum(first) < 150 or abs((one - two + 0.5) % 1 - 0.5) > 1 / 6


def _ground_colour(rng: random.Random, low: float, high: float, near: RGB | None = None) -> RGB:
    """A pale colour of value `low`..`high`: often pure grey, sometimes white or black itself."""
    value = min(1.0, max(0.0, rng.uniform(low - 0.07, high + 0.07)))
    hue, saturation = rng.random(), rng.choice([0.0, rng.uniform(0, 0.16)])
    if near is not None:
        hue, saturation, _ = colorsys.rgb_to_hsv(*(level / 255 for level in near))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _gradient(rng: random.Random, first: RGB, second: RGB) -> list[RGB]:
    """Corner colours (top left, top right, bottom left, bottom right) of a gradient along an axis or a diagonal."""
    middle = (first[0] + second[0]) // 2, (first[1] + second[1]) // 2, (first[2] + second[2]) // 2
    return rng.choice(
        [
            [first, second, first, second],
            [first, first, second, second],
            [first, middle, middle, second],
            [middle, first, second, middle],
        ]
    )


# Pixels


def side_of(rng: random.Random, width: float, height: float, *, most: int = MAX_SIDE, least: int = MIN_SIDE) -> int:
    """Pixels of the short side: log-uniform, so that both sides lie in `least`..`most`."""
    largest = most / max(width, height)
    return round(math.exp(rng.uniform(math.log(least), math.log(max(largest, least + 1)))))


def render(rng: random.Random, scene: Scene, side: int) -> np.ndarray:
    """The scene at `side` pixels per unit, (H, W, 3) uint8, with sensor noise and blur by chance."""
    canvas = render_ground(rng, scene.ground, round(scene.width * side), round(scene.height * side))
    for thing in scene.things:
        paste_thing(canvas, thing, side)
    return finish(rng, canvas)


def finish(rng: random.Random, canvas: Image.Image) -> np.ndarray:
    """What a lens and a sensor add, by chance: slight blur, slight noise. (H, W, 3) uint8."""
    if rng.random() < 0.2:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.004 * min(canvas.size) + 0.3)))
    pixels = np.asarray(canvas)
    return add_noise(rng, pixels, rng.uniform(1, 8)) if rng.random() < 0.2 else pixels


def render_ground(rng: random.Random, ground: Ground, width: int, height: int) -> Image.Image:
    """The background alone, as a Pillow image of mode RGB."""
    if len(set(ground.corners)) == 1:
        canvas = Image.new("RGB", (width, height), ground.corners[0])
    else:
        small = np.array(ground.corners, dtype=np.uint8).reshape(2, 2, 3)
        # Beyond the centres of the outer pixels Pillow repeats them: the box cuts that away.
        canvas = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))
    if ground.noise:
        canvas = Image.fromarray(add_noise(rng, np.asarray(canvas), ground.noise, grain=ground.grain))
    if ground.frame is not None:
        paste_frame(canvas, ground.frame)
    return canvas


def paste_frame(canvas: Image.Image, frame: Frame) -> None:
    """Draw the frame or the axes, one pixel wide, or two in large pictures."""
    short = min(canvas.size)
    inset, wide = round(frame.inset * short), 1 + (short > 250)
    right, bottom = canvas.width - 1 - inset, canvas.height - 1 - inset
    draw = ImageDraw.Draw(canvas)
    if frame.is_whole:
        draw.rectangle((inset, inset, right, bottom), outline=frame.rgb, width=wide)
    else:
        draw.line([(inset, inset), (inset, bottom), (right, bottom)], fill=frame.rgb, width=wide)
    for tick in range(1, frame.ticks + 1 if inset > 2 else 0):  # there is room for them
        x, y = (round(inset + (end - inset) * tick / (frame.ticks + 1)) for end in (right, bottom))
        length = max(2, min(inset, short // 40))
        draw.line([(x, bottom), (x, bottom + length)], fill=frame.rgb, width=wide)
        draw.line([(inset - length, y), (inset, y)], fill=frame.rgb, width=wide)


MIN_LINE = 1.2  # pixels: thinner ones fade


def paste_thing(canvas: Image.Image, thing: Thing, side: float) -> None:
    """Draw one shape on the canvas, antialiased unless it is `sharp`."""
    radius = thing.radius * side
    left, top = math.floor(thing.x * side - radius), math.floor(thing.y * side - radius)
    whole, inner = shape_masks(
        thing.points, radius, thing.x * side - left, thing.y * side - top, is_sharp=thing.sharp,
        line=max(MIN_LINE, thing.line * radius) if thing.hollow or thing.outline else 0.0,
    )  # fmt: skip
    if thing.outline is not None:
        canvas.paste(thing.outline, (left, top), whole)
        whole = inner
    elif thing.hollow:
        whole = ImageChops.subtract(whole, inner)
    if thing.shade == 1:
        canvas.paste(thing.rgb, (left, top), whole)
        return
    red, green, blue = (round(level * thing.shade) for level in thing.rgb)
    ramp = np.array([[thing.rgb, (red, green, blue)]], dtype=np.uint8)  # [1, 2, 3]
    ramp = np.rot90(ramp, thing.shade_turn)
    canvas.paste(Image.fromarray(ramp).resize(whole.size, Image.Resampling.BILINEAR), (left, top), whole)


def shape_masks(
    points: np.ndarray, radius: float, x: float, y: float, *, line: float = 0.0, is_sharp: bool = False
) -> tuple[Image.Image, Image.Image]:
    """Coverage (mode L) of a polygon of this radius in pixels around (x, y), drawn larger and reduced, and of what
    lies at least `line` pixels within."""
    factor = 1 if is_sharp else 4 if radius < 50 else 3 if radius < 100 else 2
    size = (math.ceil(x + radius) + 1) * factor, (math.ceil(y + radius) + 1) * factor
    mask = Image.new("L", size)
    # Pillow counts pixel centres, we count edges.
    outline = ((points * radius + (x, y)) * factor - 0.5).ravel().tolist()  # [2 K]
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    whole = mask.reduce(factor)
    if not line:
        return whole, whole
    around = [*outline, *outline[:4]]
    ImageDraw.Draw(mask).line(around, fill=0, width=max(1, round(2 * line * factor)), joint="curve")
    return whole, mask.reduce(factor)


def add_noise(rng: random.Random, pixels: np.ndarray, strength: float, *, grain: int = 1) -> np.ndarray:
    """(H, W, 3) uint8 with Gaussian noise of `strength` grey levels in grains of `grain` pixels, coloured or grey."""
    height, width = pixels.shape[:2]
    rows, columns = -(-height // grain), -(-width // grain)
    bank = _noise_bank()
    top, left = rng.randrange(NOISE_SIDE - rows + 1), rng.randrange(NOISE_SIDE - columns + 1)
    noise = bank[top : top + rows, left : left + columns, : rng.choice([1, 3])]
    noise = (noise * np.float32(strength)).astype(np.int16)
    if grain > 1:
        noise = noise.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)  # [H, W, 3]


@functools.lru_cache(maxsize=1)
def _noise_bank() -> np.ndarray:
    """(NOISE_SIDE, NOISE_SIDE, 3) float32 standard normal: windows of it are far cheaper than new noise."""
    return np.random.default_rng(0).standard_normal((NOISE_SIDE, NOISE_SIDE, 3), dtype=np.float32)
