"""The image processor under Transformers' mixin."""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np
import torch
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

from arlow import ArlowImageProcessor


class ArlowImageProcessingTester(ImageProcessingTester):
    """Small pictures and their options."""

    def __init__(self, parent: unittest.TestCase, **kwargs: Any) -> None:
        options = {
            "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56},
            "patch_size": 14,
            "merge_size": 2,
            "do_normalize": True,
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.5, 0.6, 0.7],
            "do_convert_rgb": True,
        }
        super().__init__(parent, max_resolution=120, **{**options, **kwargs})

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"torchvision": ArlowImageProcessor, "pil": ArlowImageProcessor}  # one class under both names


class ImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ArlowImageProcessingTester
    test_cast_dtype = True

    def check_packed(self, images: list) -> None:
        """Rows are packed over the batch, so their number follows from the grids, not from the batch size."""
        processor = ArlowImageProcessor(**self.image_processor_dict)
        alone = [processor(image, return_tensors="pt") for image in images]
        together = processor(images, return_tensors="pt")
        for key in ("pixel_values", "image_grid_thw"):
            torch.testing.assert_close(together[key], torch.cat([one[key] for one in alone]), rtol=0, atol=0)
        rows = int(together.image_grid_thw.prod(-1).sum())
        self.assertEqual(tuple(together.pixel_values.shape), (rows, 3 * 14 * 14))

    def test_call_pil(self) -> None:
        """PIL images, alone and in a batch, give the packed rows their grids describe."""
        self.check_packed(self.image_processor_tester.prepare_image_inputs())

    def test_call_numpy(self) -> None:
        """NumPy images, alone and in a batch, give the packed rows their grids describe."""
        self.check_packed(self.image_processor_tester.prepare_image_inputs(numpify=True))

    def test_call_pytorch(self) -> None:
        """Tensors, alone and in a batch, give the packed rows their grids describe."""
        self.check_packed(self.image_processor_tester.prepare_image_inputs(torchify=True))

    def test_call_numpy_4_channels(self) -> None:
        """A fourth channel is alpha, which goes over white; the model has no place for it without conversion."""
        processor = ArlowImageProcessor(**self.image_processor_dict)
        rgba = self.image_processor_tester.prepare_image_inputs(num_channels=4, numpify=True)[0]
        alpha = rgba[..., 3:] / 255
        flat = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        seen, expected = (processor(image, return_tensors="pt").pixel_values for image in (rgba, flat))
        torch.testing.assert_close(seen, expected, rtol=0, atol=4 / 255 / 0.5)  # rounding, then interpolation
        with self.assertRaisesRegex(ValueError, "do_convert_rgb"):
            processor(rgba, do_convert_rgb=False)

    def test_image_processor_preprocess_arguments(self) -> None:
        """The mixin looks for a declared list of arguments; Arlow refuses an unknown one, also at construction."""
        image = self.image_processor_tester.prepare_image_inputs()[0]
        with self.assertRaisesRegex(TypeError, "extra_argument"):
            ArlowImageProcessor(**self.image_processor_dict)(image, extra_argument=True)
        with self.assertRaisesRegex(TypeError, "extra_argument"):
            ArlowImageProcessor(extra_argument=True)

    def test_override_instance_attributes_does_not_affect_other_instances(self) -> None:
        """The mixin looks for lists; here sizes belong to an instance, and means and deviations cannot change."""
        one, two = ArlowImageProcessor(), ArlowImageProcessor()
        one.size["shortest_edge"] = 1
        self.assertEqual(two.size["shortest_edge"], 56 * 56)
        self.assertIsInstance(one.image_mean, tuple)
        self.assertIsInstance(one.image_std, tuple)
