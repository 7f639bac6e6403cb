"""Video files, read in two passes with PyAV. The first reads packets without decoding and gives every frame's true
time; nothing is guessed from an average rate. The second decodes forward and stops after the last frame asked for; no
other frame becomes RGB pixels. FFmpeg reads from a Python file object, may open nothing else, and knows only the
container formats of the policy.

Legend: N frames in the clip, K of them key frames, H x W pixels of an upright frame.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from PIL import Image

from ._compat import one_thread
from .container_ends import what_is_missing
from .errors import cut, shorten
from .frame_sampling import VideoFacts
from .media import check_size, load_picture
from .media_fetch import MediaPolicy
from .video_source import MOTION_SIDE, VideoSource


FAR = 32  # frames left out that make a jump worth it: decoders read a few ahead
IO_BUFFER = 2**20  # bytes per read of FFmpeg: few calls back into Python


class ContainerSource(VideoSource):
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
