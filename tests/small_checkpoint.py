"""A small checkpoint with random weights, a picture and a clip, as files: what examples of the docs run on."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from transformers import GenerationConfig

from arlow.configuration_arlow import ArlowConfig, ArlowTextConfig, ArlowVisionConfig
from arlow.image_processing_arlow import ArlowImageProcessor
from arlow.modeling_arlow import ArlowForConditionalGeneration
from arlow.processing_arlow import ArlowProcessor
from arlow.tokenization_arlow import ArlowTokenizer
from arlow.video_processing_arlow import ArlowVideoProcessor


TEXTS = (
    "A red circle on a white table. A blue square moves to the right. What do you see in this picture?",
    "What happens in this video? Compare the picture with the clip, and answer in one short sentence.",
)
VOCAB_SIZE = 512  # tokens


def save_checkpoint(folder: Path) -> None:
    """A small model with random weights, its trained tokenizer and its processor, in one directory."""
    tokenizer = ArlowTokenizer.train(iter(TEXTS), VOCAB_SIZE)
    processor = ArlowProcessor(
        image_processor=ArlowImageProcessor(), tokenizer=tokenizer, video_processor=ArlowVideoProcessor()
    )
    # An assistant's turn ends with <|im_end|>, a plain text with <|endoftext|>: generation stops at either.
    ends = [tokenizer.eos_token_id, tokenizer.im_end_token_id]
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": ends}
    config = ArlowConfig(
        text_config=ArlowTextConfig.tiny(vocab_size=len(tokenizer), num_hidden_layers=4, **special),
        # Widths in multiples of 64: the block size of 4-bit quantisation.
        vision_config=ArlowVisionConfig.tiny(
            depth=6, embed_dim=64, use_deformable_attention=True, deepstack_visual_indexes=None
        ),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_start_token_id,
        vision_end_token_id=tokenizer.vision_end_token_id,
    )
    model = ArlowForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def draw_picture(path: Path, *, color: str = "red") -> Path:
    """A JPEG of a circle on a table, 320 x 240 pixels."""
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((100, 60, 220, 180), fill=color)
    image.save(path, quality=90)
    return path


def draw_clip(path: Path, *, seconds: int = 2, fps: int = 12) -> Path:
    """An MP4 of a square moving to the right, 160 x 120 pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for i in range(seconds * fps):
            frame = np.full((120, 160, 3), 255, dtype=np.uint8)
            left = i * 120 // (seconds * fps)
            frame[40:80, left : left + 40] = (0, 0, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
