"""Bad configs, and bad inputs of the text models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from text_samples import VOCAB, causal_lm, cross_config, token_ids
from transformers import AutoConfig

from arlow import (
    ArlowConfig,
    ArlowForCausalLM,
    ArlowForConditionalGeneration,
    ArlowForQuestionAnswering,
    ArlowForSequenceClassification,
    ArlowForTokenClassification,
    ArlowTextConfig,
    ArlowVisionConfig,
)

from . import BadInput


CONFIG, MODEL = "configs", "text model"


def text(**fields: Any) -> Callable[[Path], object]:
    return lambda _: ArlowTextConfig.tiny(**fields)


def vision(**fields: Any) -> Callable[[Path], object]:
    return lambda _: ArlowVisionConfig.tiny(**fields)


def composite(**fields: Any) -> Callable[[Path], object]:
    return lambda _: ArlowConfig.tiny(**fields)


def rope(**parameters: Any) -> Callable[[Path], object]:
    return text(rope_parameters=parameters)


def config_file(content: Any, kind: Any = AutoConfig) -> Callable[[Path], object]:
    """An attempt to load a `config.json` with this content."""

    def attempt(folder: Path) -> object:
        (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return kind.from_pretrained(folder)

    return attempt


def forward(**inputs: Any) -> Callable[[Path], object]:
    return lambda _: causal_lm()(**inputs)


def head(kind: Any, **inputs: Any) -> Callable[[Path], object]:
    """A head of three classes over two rows."""
    return lambda _: kind(ArlowTextConfig.tiny(num_labels=3, pad_token_id=0))(IDS, **inputs)


def rows(**inputs: Any) -> Callable[[Path], object]:
    return head(ArlowForSequenceClassification, **inputs)


def spans(**inputs: Any) -> Callable[[Path], object]:
    return head(ArlowForQuestionAnswering, **inputs)


def part_of_another(saved: Any, kind: Any) -> Callable[[Path], object]:
    """An attempt to load the config of another part."""

    def attempt(folder: Path) -> object:
        saved.tiny().save_pretrained(folder)
        return kind.from_pretrained(folder)

    return attempt


def crossed(**inputs: Any) -> Callable[[Path], object]:
    return lambda _: causal_lm(cross_config())(token_ids(2, 5), **inputs)


def smaller_batch(_: Path) -> object:
    model = causal_lm(cross_config())
    cache = model(token_ids(2, 5), encoder_hidden_states=torch.ones(2, 6, 24)).past_key_values
    cache.batch_select_indices(torch.tensor([0]))
    return model(token_ids(1, 1), past_key_values=cache)


def other_shapes(folder: Path) -> object:
    causal_lm().save_pretrained(folder)
    return ArlowForCausalLM.from_pretrained(folder, config=causal_lm(cross_config(hidden_size=40)).config)


IDS = torch.ones(2, 3, dtype=torch.long)
COMPOSITE = ArlowConfig.tiny().to_dict()
YARN = {"rope_type": "yarn", "factor": 2.0}

FIELDS = [
    ("misspelt field", text(num_hiden_layers=3), "num_hiden_layers=3"),
    ("misspelt field in a nested dict", composite(text_config={"num_hiden_layers": 3}), "num_hiden_layers=3"),
    ("field by position", lambda _: ArlowTextConfig(512), "positional"),
    ("number as text", text(vocab_size="512"), "vocab_size"),
    ("no vocabulary", text(vocab_size=0), "vocab_size=0"),
    ("negative layers", text(num_hidden_layers=-1), "num_hidden_layers=-1"),
    ("width that heads do not divide", text(hidden_size=66), "hidden_size=66"),
    ("key heads that do not divide", text(num_key_value_heads=3), "num_key_value_heads=3"),
    ("odd head size", text(head_dim=15), "head_dim=15"),
    ("unknown activation", text(hidden_act="sillu"), "hidden_act='sillu'"),
    ("dropout of one", text(attention_dropout=1.0), "attention_dropout=1.0"),
    ("dropout that is no number", text(mlp_dropout=float("nan")), "mlp_dropout=nan"),
    ("infinite epsilon", text(rms_norm_eps=float("inf")), "rms_norm_eps=inf"),
    ("negative deviation", text(initializer_range=-0.02), "initializer_range=-0.02"),
    ("unknown layer type", text(layer_types=["full_attention", "local"]), "layer_types"),
    ("too few layer types", text(layer_types=["full_attention"]), "layer_types"),
    ("window of nothing", text(layer_types=["sliding_attention"] * 2, sliding_window=0), "sliding_window=0"),
    ("sections that do not sum", text(mrope_sections=[8, 4, 3]), "mrope_sections=[8, 4, 3]"),
    ("two sections", text(mrope_sections=[8, 8]), "mrope_sections=[8, 8]"),
    (
        "cross-attention in a layer there is not",
        text(use_cross_attention=True, cross_attention_layers=[2]),
        "cross_attention_layers=[2]",
    ),
    (
        "cross-attention in a layer there is not, switched off",
        text(cross_attention_layers=[99]),
        "cross_attention_layers=[99]",
    ),
    ("padding outside the vocabulary", text(pad_token_id=512), "pad_token_id=512"),
    ("end outside the vocabulary", text(eos_token_id=512), "eos_token_id=512"),
    ("second end that is negative", text(eos_token_id=[1, -3]), "eos_token_id=[1, -3]"),
    ("negative start", text(bos_token_id=-5), "bos_token_id=-5"),
    ("unknown problem type", text(problem_type="ranking"), "problem_type='ranking'"),
    ("unknown dtype", text(dtype="float33"), "dtype='float33'"),
    ("no labels", text(num_labels=0), "num_labels=0"),
    ("unknown rope type", rope(rope_type="ropey"), "ropey"),
    ("rope without its factor", rope(rope_type="linear"), "factor"),
    ("rope that shrinks", rope(rope_type="linear", factor=0.5), "factor"),
    ("rope that scales by a negative", rope(**YARN, attention_factor=-1), "attention_factor"),
    ("rope base of zero", rope(rope_type="default", rope_theta=0), "rope_theta"),
    ("rope that turns half a head", rope(**YARN, partial_rotary_factor=0.5), "partial_rotary_factor"),
    (
        "rope factors for another head size",
        rope(rope_type="longrope", short_factor=[1.0], long_factor=[1.0]),
        "factor",
    ),
    ("rope as text", text(rope_parameters="yarn"), "rope_parameters='yarn'"),
    ("rope scaling as text", text(rope_scaling="yarn"), "rope_scaling='yarn'"),
    ("encoder width that heads do not divide", vision(embed_dim=33), "embed_dim=33"),
    ("MLP of no width", vision(mlp_ratio=1e-9), "mlp_ratio=1e-09"),
    ("patches of nothing", vision(patch_size=0), "patch_size=0"),
    ("negative deformable strength", vision(deformable_attention_strength=-1.0), "deformable_attention_strength=-1.0"),
    ("pruning everything", vision(token_pruning_ratio=1.0), "token_pruning_ratio=1.0"),
    ("window of half a frame group", vision(temporal_window_size=0.5), "temporal_window_size"),
    ("tap behind the last block", vision(deepstack_visual_indexes=[2]), "deepstack_visual_indexes=[2]"),
    ("taps out of order", vision(deepstack_visual_indexes=[1, 0]), "deepstack_visual_indexes=[1, 0]"),
    ("placeholder outside the vocabulary", composite(image_token_id=512), "image_token_id=512"),
    ("two placeholders alike", composite(video_token_id=5), "video_token_id=5"),
    ("injection into a layer there is not", composite(deepstack_decoder_layers=[2]), "deepstack_decoder_layers=[2]"),
    ("injection into a list", composite(deepstack_decoder_layers=[[0]]), "deepstack_decoder_layers=[[0]]"),
    ("injections without taps", composite(deepstack_decoder_layers=[0, 1]), "deepstack_decoder_layers=[0, 1]"),
    ("widths that differ", composite(vision_config=ArlowVisionConfig.tiny(hidden_size=32)), "hidden_size=32"),
    ("vision config as text config", composite(text_config=ArlowVisionConfig.tiny()), "text_config"),
    ("text directory as vision config", part_of_another(ArlowTextConfig, ArlowVisionConfig), "a text config"),
    ("text directory as composite config", part_of_another(ArlowTextConfig, ArlowConfig), "a text config"),
    ("vision directory as text config", part_of_another(ArlowVisionConfig, ArlowTextConfig), "a vision config"),
    ("flat config of an earlier generation", lambda _: ArlowConfig(num_hidden_layers=4), "num_hidden_layers=4"),
    ("flat config file", config_file({"model_type": "arlow", "num_hidden_layers": 4}), "flat config"),
    ("bad value deep in a file", config_file({**COMPOSITE, "text_config": {"vocab_size": -1}}), "vocab_size=-1"),
    ("list for a part in a file", config_file({**COMPOSITE, "vision_config": [1]}), "vision_config=[1]"),
]
FILES = [
    ("half a config file", config_file('{"model_type": "arlow",', ArlowConfig), "config.json"),
    ("list for a config file", config_file([1, 2], ArlowConfig), "config.json"),
    ("missing directory", lambda at: ArlowConfig.from_pretrained(at / "nowhere"), "nowhere"),
]
INPUTS = [
    ("neither ids nor embeddings", forward(), "neither"),
    ("both ids and embeddings", forward(input_ids=IDS, inputs_embeds=torch.zeros(2, 3, 32)), "both"),
    ("ids of one dimension", forward(input_ids=IDS[0]), "input_ids"),
    ("ids as floats", forward(input_ids=IDS.float()), "input_ids"),
    ("no tokens", forward(input_ids=IDS[:, :0]), "input_ids"),
    ("no rows", forward(input_ids=IDS[:0]), "input_ids"),
    ("embeddings of no tokens", forward(inputs_embeds=torch.zeros(1, 0, 32)), "inputs_embeds"),
    ("id beyond the vocabulary", forward(input_ids=IDS * VOCAB), f"input_ids[0, 0]={VOCAB}"),
    ("negative id", forward(input_ids=-IDS), "input_ids[0, 0]=-1"),
    ("embeddings of another width", forward(inputs_embeds=torch.zeros(2, 3, 31)), "inputs_embeds"),
    ("positions as floats", forward(input_ids=IDS, position_ids=torch.zeros(2, 3)), "position_ids"),
    ("positions of another length", forward(input_ids=IDS, position_ids=torch.arange(4)[None]), "position_ids"),
    ("positions on two axes", forward(input_ids=IDS, position_ids=torch.zeros(2, 2, 3).long()), "position_ids"),
    ("mask of another length", forward(input_ids=IDS, attention_mask=torch.ones(2, 2)), "attention_mask"),
    ("mask of another batch", forward(input_ids=IDS, attention_mask=torch.ones(1, 3)), "attention_mask"),
    ("labels of another shape", forward(input_ids=IDS, labels=IDS[:1]), "labels"),
    ("label beyond the vocabulary", forward(input_ids=IDS, labels=IDS * VOCAB), f"labels[0, 0]={VOCAB}"),
    ("labels with few logits", forward(input_ids=IDS, labels=IDS, logits_to_keep=1), "logits_to_keep=1"),
    ("logits of a position there is not", forward(input_ids=IDS, logits_to_keep=torch.tensor([99])), "99"),
    ("fewer than no logits", forward(input_ids=IDS, logits_to_keep=-1), "logits_to_keep=-1"),
    ("picture for a text model", forward(input_ids=IDS, pixel_values=torch.zeros(4, 48)), "reads text only"),
    ("class of a row there is not", rows(labels=torch.tensor([5, 1])), "labels[0]=5"),
    ("classes for other rows", rows(labels=torch.tensor([1, 1, 1])), "labels"),
    ("whole numbers for several labels", rows(labels=torch.ones(2, 3, dtype=torch.long)), "labels"),
    ("numbers of another shape", rows(labels=torch.ones(2, 2)), "labels"),
    ("start of an answer without its end", spans(start_positions=torch.tensor([1, 1])), "end_positions=None"),
    (
        "answers for other rows",
        spans(start_positions=torch.tensor([1]), end_positions=torch.tensor([1, 1])),
        "start_positions",
    ),
    (
        "class there is not",
        lambda _: ArlowForTokenClassification(ArlowTextConfig.tiny(num_labels=3))(IDS, labels=IDS * 3),
        "labels[0, 0]=3",
    ),
    ("encoder for a model without", forward(input_ids=IDS, encoder_hidden_states=torch.ones(2, 3, 32)), "no cross"),
    ("encoder of another batch", crossed(encoder_hidden_states=torch.ones(1, 6, 24)), "encoder_hidden_states"),
    ("encoder of another width", crossed(encoder_hidden_states=torch.ones(2, 6, 25)), "encoder_hidden_size=24"),
    ("encoder of no tokens", crossed(encoder_hidden_states=torch.ones(2, 0, 24)), "encoder_hidden_states"),
    (
        "encoder mask of another shape",
        crossed(encoder_hidden_states=torch.ones(2, 6, 24), encoder_attention_mask=torch.ones(2, 5)),
        "encoder_attention_mask",
    ),
    ("encoder mask alone", crossed(encoder_attention_mask=torch.ones(2, 6)), "encoder_attention_mask"),
    ("encoder of a cache with more rows", smaller_batch, "encoder_hidden_states"),
    ("unknown attention backend", lambda _: causal_lm(backend="flash_atention_2"), "flash_atention_2"),
    ("checkpoint of other sizes", other_shapes, "shape"),
]
WRONG_KIND = [
    ("ids as a list", forward(input_ids=IDS.tolist()), "input_ids"),
    ("embeddings as a list", forward(inputs_embeds=[[[0.0]]]), "inputs_embeds"),
    ("mask as a list", forward(input_ids=IDS, attention_mask=IDS.tolist()), "attention_mask"),
    ("positions as a list", forward(input_ids=IDS, position_ids=[[0, 1, 2]]), "position_ids"),
    ("labels as a list", forward(input_ids=IDS, labels=IDS.tolist()), "labels"),
    ("cache of tuples", forward(input_ids=IDS, past_key_values=((torch.zeros(2, 2, 1, 8),) * 2,) * 2), "DynamicCache"),
    ("cache as text", forward(input_ids=IDS, past_key_values="dynamic"), "past_key_values='dynamic'"),
    ("misspelt labels of rows", rows(label=torch.tensor([1, 1])), "'labels'"),
    ("misspelt labels of tokens", head(ArlowForTokenClassification, label=IDS), "'labels'"),
    ("misspelt start of an answer", spans(start_position=torch.tensor([1, 1])), "'start_positions'"),
    ("misspelt labels of no head", lambda _: causal_lm().model(IDS, label=IDS), "'labels'"),
    ("composite config for a text model", lambda _: ArlowForCausalLM(ArlowConfig.tiny()), "ArlowTextConfig"),
    (
        "text config for a composite model",
        lambda _: ArlowForConditionalGeneration(ArlowTextConfig.tiny()),
        "ArlowConfig",
    ),
]

CASES = [
    *[BadInput(name, CONFIG, attempt, ValueError, says) for name, attempt, says in FIELDS],
    *[BadInput(name, CONFIG, attempt, OSError, says) for name, attempt, says in FILES],
    *[BadInput(name, MODEL, attempt, ValueError, says) for name, attempt, says in INPUTS],
    *[BadInput(name, MODEL, attempt, TypeError, says) for name, attempt, says in WRONG_KIND],
]
