"""A picture and a clip as files, and a small checkpoint with its processor, for the tests of evaluation and chat."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw
from tiny_models import tiny_vlm
from tiny_processing import tiny_processor
from video_samples import moving_frames, write_video


def draw_picture(path: Path, *, color: str = "red") -> Path:
    """A circle in the middle, 320 x 240 pixels."""
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((100, 60, 220, 180), fill=color)
    image.save(path)
    return path


def draw_clip(path: Path) -> Path:
    """A block that walks to the right, one second."""
    return write_video(path, moving_frames(10))


def model_and_processor():
    """A vision-language model with random weights, and a processor that fits it."""
    processor = tiny_processor()
    return tiny_vlm(text={"vocab_size": len(processor.tokenizer)}, vision={"patch_size": 14}), processor


def save_checkpoint(folder: Path) -> Path:
    for part in model_and_processor():
        part.save_pretrained(folder)
    return folder


def write_lines(path, records):
    path.write_text("".join(f"{json.dumps(record) if isinstance(record, dict) else record}\n" for record in records))
    return path
