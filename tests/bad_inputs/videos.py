"""Bad videos, and bad questions about good ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from video_samples import damage, gif, moving_frames, numbered_frames, truncate, write_sound, write_video

from arlow.media_fetch import MediaPolicy
from arlow.video_processing_arlow import ArlowVideoProcessor
from bad_inputs import BadInput


ROOM = "videos"
CLIP = moving_frames(6)
GIF = gif(CLIP)
GIF_IMAGE = Image.open(io.BytesIO(GIF))
NOISE = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), dtype=np.uint8)


def load(folder: Path, **options: Any) -> object:
    """A processor saved and loaded again."""
    ArlowVideoProcessor().save_pretrained(folder)
    return ArlowVideoProcessor.from_pretrained(folder, **options)


def process(videos: Any, *, policy: MediaPolicy | None = None, **options: Any) -> object:
    """The processor's answer, under a policy."""
    processor = ArlowVideoProcessor()
    processor.policy = policy or processor.policy
    return processor(videos, **options)


def file(path: Path, data: bytes) -> Path:
    """A file that holds `data`."""
    path.write_bytes(data)
    return path


def case(name: str, attempt: Callable[[Path], object], error: type[Exception], names: str) -> BadInput:
    """A case of this room."""
    return BadInput(name, ROOM, attempt, error, names)


FILES = [
    case("zero frames", lambda d: process(write_video(d / "a.mp4", numbered_frames(0))), ValueError, "a.mp4"),
    case("audio only", lambda d: process(write_sound(d / "a.mp4")), ValueError, "no video stream"),
    case("empty file", lambda d: process(file(d / "a.mp4", b"")), ValueError, "a.mp4"),
    case("text called .mp4", lambda d: process(file(d / "a.mp4", b"some text " * 50)), OSError, "a.mp4"),
    case("missing file", lambda d: process(d / "a.mp4"), OSError, "a.mp4"),
    case("directory", lambda d: process(d), OSError, "videos[0]"),
    case("truncated mp4", lambda d: process(truncate(write_video(d / "a.mp4", NOISE), keep=0.7)), OSError, "a.mp4"),
    case("truncated mkv", lambda d: process(truncate(write_video(d / "a.mkv", NOISE), keep=0.7)), OSError, "a.mkv"),
    case("truncated gif", lambda d: process(file(d / "a.gif", GIF[: len(GIF) // 10])), OSError, "a.gif"),
    case("gif without its last byte", lambda d: process(GIF[:-1]), OSError, "last block of the GIF"),
    case("truncated transport stream", lambda d: process(truncate(write_video(
        d / "a.ts", NOISE, format="mpegts"), keep=0.7)), OSError, "a.ts"),
    case("truncated flv", lambda d: process(truncate(write_video(d / "a.flv", NOISE), keep=0.7)), OSError, "a.flv"),
    case("truncated gif opened by the user", lambda _: process(
        Image.open(io.BytesIO(GIF[: len(GIF) * 7 // 10]))), OSError, "videos[0]"),
    case(
        "corrupt in the middle",
        lambda d: process(damage(write_video(d / "a.mp4", NOISE), length=400), do_sample_frames=False),
        OSError,
        "a.mp4",
    ),
    case(
        "playlist that names a file",
        lambda d: process(b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n"),
        OSError,
        "videos[0]",
    ),
    case(
        "concat script that names a file",
        lambda d: process(b"ffconcat version 1.0\nfile '/etc/passwd'\n"),
        OSError,
        "videos[0]",
    ),
    case("format not allowed", lambda d: process(
        write_video(d / "a.mp4", CLIP), policy=MediaPolicy(video_formats=("avi",))), OSError, "a.mp4"),
    case("aspect ratio over 200", lambda d: process(
        write_video(d / "a.mp4", np.zeros((2, 16, 3600, 3), np.uint8))), ValueError, "16x3600"),
]  # fmt: skip

ARRAYS = [
    case("no frames", lambda _: process(CLIP[:0]), ValueError, "videos[0]"),
    case("no videos", lambda _: process([]), ValueError, "videos"),
    case("empty frames", lambda _: process(np.zeros((2, 0, 9, 3), np.uint8)), ValueError, "empty"),
    case("NaN", lambda _: process(np.full((2, 28, 28, 3), np.nan)), ValueError, "videos[0][0]"),
    case("floats in 0..1", lambda _: process(CLIP / 255), ValueError, "value_range"),
    case("floats that overshoot 0..1", lambda _: process(CLIP / 255 * 1.005), ValueError, "value_range"),
    case("grey frames or one picture", lambda _: process(CLIP[:4, ..., 0]), ValueError, "(T, H, W, C)"),
    case("animation among frames", lambda _: process([GIF_IMAGE, Image.new("RGB", (64, 48))]), ValueError, "videos"),
    case("floats in 0..1 that shall not be rescaled", lambda _: process(
        CLIP / 255, value_range="0..1", do_rescale=False), ValueError, "do_rescale=False"),
    case("integers out of range", lambda _: process(CLIP.astype(np.int32) * 9), ValueError, "videos[0]"),
    case("which axis is the channel", lambda _: process(np.zeros((2, 3, 28, 3), np.uint8)), ValueError,
         "input_data_format"),
    case("no axis is the channel", lambda _: process(np.zeros((2, 28, 28, 28), np.uint8)), ValueError,
         "input_data_format"),
    case("mixed frame sizes", lambda _: process([Image.new("RGB", (56, 56)), Image.new("RGB", (56, 70))]), ValueError,
         "different sizes"),
    case("frames beside videos", lambda d: process([Image.new("RGB", (56, 56)), "a.mp4"]), ValueError, "videos"),
    case("not a video", lambda _: process([CLIP, 7]), TypeError, "videos[1]"),
    case("aspect ratio over 200 in an array", lambda _: process(np.zeros((2, 2000, 8, 3), np.uint8)), ValueError,
         "2000x8"),
]  # fmt: skip

LIMITS = [
    case("too many frames in a list", lambda _: process(["a.jpg"] * 9, policy=MediaPolicy(max_frames=8)), ValueError,
         "max_frames=8"),
    case("too many frames in a video/jpeg list", lambda _: process(
        "data:video/jpeg;base64," + ",".join(["/9j/"] * 9), policy=MediaPolicy(max_frames=8)), ValueError,
         "max_frames=8"),
    case("broken base64 in a video/jpeg list", lambda _: process("data:video/jpeg;base64,!!,!!"), ValueError,
         "videos[0][0]"),
    case("no JPEG in a video/jpeg list", lambda _: process(
        "data:video/jpeg;base64," + base64.b64encode(b"no picture").decode()), OSError, "videos[0][0]"),
    case("too many frames asked for", lambda d: process(
        write_video(d / "a.mp4", CLIP), policy=MediaPolicy(max_frames=5), do_sample_frames=False), ValueError,
        "max_frames=5"),
    case("too long", lambda d: process(write_video(d / "a.mp4", CLIP, rate=1), policy=MediaPolicy(max_seconds=5)),
         ValueError, "max_seconds=5"),
    case("too many pixels", lambda d: process(write_video(d / "a.mp4", CLIP), policy=MediaPolicy(max_pixels=999)),
         ValueError, "max_pixels=999"),
    case("too many bytes", lambda d: process(
        write_video(d / "a.mp4", CLIP).read_bytes(), policy=MediaPolicy(max_bytes=99)), ValueError, "max_bytes=99"),
    case("outside the allowed directories", lambda d: process(
        write_video(d / "a.mp4", CLIP), policy=MediaPolicy(local_roots=(d / "media",))), ValueError, "local_roots"),
    case("loopback address", lambda _: process("http://127.0.0.1:9/a.mp4"), ValueError, "videos[0]"),
]  # fmt: skip

QUESTIONS = [
    case("fps and num_frames", lambda _: process(CLIP, fps=1, num_frames=2), ValueError, "num_frames=2"),
    case("fps without a frame rate", lambda _: process(CLIP, fps=1), ValueError, "video_metadata"),
    case("fps_based without a frame rate", lambda _: process(CLIP, num_frames=2, sample_strategy="fps_based"),
         ValueError, "video_metadata"),
    case("negative fps", lambda _: process(CLIP, fps=-1), ValueError, "fps=-1"),
    case("no frames asked for", lambda _: process(CLIP, num_frames=0), ValueError, "num_frames=0"),
    case("unknown strategy", lambda _: process(CLIP, sample_strategy="best"), ValueError, "sample_strategy='best'"),
    case("misspelt option at load", lambda d: load(d, fsp=1), TypeError, "fsp"),
    case("rate and number at load", lambda d: load(d, fps=1, num_frames=3), ValueError, "num_frames=3"),
    case("misspelt option", lambda _: process(CLIP, num_frame=2), TypeError, "num_frame"),
    case("impossible size", lambda _: process(CLIP, size={"height": 224, "width": 224}), ValueError, "size="),
    case("least frames over most", lambda _: process(CLIP, min_frames=9, max_frames=8), ValueError, "min_frames=9"),
    case("metadata of another clip", lambda _: process(CLIP, video_metadata={"fps": 2, "total_num_frames": 99}),
         ValueError, "frames_indices"),
    case("metadata for too many videos", lambda _: process(CLIP, video_metadata=[{"fps": 2}] * 2), ValueError,
         "video_metadata"),
    case("impossible frame rate in metadata", lambda _: process(CLIP, video_metadata={"fps": 0}), ValueError, "fps=0"),
    case("frames that are no whole patches", lambda _: process(CLIP, do_resize=False), ValueError, "do_resize=False"),
]  # fmt: skip

CASES = [*FILES, *ARRAYS, *LIMITS, *QUESTIONS]
