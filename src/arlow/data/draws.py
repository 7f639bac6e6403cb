"""The order of training data: draw number -> item, the same on any machine, with any number of workers, after a stop.

A run of N samples is a list of N draws, pass after pass over the items, each in an order of its own. All that is
random in a sample (a mask, a crop) comes from a generator made from seed and draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..errors import message
from .bad_samples import BadSamples, TooManyBadSamples


class Draws(Dataset):
    """`count` samples drawn from `items`.

    Args:
        items: what can be drawn.
        load: `load(item, rng)` gives the sample; a `ValueError`, `TypeError` or `OSError` from it marks the item as
            unreadable.
        count: how many draws there are.
        seed: of the order and of every sample's `rng`.
        bad_samples: where unreadable items are written down; another item is drawn for them.
        name: `name(item)`, how an unreadable item is called there.
        passes: items of each pass, where `items` holds several different ones, one after the other.

    Raises:
        ValueError: there are no items.
        TooManyBadSamples: while samples are taken: see [`BadSamples`].
    """

    def __init__(
        self,
        items: Sequence[Any],
        load: Callable[[Any, np.random.Generator], Any],
        *,
        count: int,
        seed: int,
        bad_samples: BadSamples,
        name: Callable[[Any], str] = str,
        passes: Sequence[int] | None = None,
    ) -> None:
        if not len(items):
            raise ValueError(message("data", 0, "no items to draw from"))
        self.items, self.load, self.count, self.seed = items, load, count, seed
        self.bad_samples, self.name = bad_samples, name
        passes = passes or [len(items)]
        self._ends = np.cumsum(passes)
        self.shortest_pass = min(size for size in passes if size)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, draw: int) -> Any:
        rng = np.random.default_rng((self.seed, draw))
        index = self.index(draw)
        for _ in range(len(self.items) + self.bad_samples.limit + 1):
            item = self.items[index]
            try:
                return self.load(item, rng)
            except (ValueError, TypeError, OSError) as error:
                self.bad_samples.add(self.name(item), error)
            index = int(rng.integers(len(self.items)))
        raise TooManyBadSamples(message("data", len(self.items), "items, and hardly one can be read"))

    def index(self, draw: int) -> int:
        """Which item a draw takes."""
        round_, place = divmod(draw, len(self.items))
        kind = int(np.searchsorted(self._ends, place, side="right"))
        lap = round_ * len(self._ends) + kind
        first = int(self._ends[kind - 1]) if kind else 0
        if lap != self._order[0]:
            rng = np.random.default_rng((self.seed, lap, 1))
            self._order = lap, first + rng.permutation(int(self._ends[kind]) - first)
        return int(self._order[1][place - first])
