"""Decoding and resizing 128 JPEGs of 640x480 in loader processes, as the training stages do, against the training
process doing it itself: how loading scales with `workers`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from arlow import ArlowImageProcessor
from arlow.data.bad_samples import BadSamples
from arlow.data.draws import Draws
from benchmarks.harness import Case


PICTURES, BATCH = 128, 16


def write_pictures(folder: Path) -> list[Path]:
    """JPEGs with the grain of photographs, so that decoding costs what it costs."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(PICTURES):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((640, 480))
        grain = rng.integers(-12, 13, (480, 640, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def loading(paths: list[Path], workers: int) -> Callable[[], None]:
    """A pass over the pictures."""
    processor = ArlowImageProcessor()

    def load(path: Path, rng: np.random.Generator) -> Any:
        return processor(images=str(path), return_tensors="pt")["pixel_values"]

    draws = Draws(paths, load, count=PICTURES, seed=0, bad_samples=BadSamples(None))
    loader = DataLoader(
        draws, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0, collate_fn=_only_count
    )

    def work() -> None:
        assert sum(loader) == PICTURES

    return work


def _only_count(samples: list[Any]) -> int:
    return len(samples)


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        paths = write_pictures(Path(name))
        for workers in (1, 2, 4):
            yield Case(
                name=f"{PICTURES} JPEGs, {workers} loader processes",
                arlow=loading(paths, workers),
                peer=loading(paths, 0),
                peer_name="the training process",
            )
