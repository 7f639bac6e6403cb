"""One video behind the border: its facts first, then only the frames asked for. The base of what reads containers
(`video_container`) and of frames in memory (`video_reader`).

Legend: N frames in the clip, H x W pixels of an upright frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from .errors import message
from .frame_sampling import VideoFacts, frame_change
from .media_fetch import MediaPolicy


MOTION_SIDE = 32  # pixels: motion is measured on grey frames of this height and width


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
        raise NotImplementedError  # a file and frames in memory each have their own way


def check_frame_count(count: int, *, policy: MediaPolicy, name: str) -> None:
    """Raise `ValueError` when `count` frames are none, or more than the policy's `max_frames`."""
    if count == 0:
        raise ValueError(f"{name}: a video without frames")
    if count > policy.max_frames:
        raise ValueError(f"{name}: {count} frames are more than the policy's max_frames={policy.max_frames}")
