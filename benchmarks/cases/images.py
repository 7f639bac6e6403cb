"""JPEG bytes to tensors, against the Pillow-backed image processor of Qwen2-VL, at the same geometry."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from arlow import ArlowImageProcessor
from benchmarks.harness import Case


SIZES = {"12 MP": (3000, 4000), "1080p": (1080, 1920), "640x480": (480, 640)}


def jpeg(height: int, width: int) -> bytes:
    """A photograph-like JPEG: smooth gradients and a little noise."""
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    base = np.linspace(0, 255, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def cases() -> Iterator[Case]:
    geometry = {"size": {"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 1280}}
    arlow = ArlowImageProcessor(**geometry)
    peer = Qwen2VLImageProcessorPil(**geometry)
    for name, (height, width) in SIZES.items():
        data = jpeg(height, width)
        yield Case(
            name=f"image file to tensors, {name}",
            arlow=lambda data=data: arlow([data], return_tensors="pt"),
            peer=lambda data=data: peer([Image.open(io.BytesIO(data))], return_tensors="pt"),
            peer_name="Qwen2-VL (Pillow)",
        )
