"""Pillow's own memory as an array: the same samples without a copy, and what depends on them."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from arlow import ArlowImageProcessor
from arlow import lent_pixels as lending
from arlow.lent_pixels import LENDS, lent_pixels
from arlow.media import load_picture
from arlow.patches import resize_pixels
from arlow.pillow_settings import has_one_block, set_one_block


needs_loan = pytest.mark.skipif(not LENDS, reason="this Pillow lends no memory (before 13)")


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@needs_loan
@given(width=st.integers(1, 70), height=st.integers(1, 70), form=st.sampled_from(["JPEG", "PNG", "BMP"]))
@settings(max_examples=40)
def test_the_samples_of_the_image(width: int, height: int, form: str) -> None:
    """Every sample, read-only, in the memory of the image: a second look is at the same memory."""
    image = Image.open(io.BytesIO(encoded(noise(width, height), form)))
    image.load()
    lent = lent_pixels(image)
    assert lent.shape == (height, width, 4) and lent.dtype == np.uint8 and lent.flags.c_contiguous
    np.testing.assert_array_equal(lent[..., :3], np.asarray(image))
    assert not lent.flags.writeable and np.shares_memory(lent, lent_pixels(image))
    image.putpixel((0, 0), (1, 2, 3))
    assert lent[0, 0, :3].tolist() == [1, 2, 3]


@needs_loan
def test_the_memory_outlives_the_image() -> None:
    """Arrays hold it; it goes with the last of them."""
    pixels = noise(50, 40)
    kept = [lent_pixels(Image.fromarray(pixels)) for _ in range(20)]
    gc.collect()
    other = [Image.fromarray(noise(50, 40, seed)) for seed in range(20)]  # would take memory that was freed
    assert all(np.array_equal(each[..., :3], pixels) for each in kept) and len(other) == 20


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "F", "1"])
def test_only_rgb_is_lent(mode: str) -> None:
    assert lent_pixels(Image.new(mode, (3, 2))) is None


def test_what_cannot_be_lent_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty image, one in several blocks, a Pillow that lends none."""
    assert lent_pixels(Image.new("RGB", (0, 2))) is None
    assert not has_one_block()
    scattered = Image.new("RGB", (2100, 2000), (9, 8, 7))
    assert lent_pixels(scattered) is None
    picture = load_picture(scattered)
    assert picture.samples is picture.pixels and picture.pixels[-1, -1].tolist() == [9, 8, 7]
    monkeypatch.setattr(lending, "LENDS", False)
    picture = load_picture(encoded(noise(20, 10)))
    assert picture.samples is picture.pixels and picture.pixels.shape == (10, 20, 3)


@needs_loan
def test_a_large_file_is_lent(tmp_path: Path) -> None:
    """More than 16 MB, which Pillow would spread over blocks; its setting is as before, also after a failure."""
    path = tmp_path / "large.jpg"
    Image.new("RGB", (2500, 2000), (200, 100, 50)).save(path)
    for before in (False, True):
        set_one_block(before)
        try:
            picture = load_picture(path)
            assert picture.samples.shape == (2000, 2500, 4)
            np.testing.assert_array_equal(picture.samples[..., :3], np.asarray(Image.open(path)))
            with pytest.raises(OSError, match="truncated"):
                load_picture(path.read_bytes()[:2000])
            assert has_one_block() == before
        finally:
            set_one_block(False)


@needs_loan
def test_threads_decode_at_once() -> None:
    data = [encoded(noise(300, 200, seed), "PNG") for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        for seed, picture in enumerate(pool.map(load_picture, data)):
            np.testing.assert_array_equal(picture.samples[..., :3], noise(300, 200, seed))
    assert not has_one_block()


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    mode=st.sampled_from(["bilinear", "bicubic"]),
)
@settings(max_examples=60, deadline=None)
def test_a_fourth_sample_changes_nothing(width: int, height: int, target: tuple[int, int], mode: str) -> None:
    """Resized with any fourth sample, the other three are what they are without."""
    pixels = noise(width, height)
    padded = np.concatenate([pixels, noise(width, height, 1)[..., :1]], axis=-1)
    found, expected = (np.asarray(resize_pixels(each, *target, mode=mode)) for each in (padded, pixels))
    assert found.shape == (*target, 3)
    np.testing.assert_array_equal(found, expected)


def test_processed_pictures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file to rows of pixels, with and without a copy; resized, and at the size it has."""
    for process in (ArlowImageProcessor(), ArlowImageProcessor(do_resize=False)):
        data = encoded(noise(336, 224))
        lent = process(images=[data], return_tensors="pt")["pixel_values"]
        with monkeypatch.context() as patch:
            patch.setattr("arlow.media.lent_pixels", lambda image: None)
            copied = process(images=[data], return_tensors="pt")["pixel_values"]
        assert torch.equal(lent, copied)


@needs_loan
def test_others_may_declare_what_ctypes_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of `ctypes.pythonapi` belong to the process: what others make of them changes nothing."""
    shared = ctypes.pythonapi.PyCapsule_GetPointer
    monkeypatch.setattr(shared, "restype", ctypes.POINTER(ctypes.c_byte * 10))
    assert lent_pixels(Image.new("RGB", (3, 2), (1, 2, 3)))[0, 0, :3].tolist() == [1, 2, 3]


FORK = """
import os, signal, sys
import numpy as np, torch
from arlow import ArlowImageProcessor
torch.set_num_threads(2)
process, picture = ArlowImageProcessor(), np.zeros((480, 640, 3), np.uint8)
before = process(images=[picture], return_tensors="np")["pixel_values"]
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(0 if np.array_equal(process(images=[picture], return_tensors="np")["pixel_values"], before) else 1)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_goes_on() -> None:
    """Threads of torch do not outlive a fork: a child that waited for them would wait for ever."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=120)
