"""JPEG bytes to tensors, against the Pillow-backed image processor of Qwen2-VL, at the same geometry (4 to 1280 tokens
a picture): 12 MP, 1080p, 640x480, and a batch of 32 between 240x320 and 1080x1440. The limit is decoding alone, in as
many threads. Rows differ by how a picture was resized at most (0.02 rms in -1..1); Arlow's hold each patch once, the
peer's twice.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from arlow import ArlowImageProcessor
from arlow.media import in_threads
from benchmarks import limits
from benchmarks.harness import Case
from benchmarks.media import jpeg
from benchmarks.peers import IMAGES, NORMAL, Qwen2VLImageProcessorPil
from benchmarks.settings import sized


SIZES = {"12 MP": (3000, 4000), "1080p": (1080, 1920), "640x480": (480, 640)}
MIXED = [(240 + 120 * (i % 8), 320 + 160 * (i * 3 % 8)) for i in range(sized(32, 4))]  # height, width
TARGETS = {"12 MP": 4.0, "1080p": 4.0, "640x480": 2.5}
WAYS: dict[str, dict[str, Any]] = {
    "": {}, ", uint8": {"output_dtype": "uint8"}, ", scaled while decoding": {"scale_while_decoding": True},
}  # fmt: skip
ROUNDING = 0.02  # root mean square of the difference that resizing may make, of values in -1..1


def cases() -> Iterator[Case]:
    for name, (height, width) in SIZES.items():
        yield from both(name, [jpeg(height, width)], TARGETS[name])
    yield from both("32 mixed sizes", [jpeg(*size, seed=seed) for seed, size in enumerate(MIXED)], 3.0)


def both(name: str, files: list[bytes], target: float) -> Iterator[Case]:
    """As float32, as uint8, and decoded smaller."""
    arlow, peer = ArlowImageProcessor(size=IMAGES), Qwen2VLImageProcessorPil(size=IMAGES, **NORMAL)

    def theirs() -> Any:
        return peer([Image.open(io.BytesIO(file)) for file in files], return_tensors="pt")

    for label, way in WAYS.items():

        def ours(way: dict[str, Any] = way) -> Any:
            return arlow(files, return_tensors="pt", **way)

        found, wanted = ours(), theirs()
        check_rows(found, wanted)
        size = found["pixel_values"].nbytes / wanted["pixel_values"].nbytes
        yield Case(
            name=f"image file to tensors, {name}{label}",
            arlow=ours,
            peer=theirs,
            peer_name="Qwen2-VL (Pillow)",
            target=target,
            limit=limits.alone(lambda: in_threads(decode, files)),
            limit_name="decoding at full size",
            # 1.25 times decoding alone; what is decoded smaller is not held against it
            limit_target=None if "scale_while_decoding" in way else 0.8,
            note=f"{size:.2f}x the output bytes",
        )


def decode(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def check_rows(found: Any, wanted: Any) -> None:
    """The same grids, and pictures that differ by their resizing only."""
    assert torch.equal(found["image_grid_thw"], wanted["image_grid_thw"])
    ours, theirs = found["pixel_values"], wanted["pixel_values"]
    if ours.dtype == torch.uint8:
        ours = ours / 127.5 - 1
    theirs = theirs.view(len(theirs), 3, 2, -1)[:, :, 0].flatten(1)  # each patch is there twice
    assert (ours - theirs).square().mean().sqrt() < ROUNDING
