"""A video file to tensors: 30 s of 1080p H.264 at 24 frames a second, as x264 makes it, at fps=1 and at 32 frames, up
to 448x448 pixels a frame. The peer reads as `transformers.video_utils` does with PyAV, then resizes, normalises and
packs frame by frame with Qwen2-VL's Pillow-backed processor. On one core with one thread, and on all. The limit is
decoding every frame of the file on as many cores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import torch

from arlow import ArlowVideoProcessor
from benchmarks import limits
from benchmarks.harness import Case
from benchmarks.media import clip
from benchmarks.peers import FRAMES, PEER, PeerVideoProcessor
from benchmarks.settings import sized


ON_HOST = True  # decoding and resizing use the CPU's memory
HEIGHT, WIDTH, SECONDS, FPS = sized((1080, 1920, 30, 24), (180, 320, 8, 10))
WAYS: dict[str, dict[str, Any]] = {"fps=1": {"fps": 1}, "32 frames": {"num_frames": 32}}


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        file = str(clip(Path(folder) / "clip.mp4", height=HEIGHT, width=WIDTH, seconds=SECONDS, fps=FPS))
        for way in WAYS:
            check(file, way)
            for cores, run in (("one core", on_one_core), ("all cores", as_it_is)):
                yield Case(
                    name=f"video file to tensors, {way}, {cores}",
                    arlow=run(prepare("arlow", file, way)),
                    peer=run(prepare("peer", file, way)),
                    peer_name=f"{PEER} (PyAV, Pillow)",
                    target=1.9,
                    limit=limits.alone(run(lambda: decode(file))),
                    limit_name="decoding",
                    note="" if way == "32 frames" else "the peer spreads its frames over the whole file",
                    growth=(__name__, file, way) if run is as_it_is else (),
                    growth_target=0.4 if run is as_it_is else None,
                )


def prepare(side: str, file: str, way: str) -> Callable[[], Any]:
    """The work of one side."""
    processor: Any = ArlowVideoProcessor(size=FRAMES) if side == "arlow" else PeerVideoProcessor(size=FRAMES)
    return lambda: processor([file], return_tensors="pt", **WAYS[way])


def check(file: str, way: str) -> None:
    """The same grids; where the same frames are taken, pictures that differ by their resizing only."""
    ours, theirs = prepare("arlow", file, way)(), prepare("peer", file, way)()
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    if way == "32 frames":
        rms = (ours["pixel_values_videos"] - theirs["pixel_values_videos"]).square().mean().sqrt()
        assert rms < 0.05, f"frames differ by {rms:.3f} rms"


def decode(file: str) -> None:
    with av.open(file) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass


def as_it_is(work: Callable[[], Any]) -> Callable[[], Any]:
    return work


def on_one_core(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work, with this thread and those it starts held on one core (Linux)."""

    def held() -> None:
        cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, {min(cores)})
        torch.set_num_threads(1)
        try:
            work()
        finally:
            os.sched_setaffinity(0, cores)
            torch.set_num_threads(threads)

    return held
