"""Alignment: a vision encoder and a text model in, a vision-language model with a trained merger between them out.

First the merger (and the DeepStack mergers) learn while both towers stay as they are; then, where the recipe has
`then_everything`, all weights. That second part is a run of its own, from what the first one wrote to `merger/`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NegativeInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from ..chat_template import CHAT_TEMPLATE
from ..configuration_arlow import ArlowConfig, ArlowVisionConfig
from ..configuration_tower import ArlowTowerConfig
from ..errors import message
from ..image_processing_arlow import ArlowImageProcessor
from ..modeling_arlow import ArlowForCausalLM, ArlowForConditionalGeneration
from ..processing_arlow import ArlowProcessor
from ..tokenization_arlow import ArlowTokenizer
from ..video_processing_arlow import ArlowVideoProcessor
from .chat import ChatRecipe, Part, freeze, prepare_to_answer, train_on_chats
from .loop import check_output, newest_checkpoint
from .parts import (
    IMAGE_PROCESSOR,
    VIDEO_PROCESSOR,
    check_tokenizer,
    find_encoder,
    find_processor,
    is_tower,
    load_encoder,
    load_model,
    load_tower,
    model_type,
    tower_processors,
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


class Tower(BaseModel):
    """The field `tower`: how a vision model of Transformers is joined to the text model; see [`ArlowTowerConfig`]."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True)

    spatial_merge_size: PositiveInt = Field(1, description="patches per side of a token (pixel shuffle)")
    projector: Literal["mlp", "linear"] = Field("mlp", description="norm and an MLP, or norm and one linear layer")
    feature_layer: NegativeInt = Field(-1, description="hidden state of the tower: -1 its output, -2 the one before")


class Recipe(ChatRecipe):
    """Fields of the stage `align`."""

    vision: FilePath = Field(
        description="directory of a vision encoder, a checkpoint of vision-mae, or a vision model of Transformers"
    )
    text: FilePath = Field(description="directory of a text model with its tokenizer")
    tower: Tower | None = Field(
        None, description="of a vision model of Transformers: spatial_merge_size, projector, feature_layer"
    )
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
    set_seed(recipe.seed)  # of new mergers, and of embeddings of new tokens
    text, tokenizer = _load_text(recipe.text)
    if is_tower(folder):
        options = {} if recipe.tower is None else recipe.tower.model_dump()
        encoder = load_tower(folder, hidden_size=text.config.hidden_size, **options)
        images, videos = tower_processors(folder, encoder.config)
    else:
        encoder = load_encoder(folder, field="vision")
        images = ArlowImageProcessor.from_pretrained(_processor_of(folder, IMAGE_PROCESSOR))
        videos = ArlowVideoProcessor.from_pretrained(_processor_of(folder, VIDEO_PROCESSOR))
    processor = ArlowProcessor(images, tokenizer, videos)
    _check_geometry(processor, encoder.config)
    config = _joined(encoder.config, text.config, tokenizer, recipe)
    model = ArlowForConditionalGeneration._from_config(
        config, attn_implementation=recipe.attention, dtype=torch.float32
    )
    model.model.language_model.load_state_dict(text.model.state_dict(), strict=False)  # gates are not the text's
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    _take_encoder(model.model.visual, encoder)
    prepare_to_answer(model, processor)
    return model, processor


def _load_text(folder: Path) -> tuple[ArlowForCausalLM, ArlowTokenizer]:
    """The text model and its tokenizer. One that knows nothing of pictures, a converted one, gets the tokens that
    conversations need, and Arlow's template; the model then gets embeddings for them."""
    tokenizer = ArlowTokenizer.from_pretrained(folder)
    text = ArlowForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not _knows_pictures(folder, tokenizer):
        tokenizer.chat_template = CHAT_TEMPLATE
        new = len(tokenizer) - text.config.vocab_size
        if new > 0:
            logger.warning(f"text: {new} tokens are new, with embeddings made anew")
            text.resize_token_embeddings(len(tokenizer))
    check_tokenizer(tokenizer, text.config)
    return text, tokenizer


def _knows_pictures(folder: Path, tokenizer: ArlowTokenizer) -> bool:
    """Whether the saved tokenizer had the placeholder of an image before it was loaded, which adds it."""
    file = folder / "tokenizer.json"
    if not file.is_file():  # vocab.json and merges.txt: only Arlow's own are saved so
        return True
    saved = json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or []
    return tokenizer.image_token in [token["content"] for token in saved]


def _processor_of(encoder: Path, part: str) -> Path:
    found = find_processor(encoder, part)
    if found is None:
        raise OSError(message("vision", str(encoder), f"has no {part} beside it"))
    return found


def _check_geometry(processor: ArlowProcessor, config: ArlowVisionConfig | ArlowTowerConfig) -> None:
    for part in (processor.image_processor, processor.video_processor):
        for name, wanted in (
            ("patch_size", config.patch_size),
            ("merge_size", config.spatial_merge_size),
            ("temporal_patch_size", config.temporal_patch_size),
        ):
            if getattr(part, name) != wanted:
                problem = f"of the {type(part).__name__}; the encoder has {wanted}"
                raise ValueError(message(name, getattr(part, name), problem))
    images = processor.image_processor
    images.token_pruning_ratio = config.token_pruning_ratio
    if isinstance(config, ArlowVisionConfig):  # what the encoder has seen: uint8 rows are to look the same
        config.image_mean, config.image_std = images.image_mean, images.image_std


def _joined(
    vision: ArlowVisionConfig | ArlowTowerConfig, text: Any, tokenizer: ArlowTokenizer, recipe: Recipe
) -> ArlowConfig:
    """The config of the whole model. Raises `ValueError` for DeepStack layers that do not exist."""
    if isinstance(vision, ArlowTowerConfig):
        if recipe.deepstack_visual_indexes:
            problem = "a vision model of Transformers has no DeepStack"
            raise ValueError(message("deepstack_visual_indexes", recipe.deepstack_visual_indexes, problem))
    else:
        fields = {"hidden_size": text.hidden_size}
        if recipe.deepstack_visual_indexes is not None:
            fields["deepstack_visual_indexes"] = recipe.deepstack_visual_indexes
        vision = ArlowVisionConfig.from_dict({**vision.to_dict(), **fields})
    ids = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, name))
        for name in ("image_token", "video_token", "vision_start_token", "vision_end_token")
    }
    return ArlowConfig(
        text_config=copy.deepcopy(text),
        vision_config=vision,
        deepstack_decoder_layers=recipe.deepstack_decoder_layers,
        **ids,
    )


def _take_encoder(visual: PreTrainedModel, encoder: PreTrainedModel) -> None:
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
