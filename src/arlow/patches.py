"""Geometry of pictures and the packed rows the vision encoder reads. NumPy, and torch to resize and normalise.

In: pixel arrays (H, W, 3) or (T, H, W, 3) uint8. Out: rows of one patch each, all patches of a picture in merge-block
order, and the float32 values the encoder takes.

Sizes: H, W pixels; P patch side; M merge side; T frames per row; C channels; G frame groups; h, w patches.
"""

from __future__ import annotations

import math

import numpy as np


MAX_ASPECT_RATIO = 200
REGION = 4  # tokens, side of the regions within which tokens are pruned
# Numbers that are normalised at a time. They stay in the cache, and torch takes one thread for so many: a process
# forked later would wait for the others for ever.
BLOCK = 2**15


def target_size(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int, name: str = "image"
) -> tuple[int, int]:
    """The size (pixels) a picture is resized to: multiples of `factor`, the aspect ratio kept as far as that allows.

    Each side is rounded to the nearest multiple. If the area then leaves `min_pixels..max_pixels`, both sides are
    scaled by one number and rounded inwards. Where rounding the short side up to one `factor` would still break the
    upper bound, the long side gives way: the result never exceeds `max_pixels` (which must be at least `factor**2`).
    The sizes are those of Qwen2-VL (arXiv:2409.12191) wherever those keep the budget.

    Raises `ValueError` for an empty picture or an aspect ratio over 200.
    """
    if height < 1 or width < 1:
        raise ValueError(f"{name} of {height}x{width} pixels: is empty")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(f"{name} of {height}x{width} pixels: the aspect ratio is over {MAX_ASPECT_RATIO}")
    rows, columns = round(height / factor), round(width / factor)  # half to even
    if rows * columns * factor**2 < min_pixels:  # also when a side became zero
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    if rows * columns * factor**2 > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
        budget = max_pixels // factor**2
        rows, columns = min(rows, max(1, budget // columns)), min(columns, max(1, budget // rows))
    return rows * factor, columns * factor


def pan_and_scan_boxes(
    height: int, width: int, *, min_crop_size: int, max_num_crops: int, min_ratio_to_activate: float
) -> list[tuple[int, int, int, int]]:
    """Crops `(top, left, height, width)` in pixels of an elongated picture, along its long side, in reading order.

    As in Gemma 3 (arXiv:2503.19786): none below `min_ratio_to_activate` or when a crop would be smaller than
    `min_crop_size` on a side; else as many as the aspect ratio rounded (half up), at least 2 and at most
    `max_num_crops`, and no more than fit at `min_crop_size`. The last crop may be smaller than the others. One crop
    would be the picture itself, so fewer than two are none.
    """
    long, short = max(height, width), min(height, width)
    if long / short < min_ratio_to_activate:
        return []
    count = min(math.floor(long / short + 0.5), long // min_crop_size)
    count = min(max(2, count), max_num_crops)
    step = math.ceil(long / count)
    if count < 2 or min(step, short) < min_crop_size:
        return []
    starts = range(0, long, step)  # never an empty last crop
    if len(starts) < 2:  # a side of one pixel
        return []
    if width >= height:
        return [(0, start, height, min(step, width - start)) for start in starts]
    return [(start, 0, min(step, height - start), width) for start in starts]


def kept_count(rows: int, columns: int, ratio: float) -> int:
    """How many of `rows` x `columns` merged tokens reach the decoder where the share `ratio` of every region is left
    out: at least one of each."""
    heights, widths = ([min(REGION, side - at) for at in range(0, side, REGION)] for side in (rows, columns))
    return sum(height * width - left_out(height * width, ratio) for height in heights for width in widths)


def left_out(tokens: int, ratio: float) -> int:
    """How many of the tokens of a region are left out, rounded down."""
    return int(tokens * ratio + 1e-9)  # 0.29 * 100 is 28.999...


def resize_pixels(pixels: np.ndarray, height: int, width: int, *, mode: str) -> np.ndarray:
    """(H, W, 3 or 4) uint8, C-contiguous -> (height, width, 3) uint8, antialiased; `mode` "bilinear" or "bicubic". A
    fourth sample is left out. The result is not contiguous.

    These are Pillow's filters as torch computes them, with weights of 16 bits: a fifth of the time, and samples that
    differ by one level at most.
    """
    if pixels.shape[:2] == (height, width):
        return pixels[..., :3]
    import torch  # here: reading pictures needs no torch

    frame = torch.from_numpy(np.asarray(_Lent(pixels))).permute(2, 0, 1)[None]  # (1, C, H, W), channels last
    small = torch.nn.functional.interpolate(frame, size=(height, width), mode=mode, antialias=True)
    # A view: torch's result is planar, and so are the rows it is packed into.
    return small[0, :3].permute(1, 2, 0).numpy()


class _Lent:
    """An array that torch takes as it is, also a read-only one, which it would warn of: it is only read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        start, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (start, False)}


def pack_image(pixels: np.ndarray, *, patch_size: int, merge_size: int) -> np.ndarray:
    """(H, W, C) uint8 -> (h*w, C*P*P) uint8: one patch per row, channel first, rows in merge-block order.

    H and W are multiples of `patch_size * merge_size`.
    """
    height, width, channels = pixels.shape
    P, M = patch_size, merge_size
    blocks = pixels.reshape(height // (P * M), M, P, width // (P * M), M, P, channels)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # (h/M, w/M, M, M, C, P, P)
    return np.ascontiguousarray(blocks).reshape(-1, channels * P * P)


def pack_video(frames: np.ndarray, *, patch_size: int, temporal_patch_size: int, merge_size: int) -> np.ndarray:
    """(F, H, W, C) uint8 -> (G*h*w, C*T*P*P) uint8: T frames per row, channel first, frame groups in order.

    The last frame is repeated until F is a multiple of T. Within a group the rows are in merge-block order.
    """
    T, P, M = temporal_patch_size, patch_size, merge_size
    if missing := -len(frames) % T:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    count, height, width, channels = frames.shape
    blocks = frames.reshape(count // T, T, height // (P * M), M, P, width // (P * M), M, P, channels)
    blocks = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # (G, h/M, w/M, M, M, C, T, P, P)
    return np.ascontiguousarray(blocks).reshape(-1, channels * T * P * P)


def normalise_rows(
    rows: np.ndarray,
    *,
    scale: float,
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
    channels: int = 3,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """`(rows * scale - mean) / std` in float32, as one multiplication and one addition per value, in blocks that stay
    in the cache between the two.

    Args:
        rows: (N, channels * K) uint8, channel first within a row.
        scale: factor of the samples, 1/255 for the usual range.
        mean: one number or one per channel, in units of the scaled samples.
        std: as `mean`.
        channels: how many channels a row holds.
        out: (N, channels * K) float32 to write to; made when missing.

    Returns:
        `out`. Exactly `rows * float32(scale / std) + float32(-mean / std)`.
    """
    if out is None:
        out = np.empty(rows.shape, dtype=np.float32)
    spread = np.asarray(std, dtype=np.float64)
    factor = np.asarray(scale / spread, dtype=np.float32)
    shift = np.asarray(-np.asarray(mean, dtype=np.float64) / spread, dtype=np.float32)
    import torch  # here: reading pictures needs no torch

    # One number, or one for each value of a row.
    by, plus = (
        torch.from_numpy(each.repeat(rows.shape[1] // channels) if each.size > 1 else each.reshape(1))
        for each in (factor, shift)
    )
    samples, values = torch.from_numpy(np.asarray(_Lent(rows))), torch.from_numpy(out)
    count = max(1, BLOCK // max(1, rows.shape[1]))
    for block, part in zip(samples.split(count), values.split(count), strict=True):
        part.copy_(block).mul_(by).add_(plus)
    return out
