"""What a sample is: media in memory and the turns of a conversation about them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from .clips import write_clip
from .questions import Turn
from .scenes import MIN_SIDE, Scene, render, side_of


MOST_TURNS = 8  # of one training sample
MIN_PIXELS = 6  # radius of the smallest shape in a picture


@dataclass
class Picture:
    """A still in memory: `pixels` (H, W, 3) uint8 RGB, and the JPEG `quality` it is saved with (None: as PNG)."""

    pixels: np.ndarray
    quality: int | None = None

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """Write it to `folder/images/<stem>.png` or `.jpg`; its content item, whose path is relative to `folder`."""
        image = Image.fromarray(self.pixels)
        if self.quality is None:
            path = f"images/{stem}.png"
            image.save(folder / path, compress_level=1)
        else:
            path = f"images/{stem}.jpg"
            image.save(folder / path, quality=self.quality)
        return {"type": "image", "path": path}


@dataclass
class Clip:
    """A clip in memory: `frames` (T, H, W, 3) uint8 RGB, H and W even, `fps` and the x264 `quality` (CRF)."""

    frames: np.ndarray
    fps: int
    quality: int = 23

    def save(self, folder: Path, stem: str) -> dict[str, str]:
        """Write it to `folder/videos/<stem>.mp4`; its content item, whose path is relative to `folder`."""
        path = f"videos/{stem}.mp4"
        write_clip(folder / path, self.frames, fps=self.fps, quality=self.quality)
        return {"type": "video", "path": path}


@dataclass
class Sample:
    """Media in the order of the conversation, and the turns about them. `text_first`: the first question stands before
    its media."""

    media: list[Picture | Clip] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    text_first: bool = False


def shoot(rng: random.Random, pixels: np.ndarray) -> Picture:
    """A picture that is saved as PNG or, mostly, as JPEG of any fair quality."""
    quality = rng.randint(70 if min(pixels.shape[:2]) < 128 else 50, 95)
    return Picture(pixels, quality if rng.random() < 0.7 else None)


def film(rng: random.Random, frames: np.ndarray, fps: int) -> Clip:
    """A clip that is saved at any fair quality."""
    return Clip(frames, fps, rng.randint(18, 28))


def picture_of(rng: random.Random, scene: Scene) -> Picture:
    """A picture of the scene, of any size."""
    return shoot(rng, render(rng, scene, draw_side(rng, scene)))


def draw_side(rng: random.Random, *scenes: Scene) -> int:
    """The shorter side, in pixels, of pictures of these scenes, which are all as wide and high."""
    least = math.ceil(MIN_PIXELS / min(thing.radius for scene in scenes for thing in scene.things))
    return side_of(rng, scenes[0].width, scenes[0].height, least=max(MIN_SIDE, least))


def in_turn(rng: random.Random, first: Turn, others: list[Turn], most: int) -> list[Turn]:
    """`first` and others, up to `most` turns. Mostly it comes first; in a third of conversations others may give its
    answer away."""
    turns = [first, *others][:most]
    if most > 1 and rng.random() < 0.33:
        rng.shuffle(turns)
    return turns
