"""Two ways of doing the same work, and the machine's limit, timed in turns in one process: what disturbs the machine
disturbs all of them.

A case is a module with a docstring and `cases()`, which yields `Case`s.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

from .memory import growth_mib
from .settings import DEVICE, quick


@dataclass(kw_only=True)
class Case:
    """`arlow()` and `peer()` do the same work; each call is one measurement."""

    name: str
    arlow: Callable[[], Any]
    peer: Callable[[], Any]
    peer_name: str
    target: float | None = None  # how many times the peer's speed is asked for
    limit: Callable[[], float] | None = None  # measures the machine: milliseconds that the work takes at least
    limit_name: str = ""
    limit_target: float | None = None  # the share of the limit that is asked for: its time over Arlow's
    growth: tuple[str, ...] = ()  # what `memory.growth_mib` takes after the side: a module, arguments of its `prepare`
    growth_target: float | None = None  # memory growth that is asked for, over the peer's
    note: str = ""
    own_clock: bool = False  # `arlow` and `peer` return milliseconds instead of being timed


@dataclass(kw_only=True)
class Result:
    """Milliseconds per call (median and quartile distance), MiB of memory growth, and what was asked for."""

    name: str
    peer: str
    rounds: int
    arlow_ms: float
    arlow_spread_ms: float
    peer_ms: float
    peer_spread_ms: float
    target: float | None
    limit: str
    limit_ms: float | None
    limit_target: float | None
    arlow_mib: float | None
    peer_mib: float | None
    growth_target: float | None
    note: str

    @property
    def speed(self) -> float:
        """How many times the peer's speed Arlow reaches."""
        return self.peer_ms / self.arlow_ms

    @property
    def shares(self) -> tuple[float, float] | None:
        """How much of the limit Arlow and the peer reach."""
        return None if self.limit_ms is None else (self.limit_ms / self.arlow_ms, self.limit_ms / self.peer_ms)

    @property
    def growth(self) -> float | None:
        """Arlow's memory growth over the peer's."""
        return None if self.arlow_mib is None or self.peer_mib is None else self.arlow_mib / max(self.peer_mib, 1)

    @property
    def missed(self) -> list[str]:
        """Which targets were not reached: "speed", "limit", "growth"."""
        share = None if self.shares is None else self.shares[0]
        at_least = (("speed", self.speed, self.target), ("limit", share, self.limit_target))
        missed = [name for name, value, asked in at_least if asked is not None and (value is None or value < asked)]
        if self.growth_target is not None and (self.growth is None or self.growth > self.growth_target):
            missed.append("growth")
        return missed


def measure(case: Case, *, seconds: float = 6.0, rounds: int = 3) -> Result:
    """Warm everything up, then take turns: at least `rounds` times, and for about `seconds`."""
    if quick():
        seconds, rounds = 0.0, 1
    works = {"arlow": case.arlow, "peer": case.peer} | ({} if case.limit is None else {"limit": case.limit})
    own_clocks = set(works) if case.own_clock else {"limit"}
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    started = time.perf_counter()
    while len(times["arlow"]) < rounds or time.perf_counter() - started < seconds:
        turn = list(works)[:: -1 if len(times["arlow"]) % 2 else 1]  # back and forth: each follows each
        for name in turn:
            times[name].append(works[name]() if name in own_clocks else milliseconds(works[name]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    grown = {side: growth_mib(side, *case.growth) if case.growth else None for side in ("arlow", "peer")}
    return Result(
        name=case.name,
        peer=case.peer_name,
        rounds=len(times["arlow"]),
        arlow_ms=medians["arlow"],
        arlow_spread_ms=_quartile_distance(times["arlow"]),
        peer_ms=medians["peer"],
        peer_spread_ms=_quartile_distance(times["peer"]),
        target=case.target,
        limit=case.limit_name,
        limit_ms=medians.get("limit"),
        limit_target=case.limit_target,
        arlow_mib=grown["arlow"],
        peer_mib=grown["peer"],
        growth_target=case.growth_target,
        note=case.note,
    )


def milliseconds(work: Callable[[], Any]) -> float:
    """The time of one call: by the wall clock, on a GPU by its events."""
    if DEVICE.type != "cuda":
        before = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - before)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def _quartile_distance(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    packages = ("arlow", "torch", "transformers", "numpy", "pillow", "av")
    return {
        "cpu": cpu_name(),
        **({"gpu": torch.cuda.get_device_name()} if DEVICE.type == "cuda" else {}),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
        "load before": round(os.getloadavg()[0], 1),
        **({"sizes": "quick"} if quick() else {}),
    }


def cpu_name() -> str:
    """The processor, as it calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(results: list[Result], facts: dict[str, Any]) -> dict[str, Any]:
    """What `--json` writes: the machine, and every result with what follows from it."""
    rows = [asdict(result) | {"speed": result.speed, "missed": result.missed} for result in results]
    return {"machine": facts, "results": rows}
