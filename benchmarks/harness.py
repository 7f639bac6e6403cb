"""Two ways of doing the same work, timed in turns in one process: what disturbs the machine disturbs both.

A case is a module with a docstring and `cases()`, which yields `Case`s.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch


@dataclass
class Case:
    """`arlow()` and `peer()` do the same work; each call is one measurement."""

    name: str
    arlow: Callable[[], Any]
    peer: Callable[[], Any]
    peer_name: str


@dataclass
class Result:
    """Milliseconds per call, and how many times the peer's speed Arlow reaches."""

    name: str
    peer: str
    arlow_ms: float  # median
    arlow_spread_ms: float  # quartile distance
    peer_ms: float
    peer_spread_ms: float
    speed: float  # peer median / Arlow median

    def row(self) -> str:
        return (
            f"| {self.name} | {self.peer} | {self.arlow_ms:.2f} ± {self.arlow_spread_ms:.2f} "
            f"| {self.peer_ms:.2f} ± {self.peer_spread_ms:.2f} | {self.speed:.2f}x |"
        )


HEADER = "| Case | Peer | Arlow, ms | Peer, ms | Speed |\n| --- | --- | --- | --- | --- |"


def measure(case: Case, *, seconds: float = 6.0, rounds: int = 5) -> Result:
    """Warm both up, then alternate them: at least `rounds` times, and for about `seconds`."""
    for work in (case.arlow, case.peer):
        work()
    times: dict[str, list[float]] = {"arlow": [], "peer": []}
    started = time.perf_counter()
    while len(times["arlow"]) < rounds or time.perf_counter() - started < seconds:
        for name, work in (("arlow", case.arlow), ("peer", case.peer)):
            before = time.perf_counter()
            work()
            times[name].append(1e3 * (time.perf_counter() - before))
    medians = {name: statistics.median(values) for name, values in times.items()}
    spreads = {name: _quartile_distance(values) for name, values in times.items()}
    return Result(
        name=case.name,
        peer=case.peer_name,
        arlow_ms=medians["arlow"],
        arlow_spread_ms=spreads["arlow"],
        peer_ms=medians["peer"],
        peer_spread_ms=spreads["peer"],
        speed=medians["peer"] / medians["arlow"],
    )


def _quartile_distance(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    packages = ("arlow", "torch", "transformers", "numpy", "pillow", "av")
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    """The processor, as it calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(results: list[Result]) -> dict[str, Any]:
    return {"machine": machine(), "results": [asdict(result) for result in results]}
