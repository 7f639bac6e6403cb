"""The parts that a stage is given, as directories: found, loaded and checked against one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BitsAndBytesConfig

from ..checkpoint import check_checkpoint, listed
from ..configuration_arlow import ArlowTextConfig
from ..configuration_tower import TOWERS, ArlowTowerConfig
from ..earlier_config import todays_form
from ..errors import CheckpointMismatch, message
from ..extras import need
from ..modeling_arlow import ArlowForConditionalGeneration
from ..processing_arlow import ArlowProcessor
from ..tower_processing import ArlowTowerImageProcessor, ArlowTowerVideoProcessor
from ..towers import ArlowTower
from ..vision import ArlowVLVisionModel
from .loop import newest_checkpoint


ENCODER = "vision_encoder"  # the folder of a checkpoint of vision-mae that holds the encoder
IMAGE_PROCESSOR, VIDEO_PROCESSOR = "image_processor", "video_processor"  # those with its processors
PROCESSOR_FILES = {  # where either is saved
    IMAGE_PROCESSOR: ("preprocessor_config.json", "processor_config.json"),
    VIDEO_PROCESSOR: ("video_preprocessor_config.json", "processor_config.json"),
}


def model_type(folder: Path, *, field: str) -> str:
    """What kind of model a directory holds, also one of an earlier Arlow. Raises `OSError` if it is none or has no
    readable config.json."""
    if not folder.is_dir():
        raise OSError(message(field, str(folder), "no such directory"))
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        fields["model_type"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OSError(message(field, str(folder), "has no readable config.json with a model_type")) from error
    return str(todays_form(fields)["model_type"])


def find_encoder(folder: Path, *, field: str) -> Path:
    """The encoder of a directory: itself, its `vision_encoder`, or that of its newest checkpoint."""
    if not folder.is_dir():
        raise OSError(message(field, str(folder), "no such directory"))
    newest = newest_checkpoint(folder)
    for candidate in (folder / ENCODER, folder, *([newest / ENCODER] if newest else [])):
        if (candidate / "config.json").is_file():
            return candidate
    raise OSError(message(field, str(folder), f"neither it nor a {ENCODER} in it has a config.json"))


def load_encoder(folder: Path, *, field: str) -> ArlowVLVisionModel:
    """The vision encoder of a directory in float32: of an encoder, of a run of vision-mae, or of a vision-language
    model.

    Raises:
        OSError: no such directory, or no config in it.
        ValueError: a model without a vision encoder.
    """
    folder = find_encoder(folder, field=field)
    kind = model_type(folder, field=field)
    if kind in ("arlow_vision", "arlow"):
        return ArlowVLVisionModel.from_pretrained(folder, dtype=torch.float32)
    raise ValueError(message(field, str(folder), f"a model of type {kind!r} has no vision encoder"))


def is_tower(folder: Path) -> bool:
    """Whether a directory holds a vision model of Transformers, or a model of images and texts with one in it."""
    kind = model_type(folder, field="vision")
    return kind in TOWERS or f"{kind}_vision_model" in TOWERS


def load_tower(folder: Path, **options: Any) -> ArlowTower:
    """The vision model of a directory in float32, with a new projector.

    Args:
        options: fields of [`ArlowTowerConfig`].

    Raises:
        OSError: files are missing, damaged or pickled.
        ValueError: an option that does not fit the tower; tensors missing or of another shape.
    """
    config = ArlowTowerConfig(tower_config=AutoConfig.from_pretrained(folder), **options)
    check_checkpoint(folder)
    tower, report = AutoModel.from_pretrained(
        folder, config=config.tower_config, dtype=torch.float32, output_loading_info=True, use_safetensors=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    wrong = {name for name, *_ in report["mismatched_keys"]}
    for problem, names in (("missing", set(report["missing_keys"]) - wrong), ("of another shape", wrong)):
        if names:
            raise CheckpointMismatch(f"vision={str(folder)!r}: tensors {problem}: {listed(names)}")
    encoder = ArlowTower(config)
    encoder.tower.load_state_dict(tower.state_dict())
    return encoder


def tower_processors(
    folder: Path, config: ArlowTowerConfig
) -> tuple[ArlowTowerImageProcessor, ArlowTowerVideoProcessor]:
    """Processors around the one that is saved with a tower."""
    own = AutoImageProcessor.from_pretrained(folder).to_dict()
    options = {"tower_processor": own, "patch_size": config.patch_size, "merge_size": config.spatial_merge_size}
    return ArlowTowerImageProcessor(**options), ArlowTowerVideoProcessor(**options)


def find_processor(encoder: Path, part: str) -> Path | None:
    """Where the processor (`part`) that prepared an encoder's media was saved: in its folder or, if that is called
    `vision_encoder`, beside it."""
    encoder = encoder.absolute()
    for folder in (encoder, *([encoder.parent] if encoder.name == ENCODER else [])):
        for candidate in (folder / part, folder):
            if any((candidate / name).is_file() for name in PROCESSOR_FILES[part]):
                return candidate
    return None


def load_model(
    folder: Path, *, attention: str = "sdpa", bits: int | None = None
) -> tuple[ArlowForConditionalGeneration, ArlowProcessor]:
    """Model (float32, or quantised to 4 or 8 bits) and processor of a directory.

    Raises:
        OSError: no such directory, or files in it are missing or damaged.
        ValueError: it holds another kind of model, or a tokenizer that does not match it.
        ImportError: `bits` without bitsandbytes.
    """
    kind = model_type(folder, field="model")
    if kind != "arlow":
        raise ValueError(message("model", str(folder), f"a model of type {kind}, not a vision-language one (arlow)"))
    processor = ArlowProcessor.from_pretrained(folder)
    model = ArlowForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, quantization_config=_quantization(bits)
    )
    check_vocabulary(processor.tokenizer, model.config.text_config)
    return model, processor


def _quantization(bits: int | None) -> BitsAndBytesConfig | None:
    if bits is None:
        return None
    need("bitsandbytes", "quant")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def check_tokenizer(tokenizer: Any, config: ArlowTextConfig, special: tuple[str, ...] = ("eos_token_id",)) -> None:
    """Raises `ValueError` where a tokenizer cannot be that of a text model with this config: it has no end of a text,
    more tokens than the model, or other `special` tokens. Models of other families name some that their tokenizers do
    not have; but where a text ends, they agree."""
    if tokenizer.eos_token_id is None:
        raise ValueError(message("tokenizer", tokenizer.name_or_path, "has no eos token to end documents with"))
    check_vocabulary(tokenizer, config)
    for name in special:
        wanted, own = getattr(config, name), getattr(tokenizer, name)
        if wanted is not None and own not in (wanted if isinstance(wanted, list) else [wanted]):
            raise ValueError(message("tokenizer", tokenizer.name_or_path, f"has {name}={own}, the model {wanted}"))


def check_vocabulary(tokenizer: Any, config: ArlowTextConfig) -> None:
    """Raises `ValueError` if the tokenizer has ids for which the model has no embedding."""
    if len(tokenizer) > config.vocab_size:
        problem = f"has {len(tokenizer)} tokens, the model vocab_size={config.vocab_size}"
        raise ValueError(message("tokenizer", tokenizer.name_or_path, problem))
