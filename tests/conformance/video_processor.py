"""The video processor under Transformers' mixin."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from tests.test_video_processing_common import VideoProcessingTestMixin, prepare_video_inputs
from transformers.video_utils import VideoMetadata

from arlow import ArlowVideoProcessor


class ArlowVideoProcessingTester:
    """Small clips, with the attribute names the mixin reads."""

    batch_size = 3
    num_frames = 8
    num_channels = 3

    def prepare_video_inputs(self, equal_resolution: bool = False, return_tensors: str = "pil") -> list:
        return prepare_video_inputs(
            batch_size=self.batch_size,
            num_frames=self.num_frames,
            num_channels=self.num_channels,
            min_resolution=30,
            max_resolution=80,
            equal_resolution=equal_resolution,
            return_tensors=return_tensors,
        )


class VideoProcessorTest(VideoProcessingTestMixin, unittest.TestCase):
    fast_video_processing_class = ArlowVideoProcessor
    test_cast_dtype = True

    def setUp(self) -> None:
        super().setUp()
        self.video_processor_tester = ArlowVideoProcessingTester()

    @property
    def video_processor_dict(self) -> dict[str, Any]:
        return {
            "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "do_normalize": True,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.5, 0.6, 0.7],
        }

    def check_packed(self, videos: list) -> None:
        """Rows are packed over the batch, so their number follows from the grids, not from the batch size."""
        processor = ArlowVideoProcessor(**self.video_processor_dict)
        alone = [processor(video, return_tensors="pt") for video in videos]
        together = processor(videos, return_tensors="pt")
        for key in ("pixel_values_videos", "video_grid_thw"):
            torch.testing.assert_close(together[key], torch.cat([one[key] for one in alone]), rtol=0, atol=0)
        rows = int(together.video_grid_thw.prod(-1).sum())
        self.assertEqual(tuple(together.pixel_values_videos.shape), (rows, 3 * 2 * 14 * 14))
        self.assertEqual(together.video_grid_thw[:, 0].tolist(), [4] * len(videos))  # 8 frames, two a group

    def test_call_pil(self) -> None:
        """Lists of PIL images, alone and in a batch, give the packed rows their grids describe."""
        self.check_packed(self.video_processor_tester.prepare_video_inputs())

    def test_call_numpy(self) -> None:
        """NumPy clips, alone and in a batch, give the packed rows their grids describe."""
        self.check_packed(self.video_processor_tester.prepare_video_inputs(return_tensors="np"))

    def test_call_pytorch(self) -> None:
        """Tensors, alone and in a batch, give the packed rows their grids describe."""
        self.check_packed(self.video_processor_tester.prepare_video_inputs(return_tensors="torch"))

    def test_nested_input(self) -> None:
        """Lists of arrays, alone and in a batch, give the packed rows their grids describe."""
        clips = self.video_processor_tester.prepare_video_inputs(return_tensors="np")
        self.check_packed([list(clip) for clip in clips])

    def test_call_numpy_4_channels(self) -> None:
        """Frames with alpha are flattened over white: the same shape as without."""
        self.video_processor_tester.num_channels = 4
        self.check_packed(self.video_processor_tester.prepare_video_inputs())

    def test_call_sample_frames(self) -> None:
        """What is sampled shows in the grid (two frames a group); more frames than there are give all of them, since
        servers ask for a fixed number of every clip."""
        processor = ArlowVideoProcessor(**self.video_processor_dict)
        clips = self.video_processor_tester.prepare_video_inputs(return_tensors="torch")

        def groups(**options: Any) -> list[int]:
            return processor(clips, return_tensors="pt", **options).video_grid_thw[:, 0].tolist()

        self.assertEqual(groups(num_frames=3, do_sample_frames=False), [4, 4, 4])
        self.assertEqual(groups(num_frames=3), [2, 2, 2])
        self.assertEqual(groups(num_frames=10), [4, 4, 4])
        with self.assertRaises(ValueError):  # a rate needs the clip's own
            processor.sample_frames(metadata=VideoMetadata(total_num_frames=8), fps=3)
        facts = {"duration": 2.0, "total_num_frames": 8, "fps": 4}
        self.assertEqual(groups(fps=3, video_metadata=[[facts]] * 3), [3, 3, 3])
        self.assertEqual(groups(fps=3, video_metadata=[[VideoMetadata(**facts)]] * 3), [3, 3, 3])

    def test_video_processor_from_dict_with_kwargs(self) -> None:
        """Keywords win over the dict. A size is a budget of pixels here, one number or a crop has no meaning."""
        processor = ArlowVideoProcessor.from_dict(self.video_processor_dict)
        self.assertEqual(dict(processor.size), self.video_processor_dict["size"])
        size = {"shortest_edge": 42 * 42, "longest_edge": 84 * 84}
        processor = ArlowVideoProcessor.from_dict(self.video_processor_dict, size=size, max_frames=6)
        self.assertEqual((dict(processor.size), processor.max_frames), (size, 6))
        with self.assertRaisesRegex(ValueError, "size"):
            ArlowVideoProcessor.from_dict(self.video_processor_dict, size=42)

    def test_video_processor_preprocess_arguments(self) -> None:
        """The mixin looks for a declared list of arguments; Arlow refuses an unknown one, also at construction."""
        clip = self.video_processor_tester.prepare_video_inputs()[0]
        with self.assertRaisesRegex(TypeError, "extra_argument"):
            ArlowVideoProcessor(**self.video_processor_dict)(clip, extra_argument=True)
        with self.assertRaisesRegex(TypeError, "extra_argument"):
            ArlowVideoProcessor(extra_argument=True)

    def test_override_instance_attributes_does_not_affect_other_instances(self) -> None:
        """The mixin looks for lists; here sizes belong to an instance, and means and deviations cannot change."""
        one, two = ArlowVideoProcessor(), ArlowVideoProcessor()
        one.size["shortest_edge"] = 1
        self.assertEqual(two.size["shortest_edge"], 56 * 56)
        self.assertIsInstance(one.image_mean, tuple)
        self.assertIsInstance(one.image_std, tuple)
