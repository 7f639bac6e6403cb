"""Decoding and resizing 128 JPEGs of 640x480 in loader processes, as the training stages do, against the training
process doing it itself: how loading scales with `workers`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from arlow import ArlowImageProcessor
from arlow.data.bad_samples import BadSamples
from arlow.data.draws import Draws
from benchmarks.harness import Case
from benchmarks.media import jpeg
from benchmarks.settings import sized


PICTURES, BATCH = sized(128, 16), 16


def cases() -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder))
        for workers in (1, 2, 4):
            yield Case(
                name=f"{PICTURES} JPEGs, {workers} loader processes",
                arlow=loading(paths, workers),
                peer=loading(paths, 0),
                peer_name="the training process",
            )


def write_pictures(folder: Path) -> list[Path]:
    paths = [folder / f"{number}.jpg" for number in range(PICTURES)]
    for number, path in enumerate(paths):
        path.write_bytes(jpeg(480, 640, seed=number))
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
