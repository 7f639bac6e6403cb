"""The tables: one row per case while the benchmarks run, and the generated part of `docs/performance.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from .harness import Result


PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARKER = "<!-- What follows is written by `python -m benchmarks --docs`. -->"
COLUMNS = (
    *("Case", "Peer", "Target", "Reached", "Arlow, ms", "Peer, ms"),
    *("Limit", "Share of it, Arlow / peer", "Memory growth, MiB, Arlow / peer", "Note"),
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def row(result: Result) -> str:
    """A line of the table."""
    shares, missed = result.shares, result.missed
    parts = (  # what was asked for, and what came of it
        (result.target, f">= {_times(result.target)}", _times(result.speed), "speed"),
        (
            result.limit_target,
            f">= {_percent(result.limit_target)} of the limit",
            _percent(shares and shares[0]),
            "limit",
        ),
        (
            result.growth_target,
            f"<= {_times(result.growth_target)} memory",
            f"{_times(result.growth)} memory",
            "growth",
        ),
    )
    targets = [text for asked, text, _, _ in parts if asked is not None]
    reached = [
        f"**missed: {text}**" if name in missed else text
        for asked, _, text, name in parts
        if asked is not None or name == "speed"
    ]
    cells = (
        result.name,
        result.peer,
        "; ".join(targets) or "none",
        "; ".join(reached),
        f"{result.arlow_ms:.1f} ± {result.arlow_spread_ms:.1f}",
        f"{result.peer_ms:.1f} ± {result.peer_spread_ms:.1f}",
        result.limit,
        "" if shares is None else " / ".join(map(_percent, shares)),
        "" if result.arlow_mib is None else f"{result.arlow_mib:.0f} / {result.peer_mib:.0f}",
        result.note,
    )
    return f"| {' | '.join(cells)} |"


def write(reports: Sequence[dict[str, Any]], page: Path = PAGE) -> None:
    """Put reports into the page, each with its machine, in place of what follows its marker.

    Raises:
        ValueError: a report is one of `--quick`, or the page has no marker.
    """
    if any(report["machine"].get("sizes") == "quick" for report in reports):
        raise ValueError("a report is one of --quick: its figures mean nothing; run without it")
    top, marker, _ = page.read_text(encoding="utf-8").partition(MARKER)
    if not marker:
        raise ValueError(f"{page}: the marker is missing; put back the line {MARKER}")
    parts = [MARKER, *map(_section, reports)]
    page.write_text(top + "\n\n".join(parts) + "\n", encoding="utf-8")


def _section(report: dict[str, Any]) -> str:
    names = [field.name for field in fields(Result)]
    results = [Result(**{name: each[name] for name in names}) for each in report["results"]]
    missed = [result.name for result in results if result.missed]
    facts = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    summary = f"{len(results)} cases; {len(missed)} missed a target" + (f": {'; '.join(missed)}." if missed else ".")
    return "\n".join([f"Machine: {facts}.", "", summary, "", HEADER, *map(row, results)])


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"
