"""Deformable attention: a bias that falls with the distance of two patches, and hides those beyond a radius.

In: the coordinates of a segment's patches. Out: the bias of all pairs, or, where that pays, tiles: the patches of a
square of the picture with those around it that they can see, so that what is hidden is not computed.

Sizes: L patches of a segment, Q and K those of a tile's queries and keys. Coordinates (L, 3) are frame group, row and
column; distances are Euclidean with each axis of the item scaled to [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .configuration_arlow import ArlowVisionConfig


HIDDEN = 100.0  # how much farther than it is a patch beyond the radius counts
CLEAR = 100.0  # bias that no difference of scores makes up for: what has it weighs nothing
TILE = 16  # patches, side of a tile
LEAST = 1024  # patches of a segment from which tiles pay ...
PAYS = 0.7  # ... if they leave no more than this share of all pairs


class Tiles(NamedTuple):
    """The patches of a segment, tile by tile, with what each tile can see."""

    queries: torch.Tensor  # (L,) places in the segment, tile after tile
    back: torch.Tensor  # (L,) where each place went
    keys: torch.Tensor  # (sum of all K,) places in the segment
    parts: list[tuple[int, int, torch.Tensor]]  # Q, K and the bias (1, 1, Q, K) of each tile


def deformable_bias(places: torch.Tensor, grid: Sequence[int], config: ArlowVisionConfig) -> torch.Tensor:
    """What deformable attention adds to the scores of all pairs of `places` (L, 3): (L, L) float32."""
    return _bias(places, places, grid, config)


def _bias(queries: torch.Tensor, keys: torch.Tensor, grid: Sequence[int], config: ArlowVisionConfig) -> torch.Tensor:
    """-strength * distance, and beyond the radius a further -100 * strength: (Q, K) float32."""
    distance = normalised_distances(queries, keys, grid)
    # A token right on the radius is within it, whatever the last digit of its distance.
    beyond = (distance > config.deformable_attention_window * (1 + 1e-6)).float()
    return -config.deformable_attention_strength * (distance + HIDDEN * beyond)


def normalised_distances(queries: torch.Tensor, keys: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Distances (Q, K) float32 between places (Q, 3) and (K, 3) of an item with this grid."""
    squares = torch.zeros(len(queries), len(keys), device=queries.device)
    for one, other, side in zip(queries.unbind(-1), keys.unbind(-1), grid, strict=True):
        # Differences are taken between integers: equal steps give equal distances everywhere in the item.
        squares += ((one[:, None] - other) / max(side - 1, 1)).square()
    return squares.sqrt()


def tiles_pay(length: int, grid: Sequence[int], config: ArlowVisionConfig) -> bool:
    """Whether a segment of `length` patches is attended tile by tile: what tiles leave out weighs nothing, and is a
    good part of the work."""
    if length < LEAST or config.deformable_attention_strength * HIDDEN < CLEAR:
        return False
    if TILE % config.spatial_merge_size:  # blocks would straddle tiles, whose patches then differ in their order
        return False
    down, across = (_share(side, radius) for side, radius in zip(grid[1:], radii(grid, config), strict=True))
    return down * across < PAYS


def _share(side: int, radius: int) -> float:
    """The share of pairs of places on one axis that tiles leave."""
    spans = [(at, min(at + TILE, side)) for at in range(0, side, TILE)]
    return sum((end - at) * (min(end + radius, side) - max(at - radius, 0)) for at, end in spans) / side**2


def radii(grid: Sequence[int], config: ArlowVisionConfig) -> tuple[int, int]:
    """Rows and columns that are within the radius."""
    rows, columns = (int(config.deformable_attention_window * (1 + 1e-6) * (side - 1)) for side in grid[1:])
    return rows, columns


def make_tiles(places: torch.Tensor, grid: Sequence[int], config: ArlowVisionConfig, dtype: torch.dtype) -> Tiles:
    """The tiles of a segment with patches at `places` (L, 3); biases in `dtype`."""
    rows, columns = places[:, 1], places[:, 2]
    reach = radii(grid, config)
    across = -(-grid[2] // TILE)
    tile = rows // TILE * across + columns // TILE
    queries = tile.argsort(stable=True)
    keys, parts, made = [], [], {}
    start = 0
    for number, count in enumerate(torch.bincount(tile).tolist()):
        here = queries[start : start + count]
        start += count
        top, left = number // across * TILE, number % across * TILE
        first = max(top - reach[0], 0), max(left - reach[1], 0)
        last = min(top + TILE + reach[0], grid[1]), min(left + TILE + reach[1], grid[2])
        seen = (rows >= first[0]) & (rows < last[0]) & (columns >= first[1]) & (columns < last[1])
        keys.append(seen.nonzero()[:, 0])
        # Tiles with the same surroundings have the same bias.
        key = (top - first[0], left - first[1], last[0] - first[0], last[1] - first[1], count)
        if key not in made:
            made[key] = _bias(places[here], places[keys[-1]], grid, config)[None, None].to(dtype)
        parts.append((count, len(keys[-1]), made[key]))
    return Tiles(queries, queries.argsort(), torch.cat(keys), parts)


def attend_tiles(
    attend: Callable, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, tiles: Tiles
) -> torch.Tensor:
    """Attention of segments of equal geometry, tile by tile.

    Args:
        attend: (query, key, value, bias) -> (output (G, Q, H, D), weights).
        query, key, value: (G, H, L, D) of G segments.

    Returns:
        (G, L, H, D).
    """
    # Gathered once, then split: the gradient of every slice would be as large as the whole.
    own, seen = [count for count, _, _ in tiles.parts], [count for _, count, _ in tiles.parts]
    pieces = zip(
        query[:, :, tiles.queries].split(own, dim=2),
        key[:, :, tiles.keys].split(seen, dim=2),
        value[:, :, tiles.keys].split(seen, dim=2),
        (bias for _, _, bias in tiles.parts),
        strict=True,
    )
    return torch.cat([attend(*piece)[0] for piece in pieces], dim=1)[:, tiles.back]
