"""The processor under Transformers' mixin."""

from __future__ import annotations

import tempfile
import unittest
from typing import Any

from tests.test_processing_common import MODALITY_TEST_SPECS, ProcessorTesterMixin, url_to_local_path
from tiny_processing import tiny_processor

from arlow import ArlowProcessor


# The mixin tells that an option arrived by negative pixels, from a rescale factor of -1. Arlow refuses that factor; a
# mean of white does the same.
for _modality in ("images", "videos"):
    MODALITY_TEST_SPECS[_modality]["init_time_kwargs"] = {"do_normalize": True, "image_mean": [1.0, 1.0, 1.0]}


class ProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = ArlowProcessor

    @classmethod
    def _setup_from_components(cls) -> ArlowProcessor:
        return tiny_processor()

    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        return {"chat_template": tiny_processor().chat_template}

    def test_args_overlap_kwargs(self) -> None:
        """A part given to from_pretrained wins over the saved one. The mixin marks it with an attribute of its own,
        which would be saved; Arlow's parts know declared options only."""
        processor = self.get_processor()
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            given = type(processor.image_processor)(max_tokens_per_image=5)
            loaded = ArlowProcessor.from_pretrained(folder, image_processor=given)
        self.assertEqual(loaded.image_processor.max_tokens_per_image, 5)

    def test_apply_chat_template_video_frame_sampling(self) -> None:
        """Sampling options reach the video processor. Rows are packed, so the count shows in the grid (two frames a
        group), and a list of frames may be sampled like any other clip."""
        film = url_to_local_path("tiny_video_320x240.mp4")  # 11 frames, 30 a second
        frames = [url_to_local_path("australia.jpg")] * 4
        for source, options, groups in (
            (film, {"num_frames": 3, "fps": None}, 2),
            (film, {"num_frames": None, "fps": 10}, 2),  # 4 frames, the least a rate may come to
            (film, {"do_sample_frames": False, "fps": 10}, 6),
            (film, {"do_sample_frames": False}, 6),
            (film, {}, 2),
            (frames, {"do_sample_frames": False}, 2),
            (frames, {"num_frames": 2}, 1),
        ):
            content = [{"type": "video", "url": source}, {"type": "text", "text": "What is shown?"}]
            out = self.get_processor().apply_chat_template(
                [[{"role": "user", "content": content}]],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=options,
            )
            self.assertEqual(out["video_grid_thw"][0, 0], groups, options)
            self.assertEqual(len(out["pixel_values_videos"]), out["video_grid_thw"].prod())
