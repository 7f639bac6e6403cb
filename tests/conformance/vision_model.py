"""The vision encoder alone under Transformers' model mixin: a batch is a number of equal images, packed."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from saved_names import check_saved_names
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor

from arlow import ArlowVisionConfig, ArlowVLVisionModel


GRID = (1, 4, 4)  # patches along t, h, w
PATCHES = 16  # of an image
ROW = 3 * 4 * 4  # pixels of a patch


class VisionModelTester:
    """Small configs and inputs, with the attribute names the mixin reads."""

    is_training = False  # an encoder has no loss of its own
    batch_size = 3
    seq_length = batch_size * PATCHES  # packed: all patches of the batch are one sequence
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> ArlowVisionConfig:
        return ArlowVisionConfig(
            depth=self.num_hidden_layers,
            embed_dim=self.hidden_size,
            hidden_size=24,
            num_heads=self.num_attention_heads,
            mlp_ratio=2,
            patch_size=4,
            deepstack_visual_indexes=[0],
            use_progressive_patches=True,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[ArlowVisionConfig, dict[str, torch.Tensor]]:
        return self.get_config(), images(self.batch_size)


def images(count: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": floats_tensor([count * PATCHES, ROW]), "grid_thw": torch.tensor([GRID] * count)}


class VisionConfigTest(unittest.TestCase):
    mixin = "ConfigTester"
    model_tester: VisionModelTester

    def test_config(self) -> None:
        """The vision config has the properties, round trips and defaults of every Transformers config."""
        self.model_tester = VisionModelTester(self)
        ConfigTester(self, config_class=ArlowVisionConfig, has_text_modality=False, embed_dim=64).run_common_tests()


class VisionModelTest(ModelTesterMixin, unittest.TestCase):
    model_tester: Any = None
    all_model_classes = (ArlowVLVisionModel,)
    test_resize_embeddings = False  # it has none
    test_can_init_all_missing_weights_before_2023 = True  # run it: it reads the age of a model from a file header

    def setUp(self) -> None:
        self.model_tester = VisionModelTester(self)

    def _prepare_for_class(self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False) -> dict:
        """Some tests keep a number of rows of the main input and drop the rest: each row becomes an image."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if "grid_thw" not in inputs:
            inputs.update(images(len(inputs["pixel_values"])))
        return inputs

    def test_model_get_set_embeddings(self) -> None:
        """The input embedding of an encoder is its patch embedding, not an nn.Embedding; it has no output one."""
        model = ArlowVLVisionModel(self.model_tester.get_config())
        self.assertIs(model.get_input_embeddings(), model.patch_embed)
        self.assertIsNone(model.get_output_embeddings())

    def test_attention_outputs(self) -> None:
        """A layer's attention weights are one tensor per group of equal items: (items, heads, patches, patches)."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = ArlowVLVisionModel._from_config(config, attn_implementation="eager").eval()
        layers = model(**inputs, output_attentions=True).attentions
        self.assertEqual(len(layers), self.model_tester.num_hidden_layers)
        for (weights,) in layers:
            self.assertEqual(list(weights.shape), [self.model_tester.batch_size, 4, PATCHES, PATCHES])
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))

    def test_retain_grad_hidden_states_attentions(self) -> None:
        """Gradients reach the recorded hidden states and, group by group, the attention weights."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = ArlowVLVisionModel._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
        kept = [outputs.hidden_states[0], *outputs.attentions[0]]
        for tensor in kept:
            tensor.retain_grad()
        outputs.last_hidden_state.flatten()[0].backward()
        self.assertTrue(all(tensor.grad is not None for tensor in kept))

    def test_reverse_loading_mapping(self) -> None:
        """A save writes today's names: the conversions are for earlier files alone, and are not undone."""
        check_saved_names(self, self.model_tester, self.all_model_classes)
