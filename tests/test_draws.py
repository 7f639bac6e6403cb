"""The order of training data, and the list of samples that cannot be read."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from arlow.data.bad_samples import BadSamples, TooManyBadSamples
from arlow.data.draws import Draws


def item_and_chance(item: int, rng: np.random.Generator) -> tuple[int, float]:
    if item < 0:
        raise ValueError(f"{item} cannot be read")
    return item, rng.random()


def draws(items: list[int], count: int, *, seed: int = 0, limit: int = 0, path: Path | None = None) -> Draws:
    return Draws(items, item_and_chance, count=count, seed=seed, bad_samples=BadSamples(path, limit=limit))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 30), laps=st.integers(1, 4), seed=st.integers(0, 5))
def test_every_pass_visits_every_item_once(size: int, laps: int, seed: int) -> None:
    """Each pass is a permutation of all items; the same seed gives the same draws in any order of asking."""
    data = draws(list(range(size)), size * laps, seed=seed)
    samples = [data[i] for i in range(len(data))]
    for lap in range(laps):
        assert sorted(item for item, _ in samples[lap * size : (lap + 1) * size]) == list(range(size))
    again = draws(list(range(size)), size * laps, seed=seed)
    assert [again[i] for i in reversed(range(len(again)))] == samples[::-1]


@settings(max_examples=50, deadline=None)
@given(passes=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), seed=st.integers(0, 5))
def test_passes_over_different_items(passes: list[int], seed: int) -> None:
    """Where passes differ, each takes all of its own items, and after the last the first comes again."""
    items = list(range(sum(passes)))
    order = {"count": 2 * len(items), "seed": seed, "bad_samples": BadSamples(None), "passes": passes}
    data = Draws(items, item_and_chance, **order)
    drawn = [data[i][0] for i in range(len(data))]
    ends = np.cumsum([0, *passes])
    for lap in (0, len(items)):
        for first, end in itertools.pairwise(ends):
            assert sorted(drawn[lap + first : lap + end]) == list(range(first, end))


def test_passes_and_seeds_differ() -> None:
    """Orders of two passes, of two seeds, and the chance of two visits are not the same."""
    data, other = draws(list(range(50)), 100), draws(list(range(50)), 100, seed=1)
    first, second = [data[i][0] for i in range(50)], [data[i][0] for i in range(50, 100)]
    assert first != second and first != [other[i][0] for i in range(50)]
    assert len({data[i][1] for i in range(100)}) == 100


def test_workers_change_nothing() -> None:
    """A loader gives the same samples with and without processes of its own."""
    loads = [list(DataLoader(draws(list(range(9)), 20), batch_size=3, num_workers=n, collate_fn=list)) for n in (0, 2)]
    assert loads[0] == loads[1]


def test_unreadable_items_are_replaced_and_listed(tmp_path: Path) -> None:
    """Another item stands in, the same one every time; the file names each unreadable one once."""
    path = tmp_path / "below" / "bad.jsonl"
    items = [*range(8), -1, -2]
    data = draws(items, 30, limit=2, path=path)
    samples = [data[i] for i in range(30)]
    assert all(item >= 0 for item, _ in samples)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["sample"] for line in lines) == ["-1", "-2"]
    assert all(line["error"] == f"ValueError: {line['sample']} cannot be read" for line in lines)
    again = draws(items, 30, limit=2, path=path)
    assert [again[i] for i in range(30)] == samples and len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_one_too_many_ends_the_run(tmp_path: Path, workers: int) -> None:
    """Over the limit is an error that names limit, count, sample and list, from a loader's process too."""
    data = draws([1, -1, -2, -3], 40, limit=2, path=tmp_path / "bad.jsonl")
    with pytest.raises(TooManyBadSamples, match=r"bad_samples_limit=2: 3 samples cannot be read.*bad\.jsonl"):
        list(DataLoader(data, batch_size=4, num_workers=workers, collate_fn=list))


def test_nothing_to_draw_from() -> None:
    """No items at all, or none that can be read."""
    with pytest.raises(ValueError, match="no items to draw from"):
        draws([], 3)
    with pytest.raises(TooManyBadSamples, match="hardly one can be read"):
        draws([-1], 3, limit=5)[0]


def test_list_survives_what_a_kill_leaves(tmp_path: Path) -> None:
    """A line that was cut off, and lines of other processes, are no obstacle."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"sample": "a", "error": "x"}\n3\n{"sample": "b", "err')
    bad = BadSamples(path, limit=2)
    bad.add("c", OSError("gone"))
    assert bad.seen == {"a", "c"}
    with pytest.raises(TooManyBadSamples):
        bad.add("d\udcff\n" * 200, OSError("gone"))


def test_many_writers_leave_whole_lines(tmp_path: Path) -> None:
    """Threads that write at once do not mix their lines."""
    path = tmp_path / "bad.jsonl"

    def write(who: int) -> None:
        for i in range(20):
            BadSamples(path, limit=1000).add(f"{who}/{i}", ValueError("x" * 200))

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names: list[Any] = [json.loads(line)["sample"] for line in path.read_text().splitlines()]
    assert len(set(names)) == 80
