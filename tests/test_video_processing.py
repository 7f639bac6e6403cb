"""The video processor against a plain PyAV, Pillow and NumPy implementation, value for value."""

from __future__ import annotations

import importlib
import io
import json
import math
import threading
from fractions import Fraction
from pathlib import Path

import av
import media_samples as samples_of
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_processing import tiny_processor
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata
from video_samples import moving_frames, number_of, numbered_frames, write_video

import arlow  # noqa: F401  (registers)
from arlow.media_fetch import MediaPolicy
from arlow.processing_arlow import ArlowProcessor
from arlow.video_processing_arlow import ArlowVideoMetadata, ArlowVideoProcessor, ArlowVideoProcessorKwargs
from arlow.video_reader import Frames, open_video


def plain_frames(path: Path) -> list[np.ndarray]:
    """All frames of an unturned file by PyAV alone."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def plain_rows(
    frames: list[np.ndarray], height: int, width: int, *, P: int = 14, T: int = 2, M: int = 2
) -> np.ndarray:
    """Samples 0..255 of the frames as the filter gives them, packed by loops over groups, blocks and patches."""
    resized = [samples_of.filtered(Image.fromarray(each), (height, width)) for each in frames]
    while len(resized) % T:
        resized.append(resized[-1])
    values = np.stack(resized)  # (S, H, W, C)
    rows = []
    for group in range(0, len(values), T):
        for top in range(0, height, P * M):
            for left in range(0, width, P * M):
                for y in range(top, top + P * M, P):
                    for x in range(left, left + P * M, P):
                        patch = values[group : group + T, y : y + P, x : x + P]  # (T, P, P, C)
                        rows.append(patch.transpose(3, 0, 1, 2).ravel())
    return np.stack(rows)


def test_equals_a_plain_implementation(tmp_path: Path) -> None:
    """A real MP4, 8 of 20 frames, against loops: pixels to float32 rounding, grid and times exactly."""
    path = write_video(tmp_path / "clip.mp4", moving_frames(20, 96, 128))
    output = ArlowVideoProcessor()(path, num_frames=8, return_tensors="np", return_metadata=True)
    indices = [0, 3, 5, 8, 11, 14, 16, 19]
    every = plain_frames(path)
    expected = plain_rows([every[index] for index in indices], 84, 140)
    assert output["video_grid_thw"].tolist() == [[4, 6, 10]]
    assert output["pixel_values_videos"].dtype == np.float32
    levels = np.rint((output["pixel_values_videos"] * 0.5 + 0.5) * 255)
    np.testing.assert_allclose(output["pixel_values_videos"], (levels / 255 - 0.5) / 0.5, rtol=0, atol=3e-7)
    samples_of.assert_resized(levels, expected)
    (metadata,) = output["video_metadata"]
    assert metadata.frames_indices == indices
    assert metadata.timestamps == pytest.approx([index / 10 for index in indices])
    assert metadata.group_timestamps == pytest.approx([0.15, 0.65, 1.25, 1.75])


def test_every_kind_of_source_gives_the_same_rows(tmp_path: Path) -> None:
    """A lossless file, its path as text, its bytes, arrays, tensors and frame lists of the same clip agree exactly."""
    clip = moving_frames(6, 56, 84)
    processor = ArlowVideoProcessor(num_frames=4)
    expected = processor(clip)["pixel_values_videos"]
    stills = [tmp_path / f"{index}.png" for index in range(6)]
    for still, frame in zip(stills, clip, strict=True):
        Image.fromarray(frame).save(still)
    for videos in (
        list(clip),
        [clip],
        clip.transpose(0, 3, 1, 2),
        torch.from_numpy(clip),
        [Image.fromarray(frame) for frame in clip],
        [str(still) for still in stills],
        [[[str(still) for still in stills]]],
    ):
        assert np.array_equal(processor(videos)["pixel_values_videos"], expected)
    path = write_video(tmp_path / "clip.mp4", clip)
    expected = processor(np.stack(plain_frames(path)))["pixel_values_videos"]
    for videos in (path, str(path), path.as_uri(), path.read_bytes()):
        assert np.array_equal(processor(videos)["pixel_values_videos"], expected)


def test_a_mixed_batch_is_its_parts(tmp_path: Path) -> None:
    """Files, arrays and frame lists in one nested batch: rows and grids are those of each alone, in order."""
    path = write_video(tmp_path / "clip.mp4", moving_frames(9, 60, 90))
    array = moving_frames(4, 40, 200)
    frames = [Image.fromarray(frame) for frame in moving_frames(3, 90, 60)]
    processor = ArlowVideoProcessor()
    batch = processor([[path, array], [frames]], return_tensors="pt")
    alone = [processor(each, return_tensors="pt") for each in (path, array, [frames])]
    assert torch.equal(batch["pixel_values_videos"], torch.cat([each["pixel_values_videos"] for each in alone]))
    assert torch.equal(batch["video_grid_thw"], torch.cat([each["video_grid_thw"] for each in alone]))
    assert batch["video_grid_thw"].dtype == torch.int64
    assert batch["video_grid_thw"].prod(-1).sum() == len(batch["pixel_values_videos"])


def test_odd_counts_repeat_the_last_frame() -> None:
    """Three frames are those three and the last once more; one frame is a video of one group."""
    clip = moving_frames(3, 56, 56)
    processor = ArlowVideoProcessor(do_sample_frames=False)
    repeated = processor(np.concatenate([clip, clip[-1:]]))
    assert np.array_equal(processor(clip)["pixel_values_videos"], repeated["pixel_values_videos"])
    one = processor(clip[:1])
    assert one["video_grid_thw"].tolist() == [[1, 4, 4]]
    values = one["pixel_values_videos"].reshape(16, 3, 2, 14, 14)
    assert np.array_equal(values[:, :, 0], values[:, :, 1])


def test_number_of_frames_puts_the_default_rate_aside(tmp_path: Path) -> None:
    """The default is 2 frames per second; `num_frames` in a call or the constructor replaces it, and the reverse."""
    path = write_video(tmp_path / "clip.mp4", numbered_frames(30))

    def picked(processor: ArlowVideoProcessor, **options: object) -> list[int]:
        return processor(path, return_metadata=True, **options)["video_metadata"][0].frames_indices

    assert picked(ArlowVideoProcessor()) == [0, 5, 10, 15, 20, 25]
    assert picked(ArlowVideoProcessor(), num_frames=3) == [0, 14, 29]
    assert picked(ArlowVideoProcessor(num_frames=3)) == [0, 14, 29]
    assert picked(ArlowVideoProcessor(num_frames=3), fps=2) == [0, 5, 10, 15, 20, 25]
    for strategy in ("uniform", "fps_based"):
        assert picked(ArlowVideoProcessor(), fps=1, min_frames=1, sample_strategy=strategy) == [0, 10, 20]
    assert picked(ArlowVideoProcessor(fps=None)) == list(range(30))
    assert picked(ArlowVideoProcessor(), do_sample_frames=False) == list(range(30))
    with pytest.raises(ValueError, match="num_frames=3"):
        ArlowVideoProcessor(fps=1, num_frames=3)


def test_variable_rate_keeps_true_times(tmp_path: Path) -> None:
    """Frames crowded at the start: sampling by time takes the right ones, and groups carry their real seconds."""
    times = [0.0, 0.1, 0.2, 0.3, 1.0, 2.0, 3.0, 3.1]
    path = write_video(tmp_path / "clip.mp4", numbered_frames(8), times=times)
    for strategy in ("uniform", "fps_based"):
        output = ArlowVideoProcessor()(path, fps=1, sample_strategy=strategy, return_metadata=True)
        (metadata,) = output["video_metadata"]
        assert metadata.frames_indices == [0, 4, 5, 6]
        assert metadata.timestamps == pytest.approx([0, 1, 2, 3])
        assert metadata.group_timestamps == pytest.approx([0.5, 2.5])


def test_motion_adaptive_is_deterministic_and_finds_the_action(tmp_path: Path) -> None:
    """A still clip with one busy second: most frames of the sample lie there, on every run."""
    clip = np.repeat(moving_frames(1, 48, 64), 40, axis=0)
    clip[20:30] = moving_frames(10, 48, 64)[::-1]
    path = write_video(tmp_path / "clip.mp4", clip)
    runs = [
        ArlowVideoProcessor()(path, num_frames=6, sample_strategy="motion_adaptive", return_metadata=True)
        for _ in range(2)
    ]
    indices = runs[0]["video_metadata"][0].frames_indices
    assert sum(18 <= index <= 31 for index in indices) >= 4
    assert np.array_equal(runs[0]["pixel_values_videos"], runs[1]["pixel_values_videos"])


def test_sources_without_a_rate() -> None:
    """Taken whole without times; sampled by count; by time only when someone tells the rate: none is assumed."""
    clip = numbered_frames(12)
    processor = ArlowVideoProcessor(min_frames=1)

    def metadata(**options: object) -> ArlowVideoMetadata:
        return processor(clip, return_metadata=True, **options)["video_metadata"][0]

    whole = metadata()
    assert whole.frames_indices == list(range(12)) and whole.fps is None and whole.group_timestamps is None
    with pytest.raises(ValueError, match="fps"):
        _ = whole.timestamps
    with pytest.raises(ValueError, match="fps"):
        _ = whole.sampled_fps
    assert metadata(max_frames=3).frames_indices == [0, 5, 11]  # 5.5: the earlier
    assert metadata(num_frames=3).frames_indices == [0, 5, 11]
    with pytest.raises(ValueError, match="video_metadata"):
        metadata(fps=1)
    assert metadata(fps=1, video_metadata={"fps": 4}).frames_indices == [0, 4, 8]
    every_half = VideoMetadata(total_num_frames=12, fps=4)
    assert metadata(video_metadata=every_half).frames_indices == [0, 2, 4, 6, 8, 10]
    for rate in (np.float32(4), np.int64(4), Fraction(4)):
        assert metadata(fps=rate / 2, video_metadata={"fps": rate}).frames_indices == [0, 2, 4, 6, 8, 10]
    taken = metadata(do_sample_frames=False, fps=4)
    assert taken.frames_indices == list(range(12)) and taken.timestamps == pytest.approx(np.arange(12) / 4)
    sampled = metadata(
        do_sample_frames=False,
        video_metadata=[{"fps": 10, "total_num_frames": 120, "frames_indices": list(range(0, 120, 10))}],
    )
    assert sampled.group_timestamps == pytest.approx([0.5, 2.5, 4.5, 6.5, 8.5, 10.5])


def test_token_budget_shrinks_frames_then_their_number() -> None:
    """Under a falling budget first the size of the frames falls to the least, then their number."""
    processor = ArlowVideoProcessor(size={"shortest_edge": 4 * 28 * 28, "longest_edge": 64 * 28 * 28})
    clip = moving_frames(8, 224, 224)
    grids = {
        budget: processor(clip, do_sample_frames=False, max_tokens_per_video=budget)["video_grid_thw"][0].tolist()
        for budget in (1000, 256, 100, 16, 12, 4, 1)
    }
    assert grids[1000] == grids[256] == [4, 16, 16]
    assert grids[100] == [4, 10, 10]
    assert grids[16] == [4, 4, 4]
    assert grids[12] == [3, 4, 4]
    assert grids[4] == [1, 4, 4]
    assert grids[1] == [1, 2, 2]


@settings(max_examples=100, deadline=None)
@given(
    frames=st.integers(1, 40),
    height=st.integers(8, 700),
    width=st.integers(8, 700),
    budget=st.one_of(st.none(), st.integers(1, 500)),
    patch=st.sampled_from([4, 14, 16]),
    temporal=st.integers(1, 3),
    least=st.integers(1, 9),
)
def test_plans_keep_every_bound(
    frames: int, height: int, width: int, budget: int | None, patch: int, temporal: int, least: int
) -> None:
    """Whatever the clip, the grid is whole blocks within the budget of a frame and of the clip."""
    token = (2 * patch) ** 2
    processor = ArlowVideoProcessor(
        patch_size=patch,
        temporal_patch_size=temporal,
        size={"shortest_edge": least * token, "longest_edge": (least + 30) * token},
        max_tokens_per_video=budget,
    )
    plan = processor._options({}).plan(frames, height, width)
    groups, rows, columns = plan.grid
    assert (rows * patch, columns * patch) == (plan.height, plan.width) and rows % 2 == columns % 2 == 0
    assert rows * columns // 4 <= least + 30
    assert groups == math.ceil(plan.num_frames / temporal) and 1 <= plan.num_frames <= frames
    if budget is not None:
        assert groups * rows * columns // 4 <= budget
    assert processor.get_num_of_video_patches(frames, height, width) == groups * rows * columns


@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 7),
    height=st.integers(20, 120),
    width=st.integers(20, 120),
    budget=st.one_of(st.none(), st.integers(1, 40)),
)
def test_the_count_is_what_preprocessing_makes(frames: int, height: int, width: int, budget: int | None) -> None:
    """`get_num_of_video_patches` is the number of rows, for any size and token budget."""
    processor = ArlowVideoProcessor(patch_size=8, size={"shortest_edge": 512, "longest_edge": 8192})
    options = {"max_tokens_per_video": budget, "do_sample_frames": False}
    output = processor(np.zeros((frames, height, width, 3), np.uint8), **options)
    assert len(output["pixel_values_videos"]) == processor.get_num_of_video_patches(frames, height, width, options)
    assert output["video_grid_thw"].prod() == len(output["pixel_values_videos"])


def test_steps_can_be_left_out() -> None:
    """Without all steps the rows are the samples themselves; mean and std may be given per channel."""
    clip = moving_frames(2, 28, 56)
    plain = ArlowVideoProcessor(do_resize=False, do_rescale=False, do_normalize=False)(clip)["pixel_values_videos"]
    rows = plain_rows(list(clip), 28, 56)
    np.testing.assert_allclose(plain, rows, atol=1e-4)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    output = ArlowVideoProcessor(do_resize=False)(clip, image_mean=mean, image_std=std)["pixel_values_videos"]
    samples = (plain / 255).reshape(-1, 3, 2 * 14 * 14)
    expected = (samples - np.array(mean)[:, None]) / np.array(std)[:, None]
    np.testing.assert_allclose(output, expected.reshape(output.shape), atol=1e-6)
    with pytest.raises(ValueError, match="do_resize=False needs multiples"):
        ArlowVideoProcessor(do_resize=False)(moving_frames(2, 30, 56))


def test_full_size_frames_are_not_kept(tmp_path: Path) -> None:
    """Frames are resized as they come: of a large clip never more than a few full-size frames exist at once."""
    import tracemalloc

    path = write_video(tmp_path / "clip.mp4", moving_frames(24, 480, 640))
    processor = ArlowVideoProcessor(max_pixels=56 * 56, do_sample_frames=False)
    processor(path)
    tracemalloc.start()
    processor(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 480 * 640 * 3  # 24 frames would be three times as much


def test_saved_and_loaded(tmp_path: Path) -> None:
    """Every option survives a save, also a missing rate; the policy does not, nor do per-call options."""
    processor = ArlowVideoProcessor(
        num_frames=6,
        patch_size=16,
        sample_strategy="motion_adaptive",
        max_tokens_per_video=99,
        min_pixels=1024,
        image_mean=[0.1, 0.2, 0.3],
    )
    processor.policy = MediaPolicy(max_bytes=5)
    processor.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert not {"policy", "return_tensors", "video_metadata", "device", "min_pixels"} & set(text)
    loaded = ArlowVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.fps, loaded.num_frames, loaded.min_pixels, loaded.max_tokens_per_video) == (None, 6, 1024, 99)
    assert loaded.policy.max_bytes != 5
    assert ArlowVideoProcessor.from_pretrained(tmp_path, patch_size=14).patch_size == 14
    everything = ArlowVideoProcessor.from_dict(ArlowVideoProcessor(fps=None).to_dict())
    assert everything.fps is None and everything.num_frames is None


def test_an_override_puts_the_saved_count_or_rate_aside(tmp_path: Path) -> None:
    """`num_frames` at load replaces a saved `fps`, and the reverse, through every class that loads; not both."""
    auto = importlib.import_module("transformers.models.auto.video_processing_auto").AutoVideoProcessor
    by_rate, by_count = tmp_path / "rate", tmp_path / "count"
    tiny_processor().save_pretrained(by_rate)
    tiny_processor().save_pretrained(by_count)
    ArlowVideoProcessor(fps=2).save_pretrained(by_rate)
    ArlowVideoProcessor(num_frames=6).save_pretrained(by_count)
    for folder in (by_rate, by_count):  # the nested file would win
        path = folder / "processor_config.json"
        content = json.loads(path.read_text())
        content["video_processor"] = json.loads((folder / "video_preprocessor_config.json").read_text())
        path.write_text(json.dumps(content))
    for load in (ArlowVideoProcessor, auto, AutoProcessor, ArlowProcessor):
        for folder in (by_rate, by_count):
            for override, expected in (({"num_frames": 3}, (None, 3)), ({"fps": 5}, (5, None))):
                loaded = load.from_pretrained(folder, **override)
                loaded = loaded.video_processor if isinstance(loaded, ArlowProcessor) else loaded
                assert (loaded.fps, loaded.num_frames) == expected
        with pytest.raises(ValueError, match="excludes num_frames=3"):
            load.from_pretrained(by_rate, fps=1, num_frames=3)
    assert ArlowVideoProcessor.from_pretrained(by_count).num_frames == 6


def test_misspelt_options_at_load(tmp_path: Path) -> None:
    """A keyword that is no option is a TypeError naming it; with `return_unused_kwargs` it comes back."""
    ArlowVideoProcessor().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"from_pretrained: unknown option 'fsp'; did you mean 'fps'"):
        ArlowVideoProcessor.from_pretrained(tmp_path, fsp=1)
    loaded, unused = ArlowVideoProcessor.from_pretrained(tmp_path, fps=1, fsp=1, return_unused_kwargs=True)
    assert loaded.fps == 1 and unused["fsp"] == 1
    assert ArlowVideoProcessor.from_pretrained(tmp_path, cache_dir=None, revision="main", token=None).fps == 2
    newer = ArlowVideoProcessor(num_frames=3).to_dict() | {"sharpen": 1}
    assert ArlowVideoProcessor.from_dict(newer).num_frames == 3


def test_numbers_of_other_libraries(tmp_path: Path) -> None:
    """NumPy's numbers and fractions are options like any other, and can be saved."""
    clip = numbered_frames(12)
    processor = ArlowVideoProcessor(num_frames=np.int64(4), min_frames=np.int32(2), max_tokens_per_video=np.uint8(99))
    processor.save_pretrained(tmp_path)
    assert ArlowVideoProcessor.from_pretrained(tmp_path).num_frames == 4
    assert processor(clip)["video_grid_thw"][0, 0] == 2
    assert processor(clip, num_frames=np.int16(6))["video_grid_thw"][0, 0] == 3
    metadata = VideoMetadata(total_num_frames=12, fps=Fraction(6))
    assert processor.sample_frames(metadata, fps=Fraction(3)).tolist() == [0, 2, 4, 6, 8, 10]
    through = tiny_processor()(videos=[clip], text=["<video>"], num_frames=np.int64(6))
    assert through["video_grid_thw"][0, 0] == 3


def test_an_animation_that_pillow_opened_is_a_video() -> None:
    """Every frame of it, with its times, as from its file; in a list, and not among single frames."""
    frames = [Image.fromarray(frame) for frame in moving_frames(10, 56, 84)]
    for format in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:], duration=[100, 300] * 5)
        image = Image.open(buffer)
        image.seek(4)
        for videos in (image, [image], [[image]]):
            output = ArlowVideoProcessor(do_sample_frames=False)(videos, return_metadata=True)
            (metadata,) = output["video_metadata"]
            assert metadata.timestamps == pytest.approx([0.4 * (k // 2) + 0.1 * (k % 2) for k in range(10)])
            assert output["video_grid_thw"].tolist() == [[5, 4, 6]]
        assert image.tell() == 4
        values = output["pixel_values_videos"]
        near = ArlowVideoProcessor(do_sample_frames=False)([each.convert("RGB") for each in frames])
        assert np.abs(values - near["pixel_values_videos"]).mean() < 0.05  # palettes and WebP change colours
        assert ArlowVideoProcessor()([image, image])["video_grid_thw"].shape == (2, 3)
        with pytest.raises(ValueError, match="list of its own"):
            ArlowVideoProcessor()([image, frames[0]])
        with pytest.raises(ValueError, match=r"video\[1\]: an animation among the frames"):
            open_video(Frames((frames[0], image)))
        with pytest.raises(ValueError, match="10 frames are more than the policy keeps"):
            open_video(image, policy=MediaPolicy(max_frames=9))
        cut = (
            Image.open(io.BytesIO(buffer.getvalue()[: len(buffer.getvalue()) * 7 // 10])) if format != "WEBP" else None
        )
        if cut is not None:
            with pytest.raises(OSError, match=r"video\S*=.* image of 56x84 pixels"):
                list(open_video(cut).frames([0]))


def test_three_axes_are_ambiguous() -> None:
    """Grey frames and one picture with channels first look alike: an error; said so, both are read."""
    processor = ArlowVideoProcessor(do_sample_frames=False)
    grey = moving_frames(4, 56, 84)[..., 0]
    for videos in (grey, [grey], [[torch.from_numpy(grey)]], grey[:3], np.repeat(grey, 4, axis=0)):
        with pytest.raises(ValueError, match=r"\(T, H, W, C\).*input_data_format"):
            processor(videos)
    assert processor(grey[..., None])["video_grid_thw"].tolist() == [[2, 4, 6]]
    still = processor(grey[:3], input_data_format="channels_first")
    assert still["video_grid_thw"].tolist() == [[1, 4, 6]]
    picture = processor(np.moveaxis(grey[:3], 0, -1))  # one picture, beyond doubt
    assert np.array_equal(picture["pixel_values_videos"], still["pixel_values_videos"])


def test_rows_of_none_hold_no_video() -> None:
    """Beside rows of videos, None is a row without one; beside videos it is an error."""
    clip = moving_frames(4, 56, 84)
    assert ArlowVideoProcessor()([[clip], None, [clip]])["video_grid_thw"].shape == (2, 3)
    with pytest.raises(TypeError, match=r"videos\[1\]=None"):
        ArlowVideoProcessor()([clip, None])


def test_auto_class_loads_it(tmp_path: Path) -> None:
    """`AutoVideoProcessor` finds the class by the name in the saved file."""
    auto = importlib.import_module("transformers.models.auto.video_processing_auto").AutoVideoProcessor
    ArlowVideoProcessor(num_frames=5).save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is ArlowVideoProcessor and loaded.num_frames == 5


def test_loads_where_only_an_image_processor_was_saved() -> None:
    """The geometry is taken from the picture's configuration, options of pictures alone and their budget are not."""
    saved = {
        "image_processor_type": "ArlowImageProcessor",
        "patch_size": 16,
        "do_pan_and_scan": True,
        "size": {"shortest_edge": 1024, "longest_edge": 10**7},
    }
    processor = ArlowVideoProcessor.from_dict(saved)
    assert processor.patch_size == 16 and processor.max_pixels == ArlowVideoProcessor().max_pixels


def test_every_option_is_declared() -> None:
    """The TypedDict names each option of the class, and a default of each can be given again."""
    names = set(ArlowVideoProcessorKwargs.__annotations__)
    processor = ArlowVideoProcessor()
    assert set(processor.to_dict()) - {"video_processor_type"} <= names
    assert set(processor._valid_kwargs_names) == names
    given = {name: getattr(processor, name) for name in names if hasattr(processor, name)}
    given.pop("num_frames")
    assert ArlowVideoProcessor(**given).to_dict() == processor.to_dict()


def test_none_means_the_default(tmp_path: Path) -> None:
    """Options that are None at construction are kept so and mean the default; for `fps` None is a value of its own."""
    names = set(ArlowVideoProcessorKwargs.__annotations__) - {"fps"}
    given, clip = ArlowVideoProcessor(**dict.fromkeys(names)), numbered_frames(12)
    given.save_pretrained(tmp_path)
    loaded = ArlowVideoProcessor.from_pretrained(tmp_path)
    assert loaded.max_frames is None and loaded.fps == 2 and loaded.to_dict() == given.to_dict()
    times = [VideoMetadata(total_num_frames=12, fps=6)]
    expected = ArlowVideoProcessor()(clip, video_metadata=times)["pixel_values_videos"]
    for each in (given, loaded):
        np.testing.assert_array_equal(each(clip, video_metadata=times)["pixel_values_videos"], expected)
    given.fps = None
    given.save_pretrained(tmp_path)
    whole = ArlowVideoProcessor.from_pretrained(tmp_path)
    assert whole.fps is None and ArlowVideoProcessor(fps=None).fps is None
    assert whole(clip, video_metadata=times)["video_grid_thw"][0, 0] == 6


def test_bounds_in_size_by_either_name() -> None:
    """`size` may name the bounds as saved files of other models do."""
    size = {"min_pixels": 1024, "max_pixels": 9000}
    processor = ArlowVideoProcessor(size=size)
    assert dict(processor.size) == {"shortest_edge": 1024, "longest_edge": 9000}
    patches = processor.get_num_of_video_patches(4, 500, 300)
    assert patches == ArlowVideoProcessor().get_num_of_video_patches(4, 500, 300, {"size": size})
    with pytest.raises(ValueError, match=r"^size="):
        ArlowVideoProcessor(size={"min_pixels": 1024, "shortest_edge": 1024})


def test_sizes_of_nothing_are_refused() -> None:
    """A clip without height or width has no patches to count, also when it is not resized."""
    for options in ({"do_resize": False}, {"do_resize": False, "max_tokens_per_video": 9}, {}):
        with pytest.raises(ValueError, match="video of 0x28 pixels"):
            ArlowVideoProcessor().get_num_of_video_patches(2, 0, 28, options)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"nun_frames": 3}, TypeError, "did you mean 'num_frames'"),
        ({"do_center_crop": True}, TypeError, "do_center_crop"),
        ({"fps": 0}, ValueError, "fps=0"),
        ({"fps": True}, ValueError, "fps=True"),
        ({"fps": float("inf")}, ValueError, "fps=inf"),
        ({"num_frames": 0}, ValueError, "num_frames=0"),
        ({"num_frames": 2.5}, ValueError, "num_frames=2.5"),
        ({"min_frames": 9, "max_frames": 8}, ValueError, "min_frames=9"),
        ({"patch_size": -1}, ValueError, "patch_size=-1"),
        ({"temporal_patch_size": 0}, ValueError, "temporal_patch_size=0"),
        ({"max_tokens_per_video": 0}, ValueError, "max_tokens_per_video=0"),
        ({"sample_strategy": "random"}, ValueError, "sample_strategy='random'"),
        ({"size": {"height": 3, "width": 3}}, ValueError, "size="),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, ValueError, "shortest_edge"),
        ({"size": {"shortest_edge": 8, "longest_edge": 9}}, ValueError, "max_pixels=9"),
        ({"size": 224}, ValueError, "size=224"),
        ({"resample": 17}, ValueError, "resample=17"),
        ({"image_mean": [0.5, 0.5]}, ValueError, "image_mean"),
        ({"image_mean": []}, ValueError, "image_mean="),
        ({"image_std": 0}, ValueError, "image_std=0"),
        ({"fps": 10**400}, ValueError, "fps=1000"),
        ({"rescale_factor": "x"}, ValueError, "rescale_factor='x'"),
        ({"do_resize": 1}, ValueError, "do_resize=1"),
        ({"value_range": "0..2"}, ValueError, "value_range"),
        ({"input_data_format": "NHWC"}, ValueError, "input_data_format"),
        ({"do_rescale": False, "value_range": "0..1"}, ValueError, "do_rescale=False"),
    ],
)
def test_impossible_options(options: dict, error: type[Exception], named: str) -> None:
    """A wrong option is refused alike by the constructor and by a call, naming field and value."""
    with pytest.raises(error, match=named):
        ArlowVideoProcessor(**options)
    with pytest.raises(error, match=named):
        ArlowVideoProcessor()(moving_frames(2), **options)


@pytest.mark.parametrize(
    ("videos", "options", "error", "named"),
    [
        ([], {}, ValueError, "holds no video"),
        ([[], []], {}, ValueError, "holds no video"),
        (moving_frames(2), {"return_tensors": "tf"}, ValueError, "return_tensors='tf'"),
        (moving_frames(2), {"video_metadata": [{"fps": 1}] * 2}, ValueError, "2 entries for 1"),
        (moving_frames(2), {"video_metadata": {"rate": 1}}, ValueError, "'rate'"),
        (moving_frames(2), {"video_metadata": 3}, TypeError, "video_metadata=3"),
        ([moving_frames(2), "absent.mp4"], {}, FileNotFoundError, r"videos\[1\]"),
        (np.zeros((2, 4, 900, 3), np.uint8), {"input_data_format": "channels_last"}, ValueError, "aspect ratio"),
    ],
)
def test_bad_calls(videos: object, options: dict, error: type[Exception], named: str) -> None:
    """A call that cannot be answered is refused naming the video or the argument."""
    with pytest.raises(error, match=named):
        ArlowVideoProcessor()(videos, **options)


def test_policy_is_obeyed(tmp_path: Path) -> None:
    """The processor's own policy bounds what it opens."""
    path = write_video(tmp_path / "clip.mp4", moving_frames(9))
    processor = ArlowVideoProcessor(do_sample_frames=False)
    processor.policy = MediaPolicy(max_frames=4)
    with pytest.raises(ValueError, match="max_frames=4"):
        processor(path)


def test_fetch_videos_and_sample_frames(tmp_path: Path) -> None:
    """Transformers' own hooks go through the same border and the same choice of frames."""
    path = write_video(tmp_path / "clip.mp4", numbered_frames(20))
    processor = ArlowVideoProcessor(num_frames=4)
    frames, metadata = processor.fetch_videos(str(path), sample_indices_fn=processor.sample_frames)
    assert [number_of(frame) for frame in frames] == metadata.frames_indices == [0, 6, 13, 19]
    (several, all_metadata) = processor.fetch_videos([str(path), str(path)])
    assert len(several) == len(all_metadata) == 2 and len(several[0]) == 20


def test_threads_share_a_processor(tmp_path: Path) -> None:
    """Calls with different options at the same time give what each gives alone."""
    path = write_video(tmp_path / "clip.mp4", moving_frames(12, 56, 56))
    processor = ArlowVideoProcessor()
    questions = [{"num_frames": 4}, {"fps": 5}, {"do_sample_frames": False}, {"patch_size": 7, "num_frames": 2}]
    expected = [processor(path, **question)["pixel_values_videos"] for question in questions]
    results: dict[int, np.ndarray] = {}

    def run(index: int) -> None:
        for _ in range(3):
            results[index] = processor(path, **questions[index])["pixel_values_videos"]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[index], expected[index]) for index in range(4))
