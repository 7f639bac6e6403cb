"""Alignment: a vision encoder and a text model in, a vision-language model with a trained merger between them out.

First the merger (and the DeepStack mergers) learn while both towers stay as they are; then, where the recipe has
`then_everything`, all weights. That second part is a run of its own, from what the first one wrote to `merger/`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from transformers import set_seed
from transformers.utils import logging

from ..configuration_arlow import ArlowConfig, ArlowVisionConfig
from ..errors import message
from ..image_processing_arlow import ArlowImageProcessor
from ..modeling_arlow import ArlowForCausalLM, ArlowForConditionalGeneration
from ..processing_arlow import ArlowProcessor
from ..tokenization_arlow import ArlowTokenizer
from ..video_processing_arlow import ArlowVideoProcessor
from ..vision import ArlowVLVisionModel
from .chat import ChatRecipe, Part, freeze, prepare_to_answer, train_on_chats
from .loop import check_output, newest_checkpoint
from .parts import (
    IMAGE_PROCESSOR,
    VIDEO_PROCESSOR,
    check_tokenizer,
    find_encoder,
    find_processor,
    load_encoder,
    load_model,
    model_type,
)
from .recipe import FilePath


logger = logging.get_logger(__name__)

FIRST_RUN = "merger"  # the folder of output_dir for the run before `then_everything`


class Everything(BaseModel):
    """The field `then_everything`: what differs in the second run."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True)

    max_steps: PositiveInt | None = Field(None, description="optimiser steps; give this or epochs")
    epochs: PositiveFloat | None = Field(None, description="passes over the data")
    learning_rate: PositiveFloat = Field(1e-4, description="peak learning rate")
    learning_rates: dict[Part, PositiveFloat] = Field(
        default_factory=dict, description="of text, vision, merger where it is not learning_rate"
    )
    warmup_steps: NonNegativeFloat = Field(0, description="steps of linear warm-up; below 1: a share of all steps")

    @model_validator(mode="after")
    def _check_length(self) -> Everything:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give either max_steps or epochs")
        return self


class Recipe(ChatRecipe):
    """Fields of the stage `align`."""

    vision: FilePath = Field(description="directory of a vision encoder, or a checkpoint of vision-mae")
    text: FilePath = Field(description="directory of a text model with its tokenizer")
    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate of the mergers")
    deepstack_visual_indexes: list[int] | None = Field(
        None, description="encoder blocks that feed the decoder's first layers; default: the encoder's own"
    )
    deepstack_decoder_layers: list[int] | None = Field(
        None, description="decoder layers that they feed, one each; default: the first ones"
    )
    then_everything: Everything | None = Field(
        None, description="a second run that trains all weights: max_steps or epochs, learning_rate, learning_rates"
    )


def train(recipe: Recipe) -> Path:
    """Run the stage.

    Returns:
        `output_dir`: a vision-language model with its processor.

    Raises: as [`run`], and `ValueError` or `OSError` for towers, tokenizer or data that cannot be used.
    """
    model, processor = build(recipe)
    if recipe.then_everything is None:
        freeze(model, ["text", "vision"])
        return train_on_chats(recipe, model=model, processor=processor)
    then = recipe.then_everything
    changed = then.model_dump(exclude={"learning_rates"})
    second = recipe.model_copy(update={**changed, "seed": recipe.seed + 1})
    first = recipe.model_copy(update={"output_dir": recipe.output_dir / FIRST_RUN, "then_everything": None})
    check_output(second, model, record=recipe)
    if newest_checkpoint(second.output_dir) is None:
        freeze(model, ["text", "vision"])
        train_on_chats(first, model=model, processor=processor)
    model, processor = load_model(first.output_dir, attention=recipe.attention)
    rates = then.learning_rates
    return train_on_chats(second, model=model, processor=processor, learning_rates=rates, record=recipe)


def build(recipe: Recipe) -> tuple[ArlowForConditionalGeneration, ArlowProcessor]:
    """The untrained model, and its processor.

    Weights of the towers are theirs; a merger is the encoder's where it has the right width, else new.
    """
    kind = model_type(recipe.text, field="text")
    if kind != "arlow_text":
        raise ValueError(message("text", str(recipe.text), f"a model of type {kind}, not arlow_text"))
    folder = find_encoder(recipe.vision, field="vision")
    encoder = load_encoder(folder, field="vision")
    tokenizer = ArlowTokenizer.from_pretrained(recipe.text)
    text = ArlowForCausalLM.from_pretrained(recipe.text, dtype=torch.float32)
    check_tokenizer(tokenizer, text.config)
    images, videos = (_processor_of(folder, part) for part in (IMAGE_PROCESSOR, VIDEO_PROCESSOR))
    processor = ArlowProcessor(
        ArlowImageProcessor.from_pretrained(images), tokenizer, ArlowVideoProcessor.from_pretrained(videos)
    )
    _check_geometry(processor, encoder.config)
    set_seed(recipe.seed)  # of new mergers
    config = _joined(encoder.config, text.config, tokenizer, recipe)
    model = ArlowForConditionalGeneration._from_config(
        config, attn_implementation=recipe.attention, dtype=torch.float32
    )
    model.model.language_model.load_state_dict(text.model.state_dict(), strict=False)  # gates are not the text's
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    _take_encoder(model.model.visual, encoder)
    prepare_to_answer(model, processor)
    return model, processor


def _processor_of(encoder: Path, part: str) -> Path:
    found = find_processor(encoder, part)
    if found is None:
        raise OSError(message("vision", str(encoder), f"has no {part} beside it"))
    return found


def _check_geometry(processor: ArlowProcessor, config: ArlowVisionConfig) -> None:
    for part in (processor.image_processor, processor.video_processor):
        for name, wanted in (
            ("patch_size", config.patch_size),
            ("merge_size", config.spatial_merge_size),
            ("temporal_patch_size", config.temporal_patch_size),
        ):
            if getattr(part, name) != wanted:
                problem = f"of the {type(part).__name__}; the encoder has {wanted}"
                raise ValueError(message(name, getattr(part, name), problem))


def _joined(vision: ArlowVisionConfig, text: Any, tokenizer: ArlowTokenizer, recipe: Recipe) -> ArlowConfig:
    """The config of the whole model. Raises `ValueError` for DeepStack layers that do not exist."""
    fields = {"hidden_size": text.hidden_size}
    if recipe.deepstack_visual_indexes is not None:
        fields["deepstack_visual_indexes"] = recipe.deepstack_visual_indexes
    ids = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, name))
        for name in ("image_token", "video_token", "vision_start_token", "vision_end_token")
    }
    return ArlowConfig(
        text_config=copy.deepcopy(text),
        vision_config=ArlowVisionConfig.from_dict({**vision.to_dict(), **fields}),
        deepstack_decoder_layers=recipe.deepstack_decoder_layers,
        **ids,
    )


def _take_encoder(visual: ArlowVLVisionModel, encoder: ArlowVLVisionModel) -> None:
    """Copy the encoder's weights; mergers of another width, or for other blocks, stay new."""
    given = encoder.state_dict()
    if encoder.config.deepstack_visual_indexes != visual.config.deepstack_visual_indexes:
        given = {name: value for name, value in given.items() if not name.startswith("deepstack_mergers.")}
    own = visual.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    width, wanted = encoder.config.hidden_size, visual.config.hidden_size
    if width != wanted:
        fitting = {name: value for name, value in fitting.items() if "merger" not in name}
        logger.warning(f"merger: made anew, the encoder's gives a width of {width} and the text model has {wanted}")
    visual.load_state_dict(fitting, strict=False)
