"""Videos in, packed rows of patches out: what `ArlowForConditionalGeneration` takes as `pixel_values_videos`.

Every video passes the border (`video_reader.open_video`). A frame is resized as it is decoded, as uint8 with Pillow,
so a clip is never held at full size. Output:

    pixel_values_videos  (video patches, 3*T*P*P) float32, all videos one after the other
    video_grid_thw       (videos, 3) int64: frame groups, patches along the height and the width, before merging
    video_metadata       with `return_metadata`: a list of `ArlowVideoMetadata`, which frames were taken and when

Sizes: P patch side; T frames per row; S sampled frames; G = ceil(S / T) frame groups.
"""

# No `from __future__ import annotations`: Transformers reads the TypedDict's annotations at run time.

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import VideoMetadata

from .errors import message, shorten
from .frame_sampling import STRATEGIES, VideoFacts, group_timestamps, sample_indices
from .media import Picture
from .patches import pack_video
from .pixel_options import (
    Integer,
    Number,
    PixelKwargs,
    PixelOptions,
    PixelProcessor,
    check_integer,
    check_tensor_type,
)
from .video_reader import flatten_videos, open_video
from .video_source import VideoSource


class ArlowVideoProcessorKwargs(PixelKwargs, total=False):
    """Options of `ArlowVideoProcessor`, for construction and calls. `fps=None` at construction means no rate."""

    do_sample_frames: bool | None  # False: every frame is taken
    fps: Number  # frames per second to take; excludes num_frames
    num_frames: Integer  # frames to take; excludes fps
    min_frames: Integer  # the least that fps may come to, if the clip has as many
    max_frames: Integer  # the most that are taken
    sample_strategy: str | None  # "uniform" | "fps_based" | "motion_adaptive", see `frame_sampling.sample_indices`
    max_tokens_per_video: Integer  # tokens after merging, of a whole clip
    return_metadata: bool | None
    video_metadata: Any  # of sources without a frame rate: a dict or VideoMetadata for each video


@dataclass
class ArlowVideoMetadata(VideoMetadata):
    """Transformers' metadata with the true times, which a frame index and one rate cannot tell of a variable rate."""

    frame_timestamps: list[float] | None = None  # (S,) seconds of the sampled frames; None: the source has no rate
    group_timestamps: list[float] | None = None  # (G,) seconds of the frame groups, `frame_sampling.group_timestamps`

    @property
    def timestamps(self) -> list[float]:
        """Seconds of the sampled frames. Raises `ValueError` when the source has no frame rate."""
        return super().timestamps if self.frame_timestamps is None else self.frame_timestamps

    @property
    def sampled_fps(self) -> float:
        """Sampled frames per second. Raises `ValueError` when the source has no frame rate: none is assumed."""
        if self.fps is None or self.frames_indices is None:
            raise ValueError(message("fps", self.fps, "the source has no frame rate, so neither has the sample"))
        return len(self.frames_indices) / self.total_num_frames * self.fps


@dataclass(frozen=True)
class ClipPlan:
    """How many frames of a clip are looked at, and what they become."""

    num_frames: int  # S
    height: int  # pixels, after resizing
    width: int  # pixels, after resizing
    grid: tuple[int, int, int]  # frame groups, patches along the height, patches along the width


@dataclass(frozen=True, kw_only=True)
class VideoOptions(PixelOptions):
    """The options of one call, validated: `ValueError` names the field and the value. Units as above."""

    do_sample_frames: bool
    fps: float | None
    num_frames: int | None
    min_frames: int
    max_frames: int
    sample_strategy: str
    max_tokens_per_video: int | None
    return_metadata: bool
    fps_was_given: bool  # in the call, not by default

    CHOICES = PixelOptions.CHOICES | {"sample_strategy": STRATEGIES}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is not None:
            self._check_number("fps", self.fps, above=0)
        if self.min_frames > self.max_frames:
            raise ValueError(message("min_frames", self.min_frames, f"is more than max_frames={self.max_frames}"))

    def plan(self, num_frames: int, height: int, width: int, *, name: str = "video") -> ClipPlan:
        """What becomes of a clip of `num_frames` sampled frames of `height` x `width` pixels.

        Under `max_tokens_per_video` the frames shrink, down to `min_pixels`; then there are fewer of them.
        """
        check_integer("num_frames", num_frames)
        T, token, limit = self.temporal_patch_size, self.factor**2, self.max_tokens_per_video
        groups = -(-num_frames // T)
        most = self.max_pixels
        if limit is not None:  # a fair share, but no less than the least, and no more than everything
            most = min(most, max(limit // groups * token, self.min_pixels, token), limit * token)
        height, width = self.target(height, width, most=most, name=name)
        if limit is not None:
            groups = min(groups, limit * token // (height * width))
            if groups == 0:
                problem = f"is less than a frame of {height}x{width} pixels takes"
                remedy = "" if self.do_resize else "frames shrink with do_resize=True"
                raise ValueError(message("max_tokens_per_video", limit, problem, remedy))
        grid = (groups, height // self.patch_size, width // self.patch_size)
        return ClipPlan(min(num_frames, groups * T), height, width, grid)

    def choose(self, facts: VideoFacts, *, motion: np.ndarray | None = None, name: str = "video") -> np.ndarray:
        """The (S,) indices of the frames to take, before any token budget.

        A clip without a frame rate is taken whole, evenly thinned to `max_frames`, unless the call itself asks for
        `num_frames`, or for `fps`, which then is an error.
        """
        if not self.do_sample_frames:
            return np.arange(facts.total_frames)
        fps, num_frames, strategy = self.fps, self.num_frames, self.sample_strategy
        if facts.timestamps is None and num_frames is None and not self.fps_was_given:
            fps, strategy = None, "uniform" if strategy == "fps_based" else strategy
        if fps is None and num_frames is None:
            num_frames = facts.total_frames
        return sample_indices(
            facts,
            fps=fps,
            num_frames=num_frames,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
            strategy=strategy,
            motion=motion,
            name=name,
        )

    def plan_and_choose(self, source: VideoSource) -> tuple[ClipPlan, np.ndarray]:
        """The plan of a clip and the (S,) indices of the frames that fit into it."""
        facts, name = source.facts, source.name
        strategy = self.sample_strategy if self.do_sample_frames else "uniform"
        motion = source.motion() if strategy == "motion_adaptive" else None
        indices = self.choose(facts, motion=motion, name=name)
        plan = self.plan(len(indices), facts.height, facts.width, name=name)
        if plan.num_frames < len(indices):
            strategy = "uniform" if facts.timestamps is None and strategy == "fps_based" else strategy
            indices = sample_indices(facts, num_frames=plan.num_frames, strategy=strategy, motion=motion, name=name)
        return plan, indices


class ArlowVideoProcessor(PixelProcessor, VideoProcessorMixin, PilBackend):
    """Turns videos into `pixel_values_videos` and `video_grid_thw`; see the top of this file for their shapes.

    Videos may be paths, URLs, data URIs, bytes, arrays (frames, height, width, channels) or (frames, channels, height,
    width), lists of stills, or any mixture of these in a list. What may be fetched and decoded is set by
    `processor.policy = MediaPolicy(...)`; the policy belongs to the process, so it is not saved. An instance keeps no
    state between calls and may be used from many threads.

    Options are those of `ArlowVideoProcessorKwargs`, here and in each call. `size` bounds the area of **each frame**:
    by default 56*56 to 448*448 pixels, that is 4 to 256 tokens per frame group; `max_tokens_per_video` bounds a clip.
    `fps` and `num_frames` exclude each other, and giving one puts the other's default aside.

    Raises:
        TypeError: an unknown option, or something that is no video.
        ValueError: an impossible value of an option, a video the policy refuses, one without frames, or a time that is
            needed and not known; the field or item is named.
        OSError: a file that cannot be read, or is truncated or corrupt.
    """

    size = {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}
    do_sample_frames = True
    fps: float | None = 2
    num_frames = None
    min_frames = 4
    max_frames = 768
    sample_strategy = "uniform"
    max_tokens_per_video = None
    return_metadata = False

    valid_kwargs: Any = ArlowVideoProcessorKwargs
    options_type: Any = VideoOptions
    model_input_names = ["pixel_values_videos", "video_grid_thw"]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kwargs.get("fps") is None and self.num_frames is not None:
            self.fps = None  # put aside

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        """As the base class. Given `fps` replaces a saved `num_frames`, and the reverse; where only an image processor
        was saved, what both share is taken from it, the budget of a picture excepted."""
        if "video_processor_type" not in video_processor_dict and "image_processor_type" in video_processor_dict:
            shared = set(ArlowVideoProcessorKwargs.__annotations__) - {"size", "min_pixels", "max_pixels"}
            video_processor_dict = {key: value for key, value in video_processor_dict.items() if key in shared}
        for given, other in (("fps", "num_frames"), ("num_frames", "fps")):
            if kwargs.get(given) is not None:
                video_processor_dict = {key: value for key, value in video_processor_dict.items() if key != other}
        return super().from_dict(video_processor_dict, **kwargs)

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Videos as packed rows.

        Args:
            videos: one video, a list, or a list of lists (rows may be empty); see `video_reader.flatten_videos`.
            **kwargs: options of `ArlowVideoProcessorKwargs` for this call only. With `do_sample_frames=False`, `fps`
                is the rate of frames in memory.

        Returns:
            `pixel_values_videos`, `video_grid_thw` and, with `return_metadata`, `video_metadata`; see the top of this
            file.

        Raises: as the class does.
        """
        return_tensors, device = kwargs.get("return_tensors"), kwargs.get("device")
        check_tensor_type(return_tensors)
        self._refuse_unknown(kwargs, where="preprocess")
        options: VideoOptions = self._options(kwargs)
        sources = self._open_all(videos, options, metadata=kwargs.get("video_metadata"))
        chosen = [options.plan_and_choose(source) for source in sources]  # no pixels yet, except for motion
        packed = [_pack(source, *each, options) for source, each in zip(sources, chosen, strict=True)]
        grids = np.array([plan.grid for plan, _ in chosen], dtype=np.int64)
        data = {"pixel_values_videos": options.values(packed), "video_grid_thw": grids}
        features = BatchFeature(data=data, tensor_type=return_tensors)
        features = features if device is None or return_tensors != "pt" else features.to(device)
        if options.return_metadata:
            features["video_metadata"] = [
                describe_clip(source.facts, indices, temporal_patch_size=options.temporal_patch_size)
                for source, (_, indices) in zip(sources, chosen, strict=True)
            ]
        return features

    def get_num_of_video_patches(
        self, num_frames: int, height: int, width: int, videos_kwargs: dict[str, Any] | None = None
    ) -> int:
        """Rows of `pixel_values_videos` (patches before merging) of a clip of `num_frames` sampled frames of
        `height` x `width` pixels. Serving engines ask this; `videos_kwargs` are options as in a call."""
        self._refuse_unknown(videos_kwargs or {}, where="get_num_of_video_patches")
        return math.prod(self._options(videos_kwargs or {}).plan(num_frames, height, width).grid)

    def sample_frames(self, metadata: VideoMetadata, **kwargs: Any) -> np.ndarray:
        """The (S,) indices of the frames to take of a clip of which only Transformers' metadata are known; `kwargs`
        are options as in a call."""
        self._refuse_unknown(kwargs, where="sample_frames")
        total, rate = metadata.total_num_frames, None if metadata.fps is None else float(metadata.fps)
        times = None if rate is None else np.arange(total) / rate
        facts = VideoFacts(total, 0, 0, fps=rate, duration=None if rate is None else total / rate, timestamps=times)
        return self._options(kwargs).choose(facts)

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Callable | None = None) -> Any:
        """`(frames (S, H, W, 3) uint8, metadata)` of a source, or such pairs as two tuples for a list of sources.

        `sample_indices_fn(metadata=...)` gives the frames to take. This replaces a method that opens files without
        limits.
        """
        if isinstance(video_url_or_urls, list):
            return list(zip(*(self.fetch_videos(each, sample_indices_fn) for each in video_url_or_urls), strict=True))
        source = open_video(video_url_or_urls, policy=self.policy)
        indices = np.arange(source.facts.total_frames)
        metadata = describe_clip(source.facts, indices, temporal_patch_size=self.temporal_patch_size)
        if sample_indices_fn is not None:
            indices = np.asarray(sample_indices_fn(metadata=metadata))
            metadata = describe_clip(source.facts, indices, temporal_patch_size=self.temporal_patch_size)
        return np.stack(list(source.frames(indices))), metadata

    def _open_all(self, videos: Any, options: VideoOptions, *, metadata: Any) -> list[VideoSource]:
        """All sources, opened and checked before a frame of any is taken."""
        flat = flatten_videos(videos)
        if not flat:
            raise ValueError(f"videos={shorten(videos)}: holds no video")
        rate = options.fps if options.fps_was_given and not options.do_sample_frames else None
        return [
            open_video(
                source,
                policy=self.policy,
                fps=rate,
                metadata=each,
                input_data_format=options.input_data_format,
                value_range=options.value_range,
                convert_rgb=options.do_convert_rgb,
                name=f"videos[{index}]",
            )
            for index, (source, each) in enumerate(zip(flat, _flatten_metadata(metadata, len(flat)), strict=True))
        ]

    def _values(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        values = super()._values(kwargs)
        fps, num_frames = kwargs.get("fps"), kwargs.get("num_frames")
        if fps is not None and num_frames is not None:
            problem = f"excludes num_frames={shorten(num_frames)}"
            raise ValueError(message("fps", fps, problem, "pass one of the two"))
        if fps is None:
            values["fps"] = self.fps  # of the processor itself None means no rate, not the class's default
        if values["num_frames"] is not None:
            values["num_frames" if fps is not None else "fps"] = None
        return values | {"fps_was_given": fps is not None}


def describe_clip(facts: VideoFacts, indices: np.ndarray, *, temporal_patch_size: int) -> ArlowVideoMetadata:
    """The metadata of the frames at `indices` of a clip."""
    times = None if facts.timestamps is None else facts.timestamps[indices]
    groups = None if times is None else group_timestamps(times, temporal_patch_size=temporal_patch_size)
    return ArlowVideoMetadata(
        total_num_frames=facts.total_frames,
        fps=facts.fps,
        width=facts.width,
        height=facts.height,
        duration=facts.duration,
        video_backend="pyav",
        frames_indices=np.asarray(indices).tolist(),
        frame_timestamps=None if times is None else times.tolist(),
        group_timestamps=groups,
    )


def _pack(source: VideoSource, plan: ClipPlan, indices: np.ndarray, options: VideoOptions) -> np.ndarray:
    """The frames at `indices`, resized one by one, as packed rows (G*h*w, 3*T*P*P)."""
    frames = np.empty((len(indices), plan.height, plan.width, 3), dtype=options.sample_dtype)
    for at, frame in enumerate(source.frames(indices)):
        frames[at] = options.resize(Picture(frame), height=plan.height, width=plan.width)
    return pack_video(
        frames,
        patch_size=options.patch_size,
        temporal_patch_size=options.temporal_patch_size,
        merge_size=options.merge_size,
    )


def _flatten_metadata(metadata: Any, count: int) -> list[Mapping | None]:
    """One entry per video of what a user passes as `video_metadata`: nothing, one, a list, or a list per row."""
    if metadata is None:
        return [None] * count
    entries = [metadata] if isinstance(metadata, Mapping) else metadata
    if not isinstance(entries, (list, tuple)):
        raise TypeError(message("video_metadata", metadata, "expected a dict or VideoMetadata for each video"))
    flat = [one for each in entries for one in (each if isinstance(each, (list, tuple)) else (each,))]
    if len(flat) != count:
        raise ValueError(message("video_metadata", metadata, f"{len(flat)} entries for {count} videos"))
    known = {field.name for field in fields(ArlowVideoMetadata)}
    for index, each in enumerate(flat):
        if each is not None and not isinstance(each, Mapping):
            raise TypeError(message(f"video_metadata[{index}]", each, "expected a dict or VideoMetadata"))
        if unknown := sorted(set(each or ()) - known):
            raise ValueError(message(f"video_metadata[{index}]", unknown, "unknown keys"))
    return flat
