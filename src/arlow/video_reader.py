"""The border for videos: whatever a user holds becomes one `VideoSource`: facts first, then only the frames asked for.

Files are read by `video_container`; arrays and lists of stills here, frame by frame.

Legend: N frames in the clip, H x W pixels of an upright frame.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import is_number, message
from .frame_sampling import VideoFacts
from .media import (
    CHANNELS,
    DIM,
    InputFormat,
    ValueRange,
    fill_rows,
    is_animation,
    is_array,
    load_picture,
    open_animation,
)
from .media_fetch import (
    DEFAULT_POLICY,
    MediaPolicy,
    decode_base64,
    fetch_bytes,
    is_url,
    resolve_local,
    short_source,
    split_data_uri,
    url_scheme,
)
from .video_container import ContainerSource
from .video_source import VideoSource, check_frame_count


STILL_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif", ".ico")
STILL_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*")


class Frames(tuple):
    """The frames of one video: how `flatten_videos` marks what it recognised as a frame list."""


def one_video(source: Any) -> Any:
    """A source of a conversation, which is one video also when it is a list of frames."""
    return Frames(source) if isinstance(source, (list, tuple)) else source


def open_video(
    source: Any,
    *,
    policy: MediaPolicy = DEFAULT_POLICY,
    fps: float | None = None,
    metadata: Mapping | None = None,
    input_data_format: InputFormat | None = None,
    value_range: ValueRange | None = None,
    convert_rgb: bool = True,
    name: str = "video",
) -> VideoSource:
    """`source` as a `VideoSource`; a container is scanned, a frame list only counted.

    Args:
        source: path, `file://` or http(s) URL, data URI, bytes of a container; NumPy array or torch tensor
            (N, H, W, C) or (N, C, H, W); animated Pillow image; list of stills (Pillow images, arrays, paths, URLs,
            bytes); the JPEGs of `data:video/jpeg;base64,<first>,<second>,...`.
        policy: the limits on bytes, pixels, frames, seconds and container formats.
        fps: frames per second of a source without a rate of its own (arrays, lists). The times of a container or of
            an animation win.
        metadata: dict or Transformers' `VideoMetadata` of such a source; `fps` and, for a clip already sampled,
            `frames_indices` are read.
        input_data_format: which axis of an array is the channel, where its shape leaves that open.
        value_range: what the samples of an array span; see `load_picture`.
        convert_rgb: `False` refuses stills that are not RGB already.
        name: how the video is called in messages, such as `videos[1]`.

    Raises:
        TypeError: `source` is none of these.
        ValueError: the policy refuses it, it holds no video or no frames, or its shape or values are ambiguous.
        OSError: it cannot be read, or is truncated or corrupt.
    """
    if isinstance(source, VideoSource):
        return source
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        if not _is_jpeg_list(source):
            return ContainerSource(_container_bytes(source, policy=policy, name=name), policy=policy, name=name)
        source = _jpeg_list(str(source), policy=policy, name=name)
    if isinstance(source, (list, tuple)) and len(source) == 1:
        source = source[0] if is_animation(source[0]) or _axes(source[0]) == 3 else source
    seconds: list[float] = []
    if is_animation(source):
        source, seconds = open_animation(source, policy=policy, name=name)
    elif isinstance(source, Image.Image):
        source = Frames((source,))
    elif is_array(source):
        source, input_data_format = _array_frames(source, data_format=input_data_format, name=name)
    elif not isinstance(source, (list, tuple)):
        raise TypeError(message(name, source, "not a video", "pass a path, URL, bytes, array or a list of frames"))
    return _FrameSource(
        source,
        policy=policy,
        fps=fps,
        metadata=metadata,
        seconds=seconds,
        reading={"input_data_format": input_data_format, "value_range": value_range, "convert_rgb": convert_rgb},
        name=name,
    )


def flatten_videos(videos: Any) -> list:
    """One video, a batch or a nested batch (as chat templates make it) as a flat list of sources for `open_video`.

    A list of Pillow images or of arrays of up to three axes is one video; so is a list of paths, URLs or bytes that
    are all named or marked as still pictures, or any list of those three levels deep. An animated Pillow image is a
    video, an array of five axes a batch. Beside lists, `None` is a row without a video.
    """
    return _flatten(fill_rows(videos), depth=0, name="videos")


def _container_bytes(source: Any, *, policy: MediaPolicy, name: str) -> Path | bytes:
    """A local file stays where it is; anything else is fetched."""
    if isinstance(source, (str, os.PathLike)) and not is_url(source):
        path = resolve_local(source, policy=policy, name=name)
        if path.stat().st_size == 0:
            raise ValueError(f"{name}={short_source(source)}: holds no data")
        return path
    return fetch_bytes(source, policy=policy, name=name)


# Frames in memory, or one by one


class _FrameSource(VideoSource):
    """An array or a list of stills, with the rate its owner knows."""

    def __init__(
        self,
        items: Sequence | np.ndarray,
        *,
        policy: MediaPolicy,
        fps: float | None,
        metadata: Mapping | None,
        seconds: Sequence[float],
        reading: dict,
        name: str,
    ) -> None:
        check_frame_count(len(items), policy=policy, name=name)
        times, rate, duration = _known_times(len(items), fps=fps, metadata=metadata, seconds=seconds, name=name)
        self._items, self._reading = items, reading
        self._bright = reading["value_range"] is None and _is_bright(items, name=name)
        self._policy, self.name = policy, name
        self._check_same_size()
        first = self._load(0)
        facts = VideoFacts(len(items), first.shape[0], first.shape[1], fps=rate, duration=duration, timestamps=times)
        super().__init__(facts, policy=policy, name=name)

    def _load(self, index: int) -> np.ndarray:
        item, reading = self._items[index], self._reading
        if self._bright and _is_float(item) and item.max() < DIM:
            reading = {**reading, "value_range": "0..255"}  # as the clip's other frames
        return load_picture(item, policy=self._policy, name=f"{self.name}[{index}]", **reading).pixels

    def _check_same_size(self) -> None:
        """Stills whose size is known without reading them are compared before any is read."""
        first: dict[bool, tuple[int, list[int]]] = {}
        for index, item in enumerate(self._items):
            is_image = isinstance(item, Image.Image)
            if not is_image and not is_array(item):
                continue
            if is_animation(item):
                problem = "an animation among the frames of a video; pass each animation as a video of its own"
                raise ValueError(f"{self.name}[{index}]: {problem}")
            size = sorted(item.size if is_image else item.shape)[-2:]  # sorted: EXIF may turn an image
            at, expected = first.setdefault(is_image, (index, size))
            if size != expected:
                raise ValueError(f"{self.name}: frames of different sizes, {expected} at {at} and {size} at {index}")

    def _decode(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        for index in wanted:
            yield self._load(int(index))


def _known_times(
    count: int, *, fps: float | None, metadata: Mapping | None, seconds: Sequence[float], name: str
) -> tuple[np.ndarray | None, float | None, float | None]:
    """(times of the frames, mean rate, duration), all `None` when nobody knows the rate. `seconds`: how long each
    frame is shown, if the source says so."""
    metadata = metadata or {}
    if seconds and min(seconds) > 0:
        ends = np.cumsum(seconds)
        return ends - seconds, count / float(ends[-1]), float(ends[-1])
    source_rate = fps if fps is not None else metadata.get("fps")
    if source_rate is None:
        return None, None, None
    if not is_number(source_rate, above=0):
        raise ValueError(message("fps", source_rate, f"the frame rate of {name} must be a positive number"))
    source_rate = float(source_rate)  # NumPy's, or a fraction
    indices, total = metadata.get("frames_indices"), metadata.get("total_num_frames")
    if indices is None:
        if total not in (None, count):
            told = f"{name} has {count} frames, its metadata say {total}"
            raise ValueError(f"{told}; pass frames_indices too when the clip is already sampled")
        return np.arange(count) / source_rate, source_rate, count / source_rate
    indices = np.asarray(indices)
    if indices.shape != (count,) or (np.diff(indices) < 0).any():
        raise ValueError(
            message("frames_indices", indices, f"needs one rising index for each of {count} frames of {name}")
        )
    times = (indices - indices[0]) / source_rate
    step = times[-1] / (count - 1) if count > 1 and times[-1] > 0 else 1 / source_rate
    return indices / source_rate, float(1 / step), float(times[-1] + step)


def _array_frames(array: Any, *, data_format: InputFormat | None, name: str) -> tuple[Any, InputFormat | None]:
    """(frames along the first axis, which axis of a frame is the channel)."""
    if array.ndim == 3:
        if data_format is None and (array.shape[0] in CHANNELS or array.shape[2] not in CHANNELS):
            problem = "one picture with channels first, or grey frames?"
            remedy = 'pass (T, H, W, C), such as array[..., None], or input_data_format="channels_first"'
            raise ValueError(message(name, array, problem, remedy))
        return array[None], data_format  # one picture
    if array.ndim != 4:
        raise ValueError(message(name, array, "a video has 4 axes, (T, H, W, C) or (T, C, H, W)"))
    if 0 in array.shape[1:]:
        raise ValueError(message(name, array, "an empty array"))
    last, first = array.shape[3] in CHANNELS, array.shape[1] in CHANNELS
    if data_format is None and last == first:
        problem = "either axis may be the channel" if last else "no axis is the channel (1 to 4)"
        remedy = 'pass input_data_format="channels_first" or "channels_last"'
        raise ValueError(message(name, array, problem, remedy))
    return array, data_format or ("channels_last" if last else "channels_first")


def _is_bright(items: Sequence | np.ndarray, *, name: str) -> bool:
    """Whether a float array of the clip is in 0..255 beyond doubt. A dark one alone could be in 0..1."""
    bright = False
    for index, item in enumerate(items):
        if not _is_float(item):
            continue
        peak = float(item.max())
        if not math.isfinite(peak):
            raise ValueError(message(f"{name}[{index}]", item, "holds NaN or infinite samples"))
        bright = bright or peak >= DIM
    return bright


def _is_float(item: Any) -> bool:
    return _axes(item) is not None and "float" in str(item.dtype) and 0 not in item.shape


def _is_jpeg_list(source: object) -> bool:
    return isinstance(source, str) and source[:64].lower().replace(" ", "").startswith("data:video/jpeg")


def _jpeg_list(uri: str, *, policy: MediaPolicy, name: str) -> Frames:
    """The JPEGs of `data:video/jpeg;base64,<first>,<second>,...`, counted before any is decoded."""
    _, is_base64, payload = split_data_uri(uri, name=name)
    check_frame_count(payload.count(",") + 1 if payload else 0, policy=policy, name=name)
    if not is_base64:
        raise ValueError(f"{name}: a video/jpeg data URI must be base64")
    if len(payload) * 3 // 4 > policy.max_bytes:
        raise ValueError(
            f"{name}: {len(payload) * 3 // 4} bytes are more than the policy's max_bytes={policy.max_bytes}"
        )
    parts = payload.split(",")
    return Frames(decode_base64(part, policy=policy, name=f"{name}[{index}]") for index, part in enumerate(parts))


# What is one video, and what is a batch?


def _flatten(videos: Any, *, depth: int, name: str) -> list:
    if isinstance(videos, (str, os.PathLike, bytes, bytearray, memoryview, VideoSource, Frames)):
        return [videos]
    if _axes(videos) == 4 or is_animation(videos):
        return [videos]
    if isinstance(videos, Image.Image) or _axes(videos) in (2, 3):
        return [Frames((videos,))]
    if _axes(videos) == 5:
        return list(videos)
    if not isinstance(videos, (list, tuple)):
        raise TypeError(message(name, videos, "not a video", "pass a path, URL, bytes, array or a list of frames"))
    kinds = {_kind(item) for item in videos}
    if kinds and (kinds <= {"picture", "still"} or (kinds <= {"still", "file"} and depth >= 2)):
        return [Frames(videos)]
    if "picture" in kinds and len(kinds) > 1:
        raise ValueError(
            f"{name}: holds single frames beside videos; put the frames of each video into a list of its own"
        )
    return [each for i, item in enumerate(videos) for each in _flatten(item, depth=depth + 1, name=f"{name}[{i}]")]


def _axes(value: Any) -> int | None:
    return value.ndim if is_array(value) else None


def _kind(item: Any) -> str:
    """`picture` (a frame in memory), `still` (a file that is a still picture), `file` (any other), or `video`."""
    if (isinstance(item, Image.Image) and not is_animation(item)) or _axes(item) in (2, 3):
        return "picture"
    if isinstance(item, (bytes, bytearray, memoryview)):
        head = bytes(item[:12])
        is_still = head.startswith(STILL_MAGIC) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")
        return "still" if is_still else "file"
    if isinstance(item, (str, os.PathLike)):
        text = os.fspath(item)
        if isinstance(text, str) and url_scheme(text) == "data":
            is_still = text[5:11].lower() == "image/" and text[11:14].lower() != "gif"
        else:
            is_still = Path(str(text).partition("?")[0]).suffix.lower() in STILL_SUFFIXES
        return "still" if is_still else "file"
    return "video"
