"""Handwritten digits: scikit-learn's bundled scans (8 x 8, Alpaydin and Kaynak 1998), their splits, and their pixels.

One training digit in five is printed, in Pillow's own typeface, thin to bold; evaluation shows scans alone.

The 1797 scans are shuffled once, with a fixed seed: the first 1257 are for training, the next 180 for validation, the
last 360 for the test. A picture or clip of one split holds scans of this split only.
"""

from __future__ import annotations

import functools
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..extras import need
from .scenes import RGB, contrast


SPLIT_SEED = 0
SPLIT_ENDS = {"train": (0, 1257), "validation": (1257, 1437), "test": (1437, 1797), "unseen": (1437, 1797)}
PAD = 2  # empty pixels around a scan of 8: room to turn in
PRINTED = 0.2  # of the training digits


@functools.lru_cache(maxsize=1)
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Ink of all scans, (1797, 8, 8) float32 in 0..1, and their digits, (1797,) int."""
    scans = need("sklearn.datasets", "train").load_digits()
    return (scans.images / 16).astype(np.float32), scans.target


@functools.lru_cache(maxsize=4)
def scans_of(split: str) -> dict[int, list[int]]:
    """Digit -> indices of its scans in `split`."""
    _, labels = load_scans()
    start, end = SPLIT_ENDS[split]
    chosen = np.random.RandomState(SPLIT_SEED).permutation(len(labels))[start:end]
    return {digit: [int(index) for index in chosen if labels[index] == digit] for digit in range(10)}


def digit_mask(rng: random.Random, digit: int, *, split: str, side: int) -> Image.Image:
    """Coverage (mode L) of `side` x `side` pixels: a scan of this digit, smoothly enlarged, turned, slanted and
    stretched a little, thinner or bolder. In training it may be printed instead."""
    is_printed = split == "train" and rng.random() < PRINTED
    scan = print_digit(digit, rng.randint(0, 4)) if is_printed else load_scans()[0][rng.choice(scans_of(split)[digit])]
    canvas = np.pad(scan, len(scan) * PAD // 8)
    size = len(canvas)
    turn, slant = rng.gauss(0, 0.08), rng.gauss(0, 0.2 if is_printed else 0.08)
    narrow = rng.uniform(0.75, 1.0) if is_printed else 1.0  # condensed to regular
    # Pixels of the canvas per pixel of the mask.
    wide, high = (len(scan) * 9.5 / 8 / side / rng.uniform(0.9, 1.1) for _ in range(2))
    matrix = np.array([[wide / narrow, wide * (slant - turn)], [high * turn, high]])
    shift = size / 2 - matrix @ (side / 2, side / 2)
    data = (*matrix[0], shift[0], *matrix[1], shift[1])
    # As floats: 8 bits would leave steps in what is enlarged twenty times.
    large = Image.fromarray(canvas).transform((side, side), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    gain = rng.uniform(1.0, 2.2)
    ink = np.clip((np.asarray(large) - 0.5) * gain + rng.uniform(0.5, 0.6), 0, 1)
    ink[np.asarray(large) < 0.04] = 0
    return Image.fromarray((ink * 255).astype(np.uint8))


@functools.lru_cache(maxsize=50)
def print_digit(digit: int, weight: int) -> np.ndarray:
    """Ink of a printed digit, (64, 64) float32 in 0..1; `weight` thickens its strokes, in pixels of 64."""
    canvas = Image.new("L", (64, 64))
    font = ImageFont.load_default(72 - weight)
    ImageDraw.Draw(canvas).text((32, 32), str(digit), fill=255, font=font, anchor="mm", stroke_width=weight)
    return np.asarray(canvas, dtype=np.float32) / 255


def draw_ink(rng: random.Random, ground: RGB) -> RGB:
    """A colour to write with that stands out against `ground`: mostly dark on light or light on dark."""
    while True:
        level, tint = rng.choice([rng.uniform(0, 60), rng.uniform(200, 255)]), rng.choice([0, 40])
        red, green, blue = (round(min(255.0, max(0.0, level + rng.uniform(-tint, tint)))) for _ in range(3))
        ink = red, green, blue
        if contrast(ink, ground) > 300:
            return ink
