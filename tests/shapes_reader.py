"""Eyes for the tests of the synthetic data: clean pictures read with SciPy alone, and questions answered from them.

Nothing here knows how the pictures were drawn or which answers were meant: components are found by their distance from
the background, shapes are told by areas and hulls, colours by hue, and questions are read as words.
"""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull


HUES = {"red": 16, "orange": 43, "yellow": 70, "green": 181, "blue": 253, "purple": 325}  # degrees where each ends
SHAPE_WORDS = ("circle", "square", "triangle", "star")
COLOUR_WORDS = (*HUES, "black", "white")


@dataclass(frozen=True)
class Seen:
    """One component of a picture, in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    area: float
    reach: float  # of its farthest pixel from the centre


def read_picture(pixels: np.ndarray) -> list[Seen]:
    """What lies on the plain background of (H, W, 3) uint8."""
    ground = np.median(pixels.reshape(-1, 3)[: pixels.shape[1]], axis=0)
    marks, count = ndimage.label(np.abs(pixels.astype(int) - ground).max(axis=2) > 40, structure=np.ones((3, 3)))
    found = ndimage.find_objects(marks)
    parts = [(marks[box] == number, box) for number, box in zip(range(1, count + 1), found, strict=True)]
    return [read_component(pixels[box], mask, box) for mask, box in parts if mask.sum() > 12 and min(mask.shape) > 2]


def read_component(pixels: np.ndarray, mask: np.ndarray, box: tuple[slice, slice]) -> Seen:
    """One component from its own cut-out at `box` of the picture."""
    mask, pixels = np.pad(mask, 1), np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], axis=1).astype(float)
    centre, area = points.mean(axis=0), float(mask.sum())
    reach = float(np.hypot(*(points - centre).T).max())
    core = ndimage.binary_erosion(mask, iterations=max(1, round(reach * 0.15)))
    rgb = np.median(pixels[core if core.any() else mask], axis=0)
    hull = ConvexHull(points).volume  # in two dimensions the volume is the area
    filled = area / (np.pi * (reach + 0.5) ** 2)
    full = "circle" if filled > 0.85 else "square" if filled > 0.52 else "triangle"
    shape = "star" if area < 0.82 * hull else full
    return Seen(shape, colour_word(rgb), centre[0] + box[1].start, centre[1] + box[0].start, area, reach)


def colour_word(rgb: np.ndarray) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(level) / 255 for level in rgb))
    if value < 0.27:
        return "black"
    if saturation < 0.2:
        return "white"
    return next((name for name, end in HUES.items() if hue * 360 < end), "red")


def answer(question: str, seen: list[Seen]) -> str:
    """The answer to a question about one picture."""
    words = question.lower().rstrip("?.")
    if re.search(r"how many|count|number of", words):
        return str(len(matching(words, seen)))
    if re.search(r"larger|bigger", words):
        names = [
            name.group(0)
            for name in re.finditer(r"the (?!picture)(?:\w+ )?(?:circle|square|triangle|star|shape)\b", words)
        ]
        assert len(names) == 2, question
        return max(names, key=lambda name: the_one(name, seen).area)
    if re.search(r"above or below|where is|on which side", words):
        (a, b) = re.findall(r"the (?:\w+ )?(?:circle|square|triangle|star|shape)\b", words)
        a, b = (b, a) if words.startswith("on which side") else (a, b)
        one, other = the_one(a, seen), the_one(b, seen)
        away = {"left": other.x - one.x, "right": one.x - other.x, "above": other.y - one.y, "below": one.y - other.y}
        *_, next_best, best = sorted(away, key=away.__getitem__)
        assert away[best] > 1.7 * away[next_best], question
        return best
    side = re.search(r"left of|right of|above|over|below|under", words)
    if side:
        before, after = words[: side.start()], words[side.end() :]
        other = the_one(after, seen)
        if re.match(r"(is|does) ", words):
            return "yes" if is_beside(the_one(before, seen), other, side.group(0)) else "no"
        found = [one for one in seen if one is not other and is_beside(one, other, side.group(0))]
        if not found:
            assert not any(is_beside(one, other, side.group(0), by=0.12) for one in seen), question
            return "nothing"
        assert len(found) == 1, question
        return f"the {found[0].colour} {found[0].shape}"
    if re.search(r"is there|do you see an?|do you see anything|can you see|does the picture show", words):
        return "yes" if matching(words, seen) else "no"
    if not matching(words, seen):
        name = next((word for word in SHAPE_WORDS if word in words), None)
        return f"there is no {name or next(word for word in COLOUR_WORDS if word in words) + ' shape'}"
    one = the_one(words, seen)
    return one.colour if re.search(r"colou?r", words) else one.shape


def place_word(one: Seen, height: int, width: int) -> str:
    """In which part of a picture of this size its centre lies, by thirds."""
    up, along = ("top", "", "bottom")[int(3 * one.y / height)], ("left", "", "right")[int(3 * one.x / width)]
    if not up:
        return f"on the {along}" if along else "in the middle"
    return f"at the {up} {along}".rstrip()


def is_at(words: str, seen: list[Seen], height: int, width: int) -> bool:
    """Whether "red circle top left" is so: such a shape has its centre about in these thirds of height and width."""
    name, spot = re.fullmatch(rf"(.*?(?:{'|'.join(SHAPE_WORDS)}|shape)) (.*)", words).groups()
    row = next((number for number, word in ((0, "top"), (2, "bottom")) if word in spot), 1)
    column = next((number for number, word in ((0, "left"), (2, "right")) if word in spot), 1)
    # Of a triangle the centre of the pixels is not the centre of the circle around it.
    near = [
        (row / 3 - 0.05 < one.y / height < (row + 1) / 3 + 0.05)
        and (column / 3 - 0.05 < one.x / width < (column + 1) / 3 + 0.05)
        for one in matching(name, seen)
    ]
    return any(near)


SPOT = "(top left|top right|top|left|middle|right|bottom left|bottom right|bottom)"
WORD = "([a-z]+)"
KEPT = re.compile(rf"{SPOT} {WORD} {WORD} {WORD}, {WORD} {WORD} {WORD}")
NEW = re.compile(rf"{SPOT} {WORD} {WORD} nothing")


def looked_over(working: str, question: str) -> list[tuple[str, bool | None]]:
    """What a working that goes over a whole picture says of each shape: "red circle top left" ("red shape top left",
    if its colour said enough), and whether it is what the question asks for (None: the question asks for all). The
    words compared stand side by side with the right verdict behind them, and are those of the question."""
    found: list[tuple[str, bool | None]] = []
    for part in working.split(", "):
        spot, rest = re.fullmatch(rf"{SPOT} ((?:{'|'.join(COLOUR_WORDS + SHAPE_WORDS)}).*)", part).groups()
        words = rest.split()
        colours, shapes = ([word for word in words if word in known] for known in (COLOUR_WORDS, SHAPE_WORDS))
        asked = {*colours[1:], *shapes[1:]}
        assert all(word in question.lower() for word in asked), (working, question)
        verdict = None
        if asked:
            verdict = colours[0] == colours[-1] and shapes[:1] == shapes[-1:]
            assert words[-1] == ("same" if verdict else "other"), working
            assert words[-3:-1] in (colours, shapes), working
        assert len(words) == len(colours) + len(shapes) + bool(asked), working
        found.append((f"{colours[0]} {shapes[0] if shapes else 'shape'} {spot}", verdict))
    return found


def compared(working: str) -> tuple[list[str], list[tuple[str, str]]]:
    """What a comparison of two pictures says: the shapes of the first, "red circle top left", and those of the second,
    each with what the first has there instead or as well ("": nothing). Its verdicts are those of the words, and what
    it says of the first picture is said once there and once beside the second at most."""
    first, second, counts = re.fullmatch(r"1 (.*); 2 (.*); (\d \d \w+)", working).groups()
    befores = [words for words, _ in looked_over(first, "")]
    left, pairs = [*befores], []
    for part in re.findall(rf"(?:{SPOT.replace('(', '(?:')}) .*?(?:nothing|,.*?(?:same|other))(?=, |$)", second):
        if new := NEW.fullmatch(part):
            spot, colour, shape = new.groups()
            assert not any(words.split(" ", 2)[2] == spot for words in left), working
            pairs.append((f"{colour} {shape} {spot}", ""))
            continue
        spot, *words = KEPT.fullmatch(part).groups()
        for one, other, verdict in (words[:3], words[3:]):
            assert verdict == ("same" if one == other else "other"), working
        left.remove(f"{words[1]} {words[4]} {spot}")
        pairs.append((f"{words[0]} {words[3]} {spot}", f"{words[1]} {words[4]} {spot}"))
    same = "same" if len(befores) == len(pairs) else "other"
    assert counts == f"{len(befores)} {len(pairs)} {same}", working
    return befores, pairs


def size_word(one: Seen, height: int, width: int) -> str:
    """How large it is beside the picture's short side."""
    radius = (one.reach + 0.5) / min(height, width)
    return "small" if radius < 0.14 else "large" if radius > 0.24 else "medium"


def matching(words: str, seen: list[Seen]) -> list[Seen]:
    """What the words leave: of the colours and shapes they name, or all."""
    colours = [word for word in COLOUR_WORDS if re.search(rf"\b{word}\b", words)]
    shapes = [word for word in SHAPE_WORDS if re.search(rf"\b{word}s?\b", words)]
    return [
        one for one in seen if (not colours or one.colour in colours) and (not shapes or one.shape in shapes)
    ]  # fmt: skip


def the_one(words: str, seen: list[Seen]) -> Seen:
    found = matching(words, seen)
    assert len(found) == 1, f"{words!r} fits {found}"
    return found[0]


def is_beside(one: Seen, other: Seen, side: str, *, by: float = 0.5) -> bool:
    """Whether one centre is to this side of the other, by more than what could be argued about."""
    along = {
        "left of": other.x - one.x,
        "right of": one.x - other.x,
        "above": other.y - one.y,
        "over": other.y - one.y,
    }
    away = along.get(side, one.y - other.y)
    return away > by * max(one.reach, other.reach)
