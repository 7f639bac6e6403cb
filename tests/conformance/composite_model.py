"""The vision-language model under Transformers' model and tensor parallelism mixins: one image and one video a row."""

from __future__ import annotations

import unittest
from typing import Any
from unittest.mock import patch

import torch
from saved_names import check_saved_names
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_tensor_parallel_mixin import TensorParallelTesterMixin

from arlow import ArlowConfig, ArlowForConditionalGeneration, ArlowModel
from tests import test_tensor_parallel_mixin


test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None

VOCABULARY = 99
# The parallelism tests feed random text to the model, drawn with seed 0. These ids are not in it: Arlow refuses a
# placeholder without an image, as its contract says.
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END = 77, 78, 80, 82
SPECIAL = (IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END)
PATCH, MERGE, FRAMES, CHANNELS = 4, 2, 2, 3
IMAGE_GRID, VIDEO_GRID = (1, 4, 4), (2, 2, 4)  # patches along t, h, w


class CompositeModelTester:
    """Small configs and inputs, with the attribute names the mixins read."""

    conditional_generation_class = ArlowForConditionalGeneration
    base_model_class = ArlowModel
    is_training = True
    batch_size = 7
    seq_length = 20
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    vocab_size = VOCABULARY
    num_labels = 3
    pad_token_id = 0

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent
        self.text_config = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 48,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "mrope_sections": [4, 2, 2],
            "pad_token_id": self.pad_token_id,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        self.vision_config = {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": self.hidden_size,
            "num_heads": 4,
            "mlp_ratio": 2,
            "in_channels": CHANNELS,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "deepstack_visual_indexes": [0],
        }

    def get_config(self) -> ArlowConfig:
        return ArlowConfig(
            text_config=dict(self.text_config),
            vision_config=dict(self.vision_config),
            image_token_id=IMAGE_TOKEN,
            video_token_id=VIDEO_TOKEN,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
            use_gated_cross_attention=True,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[ArlowConfig, dict[str, torch.Tensor]]:
        ids = text_ids((self.batch_size, self.seq_length), self.vocab_size)
        images, videos = (t * h * w // MERGE**2 for t, h, w in (IMAGE_GRID, VIDEO_GRID))
        ids[:, 2 : 2 + images] = IMAGE_TOKEN
        ids[:, 8 : 8 + videos] = VIDEO_TOKEN
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media_of(ids)}


def text_ids(shape: tuple[int, ...], vocab_size: int, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Random ids without special tokens."""
    ids = ids_tensor(shape, vocab_size, *args, **kwargs)
    return ids.masked_fill(torch.isin(ids, torch.tensor((0, 1, 2, *SPECIAL))), 5)


def media_of(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """An image and a video of random pixels for every row, and what the processor says about the tokens."""
    image_patches, video_patches = (t * h * w for t, h, w in (IMAGE_GRID, VIDEO_GRID))
    return {
        "mm_token_type_ids": (ids == IMAGE_TOKEN).long() + 2 * (ids == VIDEO_TOKEN),
        "pixel_values": floats_tensor([len(ids) * image_patches, CHANNELS * PATCH**2]),
        "image_grid_thw": torch.tensor([IMAGE_GRID] * len(ids)),
        "pixel_values_videos": floats_tensor([len(ids) * video_patches, CHANNELS * FRAMES * PATCH**2]),
        "video_grid_thw": torch.tensor([VIDEO_GRID] * len(ids)),
    }


class CompositeConfigTest(unittest.TestCase):
    mixin = "ConfigTester"
    model_tester: CompositeModelTester

    def test_config(self) -> None:
        """The composite config round trips, and its parts load from its file as configs of their own."""
        self.model_tester = CompositeModelTester(self)
        ConfigTester(self, config_class=ArlowConfig, has_text_modality=False).run_common_tests()


class CompositeModelTest(ModelTesterMixin, GenerationTesterMixin, TensorParallelTesterMixin, unittest.TestCase):
    model_tester: Any = None
    all_model_classes = (ArlowModel, ArlowForConditionalGeneration)
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True  # run it: it reads the age of a model from a file header

    def setUp(self) -> None:
        self.model_tester = CompositeModelTester(self)
        # Tests that run on random text must not draw placeholders: without an image they are an error in Arlow.
        patcher = patch("tests.test_modeling_common.ids_tensor", text_ids)
        patcher.start()
        self.addCleanup(patcher.stop)

    def _prepare_for_class(self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False) -> dict:
        """Some tests keep the ids of the inputs and drop the pixels; placeholders in them get theirs back."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        ids = inputs.get("input_ids")
        if ids is not None and "pixel_values" not in inputs and bool((ids == IMAGE_TOKEN).any()):
            inputs.update(media_of(ids))
        return inputs

    def test_reverse_loading_mapping(self) -> None:
        """A save writes today's names: the conversions are for earlier files alone, and are not undone."""
        check_saved_names(self, self.model_tester, self.all_model_classes)
