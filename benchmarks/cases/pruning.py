"""Token pruning: a picture of 1024x1024 and 16 new tokens by `generate`, against the same model that keeps
all tokens. Width 1024, 8 decoder layers, 4 encoder blocks, vocabulary 131,072.

What it costs is in the notes: how many questions about unseen pictures the bundled model answers at that ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

import arlow
from arlow.bundled import ANSWER_AFTER
from arlow.data.shapes import conversation, make_sample
from arlow.demo import ask
from arlow.evaluation.scores import final_answer
from benchmarks.harness import Case
from benchmarks.media import jpeg
from benchmarks.models import VISION, arlow_model, text_for
from benchmarks.peers import processors
from benchmarks.settings import DEVICE, dtype, named, sized


RATIOS = (0.25, 0.5, 0.75)
SIDE, NEW = sized(1024, 112), 16  # pixels, tokens
QUESTIONS = {"picture": sized(400, 4), "digit": sized(100, 2)}
BATCH = 50


def cases() -> Iterator[Case]:
    processor, _ = processors()
    text, ids = text_for(processor.tokenizer)
    model = arlow_model(dtype(), text, VISION, **ids)
    whole = right_answers(0.0)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(jpeg(SIDE, SIDE))
        for ratio in RATIOS:
            count = sum(QUESTIONS.values())
            note = f"bundled model: {right_answers(ratio):.1%} of {count} answers right, {whole:.1%} with all tokens"
            yield Case(
                name=f"one picture of {SIDE}x{SIDE}, {NEW} tokens, {named(dtype())}, token_pruning_ratio {ratio}",
                arlow=lambda ratio=ratio: answer(model, processor, picture, ratio),
                peer=lambda: answer(model, processor, picture, 0.0),
                peer_name="Arlow with all tokens",
                note=note,
            )


def prune(model: Any, processor: Any, ratio: float) -> None:
    """Both leave out this share of the tokens from now on."""
    processor.image_processor.token_pruning_ratio = model.config.vision_config.token_pruning_ratio = ratio


def answer(model: Any, processor: Any, picture: Path, ratio: float) -> torch.Tensor:
    prune(model, processor, ratio)
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": "What is there to see?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(DEVICE)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
    out = model.generate(**inputs, generation_config=config)
    assert out.shape[1] == inputs["input_ids"].shape[1] + NEW
    return out


def right_answers(ratio: float) -> float:
    """The share of the bundled model's answers that are right, about pictures of the test split."""
    folder = arlow.bundled_checkpoint()
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()
    prune(model, processor, ratio)
    seeds = [(task, seed) for task, count in QUESTIONS.items() for seed in range(count)]
    samples = [make_sample(task, split="test", seed=seed) for task, seed in seeds]
    right = 0
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        chats = [
            conversation(sample, [{"type": "image", "image": Image.fromarray(each.pixels)} for each in sample.media])
            for sample in part
        ]
        answers, _ = ask(model, processor, [chat["messages"][:1] for chat in chats])
        finals = [final_answer(given, ANSWER_AFTER) for given in answers]
        right += sum(final == sample.turns[0].answer for final, sample in zip(finals, part, strict=True))
    return right / len(samples)
