"""Media to read: JPEGs with the grain of photographs, and an H.264 clip as cameras and phones write them."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


PAN = 256  # pixels that a clip moves sideways before it begins again
GRAIN, GRAINS = 8, 4  # levels of a clip's grain, and how many patterns follow one another


def jpeg(height: int, width: int, *, seed: int = 0) -> bytes:
    """A JPEG of coarse shapes under fine noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), dtype=np.uint8))
    grain = rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + grain
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def clip(path: Path, *, height: int, width: int, seconds: int, fps: int) -> Path:
    """An MP4 that pans over a picture under changing grain: x264 as it comes (frames that nothing refers to, a key
    frame every 250), with one slice a frame."""
    rng = np.random.default_rng(0)
    wide = Image.open(io.BytesIO(jpeg(height, width + PAN)))
    grain = rng.integers(-GRAIN, GRAIN + 1, (GRAINS, height, width + PAN, 1), dtype=np.int16)
    pictures = [(np.asarray(wide) + each).clip(0, 255).astype(np.uint8) for each in grain]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "x264-params": "slices=1:sliced-threads=0"}
        for number in range(seconds * fps):
            left = 2 * number % PAN
            view = np.ascontiguousarray(pictures[number % len(pictures)][:, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode())
    return path
