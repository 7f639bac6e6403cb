"""The border for videos: whatever a user holds becomes one `VideoSource`: facts first, then only the frames asked for.

A file is read in two passes with PyAV. The first reads packets without decoding and gives every frame's true time;
nothing is guessed from an average rate. The second decodes forward and stops after the last frame asked for; no other
frame becomes RGB pixels. FFmpeg reads from a Python file object, may open nothing else, and knows only the container
formats of the policy.

Legend: N frames in the clip, H x W pixels of an upright frame.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from PIL import Image

from ._compat import one_thread
from .container_ends import what_is_missing
from .errors import cut, is_number, message, shorten
from .frame_sampling import VideoFacts, frame_change
from .media import (
    CHANNELS,
    DIM,
    InputFormat,
    ValueRange,
    check_size,
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


MOTION_SIDE = 32  # pixels: motion is measured on grey frames of this height and width
FAR = 32  # frames left out that make a jump worth it: decoders read a few ahead
IO_BUFFER = 2**20  # bytes per read of FFmpeg: few calls back into Python
STILL_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif", ".ico")
STILL_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\0", b"MM\0*")


class Frames(tuple):
    """The frames of one video: how `flatten_videos` marks what it recognised as a frame list."""


class VideoSource:
    """One video: its `facts`, and its frames on demand. Nothing is kept open, so threads may share a source."""

    def __init__(self, facts: VideoFacts, *, policy: MediaPolicy, name: str) -> None:
        self.facts = facts
        self._policy = policy
        self.name = name

    def frames(self, indices: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
        """The frames at `indices` (not falling, duplicates allowed), each (H, W, 3) uint8 RGB, upright, one at a time.

        Raises `ValueError` for indices that are out of range, fall or are more than the policy's `max_frames`, and
        `OSError` when the data that these frames are decoded from are corrupt.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        total = self.facts.total_frames
        if (
            wanted.ndim != 1
            or wanted.size == 0
            or wanted.min() < 0
            or wanted.max() >= total
            or (np.diff(wanted) < 0).any()
        ):
            raise ValueError(message("indices", wanted.tolist(), f"must rise within 0..{total - 1}"))
        check_frame_count(len(wanted), policy=self._policy, name=self.name)
        return self._checked(wanted)

    def _checked(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        distinct, repeats = np.unique(wanted, return_counts=True)
        size = self.facts.height, self.facts.width
        for index, repeat, frame in zip(distinct, repeats, self._decode(distinct), strict=True):
            if frame.shape[:2] != size:
                found, first = "x".join(map(str, frame.shape[:2])), "x".join(map(str, size))
                raise ValueError(
                    f"{self.name}[{index}]: a frame of {found} pixels in a video of {first} (height x width)"
                )
            for _ in range(repeat):
                yield frame

    def motion(self) -> np.ndarray:
        """(N,) float64: how much each frame differs from the one before it, as the mean absolute difference of grey
        frames of 32 x 32 pixels in levels 0..255; the first is 0. One pass that keeps two small frames."""
        change = np.zeros(self.facts.total_frames)
        before: np.ndarray | None = None
        for index, grey in enumerate(self._small_grey()):
            if before is not None:
                change[index] = frame_change(grey, before)
            before = grey
        return change

    def _small_grey(self) -> Iterator[np.ndarray]:
        """Every frame, averaged to (32, 32) uint8; whether it is upright makes no difference to what changes."""
        for frame in self._decode(np.arange(self.facts.total_frames)):
            grey = Image.fromarray(frame).convert("L")
            yield np.asarray(grey.resize((MOTION_SIDE, MOTION_SIDE), Image.Resampling.BOX))

    def _decode(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """The frames at `wanted` (distinct, rising), each (H, W, 3) uint8."""
        raise NotImplementedError


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
            return _ContainerSource(_container_bytes(source, policy=policy, name=name), policy=policy, name=name)
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


def check_frame_count(count: int, *, policy: MediaPolicy, name: str) -> None:
    """Raise `ValueError` when `count` frames are none, or more than the policy's `max_frames`."""
    if count == 0:
        raise ValueError(f"{name}: a video without frames")
    if count > policy.max_frames:
        raise ValueError(f"{name}: {count} frames are more than the policy's max_frames={policy.max_frames}")


# Containers


class _ContainerSource(VideoSource):
    """A video file, on disk or in memory."""

    def __init__(self, data: Path | bytes, *, policy: MediaPolicy, name: str) -> None:
        self._data = data
        shown = data.name if isinstance(data, Path) else shorten(data)
        self._policy, self.name = policy, f"{name} ({shown})"
        with self._file() as file:
            if missing := what_is_missing(file, self._size()):
                raise OSError(f"{self.name}: {missing}")
        with _as_os_error(self.name), self._open() as (container, stream):
            self._check_header(container, stream)
            self._by_order = (
                container.format.name == "avi"
            )  # its index holds no presentation times, decoders make them up
            times, self._entries, last_duration = self._scan(stream)
            time_base = stream.time_base
        self._keys = np.arange(len(times)) if self._by_order else times  # (N,) what a decoded frame is known by
        seconds = (times - times[0]) * time_base.numerator / time_base.denominator
        duration = float(seconds[-1] + last_duration * time_base)
        self._check_seconds(duration)
        height, width = next(self._decode(np.zeros(1, np.int64))).shape[:2]  # upright: only a frame tells its rotation
        facts = VideoFacts(
            total_frames=len(times),
            height=height,
            width=width,
            fps=len(times) / duration if duration > 0 else None,
            duration=duration if duration > 0 else None,
            timestamps=seconds,
        )
        super().__init__(facts, policy=policy, name=self.name)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(self._file())
            options = {
                "format_whitelist": ",".join(self._policy.video_formats),
                "protocol_whitelist": "none",
                "max_pixels": str(self._policy.max_pixels),
            }
            container = stack.enter_context(
                av.open(file, options=options, io_open=_refuse, buffer_size=IO_BUFFER, metadata_errors="ignore")
            )
            cover = av.stream.Disposition.attached_pic  # the cover picture of a song is no video
            stream = next((each for each in container.streams.video if not each.disposition & cover), None)
            if stream is None:
                raise ValueError(f"{self.name}: holds no video stream")
            if stream.codec_context is None:
                raise OSError(f"{self.name}: its codec is unknown, or its header is corrupt")
            stream.codec_context.options = {
                "err_detect": "crccheck+explode",
                "max_pixels": str(self._policy.max_pixels),
            }
            stream.thread_type = "AUTO"
            yield container, stream

    def _check_header(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        if stream.codec_context.width and stream.codec_context.height:  # 0: known only once decoded, and bounded there
            check_size(stream.codec_context.height, stream.codec_context.width, policy=self._policy, name=self.name)
        if container.duration is not None:
            self._check_seconds(container.duration / av.time_base)

    def _check_seconds(self, seconds: float) -> None:
        if seconds > self._policy.max_seconds:
            limit = f"the policy's max_seconds={self._policy.max_seconds}"
            raise ValueError(f"{self.name}: a video of {seconds:.0f} seconds is longer than {limit}")

    def _scan(self, stream: av.VideoStream) -> tuple[np.ndarray, np.ndarray, int]:
        """((N,) times of the frames, (K,) of the key frames, the last one's duration), in the stream's time base; no
        decoding."""
        times, entries, durations, read, start = [], [], [], 0, None
        for packet in _packets(stream, name=self.name):
            read += 1
            shown_at = packet.pts if packet.pts is not None else packet.dts
            if shown_at is None:
                raise OSError(f"{self.name}: packet {read - 1} carries no time; store the video as MP4 or MKV")
            start = shown_at if start is None else start
            if shown_at >= start and not packet.is_discard and _is_shown(packet, stream):
                times.append(shown_at)  # pictures before the first key frame cannot be decoded
                durations.append(packet.duration or 0)
                if packet.is_keyframe and packet.pts is not None:
                    entries.append(shown_at)
        if read < stream.frames and _index_ends_late(stream, self._size()):
            raise OSError(f"{self.name}: truncated, {read} of {stream.frames} frames are there")
        if not times:
            raise ValueError(f"{self.name}: a video without frames")
        order, firsts = np.unique(np.array(times, np.int64), return_index=True)
        last = durations[firsts[-1]] or (int(np.median(np.diff(order))) if len(order) > 1 else 0)
        return order, np.unique(np.array(entries, np.int64)), last

    def _file(self) -> BinaryIO:
        return io.BytesIO(self._data) if isinstance(self._data, bytes) else open(self._data, "rb")

    def _size(self) -> int:
        return len(self._data) if isinstance(self._data, bytes) else self._data.stat().st_size

    def _decode(self, wanted: np.ndarray) -> Iterator[np.ndarray]:
        return (_upright_rgb(frame, policy=self._policy) for frame in self._decoded(wanted))

    def _small_grey(self) -> Iterator[np.ndarray]:
        for frame in self._decoded(np.arange(self.facts.total_frames)):
            size = {"width": MOTION_SIDE, "height": MOTION_SIDE}
            yield frame.to_ndarray(**size, format="gray", interpolation="AREA", **one_thread())

    def _decoded(self, wanted: np.ndarray) -> Iterator[av.VideoFrame]:
        """The frames at `wanted` as the decoder leaves them."""
        at = 0
        try:
            for frame in self._read(wanted, jump=True):
                yield frame
                at += 1
        except OSError:  # some streams cannot be entered where they say so: read from the start, what is corrupt shows
            yield from self._read(wanted[at:], jump=False)

    def _read(self, wanted: np.ndarray, *, jump: bool) -> Iterator[av.VideoFrame]:
        """The frames at `wanted`; which is which, its time tells. With `jump` those between them that no other refers
        to are not decoded, and what lies before the key frame that the next one needs is not read."""
        keys = self._keys[wanted].tolist()
        shown = {*keys}
        first, at, seen, newest = int(self._keys[0]), 0, 0, None
        with _as_os_error(self.name), self._open() as (container, stream):
            for packet in _packets(stream, name=self.name, flush=True):
                can_skip = jump and not self._by_order and packet.pts is not None and packet.pts not in shown
                stream.codec_context.skip_frame = "NONREF" if can_skip else "DEFAULT"
                if not self._by_order and packet.pts is not None:
                    newest = packet.pts if newest is None else max(newest, packet.pts)
                for frame in packet.decode():
                    key = seen if self._by_order else frame.pts
                    if key is None or key < first:
                        continue
                    seen += 1
                    if frame.is_corrupt or key > keys[at]:
                        raise OSError(f"{self.name}: corrupt data at frame {int(wanted[at])}")
                    if key == keys[at]:
                        yield frame
                        at += 1
                        if at == len(keys):
                            return
                start = self._entry(newest, keys[at]) if jump else None
                if start is not None:
                    container.seek(start, stream=stream)
                    first = newest = start
        raise OSError(f"{self.name}: the data end before frame {int(wanted[at])}")

    def _entry(self, newest: int | None, key: int) -> int | None:
        """The time of the key frame from which `key` can be decoded, if it lies far behind `newest`, else None."""
        if newest is None or newest >= key or not len(self._entries):
            return None
        at_or_before = int(np.searchsorted(self._entries, key, side="right"))
        start = int(self._entries[max(0, at_or_before - 1)])
        skipped = np.searchsorted(self._keys, start) - np.searchsorted(self._keys, newest)
        return start if skipped > FAR else None


def _container_bytes(source: Any, *, policy: MediaPolicy, name: str) -> Path | bytes:
    """A local file stays where it is; anything else is fetched."""
    if isinstance(source, (str, os.PathLike)) and not is_url(source):
        path = resolve_local(source, policy=policy, name=name)
        if path.stat().st_size == 0:
            raise ValueError(f"{name}={short_source(source)}: holds no data")
        return path
    return fetch_bytes(source, policy=policy, name=name)


def _packets(stream: av.VideoStream, *, name: str, flush: bool = False) -> Iterator[av.Packet]:
    """The packets of a stream from its first key frame on; with `flush` the empty one at the end too."""
    started = False
    for packet in stream.container.demux(stream):
        if packet.size == 0:
            if flush:
                yield packet
            continue
        if packet.is_corrupt:
            raise OSError(
                f"{name}: truncated or corrupt near second {float((packet.pts or 0) * packet.time_base):.2f}"
            )
        started = started or packet.is_keyframe
        if started:
            yield packet


def _is_shown(packet: av.Packet, stream: av.VideoStream) -> bool:
    """VP8 stores frames that are only ever referred to; their first header byte says so (RFC 6386, 9.1)."""
    return stream.codec_context.name != "vp8" or bool(bytes(memoryview(packet)[:1])[0] & 0x10)


def _index_ends_late(stream: av.VideoStream, size: int) -> bool:
    """Whether the file's index points past its end."""
    return any(entry.pos + entry.size > size for entry in stream.index_entries)


def _upright_rgb(frame: av.VideoFrame, *, policy: MediaPolicy) -> np.ndarray:
    """A decoded frame as (H, W, 3) uint8 RGB, alpha over white, turned as its display matrix says."""
    if any(component.is_alpha for component in frame.format.components):
        pixels = load_picture(Image.fromarray(frame.to_ndarray(format="rgba", **one_thread())), policy=policy).pixels
    else:
        pixels = frame.to_ndarray(format="rgb24", **one_thread())
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # libavutil/display.h: x' = a x + c y, y' = b x + d y for the matrix [a b u; c d v; ...] in 16.16 fixed point.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):  # a quarter turn; other angles go to the nearest
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    pixels = pixels[:, ::-1] if a < 0 else pixels
    pixels = pixels[::-1] if d < 0 else pixels
    return np.ascontiguousarray(pixels)


def _refuse(url: str, flags: int, options: dict) -> BinaryIO:
    raise PermissionError("a video file may not name other files or addresses")


@contextlib.contextmanager
def _as_os_error(name: str) -> Iterator[None]:
    """FFmpeg's errors (some of which are `ValueError`s) as `OSError` naming the video."""
    try:
        yield
    except av.error.FFmpegError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise OSError(cut(f"{name}: not a readable video of an allowed format, or corrupt ({reason})")) from error


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
