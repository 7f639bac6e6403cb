"""Which frames of a video are looked at, and when they happen. Pure functions: facts and numbers in, indices out.

Legend: N frames in the clip, S sampled frames, T frames per group (the temporal patch), G = ceil(S / T) groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import message


STRATEGIES = ("uniform", "fps_based", "motion_adaptive")


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a clip before its frames are looked at."""

    total_frames: int
    height: int  # pixels, upright
    width: int  # pixels, upright
    fps: float | None = None  # mean rate, frames per second; None when the source says nothing about time
    duration: float | None = None  # seconds, the last frame's own time on screen included
    timestamps: np.ndarray | None = None  # (total_frames,) float64 seconds, rising, the first one 0


def sample_indices(
    facts: VideoFacts,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int = 1,
    max_frames: int | None = None,
    strategy: str = "uniform",
    motion: np.ndarray | None = None,
    name: str = "video",
) -> np.ndarray:
    """The frames of a clip to look at, as (S,) int64 indices, strictly rising.

    Exactly one of `fps` (frames per second, S between `min_frames` and `max_frames`) and `num_frames` (S as asked for,
    at most `max_frames`) says how many; S never exceeds the frames there are. The strategies place them:

    - `uniform`: evenly in time. For `fps` the frame nearest to each time k / fps from the start, each frame once;
      where the count is given, or set by a bound, the frames nearest to times evenly spread from the first frame to
      the last. Of two as near, the earlier. A clip whose times are not known is spread evenly over its frames.
    - `fps_based`: the same, but times that are not known are an error.
    - `motion_adaptive`: frames that cut `motion` (N,), the change of each frame against the one before it, into equal
      shares; a clip whose motion is constant, or none, is spread evenly over its frames.

    Raises `ValueError` for both or neither of `fps` and `num_frames`, an unknown strategy, or a time that is needed
    and not known.
    """
    if (fps is None) == (num_frames is None):
        given = f"fps={fps}, num_frames={num_frames}"
        raise ValueError(message("fps", fps, f"exactly one of fps and num_frames is needed, got {given}"))
    if strategy not in STRATEGIES:
        raise ValueError(
            message("sample_strategy", strategy, "unknown strategy", f"use one of {', '.join(STRATEGIES)}")
        )
    most = min(facts.total_frames, max_frames or facts.total_frames)
    if fps is None:
        count = min(int(num_frames or 0), most)
    else:
        times = _known_times(facts, name=name)
        wanted = _count_at(times[-1] if facts.duration is None else facts.duration, fps)
        count = min(max(wanted, min_frames), most)
        if strategy != "motion_adaptive" and count == wanted:
            nearest = np.unique(_nearest(times, np.arange(wanted) / fps))
            if len(nearest) >= min(min_frames, most):
                return nearest
    if strategy == "motion_adaptive":
        scale = accumulated_motion(motion, name=name)
    elif strategy == "uniform" and facts.timestamps is None:
        scale = np.arange(facts.total_frames, dtype=np.float64)
    else:
        scale = _known_times(facts, name=name)
    return _apart(_nearest(scale, np.linspace(scale[0], scale[-1], count)), facts.total_frames)


def _known_times(facts: VideoFacts, *, name: str) -> np.ndarray:
    if facts.timestamps is None:
        problem = "sampling by time needs the frame rate of the source, which is not known"
        remedy = 'pass its rate as video_metadata={"fps": ...}, or num_frames= with sample_strategy="uniform"'
        raise ValueError(message(name, f"{facts.total_frames} frames", problem, remedy))
    return facts.timestamps


def accumulated_motion(motion: np.ndarray | None, *, name: str = "video") -> np.ndarray:
    """(N,) rising sums of the motion of each frame; a clip that never moves counts every frame alike."""
    if motion is None:
        problem = "needs the motion of the clip, and metadata hold none"
        raise ValueError(message("sample_strategy", "motion_adaptive", problem, f"pass {name} itself"))
    steps = np.asarray(motion, dtype=np.float64).copy()
    steps[0] = 0.0  # the first frame has nothing before it
    return np.cumsum(steps) if steps.any() else np.arange(len(steps), dtype=np.float64)


def frame_change(frame: np.ndarray, before: np.ndarray) -> float:
    """Mean absolute difference of two small grey frames (uint8), in grey levels 0..255."""
    return float(np.abs(frame.astype(np.int16) - before).mean())


def group_timestamps(times: np.ndarray, *, temporal_patch_size: int) -> list[float]:
    """The time of each frame group, in seconds: the mean of the times of its frames.

    `times` is (S,) seconds; the last frame is repeated to fill the last group, and its time counts as often. For
    groups of two this is the mean of first and last frame, the rule of Qwen3-VL.
    """
    filled = np.concatenate([times, np.repeat(times[-1:], -len(times) % temporal_patch_size)])
    return filled.reshape(-1, temporal_patch_size).mean(axis=1).tolist()  # (G,)


def _count_at(duration: float, fps: float) -> int:
    """How many times k / fps, k = 0, 1, ..., lie before the end of the clip (a whole product is not one more)."""
    return max(1, math.ceil(duration * fps - 1e-6))


def _nearest(scale: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The index in the rising `scale` nearest to each target; the earlier one of two equally near, to rounding."""
    rounding = 1e-9 * (scale[-1] - scale[0])
    right = np.searchsorted(scale, targets).clip(1, max(len(scale) - 1, 1)).clip(max=len(scale) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(targets - scale[left] <= scale[right] - targets + rounding, left, right).astype(np.int64)


def _apart(indices: np.ndarray, total: int) -> np.ndarray:
    """Rising `indices` moved as little as needed to be distinct and below `total`: later ones give way first."""
    steps = np.arange(len(indices))
    spread = np.maximum.accumulate(indices - steps)  # distinct, but perhaps past the end
    return np.minimum(spread, total - len(indices)) + steps
