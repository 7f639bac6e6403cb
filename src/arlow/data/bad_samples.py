"""Samples that cannot be read: counted, named in a file, skipped up to a limit."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import cut, message, shorten


LIST_NAME = "bad_samples.jsonl"  # in a run's output_dir


class TooManyBadSamples(ValueError):
    """More samples are unreadable than the recipe allows."""


class BadSamples:
    """The list of unreadable samples of a run, in `path` (JSON lines: `sample`, `error`).

    All processes of a run append to the same file, a line at a time; a sample met again is not listed again.
    """

    def __init__(self, path: Path | None, *, limit: int = 100) -> None:
        self.path, self.limit = path, limit
        self.seen: set[str] = set()

    def add(self, sample: str, error: Exception) -> None:
        """Write the sample down.

        Raises:
            TooManyBadSamples: this one is over the limit.
        """
        if sample not in self.seen:
            self.seen |= {sample} | self.listed()
            if self.path is not None and sample not in self.listed():
                line = json.dumps({"sample": sample, "error": cut(f"{type(error).__name__}: {error}")})
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:  # one write: whole lines from every process
                    file.write(line + "\n")
        if len(self.seen) > self.limit:
            where = f"; all are listed in {shorten(str(self.path))}" if self.path else ""
            problem = f"{len(self.seen)} samples cannot be read, the last is {shorten(sample)}{where}"
            raise TooManyBadSamples(message("bad_samples_limit", self.limit, problem)) from error

    def listed(self) -> set[str]:
        """The samples in the file, whichever process wrote them."""
        if self.path is None or not self.path.is_file():
            return set()
        return {sample for line in self.path.read_text(encoding="utf-8").splitlines() if (sample := _sample(line))}


def _sample(line: str) -> str | None:
    """The sample that a line names; none if a process was stopped while it wrote the line."""
    try:
        return json.loads(line)["sample"]
    except (ValueError, KeyError, TypeError):
        return None
