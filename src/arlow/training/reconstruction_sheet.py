"""A picture of what a masked autoencoder paints: input, what the encoder saw, reconstruction, one below the other.

The loss asks for the pattern of a patch, not for its brightness and contrast; those are taken from the true patch
when its prediction is turned back into pixels. A sheet shows pattern and place of things, not how well colours are
guessed.

Sizes: N patches, G frame groups, T frames per group, F frames, H, W pixels, C channels, P patch side, M merge side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from PIL import Image, ImageDraw, ImageFont

from .masked_autoencoder import MaskedAutoencoder, row_statistics


TILE = 144  # pixels, height of a picture on the sheet
GAP = 6  # pixels
LABELS = ("input", "seen", "painted")
LABEL_WIDTH = 64  # pixels
SHEET_WIDTH = 1600  # pixels, about
MOST_FRAMES = 6  # of a clip, evenly spread
GREY = 128


@dataclass(frozen=True)
class Reconstruction:
    """One picture (F = 1) or clip; every field (F, H, W, 3) uint8."""

    original: np.ndarray
    seen: np.ndarray
    painted: np.ndarray


@torch.no_grad()
def reconstruct(
    model: Any, batch: dict[str, torch.Tensor], *, mean: Sequence[float] | float, std: Sequence[float] | float
) -> Reconstruction:
    """What the model makes of one picture or clip.

    Args:
        model: a [`MaskedAutoencoder`], or a wrapper that is called like one.
        batch: the arguments of its `forward`, for one item.
        mean, std: of the image processor, after rescaling to 0..1.
    """
    still = "pixel_values" in batch
    rows_name, grid_name = ("pixel_values", "grid_thw") if still else ("pixel_values_videos", "video_grid_thw")
    core: MaskedAutoencoder = extract_model_from_parallel(model, keep_torch_compile=False)
    every = torch.arange(len(batch[rows_name]), device=batch[rows_name].device)
    rows = core.true_rows([batch[rows_name]], every)  # [N, C*T*P*P]
    predictions = model(**batch).predictions.float()
    middle, deviation = row_statistics(rows[batch["masked"]])
    painted = rows.index_copy(0, batch["masked"], predictions * deviation + middle)
    hidden = torch.zeros(len(rows), 1, device=rows.device).index_fill(0, batch["masked"], 1)
    vision = core.config.vision_config
    grid = tuple(batch[grid_name][0].tolist())

    def frames(values: torch.Tensor) -> np.ndarray:
        pixels = unpack_rows(values.cpu().numpy(), grid, vision)  # [F, H, W, C]
        if still:
            pixels = pixels.mean(axis=0, keepdims=True)
        return np.clip((pixels * np.asarray(std) + np.asarray(mean)) * 255, 0, 255).round().astype(np.uint8)

    mask = unpack_rows(hidden.expand_as(rows).cpu().numpy(), grid, vision)[: 1 if still else None] > 0
    original = frames(rows)
    return Reconstruction(original, np.where(mask, np.uint8(GREY), original), frames(painted))


def unpack_rows(rows: np.ndarray, grid: tuple[int, ...], vision: Any) -> np.ndarray:
    """(N, C*T*P*P) in merge-block order -> (G*T, H, W, C): what `patches.pack_video` was given."""
    G, h, w = grid
    C, T, P, M = vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.spatial_merge_size
    blocks = rows.reshape(G, h // M, w // M, M, M, C, T, P, P).transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    return blocks.reshape(G * T, h * P, w * P, C)


def write_sheet(items: Sequence[Reconstruction], path: Path, *, title: str = "") -> None:
    """The items beside each other, in lines, as a PNG; pictures first, then the frames of clips."""
    strips = [_strip(item) for item in items]
    lines: list[list[Image.Image]] = [[]]
    for strip in strips:
        if lines[-1] and sum(each.width + 3 * GAP for each in lines[-1]) + strip.width > SHEET_WIDTH:
            lines.append([])
        lines[-1].append(strip)
    width = LABEL_WIDTH + max(sum(strip.width + 3 * GAP for strip in line) for line in lines)
    head, height = 28, strips[0].height + 3 * GAP
    sheet = Image.new("RGB", (width, head + height * len(lines)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((GAP, GAP), title, fill="black", font=font)
    for number, line in enumerate(lines):
        top, left = head + number * height, LABEL_WIDTH
        for row, label in enumerate(LABELS):
            draw.text((GAP, top + row * (TILE + GAP) + TILE // 2), label, fill="black", font=font)
        for strip in line:
            sheet.paste(strip, (left, top))
            left += strip.width + 3 * GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _strip(item: Reconstruction) -> Image.Image:
    """One item: three rows, a column per frame."""
    count, height, width = item.original.shape[:3]
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int))
    tile = max(round(width * TILE / height), 1)
    strip = Image.new("RGB", (len(chosen) * (tile + GAP) - GAP, 3 * (TILE + GAP) - GAP), "white")
    for row, frames in enumerate((item.original, item.seen, item.painted)):
        for column, index in enumerate(chosen):
            picture = Image.fromarray(frames[index]).resize((tile, TILE), Image.Resampling.NEAREST)
            strip.paste(picture, (column * (tile + GAP), row * (TILE + GAP)))
    return strip
