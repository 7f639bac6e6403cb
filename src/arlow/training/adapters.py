"""Low-rank adapters (LoRA, arXiv 2106.09685; QLoRA, 2305.14314) through PEFT: put on, saved, merged.

Directory of a merged fine-tuning run: the model at the top, what was trained in `adapter/`.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from transformers import AutoConfig, PreTrainedModel

from ..errors import cut, message
from ..extras import need
from ..modeling_arlow import ArlowForConditionalGeneration
from ..processing_arlow import ArlowProcessor
from .chat import prepare_to_answer


ADAPTER = "adapter"  # where the adapter of a merged model stays, in its directory
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")
DECODER_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraRecipe(BaseModel):
    """The field `lora` of a recipe."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True)

    r: PositiveInt = Field(8, description="rank of the adapters")
    alpha: PositiveInt = Field(16, description="the adapters' output is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' input")
    targets: list[str] = Field(DECODER_LINEAR, min_length=1, description="linear layers of the decoder, by name")
    vision: bool = Field(False, description="adapt the linear layers of the vision encoder, too")


def add_adapter(model: PreTrainedModel, lora: LoraRecipe, *, checkpointing: bool = False) -> Any:
    """The model with fresh adapters, which alone are trained: a `peft.PeftModel`.

    Raises:
        ValueError: a target that is no linear layer of the decoder.
        ImportError: PEFT is not installed.
    """
    peft = need("peft", "train")
    known = {name.rsplit(".", 1)[-1] for name, layer in model.named_modules() if _in_decoder(name, layer)}
    for target in lora.targets:
        if target not in known:
            raise ValueError(
                message("lora.targets", target, f"no linear layer of the decoder; there are {sorted(known)}")
            )
    pattern = rf".*language_model\.layers\.\d+\..*\b({'|'.join(map(re.escape, lora.targets))})"
    if lora.vision:
        pattern = "|".join([pattern, *(re.escape(name) for name in _vision_linear(model))])
    config = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=pattern, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, config)
    if checkpointing:  # a checkpointed layer needs an input that requires gradients, and embeddings are frozen
        model.enable_input_require_grads()
    return adapted


def _vision_linear(model: PreTrainedModel) -> list[str]:
    """The linear layers of the vision encoder, without mergers and the projector."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and re.search(r"visual\.(blocks|tower)\.", name)
    ]


def _in_decoder(name: str, layer: torch.nn.Module) -> bool:
    return "language_model.layers." in name and isinstance(layer, torch.nn.Linear)


# After training


def save_merged(folder: Path, base: Path) -> None:
    """Move the adapter at the top of a run's directory to `adapter/`, and put the merged model in its place."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        inside = folder / ADAPTER
        inside.mkdir(exist_ok=True)
        for name in ADAPTER_FILES:
            if (folder / name).exists():
                shutil.move(folder / name, inside / name)
        merge_adapter(inside, folder, model=base, processor=folder)
    PartialState().wait_for_everyone()


def merge_adapter(adapter: Path, out: Path, *, model: Path | None = None, processor: Path | None = None) -> Path:
    """Write a plain checkpoint with its processor: the model with the adapter's changes added to its weights.

    The sums are made in float32 and stored in the dtype of the model's weights.

    Args:
        adapter: directory with adapter_config.json.
        out: directory to write.
        model: the model the adapter was trained on; default: the one it names.
        processor: directory of the processor; default: the adapter's own, or the model's.

    Raises:
        OSError: a directory or file is missing or damaged, or `out` cannot be written.
        ValueError: the adapter does not fit the model.
        ImportError: PEFT is not installed.
    """
    peft = need("peft", "train")
    if not (adapter / "adapter_config.json").is_file():
        raise OSError(message("adapter", str(adapter), "has no adapter_config.json"))
    if model is None:
        model = Path(peft.PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path or "")
    if not model.is_dir():
        raise OSError(message("model", str(model), "no such directory", "say which model the adapter belongs to"))
    if processor is None:
        processor = adapter if (adapter / "processor_config.json").is_file() else model
    base = ArlowForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    dtype = AutoConfig.from_pretrained(model).dtype or torch.float32
    try:
        adapted = peft.PeftModel.from_pretrained(base, str(adapter))
        merged = adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(cut(message("adapter", str(adapter), f"does not fit the model ({error})"))) from error
    loaded = ArlowProcessor.from_pretrained(processor)
    prepared = merged.to(dtype)
    prepare_to_answer(prepared, loaded)
    prepared.save_pretrained(out)
    loaded.save_pretrained(out)
    return out


# The verb `arlow merge-adapter`


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.usage = "arlow merge-adapter [MODEL] ADAPTER OUT"
    parser.description = "Add a LoRA adapter to the weights of its model; the result needs no PEFT."
    parser.epilog = "example: arlow merge-adapter runs/lora/adapter my-model"
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="[MODEL] ADAPTER OUT",
        help="the model, if not the one the adapter names",
    )


def check(options: argparse.Namespace) -> Callable[[], int]:
    """The work of a command line; raises `ValueError` for a wrong number of folders, or an `out` that is in use."""
    if len(options.folders) not in (2, 3):
        raise ValueError(message("merge-adapter", len(options.folders), "folders", "give [MODEL] ADAPTER OUT"))
    *model, adapter, out = options.folders
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(message("out", str(out), "is not an empty directory"))
    for name, folder in (("adapter", adapter), *(("model", each) for each in model)):
        if not folder.is_dir():
            raise OSError(message(name, str(folder), "no such directory"))

    def work() -> int:
        print(f"wrote {merge_adapter(adapter, out, model=model[0] if model else None)}")
        return 0

    return work
