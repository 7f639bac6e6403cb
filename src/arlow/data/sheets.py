"""Sheets: up to twelve little pictures of one shape or digit each, and what they show, row by row.

Of all pictures these teach the most per pixel: every word of the answer names what is at one place. A model learns to
see from single ones first, where it need not know the place: from sheets alone it sees no digit for ages.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from .captions import name_of
from .clips import digit_ground
from .digits import digit_mask
from .scenes import allowed_pairs, draw_scene, finish, render, render_ground


SINGLE = ((1, 1),)
GRIDS = ((1, 1), (1, 2), (2, 1), (2, 2), (2, 2), (2, 3), (3, 2), (3, 3), (3, 3), (3, 3), (3, 4), (4, 3))
LEAST_RADIUS = {1: 0.12, 2: 0.18, 3: 0.24, 4: 0.28}  # of a shape, by the longer side of the grid; a tile's side is 1
LEAST_TILE, MOST_TILE = 28, 120  # pixels
MOST_SIDE, LEAST_SIDE = 360, 64


def draw_sheet(rng: random.Random, split: str, *, grids: Sequence[tuple[int, int]] = GRIDS) -> tuple[np.ndarray, str]:
    """A sheet, (H, W, 3) uint8, and its caption: "red circle, 7; blue star, 4". `grids`: rows and columns."""
    rows, columns = rng.choice(grids)
    least = max(LEAST_TILE, -(-LEAST_SIDE // min(rows, columns)))
    side = rng.randint(least, min(MOST_TILE, MOST_SIDE // max(rows, columns)))
    digits = rng.choice([0.0, 0.0, 0.5, 1.0])  # share of tiles
    tiles, words = [], []
    for _ in range(rows * columns):
        if rng.random() < digits:
            tile, name = draw_digit(rng, split, side)
        else:
            tile, name = draw_shape(rng, split, side, least_radius=LEAST_RADIUS[max(rows, columns)])
        tiles.append(tile)
        words.append(name)
    sheet = np.stack(tiles).reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    lines = [", ".join(words[row * columns : (row + 1) * columns]) for row in range(rows)]
    return sheet.reshape(rows * side, columns * side, 3), "; ".join(lines)


def draw_shape(rng: random.Random, split: str, side: int, *, least_radius: float) -> tuple[np.ndarray, str]:
    """A tile (side, side, 3) with one shape, and its name."""
    scene = draw_scene(rng, [rng.choice(allowed_pairs(split))], least_radius=least_radius, size=(1.0, 1.0))
    return render(rng, scene, side), name_of(scene.things[0])


def draw_digit(rng: random.Random, split: str, side: int) -> tuple[np.ndarray, str]:
    """A tile (side, side, 3) with one digit, and the digit."""
    digit = rng.randrange(10)
    ground, ink = digit_ground(rng)
    canvas = render_ground(rng, ground, side, side)
    size = round(side * rng.uniform(0.75, 0.98))
    spot = rng.randint(0, side - size), rng.randint(0, side - size)
    canvas.paste(ink, spot, digit_mask(rng, digit, split=split, side=size))
    return finish(rng, canvas), str(digit)
