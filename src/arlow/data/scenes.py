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

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


RGB = tuple[int, int, int]
Pair = tuple[str, str]  # shape, colour

SHAPES = ("circle", "square", "triangle", "star")
# Hue in degrees, saturation and value in 0..1: wide enough for the named colours of CSS and of plotting programs.
COLOUR_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-12, 8), (0.75, 1), (0.65, 1)),
    "orange": ((24, 39), (0.85, 1), (0.9, 1)),
    "yellow": ((51, 61), (0.7, 1), (0.8, 1)),
    "green": ((95, 155), (0.6, 1), (0.4, 1)),
    "blue": ((205, 242), (0.7, 1), (0.6, 1)),
    "purple": ((268, 302), (0.45, 1), (0.45, 0.8)),
    "black": ((0, 360), (0, 0.4), (0, 0.13)),
    "white": ((0, 360), (0, 0.05), (0.93, 1)),
}
COLOURS = tuple(COLOUR_RANGES)
# Neighbours on the colour circle: where a difference in colour is the answer, these two never make it.
NEAR_COLOURS = frozenset(
    frozenset(pair) for pair in [("red", "orange"), ("orange", "yellow"), ("blue", "purple"), ("red", "purple")]
)
# Never in a training picture: each shape and each colour is seen, these four together are not.
UNSEEN_PAIRS: frozenset[Pair] = frozenset(
    {("circle", "purple"), ("square", "orange"), ("triangle", "blue"), ("star", "green")}
)
ALL_PAIRS: tuple[Pair, ...] = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
SEEN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in ALL_PAIRS if pair not in UNSEEN_PAIRS)

MIN_RADIUS = 0.09  # of the short side
LARGEST_RADIUS = {1: 0.44, 2: 0.3, 3: 0.26, 4: 0.23}  # by how many shapes there are
MIN_CONTRAST = 175  # redmean distance between a shape and its background; black to white is 765
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

    @property
    def pair(self) -> Pair:
        return self.shape, self.colour

    @functools.cached_property
    def area(self) -> float:
        """In units of the short side squared."""
        x, y = self.points[:, 0], self.points[:, 1]
        return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2 * self.radius**2


@dataclass(frozen=True)
class Ground:
    """A background: four corner colours (all the same: plain), and how strong its noise is, in grey levels."""

    corners: tuple[RGB, RGB, RGB, RGB]
    noise: float = 0.0
    grain: int = 1  # pixels per grain of noise


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
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def contrast(first: RGB, second: RGB) -> float:
    """Redmean distance of two colours, 0..765 (T. Riemersma, "Colour metric")."""
    mean = (first[0] + second[0]) / 2
    red, green, blue = (a - b for a, b in zip(first, second, strict=True))
    return math.sqrt((2 + mean / 256) * red * red + 4 * green * green + (2 + (255 - mean) / 256) * blue * blue)


# Layout


def draw_thing(rng: random.Random, pair: Pair, *, x: float, y: float, radius: float) -> Thing:
    """A shape of this pair with chance for everything else: turn, proportions, exact colour, outline."""
    shape, colour = pair
    outline = None
    rgb = colour_value(rng, colour)
    if colour not in ("black", "white") and rng.random() < 0.2:
        outline = rng.choice([(0, 0, 0), (rgb[0] // 2, rgb[1] // 2, rgb[2] // 2)])
    return Thing(shape, colour, x, y, radius, rgb, corners(rng, shape), outline)


def corners(rng: random.Random, shape: str) -> np.ndarray:
    """(K, 2) corners of one `shape` within the unit circle, turned and stretched a little by chance."""
    turn = rng.choice([0.0, 0.0, rng.gauss(0, 0.12), rng.uniform(-math.pi, math.pi)])
    stretch = rng.uniform(0.96, 1.0)
    if shape == "circle":
        angles, radii = np.linspace(0, 2 * math.pi, 72, endpoint=False), np.ones(72)
    elif shape == "square":
        angles, radii = np.arange(4) * math.pi / 2 + math.pi / 4, np.ones(4)
    elif shape == "triangle":
        angles, radii = np.arange(3) * 2 * math.pi / 3 - math.pi / 2, np.ones(3)
        stretch = rng.choice([1.0, rng.uniform(0.8, 1.0)])
    else:
        tips = rng.choice([5, 5, 5, 5, 6])
        angles = np.arange(2 * tips) * math.pi / tips - math.pi / 2
        radii = np.where(np.arange(2 * tips) % 2 == 0, 1.0, rng.uniform(0.36, 0.5) * (1.0 if tips == 5 else 1.1))
    points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)  # [K, 2]
    points[:, rng.randrange(2)] *= stretch
    cosine, sine = math.cos(turn), math.sin(turn)
    return points @ np.array([[cosine, sine], [-sine, cosine]])  # [K, 2]


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


def draw_scene(rng: random.Random, pairs: Sequence[Pair], *, least_radius: float = MIN_RADIUS) -> Scene:
    """A scene of these pairs, in this order: sizes, places and background by chance, nothing overlaps."""
    while True:
        width, height = draw_size(rng)
        things: list[Thing] = []
        for pair in pairs:
            low, high = math.log(least_radius), math.log(LARGEST_RADIUS[len(pairs)])
            radius = math.exp(rng.uniform(low, high))
            spot = place(rng, things, radius, width, height)
            if spot is None:
                break
            things.append(draw_thing(rng, pair, x=spot[0], y=spot[1], radius=radius))
        if len(things) == len(pairs):
            return Scene(width, height, tuple(things), draw_ground(rng, things))


def draw_ground(rng: random.Random, things: Collection[Thing]) -> Ground:
    """A plain, noisy or gradient background against which each of these shapes stands out. White asks for a dark one,
    black for one that is not."""
    return ground_for(rng, [thing.rgb for thing in things], colours={thing.colour for thing in things})


def ground_for(rng: random.Random, inks: Sequence[RGB], *, colours: Collection[str] = ()) -> Ground:
    """As `draw_ground`, for colours of `inks` whose names are `colours`."""
    bands = {"light": (0.75, 1.0), "middle": (0.4, 0.6), "dark": (0.0, 0.25)}
    if "white" in colours:
        bands = {"dark": bands["dark"], "dusk": (0.1, 0.3)}
    elif "black" in colours:
        bands.pop("dark")
    kind = rng.choice(["plain", "noisy", "gradient", "gradient, noisy"])
    for attempt in range(1000):
        low, high = bands[rng.choice(["light", *bands])] if "light" in bands else bands[rng.choice([*bands])]
        base = _ground_colour(rng, low, high)
        corner_colours = [base] * 4
        if "gradient" in kind:
            corner_colours = _gradient(rng, base, _ground_colour(rng, low, high, near=base))
        if all(contrast(ink, corner) > MIN_CONTRAST - attempt // 10 for ink in inks for corner in corner_colours):
            break
    one, two, three, four = corner_colours
    noise = rng.uniform(4, 18) if "noisy" in kind else 0.0
    return Ground((one, two, three, four), noise, rng.choice([1, 1, 2, 3, 6]))


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
    return canvas


def paste_thing(canvas: Image.Image, thing: Thing, side: float) -> None:
    """Draw one shape on the canvas, antialiased."""
    if thing.outline is not None:
        _paste(canvas, thing, side, thing.outline)
        thing = replace(thing, radius=thing.radius * 0.92)
    _paste(canvas, thing, side, thing.rgb)


def _paste(canvas: Image.Image, thing: Thing, side: float, rgb: RGB) -> None:
    radius = thing.radius * side
    left, top = math.floor(thing.x * side - radius), math.floor(thing.y * side - radius)
    mask = shape_mask(thing.points, radius, thing.x * side - left, thing.y * side - top)
    canvas.paste(rgb, (left, top), mask)


def shape_mask(points: np.ndarray, radius: float, x: float, y: float) -> Image.Image:
    """Coverage (mode L) of a polygon of this radius in pixels around (x, y), drawn larger and reduced."""
    factor = 4 if radius < 50 else 3 if radius < 100 else 2
    size = (math.ceil(x + radius) + 1) * factor, (math.ceil(y + radius) + 1) * factor
    mask = Image.new("L", size)
    # Pillow counts pixel centres, we count edges.
    outline = (points * radius + (x, y)) * factor - 0.5  # [K, 2]
    ImageDraw.Draw(mask).polygon(outline.ravel().tolist(), fill=255)
    return mask.reduce(factor)


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
