"""Conversations about real files, and saved tiny models, encoders and text models to train on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from media_samples import write
from tiny_processing import tiny_processor
from video_samples import write_video

from arlow import ArlowConfig, ArlowForCausalLM, ArlowForConditionalGeneration, ArlowTextConfig, ArlowVisionConfig
from arlow.vision import ArlowVLVisionModel


PATCH = 8  # pixels: the tiny models' pictures are 32 x 32, four tokens
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}
SIZES = {"shortest_edge": 32 * 32, "longest_edge": 48 * 48}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    """A turn; strings are text, dicts are parts."""
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def assistant(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": words}


def image_file(folder: Path, name: str) -> dict[str, str]:
    """A PNG of one colour in `folder`, and the part that names it."""
    pixels = np.broadcast_to(np.array(COLOURS[name], dtype=np.uint8), (40, 40, 3)).copy()
    pixels[12:28, 12:28] = 128
    write(folder / f"{name}.png", pixels)
    return {"type": "image", "path": f"{name}.png"}


def video_file(folder: Path, name: str) -> dict[str, str]:
    """An MP4 of one second whose frames have one colour, and the part that names it."""
    frames = np.broadcast_to(np.array(COLOURS[name], dtype=np.uint8), (8, 32, 32, 3)).copy()
    write_video(folder / f"{name}.mp4", frames, rate=8)
    return {"type": "video", "path": f"{name}.mp4"}


def conversations(folder: Path) -> list[list[dict[str, Any]]]:
    """Eight conversations: of images, of videos, of both, of text; of one turn and of several."""
    folder.mkdir(parents=True, exist_ok=True)
    red, green, blue, white = (image_file(folder, name) for name in COLOURS)
    clip, other = video_file(folder, "red"), video_file(folder, "blue")
    return [
        [user(red, "Describe this image."), assistant("fox")],
        [user(green, "Describe this image."), assistant("dog"), user("one word"), assistant("lazy")],
        [user(blue, "Describe this image."), assistant("quick")],
        [user(clip, "What happens in this video?"), assistant("jumps")],
        [user(other, "What happens in this video?"), assistant("over")],
        [user(red, white, "compare these two images"), assistant("brown")],
        [user(white, "Describe", clip, "answer"), assistant("tool")],
        [{"role": "system", "content": "one word"}, user("The quick brown fox"), assistant("jumps over")],
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """A JSONL file; a list is a conversation, anything else is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        row if isinstance(row, str) else json.dumps({"messages": row} if isinstance(row, list) else row)
        for row in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def chat_processor() -> Any:
    return tiny_processor(size=SIZES, patch_size=PATCH)


def text_config(**overrides: Any) -> ArlowTextConfig:
    fields = {"vocab_size": len(chat_processor().tokenizer), "pad_token_id": 0, "eos_token_id": 0}
    return ArlowTextConfig.tiny(**{**fields, **overrides})


def vision_config(**overrides: Any) -> ArlowVisionConfig:
    return ArlowVisionConfig.tiny(**{"patch_size": PATCH, **overrides})


def save_model(folder: Path, *, seed: int = 0, vision: dict | None = None, **text: Any) -> Path:
    """A tiny vision-language model with its processor."""
    torch.manual_seed(seed)
    processor = chat_processor()
    tokenizer = processor.tokenizer
    config = ArlowConfig(
        text_config=text_config(**text),
        vision_config=vision_config(**(vision or {})),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    ArlowForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_towers(folder: Path, *, width: int | None = None, **vision: Any) -> tuple[Path, Path]:
    """A vision encoder as `vision-mae` leaves it, and a text model: (vision, text)."""
    torch.manual_seed(1)
    processor = chat_processor()
    config = text_config()
    encoder = ArlowVLVisionModel(vision_config(**{"hidden_size": width or config.hidden_size, **vision}))
    checkpoint = folder / "vision" / "checkpoint-5"
    encoder.save_pretrained(checkpoint / "vision_encoder")
    processor.image_processor.save_pretrained(checkpoint / "image_processor")
    processor.video_processor.save_pretrained(checkpoint / "video_processor")
    ArlowForCausalLM(config).save_pretrained(folder / "text")
    processor.tokenizer.save_pretrained(folder / "text")
    return checkpoint, folder / "text"


def quiet(**fields: Any) -> dict[str, Any]:
    """Fields of a small run on the CPU."""
    return {"device": "cpu", "log_steps": 10, "save_steps": 1000, "schedule": "constant", **fields}
