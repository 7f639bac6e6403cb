"""The text decoder and its heads under Transformers' model, training and parallelism mixins."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from saved_names import check_saved_names
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_fsdp_mixin import FSDPTesterMixin
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask
from tests.test_tensor_parallel_mixin import TensorParallelTesterMixin
from tests.test_training_mixin import TrainingTesterMixin

from arlow import (
    ArlowForCausalLM,
    ArlowForQuestionAnswering,
    ArlowForSequenceClassification,
    ArlowForTokenClassification,
    ArlowTextConfig,
    ArlowTextModel,
)
from tests import test_fsdp_mixin, test_tensor_parallel_mixin


# The distributed tests run for a list of Transformers' own model types; `None` means for every model.
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
# They want a core for each rank; small ranks share them well.
test_fsdp_mixin._get_available_fsdp_workers = lambda: 4


class TextModelTester:
    """Small configs and inputs, with the attribute names the mixins read."""

    causal_lm_class = ArlowForCausalLM
    base_model_class = ArlowTextModel
    sequence_classification_class = ArlowForSequenceClassification
    is_training = True
    batch_size = 7
    seq_length = 9
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_key_value_heads = 2
    num_labels = 3
    pad_token_id = 0

    def __init__(self, parent: unittest.TestCase, **fields: Any) -> None:
        self.parent = parent
        self.fields = fields

    def get_config(self) -> ArlowTextConfig:
        sizes = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 48,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "max_position_embeddings": 512,
            "use_sliding_window": True,  # the second layer slides
            "max_window_layers": 1,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        return ArlowTextConfig(**{**sizes, **self.fields})

    def prepare_config_and_inputs_for_common(self) -> tuple[ArlowTextConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.seq_length)
        ids = ids_tensor(shape, self.vocab_size - 3) + 3  # no special tokens
        return self.get_config(), {"input_ids": ids, "attention_mask": random_attention_mask(shape)}


class TextConfigTest(unittest.TestCase):
    mixin = "ConfigTester"
    model_tester: TextModelTester

    def test_config(self) -> None:
        """The text config has the properties, round trips and defaults of every Transformers config."""
        self.model_tester = TextModelTester(self)
        ConfigTester(self, config_class=ArlowTextConfig, hidden_size=96).run_common_tests()


class TextModelTest(
    ModelTesterMixin,
    GenerationTesterMixin,
    TrainingTesterMixin,
    TensorParallelTesterMixin,
    FSDPTesterMixin,
    unittest.TestCase,
):
    model_tester = None
    all_model_classes = (
        ArlowTextModel,
        ArlowForCausalLM,
        ArlowForSequenceClassification,
        ArlowForTokenClassification,
        ArlowForQuestionAnswering,
    )
    test_can_init_all_missing_weights_before_2023 = True  # run it: it reads the age of a model from a file header

    def setUp(self) -> None:
        self.model_tester = TextModelTester(self)

    def test_reverse_loading_mapping(self) -> None:
        """A save writes today's names: the conversions are for earlier files alone, and are not undone."""
        check_saved_names(self, self.model_tester, self.all_model_classes)


class CrossAttentionModelTester(TextModelTester):
    """The same with cross-attention in the second layer."""

    def __init__(self, parent: unittest.TestCase) -> None:
        super().__init__(parent, use_cross_attention=True, cross_attention_layers=[1], encoder_hidden_size=24)

    def prepare_config_and_inputs_for_common(self) -> tuple[ArlowTextConfig, dict[str, torch.Tensor]]:
        config, inputs = super().prepare_config_and_inputs_for_common()
        shape = (self.batch_size, 5)
        encoder = {
            "encoder_hidden_states": floats_tensor([*shape, config.encoder_hidden_size]),
            "encoder_attention_mask": random_attention_mask(shape),
        }
        return config, {**inputs, **encoder}


class CrossAttentionModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    model_tester = None
    all_model_classes = (ArlowTextModel, ArlowForCausalLM)
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self) -> None:
        self.model_tester = CrossAttentionModelTester(self)

    def test_reverse_loading_mapping(self) -> None:
        """A save writes today's names: the conversions are for earlier files alone, and are not undone."""
        check_saved_names(self, self.model_tester, self.all_model_classes)
