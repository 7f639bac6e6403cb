"""Which merged tokens of an image reach the decoder: within each region of 4x4 tokens the share `ratio` is left out,
those that say the least.

The score needs no training: the mean squared distance of a token's pixels to the mean colour of its region. A token
of plain background scores zero, one with an edge, a texture or another colour scores high. How many are kept depends
on the grid alone, so that placeholders can be counted without pixels; which, on the pixels of that image alone.

Sizes: h, w patches; m merge side; M merged tokens of all images; C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .patches import REGION, left_out


def kept_tokens(
    pixel_values: torch.Tensor,
    grids: Sequence[Sequence[int]],
    *,
    merge: int,
    channels: int,
    ratio: float,
    std: float | Sequence[float] = 1.0,
) -> torch.Tensor:
    """Which tokens of all images are kept.

    Args:
        pixel_values: (patches, C*...) rows in merge-block order, a channel's values next to one another.
        grids: (1, h, w) patches of every image.
        merge: patches per side of a token.
        channels: C.
        ratio: share of each region that is left out, in [0, 1).
        std: `image_std`, one number or one per channel, by which uint8 rows are yet to be divided.

    Returns:
        (M,) bool.
    """
    sizes = [t * h * w for t, h, w in grids]
    scale = None
    if pixel_values.dtype == torch.uint8:
        scale = 1 / torch.tensor(std, device=pixel_values.device).expand(channels)[:, None]  # [C, 1]
    parts = [
        _kept_of_image(rows, h // merge, w // merge, channels, scale, ratio)
        for rows, (_, h, w) in zip(pixel_values.split(sizes), grids, strict=True)
    ]
    return torch.cat(parts)


def _kept_of_image(
    pixels: torch.Tensor, rows: int, columns: int, channels: int, scale: torch.Tensor | None, ratio: float
) -> torch.Tensor:
    tokens, device = rows * columns, pixels.device
    values = pixels.float().reshape(tokens, -1, channels, pixels.shape[1] // channels)  # [tokens, m*m, C, pixels]
    values = values if scale is None else values * scale
    index = torch.arange(tokens, device=device)
    across = -(-columns // REGION)
    region = index // columns // REGION * across + index % columns // REGION  # [tokens]
    count = torch.bincount(region)
    total = torch.zeros(len(count), channels, device=device).index_add(0, region, values.mean(dim=(1, 3)))
    centre = (total / count[:, None])[region]  # [tokens, C]
    score = (values - centre[:, None, :, None]).square().mean(dim=(1, 2, 3))
    # The best of every region first: by region, then by score, equal ones in the order of the tokens.
    order = score.argsort(descending=True, stable=True)
    order = order[region[order].argsort(stable=True)]
    rank = index - (count.cumsum(0) - count)[region[order]]
    most = count - torch.tensor([left_out(tokens, ratio) for tokens in count.tolist()], device=device)
    return torch.zeros(tokens, dtype=torch.bool, device=device).index_put((order,), rank < most[region[order]])
