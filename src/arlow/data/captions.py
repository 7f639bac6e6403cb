"""Captions of scenes and clips: every shape with its size, colour and place, in reading order.

There are three forms, chosen by the wording of the question, so that each question has one right answer."""

from __future__ import annotations

from collections.abc import Sequence

from .clips import Story
from .scenes import Scene, Thing
from .wordings import article


PLACES = {
    (0, 0): "at the top left", (1, 0): "at the top", (2, 0): "at the top right",
    (0, 1): "on the left", (1, 1): "in the middle", (2, 1): "on the right",
    (0, 2): "at the bottom left", (1, 2): "at the bottom", (2, 2): "at the bottom right",
}  # fmt: skip
SMALL, LARGE = 0.14, 0.24  # radius in units of the short side
NUMBERS = ("zero", "one", "two", "three", "four")


def third(part: float) -> int:
    """Which third of 0..1 `part` lies in."""
    return min(2, max(0, int(part * 3)))


def size_word(radius: float) -> str:
    """How large a shape of this radius is called."""
    return "small" if radius < SMALL else "large" if radius > LARGE else "medium"


def is_certain(part: float, borders: Sequence[float], *, margin: float) -> bool:
    """Whether `part` lies so far from all borders that nobody would argue about its side of them."""
    return all(abs(part - border) >= margin for border in borders)


def certain_size(radius: float) -> str | None:
    """How large a shape of this radius is called, or None where it could be argued about."""
    return size_word(radius) if is_certain(radius, (SMALL, LARGE), margin=0.015) else None


def certain_place(x: float, y: float, width: float, height: float) -> str | None:
    """Where in the picture something is, by thirds, or None where it could be argued about."""
    certain = all(is_certain(part, (1 / 3, 2 / 3), margin=0.04) for part in (x / width, y / height))
    return place_of(x, y, width, height) if certain else None


def name_of(thing: Thing) -> str:
    """Colour and shape: "red circle"."""
    return f"{thing.colour} {thing.shape}"


def place_of(x: float, y: float, width: float, height: float) -> str:
    """Where in the picture something is, by thirds."""
    return PLACES[third(x / width), third(y / height)]


def spot_of(scene: Scene, thing: Thing) -> str:
    """Where something is, by thirds of the picture, in as few words as can be: "top left"."""
    return place_of(thing.x, thing.y, scene.width, scene.height).split(" ", 2)[2]


def in_reading_order(scene: Scene) -> list[Thing]:
    """The shapes by thirds of the height, each third from left to right."""
    return sorted(scene.things, key=lambda thing: (third(thing.y / scene.height), thing.x))


def describe_scene(scene: Scene, form: int) -> str:
    """The caption of a scene in one of three forms."""
    order = in_reading_order(scene)
    names = [f"{size_word(thing.radius)} {name_of(thing)}" for thing in order]
    places = [place_of(thing.x, thing.y, scene.width, scene.height) for thing in order]
    parts = [f"{article(name)} {place}" for name, place in zip(names, places, strict=True)]
    if form == 0:
        return join(parts) + "."
    if form == 1:
        things = "one shape" if len(parts) == 1 else f"{NUMBERS[len(parts)]} shapes"
        return f"{things.capitalize()}: {', '.join(parts)}."
    return "; ".join(f"{name}, {place}" for name, place in zip(names, places, strict=True))


def describe_story(story: Story, form: int) -> str:
    """The caption of a clip of one shape in one of three forms."""
    name = f"{story.colours[0]} {story.thing.shape}"
    events = []
    if story.direction:
        events.append(f"moves {story.direction}")
    if story.size:
        events.append(story.size)
    if len(story.colours) > 1:
        events.append("turns " + ", then ".join(story.colours[1:]))
    events = events or ["stays the same"]
    if form == 0:
        return f"{article(name)} that {join(events)}."
    if form == 1:
        start = article(name)
        return f"{start[0].upper()}{start[1:]}. It {join(events)}."
    return f"{name}; {'; '.join(events)}"


def describe_digits(digits: Sequence[int], form: int, *, clip: bool = False) -> str:
    """The caption of handwritten digits, side by side or (`clip`) one after another, in one of three forms."""
    if len(digits) == 1:
        return (f"the digit {digits[0]}.", f"One digit: {digits[0]}.", f"digit, {digits[0]}")[form]
    if clip:
        parts = ", then ".join(str(digit) for digit in digits)
        return (
            f"the digits {parts}.",
            f"Digits one after another: {parts}.",
            f"digits; {'; '.join(map(str, digits))}",
        )[form]
    one, two = digits
    return (
        f"the digits {one} and {two} side by side.",
        f"Two digits: {one} on the left, {two} on the right.",
        f"digit, {one}; digit, {two}",
    )[form]


def join(parts: Sequence[str]) -> str:
    """`parts` with commas and a final "and"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
