"""`arlow demo`: the whole path once. A small model is made and saved, a JPEG and an MP4 are written, everything is
loaded back through Transformers' Auto classes, and what went in and came out is printed.

The model's weights are random, so its answer is noise; that it depends on the picture is shown, not claimed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from .configuration_arlow import ArlowConfig, ArlowTextConfig, ArlowVisionConfig
from .image_processing_arlow import ArlowImageProcessor
from .modeling_arlow import ArlowForConditionalGeneration
from .processing_arlow import ArlowProcessor
from .tokenization_arlow import ArlowTokenizer
from .video_processing_arlow import ArlowVideoProcessor


TEXTS = (
    "A red circle on a white table. A blue square moves to the right. What do you see in this picture?",
    "What happens in this video? Compare the picture with the clip, and answer in one short sentence.",
)
VOCAB_SIZE = 512  # tokens
NEW_TOKENS = 16


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Put an image and a video through a small model and print what went in and what came out."
    parser.epilog = "example: arlow demo"


def check(options: argparse.Namespace) -> Callable[[], int]:
    return main


def main() -> int:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_checkpoint(folder / "model")
        picture, clip = draw_picture(folder / "picture.jpg"), draw_clip(folder / "clip.mp4")
        print(f"made  a random model in {folder / 'model'}, {picture.name}, {clip.name}\n")

        started = time.perf_counter()
        processor = AutoProcessor.from_pretrained(folder / "model")
        model = AutoModelForImageTextToText.from_pretrained(folder / "model").eval()
        parameters = sum(weight.numel() for weight in model.parameters())
        loading = time.perf_counter() - started
        print(f"load  {type(model).__name__}, {parameters:,} parameters, {loading:.2f} s")

        conversation = ask(picture, clip)
        started = time.perf_counter()
        inputs = prepare(processor, conversation)
        print(f"\nin    processed in {time.perf_counter() - started:.2f} s")
        for key, tensor in inputs.items():
            print(f"      {key:20} {tuple(tensor.shape)!s:16} {str(tensor.dtype).removeprefix('torch.')}")
        print(f"\nseen  by the model (processor.explain):\n{processor.explain(conversation)}")

        started = time.perf_counter()
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        answer = output[:, inputs["input_ids"].shape[1] :]
        print(f"\nout   {answer.shape[1]} tokens in {time.perf_counter() - started:.2f} s: {answer[0].tolist()}")
        print(f"      as text (random weights, so noise): {processor.batch_decode(answer, skip_special_tokens=True)}")

        draw_picture(picture, color="blue")
        other = prepare(processor, conversation)
        with torch.no_grad():
            change = (model(**inputs).logits[:, -1] - model(**other).logits[:, -1]).abs().max()
        print(f"      with a blue circle instead of the red one, the next token's logits move by up to {change:.4f}")
    return 0


def ask(picture: Path, clip: Path) -> list[dict[str, Any]]:
    content = [
        {"type": "image", "path": str(picture)},
        {"type": "video", "path": str(clip)},
        {"type": "text", "text": "Compare the picture with the clip."},
    ]
    return [{"role": "user", "content": content}]


def prepare(processor: Any, conversation: list[dict[str, Any]]) -> Any:
    return processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", fps=2
    )


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
