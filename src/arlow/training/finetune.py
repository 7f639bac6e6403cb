"""Fine-tuning on conversations: a vision-language model in, the same with new weights, or an adapter, out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator
from transformers import set_seed

from ..errors import cut
from .adapters import ADAPTER, LoraRecipe, add_adapter, save_merged
from .chat import ChatRecipe, Part, freeze, prepare_to_answer, train_on_chats
from .loop import TrainingError
from .parts import load_model
from .recipe import FilePath


class Recipe(ChatRecipe):
    """Fields of the stage `finetune`."""

    model: FilePath = Field(description="directory of a vision-language model with its processor")
    freeze: list[Part] = Field(default_factory=list, description="parts that stay as they are: text, vision, merger")
    learning_rates: dict[Part, PositiveFloat] = Field(
        default_factory=dict, description="peak learning rates of text, vision, merger where it is not learning_rate"
    )
    lora: LoraRecipe | None = Field(
        None, description="train low-rank adapters only: r, alpha, dropout, targets, vision; {} for the defaults"
    )
    quantize: Literal[4, 8] | None = Field(
        None, description="bits of the frozen weights under LoRA (QLoRA), through bitsandbytes"
    )
    save_adapter_only: bool = Field(
        False, description="with lora: write the adapter alone, not the model with the adapter merged into it"
    )

    @model_validator(mode="after")
    def _check_adapter(self) -> Recipe:
        for name in ("quantize", "save_adapter_only"):
            if getattr(self, name) and self.lora is None:
                raise ValueError(f"{name} needs lora")
        if self.lora is not None and self.freeze:
            raise ValueError("freeze goes without lora, which freezes everything but the adapters")
        return self


def train(recipe: Recipe) -> Path:
    """Run the stage.

    Returns:
        `output_dir`: the trained model, merged with its adapter if there is one (kept in `adapter/`); the adapter
        alone with `save_adapter_only`.

    Raises: as [`run`], and `ValueError` or `OSError` for a model directory or data that cannot be used;
        `TrainingError` where the adapter is trained and cannot be merged.
    """
    model, processor = load_model(recipe.model, attention=recipe.attention, bits=recipe.quantize)
    prepare_to_answer(model, processor)
    if recipe.lora is None:
        freeze(model, recipe.freeze)
    else:
        set_seed(recipe.seed)  # of the adapters
        model = add_adapter(model, recipe.lora, checkpointing=recipe.gradient_checkpointing)
    merged = recipe.lora is not None and not recipe.save_adapter_only
    weights = sum(path.stat().st_size for path in recipe.model.glob("*.safetensors")) if merged else 0
    rates = recipe.learning_rates
    folder = train_on_chats(recipe, model=model, processor=processor, learning_rates=rates, besides=weights)
    if merged:
        try:
            save_merged(folder, recipe.model)
        except (OSError, ValueError) as error:
            again = f"arlow merge-adapter {folder / ADAPTER} OUT"
            raise TrainingError(cut(f"trained, but not merged ({error}); once that is mended: {again}")) from error
    return folder
