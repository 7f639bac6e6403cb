"""Frame choice against hand-worked examples and slow, plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arlow.frame_sampling import STRATEGIES, VideoFacts, accumulated_motion, group_timestamps, sample_indices


def clip(times: list[float] | np.ndarray, *, last: float = 0.1) -> VideoFacts:
    """Facts of a clip whose frames appear at `times` and whose last frame stays for `last` seconds."""
    times = np.asarray(times, dtype=np.float64)
    duration = float(times[-1] + last)
    return VideoFacts(len(times), 32, 48, fps=len(times) / duration, duration=duration, timestamps=times)


def steady(count: int, rate: float = 10.0) -> VideoFacts:
    """Facts of a clip of constant rate."""
    return clip(np.arange(count) / rate, last=1 / rate)


def test_uniform_spreads_over_the_frames() -> None:
    """`uniform` by count takes the first, the last and evenly between, in time where times are known."""
    assert sample_indices(steady(30), num_frames=4).tolist() == [0, 10, 19, 29]
    assert sample_indices(VideoFacts(5, 8, 8), num_frames=3).tolist() == [0, 2, 4]  # needs no time
    assert sample_indices(VideoFacts(12, 8, 8), num_frames=3).tolist() == [0, 5, 11]  # 5.5: the earlier
    varying = clip([0.0, 0.1, 0.2, 0.3, 1.1, 1.9, 3.2], last=0.8)
    assert sample_indices(varying, num_frames=3).tolist() == [0, 5, 6]  # 0, 1.6, 3.2 s


def test_rate_means_seconds() -> None:
    """`fps` takes the frame nearest to each k / fps from the start: every half second of 3 s at 10 frames a second."""
    for strategy in ("uniform", "fps_based"):
        assert sample_indices(steady(30), fps=2, strategy=strategy).tolist() == [0, 5, 10, 15, 20, 25]
        assert sample_indices(steady(30), fps=3, strategy=strategy).tolist() == [0, 3, 7, 10, 13, 17, 20, 23, 27]
        assert sample_indices(steady(50, 25), fps=2, strategy=strategy).tolist() == [0, 12, 25, 37]  # 12.5, 37.5
        # A hundred frames in the first second, then one each second: one for each second all the same.
        crowded = clip([*(np.arange(100) / 100), *range(1, 11)], last=1.0)  # 11 seconds
        assert sample_indices(crowded, fps=1, strategy=strategy).tolist() == [0, *range(100, 110)]
        # Where a bound decides, the count is spread from the first frame to the last.
        assert sample_indices(steady(30), fps=1, min_frames=4, strategy=strategy).tolist() == [0, 10, 19, 29]
        assert sample_indices(steady(30), fps=5, max_frames=4, strategy=strategy).tolist() == [0, 10, 19, 29]


def test_fps_based_takes_the_nearest_frame_in_time() -> None:
    """`fps_based` looks at timestamps: frames crowd at the start of this clip, the choice does not."""
    varying = clip([0.0, 0.1, 0.2, 0.3, 1.1, 1.9, 3.2], last=0.8)  # 4 seconds
    assert sample_indices(varying, fps=1, strategy="fps_based").tolist() == [0, 4, 5, 6]  # 0, 1, 2, 3 s
    assert sample_indices(varying, num_frames=3, strategy="fps_based").tolist() == [0, 5, 6]  # 0, 1.6, 3.2 s
    assert sample_indices(steady(30), fps=1, strategy="fps_based").tolist() == [0, 10, 20]
    assert sample_indices(steady(10), fps=100, strategy="fps_based").tolist() == list(range(10))  # each frame once


def test_motion_adaptive_cuts_equal_shares_of_motion() -> None:
    """The sums of the motion are 0 1 2 3 4 5 7 8 9 10; the sample stands where they pass each quarter."""
    motion = np.array([0, 1, 1, 1, 1, 1, 2, 1, 1, 1], dtype=float)
    picked = sample_indices(steady(10), num_frames=5, strategy="motion_adaptive", motion=motion)
    assert picked.tolist() == [0, 2, 5, 6, 9]  # sums nearest to 0, 2.5, 5, 7.5, 10; of two as near the earlier


def test_motion_adaptive_of_even_motion_is_uniform() -> None:
    """A clip that moves evenly, or not at all, is sampled as by `uniform`."""
    for motion in (np.ones(17), np.zeros(17)):
        picked = sample_indices(steady(17), num_frames=5, strategy="motion_adaptive", motion=motion)
        assert picked.tolist() == [0, 4, 8, 12, 16]


def test_half_way_is_the_earlier_frame_at_every_rate() -> None:
    """Rounding of times does not decide between two frames equally near."""
    for rate in (24, 24000 / 1001, 25, 30, 30000 / 1001, 60):
        facts = steady(101, rate)
        assert sample_indices(facts, num_frames=41).tolist() == [math.ceil(2.5 * k - 0.5) for k in range(41)]


def test_motion_in_one_cut_still_gives_distinct_frames() -> None:
    """All motion in one frame: the frames around the cut are taken, none twice."""
    motion = np.zeros(12)
    motion[6] = 50.0
    picked = sample_indices(steady(12), num_frames=4, strategy="motion_adaptive", motion=motion)
    assert picked.tolist() == [0, 5, 6, 7]


def test_bounds() -> None:
    """`min_frames` and `max_frames` bound what fps comes to; `num_frames` knows only the upper bound."""
    assert len(sample_indices(steady(100), fps=0.1, min_frames=4)) == 4
    assert len(sample_indices(steady(100), fps=10, max_frames=8)) == 8
    assert len(sample_indices(steady(100), num_frames=2, min_frames=4)) == 2
    assert len(sample_indices(steady(100), num_frames=50, max_frames=8)) == 8
    assert sample_indices(steady(3), fps=2, min_frames=8).tolist() == [0, 1, 2]
    assert len(sample_indices(steady(100), fps=1e12, max_frames=8)) == 8


def test_a_single_frame_without_duration() -> None:
    """A still stored as a video, with no time on screen, is one frame."""
    still = VideoFacts(1, 8, 8, timestamps=np.zeros(1))
    for strategy in STRATEGIES:
        assert sample_indices(still, fps=2, strategy=strategy, motion=np.zeros(1), min_frames=4).tolist() == [0]


@settings(max_examples=150, deadline=None)
@given(
    gaps=st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60),
    count=st.integers(1, 80),
    fps=st.floats(0.05, 60.0),
    by_count=st.booleans(),
    bounds=st.tuples(st.integers(1, 40), st.integers(0, 40)),
    strategy=st.sampled_from(STRATEGIES),
    seed=st.integers(0, 9),
)
def test_every_sample_is_rising_and_bounded(
    gaps: list[float],
    count: int,
    fps: float,
    by_count: bool,
    bounds: tuple[int, int],
    strategy: str,
    seed: int,
) -> None:
    """Whatever the clip and the question, the indices are distinct, in range, in order and within the bounds."""
    facts = clip(np.cumsum([0.0, *gaps]))
    rng = np.random.default_rng(seed)
    motion = rng.random(facts.total_frames) * (rng.random(facts.total_frames) < 0.5)
    least, most = bounds[0], bounds[0] + bounds[1]
    how = {"num_frames": count} if by_count else {"fps": fps}
    picked = sample_indices(facts, **how, min_frames=least, max_frames=most, strategy=strategy, motion=motion)
    assert picked.dtype == np.int64
    assert (np.diff(picked) > 0).all() and picked[0] >= 0 and picked[-1] < facts.total_frames
    assert len(picked) <= min(most, facts.total_frames)
    assert len(picked) >= min(count if by_count else least, most, facts.total_frames)


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0.01, 2.0), min_size=1, max_size=40),
    fps=st.floats(0.2, 20.0),
    strategy=st.sampled_from(["uniform", "fps_based"]),
)
def test_sampling_by_rate_equals_its_definition(gaps: list[float], fps: float, strategy: str) -> None:
    """Against a plain loop: for each k / fps before the end the frame with the least distance, each once."""
    facts = clip(np.cumsum([0.0, *gaps]))
    expected, k = set(), 0
    while k / fps < facts.duration - 1e-6 / fps:
        distances = [abs(time - k / fps) for time in facts.timestamps]
        near = min(distances) + 1e-9 * facts.timestamps[-1]  # of two as near, to rounding, the earlier
        expected.add(next(index for index, distance in enumerate(distances) if distance <= near))
        k += 1
    if k <= facts.total_frames:
        assert sample_indices(facts, fps=fps, strategy=strategy).tolist() == sorted(expected)


def test_group_timestamps_by_hand() -> None:
    """The time of a group is the mean of its frames' times; the repeated last frame counts as often as it is used."""
    assert group_timestamps(np.array([0.0, 1.0, 2.0, 5.0]), temporal_patch_size=2) == [0.5, 3.5]
    assert group_timestamps(np.array([0.0, 1.0, 2.0]), temporal_patch_size=2) == [0.5, 2.0]
    assert group_timestamps(np.array([0.0, 1.0, 5.0, 6.0]), temporal_patch_size=3) == [2.0, 6.0]
    assert group_timestamps(np.array([0.0, 1.5]), temporal_patch_size=1) == [0.0, 1.5]


def test_accumulated_motion_ignores_the_first_frame() -> None:
    """Nothing lies before the first frame, so it moves nothing."""
    assert accumulated_motion(np.array([9.0, 1.0, 2.0])).tolist() == [0.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("facts", "question", "named"),
    [
        (steady(5), {"fps": 2, "num_frames": 2}, "num_frames=2"),
        (steady(5), {}, "exactly one"),
        (steady(5), {"num_frames": 2, "strategy": "best"}, "sample_strategy='best'"),
        (VideoFacts(5, 8, 8), {"fps": 2}, "video_metadata"),
        (VideoFacts(5, 8, 8), {"num_frames": 2, "strategy": "fps_based"}, "frame rate"),
        (steady(5), {"num_frames": 2, "strategy": "motion_adaptive"}, "motion"),
    ],
)
def test_impossible_questions(facts: VideoFacts, question: dict, named: str) -> None:
    """What cannot be answered is an error that says what is missing; no frame rate is assumed."""
    with pytest.raises(ValueError, match=named.replace("(", r"\(")):
        sample_indices(facts, **question)
