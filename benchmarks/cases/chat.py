"""`apply_chat_template` with tokenising, against Qwen3-VL's processor with the same vocabulary: a question about 8
JPEG files of 640x480, and 20 turns of text, about 60 words each. Both give the same token ids.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Case
from benchmarks.media import jpeg
from benchmarks.peers import PEER, corpus, processors


PICTURES, TURNS, WORDS = 8, 20, 60


def cases() -> Iterator[Case]:
    arlow, peer = processors()
    with tempfile.TemporaryDirectory() as folder:
        for name, chat, target in (
            (f"{PICTURES} images", picture_chat(Path(folder)), 3.0),
            (f"{TURNS} turns of text", text_chat(), 1.0),
        ):

            def apply(processor: Any, chat: list[dict] = chat) -> Any:
                return processor.apply_chat_template(
                    chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
                )

            assert torch.equal(apply(arlow)["input_ids"], apply(peer)["input_ids"])
            yield Case(
                name=f"apply_chat_template, {name}",
                arlow=lambda apply=apply: apply(arlow),
                peer=lambda apply=apply: apply(peer),
                peer_name=f"{PEER} (Pillow)",
                target=target,
            )


def picture_chat(folder: Path) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for number in range(PICTURES):
        path = folder / f"{number}.jpg"
        path.write_bytes(jpeg(480, 640, seed=number))
        parts.append({"type": "image", "path": str(path)})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What do these pictures share?"}]}]


def text_chat() -> list[dict[str, Any]]:
    words = corpus().split()
    turns = [" ".join(words[number * WORDS : (number + 1) * WORDS]) for number in range(TURNS)]
    return [
        {"role": ("user", "assistant")[number % 2], "content": [{"type": "text", "text": turn}]}
        for number, turn in enumerate(turns)
    ]
