"""Geometry and packing of `arlow.patches`, against the published formulas written out plainly here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow.patches import normalise_rows, pack_image, pack_video, pan_and_scan_boxes, target_size


SIDES = st.integers(1, 6000)


def qwen_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size rule as the Qwen2-VL report and its reference code describe it."""
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        rows = max(factor, math.floor(height / beta / factor) * factor)
        columns = max(factor, math.floor(width / beta / factor) * factor)
    elif rows * columns < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return rows, columns


@settings(deadline=None, max_examples=300)
@given(SIDES, SIDES, st.sampled_from([8, 14, 28, 32]), st.integers(1, 40), st.integers(0, 2000))
def test_target_size_stays_in_the_budget(height, width, factor, least, extra):
    """Any size becomes multiples of the factor, never over the budget, and Qwen2-VL's where that keeps it too."""
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="aspect ratio"):
            target_size(height, width, factor=factor, min_pixels=1, max_pixels=factor**2)
        return
    min_pixels, max_pixels = least * factor**2, (least + extra) * factor**2 + 7
    h, w = target_size(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)
    assert h % factor == w % factor == 0 and h > 0 and w > 0
    assert h * w <= max_pixels
    reference = qwen_size(height, width, factor, min_pixels, max_pixels)
    if math.prod(reference) <= max_pixels:
        assert (h, w) == reference


def test_target_size_keeps_elongated_pictures_in_the_budget():
    """Where the published rule rounds the short side up past the budget, the long side gives way."""
    assert math.prod(qwen_size(28, 5600, 28, 784, 10 * 784)) > 10 * 784
    assert target_size(28, 5600, factor=28, min_pixels=784, max_pixels=10 * 784) == (28, 280)
    assert target_size(5600, 28, factor=28, min_pixels=784, max_pixels=10 * 784) == (280, 28)


@pytest.mark.parametrize("size", [(1, 201), (402, 2), (0, 10), (10, 0)])
def test_target_size_refuses(size):
    """Aspect ratios over 200 and empty pictures are refused with their size."""
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]}"):
        target_size(*size, factor=28, min_pixels=3136, max_pixels=10**6)


def gemma_crops(height: int, width: int, min_crop: int, max_crops: int, min_ratio: float) -> list:
    """Pan-and-scan as the Gemma 3 report and its reference code describe it."""
    long, short = max(height, width), min(height, width)
    if long / short < min_ratio:
        return []
    count = min(math.floor(long / min_crop), math.floor(long / short + 0.5))
    count = min(max_crops, max(2, count))
    size = math.ceil(long / count)
    if min(size, short) < min_crop:
        return []
    spans = [(i * size, min(size, long - i * size)) for i in range(count)]
    return [(0, a, height, b) for a, b in spans] if width >= height else [(a, 0, b, width) for a, b in spans]


@settings(deadline=None, max_examples=300)
@given(SIDES, SIDES, st.integers(1, 600), st.integers(1, 9), st.floats(1, 5))
def test_pan_and_scan_tiles_the_picture(height, width, min_crop, max_crops, min_ratio):
    """Crops cover the picture exactly once, in order, none empty; they are Gemma 3's where those are proper crops."""
    boxes = pan_and_scan_boxes(
        height, width, min_crop_size=min_crop, max_num_crops=max_crops, min_ratio_to_activate=min_ratio
    )
    assert len(boxes) != 1 and len(boxes) <= max_crops
    if boxes:
        cover = np.zeros((height, width) if height * width < 10**5 else (1, 1), dtype=np.int8)
        for top, left, h, w in boxes:
            assert h > 0 and w > 0
            cover[top : top + h, left : left + w] += 1
        assert sum(h * w for _, _, h, w in boxes) == height * width
        assert cover.size == 1 or (cover == 1).all()
    reference = gemma_crops(height, width, min_crop, max_crops, min_ratio)
    if len(reference) != 1 and all(h > 0 and w > 0 for _, _, h, w in reference):
        assert boxes == reference


def loop_rows(frames: np.ndarray, P: int, T: int, M: int) -> np.ndarray:
    """Packing, one patch after the other."""
    frames = np.concatenate([frames] + [frames[-1:]] * (-len(frames) % T))
    rows = []
    for t in range(0, len(frames), T):
        for block_y in range(0, frames.shape[1], P * M):
            for block_x in range(0, frames.shape[2], P * M):
                for y in range(block_y, block_y + P * M, P):
                    for x in range(block_x, block_x + P * M, P):
                        patch = frames[t : t + T, y : y + P, x : x + P]  # (T, P, P, C)
                        rows.append(patch.transpose(3, 0, 1, 2).reshape(-1))
    return np.stack(rows)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_packing_equals_a_plain_loop(count, rows, columns, P, T, M):
    """Rows hold the same numbers in the same order as a loop over frame groups, blocks and patches."""
    rng = np.random.default_rng(count * rows + columns)
    frames = rng.integers(0, 256, (count, rows * P * M, columns * P * M, 3), dtype=np.uint8)
    packed = pack_video(frames, patch_size=P, temporal_patch_size=T, merge_size=M)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(packed, loop_rows(frames, P, T, M))
    image = pack_image(frames[0], patch_size=P, merge_size=M)
    np.testing.assert_array_equal(image, loop_rows(frames[:1], P, 1, M))


def test_packing_does_not_change_its_input():
    """Repeating the last frame leaves the caller's array alone, and views are accepted."""
    frames = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    before = frames.copy()
    turned = pack_video(frames[:, ::-1], patch_size=2, temporal_patch_size=2, merge_size=2)
    np.testing.assert_array_equal(frames, before)
    np.testing.assert_array_equal(turned, loop_rows(before[:, ::-1], 2, 2, 2))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), ((0.5, 0.4, 0.3), (0.2, 0.3, 0.5)), (0.0, (0.2, 0.3, 0.5))])
def test_normalise_rows_equals_float64(mean, std):
    """Folding rescaling and normalisation into one multiply-add costs no accuracy, per channel or not."""
    rows = np.random.default_rng(0).integers(0, 256, (7, 3 * 2 * 4), dtype=np.uint8)
    out = np.full((9, rows.shape[1]), np.nan, dtype=np.float32)
    result = normalise_rows(rows, scale=1 / 255, mean=mean, std=std, out=out[1:8])
    per_channel = rows.reshape(7, 3, 8).astype(np.float64) / 255
    expected = (per_channel - np.reshape(mean, (-1, 1))) / np.reshape(std, (-1, 1))
    np.testing.assert_allclose(result, expected.reshape(rows.shape), rtol=0, atol=1e-6)
    assert result.base is out and np.isnan(out[[0, 8]]).all()  # written in place, and nowhere else
    np.testing.assert_array_equal(normalise_rows(rows, scale=1 / 255, mean=mean, std=std), result)
