"""16 mixed requests from conversation to answer, in one batch and one by one, against Qwen3-VL: 6 of text (20 to 200
words), 8 with a picture, 2 with two, all as JPEG files (240x320 to 480x640, at most 128 tokens each); 8 new tokens.
Width 1024, 8 decoder layers, 4 encoder blocks, vocabulary 131,072. Both read the same token ids.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.harness import Case
from benchmarks.media import jpeg
from benchmarks.models import VISION, models, text_for
from benchmarks.peers import PEER, corpus, processors
from benchmarks.settings import DEVICE, dtype, named, sized


PICTURES = sized([0] * 6 + [1] * 8 + [2] * 2, [0, 1, 2])  # of each request
NEW = 8  # tokens
LARGEST = {"shortest_edge": 56 * 56, "longest_edge": 128 * 28 * 28}  # pixels


def cases() -> Iterator[Case]:
    arlow_processor, peer_processor = processors(images=LARGEST)
    text, ids = text_for(arlow_processor.tokenizer)
    arlow, peer = models(dtype(), text, VISION, **ids)
    with tempfile.TemporaryDirectory() as folder:
        chats = [request(Path(folder), number, count) for number, count in enumerate(PICTURES)]

        def ours(chats: list[Any]) -> list[str]:
            return answer(arlow, arlow_processor, chats)

        def theirs(chats: list[Any]) -> list[str]:
            return answer(peer, peer_processor, chats)

        first, second = (inputs(each, chats)["input_ids"] for each in (arlow_processor, peer_processor))
        assert torch.equal(first, second)
        yield Case(
            name=f"{len(chats)} mixed requests, {named(dtype())}, one batch",
            arlow=lambda: ours(chats),
            peer=lambda: theirs(chats),
            peer_name=PEER,
            target=1.25,
        )
        yield Case(
            name=f"{len(chats)} mixed requests, {named(dtype())}, one by one",
            arlow=lambda: [ours([chat]) for chat in chats],
            peer=lambda: [theirs([chat]) for chat in chats],
            peer_name=PEER,
            target=1.2,
        )


def request(folder: Path, number: int, pictures: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for each in range(pictures):
        path = folder / f"{number}-{each}.jpg"
        path.write_bytes(jpeg(240 + 40 * (number % 7), 320 + 64 * (number * 3 % 6), seed=number))
        parts.append({"type": "image", "path": str(path)})
    words = corpus().split()[number * 200 :][: 20 + 36 * (number % 6)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": " ".join(words)}]}]


def inputs(processor: Any, chats: list[Any]) -> Any:
    options = {"padding": True, "return_tensors": "pt"}
    return processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs=options
    ).to(DEVICE)


def answer(model: Any, processor: Any, chats: list[Any]) -> list[str]:
    given = inputs(processor, chats)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
    out = model.generate(**given, generation_config=config)
    assert out.shape[1] == given["input_ids"].shape[1] + NEW
    return processor.tokenizer.batch_decode(out[:, -NEW:] % len(processor.tokenizer))
