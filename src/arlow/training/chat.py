"""What alignment and fine-tuning share: the fields for chat data, and a run over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator
from transformers import PreTrainedModel

from ..data.bad_samples import LIST_NAME, BadSamples
from ..data.conversations import PIXELS, Collator, Conversations, JsonLines, SimilarLengths, Table
from ..data.draws import Draws
from ..errors import message
from ..processing_arlow import ArlowProcessor
from .loop import ArlowTrainer, run, samples_per_step, total_draws
from .recipe import CommonRecipe, FilePath


Part = Literal["text", "vision", "merger"]
GROUPS: dict[
    str, tuple[str, ...]
] = {  # part of the model -> what its parameters' names contain; the longest match counts
    "text": ("language_model.", "lm_head."),
    "vision": ("visual.",),
    "merger": ("visual.merger.", "visual.deepstack_mergers."),
}


class Source(BaseModel):
    """One source of conversations."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True)

    path: FilePath | None = Field(None, description="a JSONL file; media paths in it are relative to its folder")
    dataset: str | None = Field(None, description="a `datasets` name or saved table with a column messages")
    config: str | None = Field(None, description="of the data set")
    split: str = Field("train", description="of the data set")
    weight: float = Field(1.0, ge=0.1, description="how often a pass takes each row, in tenths")

    @field_validator("weight")
    @classmethod
    def _check_weight(cls, value: float) -> float:
        if abs(10 * value - round(10 * value)) > 1e-6:
            raise ValueError("goes in tenths")
        return value

    @model_validator(mode="after")
    def _check_one(self) -> Source:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path or dataset")
        return self


class ChatRecipe(CommonRecipe):
    """The fields of a stage that trains on conversations."""

    data: list[Source] = Field(
        min_length=1, description="JSONL files, or sources with path | dataset, config, split and weight"
    )
    eval_data: list[Source] = Field(default_factory=list, description="held-out conversations for the evaluation loss")
    max_length: PositiveInt | None = Field(
        None, description="tokens; a longer conversation is a bad sample, never cut; default: what the model can take"
    )
    packing: bool = Field(True, description="several conversations share a row without seeing each other")
    cache: bool = Field(False, description="keep decoded samples in memory: for several passes over a small set")

    @field_validator("data", "eval_data", mode="before")
    @classmethod
    def _read_sources(cls, value: Any) -> Any:
        value = value if isinstance(value, list) else [value]
        return [{"path": each} if isinstance(each, (str, Path)) else each for each in value]


def read_conversations(
    sources: list[Source], *, processor: ArlowProcessor, max_length: int, cache: bool, field: str
) -> Conversations:
    """The rows of a recipe's sources, those in `field`; raises where a file is missing or empty."""
    rows = [
        (
            JsonLines(each.path, field=field)
            if each.path is not None
            else Table(str(each.dataset), config=each.config, split=each.split, field=f"{field}.dataset"),
            each.weight,
        )
        for each in sources
    ]
    return Conversations(processor, rows, max_length=max_length, cache=cache)


def train_on_chats(
    recipe: ChatRecipe,
    *,
    model: PreTrainedModel,
    processor: ArlowProcessor,
    learning_rates: Mapping[Any, float] | None = None,
    record: CommonRecipe | None = None,
    besides: int = 0,
) -> Path:
    """Train what requires gradients on the recipe's conversations; see [`run`].

    Args:
        learning_rates: by part of the model, see `GROUPS`.
        record: the recipe as the user gave it, where this run is one part of it.
        besides: bytes that will be written besides checkpoints and the model at the end.
    """
    limit = model.config.get_text_config().max_position_embeddings
    if recipe.max_length is not None and recipe.max_length > limit:
        problem = f"the model takes max_position_embeddings={limit}"
        raise ValueError(message("max_length", recipe.max_length, problem))
    read = partial(read_conversations, processor=processor, max_length=recipe.max_length or limit, cache=recipe.cache)
    train = read(recipe.data, field="data")
    held_out = read(recipe.eval_data, field="eval_data") if recipe.eval_data else None
    bad = BadSamples(recipe.output_dir / LIST_NAME, limit=recipe.bad_samples_limit)

    def draws(rows: Conversations, count: int) -> Draws:
        order: dict[str, Any] = {"count": count, "seed": recipe.seed, "passes": rows.passes}
        return Draws(rows.items.tolist(), rows.load, bad_samples=bad, name=rows.name, **order)

    data: Any = draws(train, total_draws(recipe, train.epoch))
    if not recipe.packing:
        data = SimilarLengths(data, lambda item: int(train.sizes[item]), step=samples_per_step(recipe))
    rates = {name: rate for part, rate in (learning_rates or {}).items() for name in GROUPS[part]}
    folder = run(
        recipe,
        model=model,
        train_data=data,
        eval_data=None if held_out is None else draws(held_out, held_out.epoch),
        collate=Collator(processor, packing=recipe.packing),
        processing=processor,
        learning_rates=rates,
        trainer_class=_ChatTrainer,
        record=record,
        besides=besides,
    )
    PartialState().wait_for_everyone()  # one process writes what all may read now
    return folder


class _ChatTrainer(ArlowTrainer):
    """One process trains as many do when a batch is text alone."""

    skip_logits = True

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if not model.training or self.args.world_size > 1 or any(name in inputs for name, _ in PIXELS.values()):
            return result
        # The encoder has no part in this batch. Beside other processes it would have run all the same, with gradients
        # of zero; without any, the optimizer would pass it over, and a lone merger's loss would have no gradient.
        visual = [p.sum() for name, p in model.named_parameters() if "visual" in name and p.requires_grad]
        nothing = 0 * torch.stack(visual).sum() if visual else 0
        return (result[0] + nothing, *result[1:]) if isinstance(result, tuple) else result + nothing


def freeze(model: PreTrainedModel, parts: Sequence[str]) -> None:
    """Exclude parts of the model (see `GROUPS`) from training.

    Raises:
        ValueError: nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        found = [(len(piece), part) for part, pieces in GROUPS.items() for piece in pieces if piece in name]
        if found and max(found)[1] in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(message("freeze", list(parts), "leaves nothing to train"))


def prepare_to_answer(model: PreTrainedModel, processor: ArlowProcessor) -> None:
    """Generation stops at the end of a text or of a turn, and pads with the tokenizer's padding."""
    tokenizer = processor.tokenizer
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(tokenizer.im_end_token)]
    model.generation_config.eos_token_id = list(dict.fromkeys(ends))
    model.generation_config.pad_token_id = tokenizer.pad_token_id
