"""Real video files for the tests, made with PyAV: constant and variable rate, rotated, silent, cut off, empty.

A plain clip is a bright block that walks over a gradient; `numbered_frames` gives each frame one grey level of its
own, so that a decoded frame tells its index through any lossy codec.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


H264 = {"bf": "2", "b-adapt": "0", "g": "12", "preset": "ultrafast", "x264-params": "bframes=2:b-adapt=0:scenecut=0"}
MPEG4 = {"bf": "2", "qmin": "1", "qmax": "2"}
GREY_STEP = 6  # between the levels of two numbered frames; a codec moves a flat frame by less than half of it


def moving_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(count, height, width, 3) uint8: a white block that walks to the right over a colour gradient."""
    rows, columns = np.mgrid[0:height, 0:width]
    ground = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
    clip = np.repeat(ground[None].astype(np.uint8), count, axis=0)
    for index in range(count):
        left = index * 2 % (width - 8)
        clip[index, height // 4 : height // 2, left : left + 8] = 255
    return clip


def numbered_frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """(count, height, width, 3) uint8 with frame k all grey at level 16 + k * GREY_STEP (at most 38 frames)."""
    levels = (16 + GREY_STEP * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def number_of(frame: np.ndarray) -> int:
    """The index that `numbered_frames` wrote into a frame."""
    return round((float(frame.mean()) - 16) / GREY_STEP)


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    rate: int | Fraction = 10,
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    rotation: float | None = None,
    flip: bool = False,
    container_options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Encode `frames` (T, H, W, 3) uint8 to `path`. `times` (seconds, rising) makes the frame rate variable;
    `rotation` (degrees, counter-clockwise) and `flip` go into the display matrix. Two B-frames between references."""
    defaults = {"libx264": H264, "mpeg4": MPEG4}.get(codec, {})
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options={**defaults, **(codec_options or {})})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None or flip:
            stream.set_display_rotation(rotation or 0, hflip=flip)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        if len(frames) == 0:
            stream.height, stream.width = 32, 32
            container.start_encoding()
        else:
            container.mux(stream.encode(None))
    return path


def gif(frames: np.ndarray, **options: object) -> bytes:
    """An animated GIF of `frames` (T, H, W, 3) uint8, ten a second unless `options` of Pillow say otherwise."""
    first, *rest = map(Image.fromarray, frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, **{"duration": 100, **options})
    return buffer.getvalue()


def write_sound(path: Path, *, seconds: float = 1.0) -> Path:
    """An MP4 that holds one silent AAC track and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(round(seconds * 16000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, index * 1024, Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def truncate(path: Path, *, keep: float) -> Path:
    """Cut a file off after the share `keep` of its bytes, as a broken download leaves it."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def damage(path: Path, *, at: float = 0.5, length: int = 48, seed: int = 0) -> Path:
    """Overwrite `length` bytes in the middle of a file with noise."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * at)
    data[start : start + length] = np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(data))
    return path
