"""The corpus of bad inputs: one module per room, each with a list `CASES` of `BadInput`.

`tests/test_bad_inputs.py` runs them all; `docs/robustness.md` is a table of what they are answered with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BadInput:
    """Something wrong that a user may do, and what they must be told."""

    name: str  # in a few words, unique
    room: str  # the part of the library that answers
    attempt: Callable[[Path], object]  # does it; gets an empty directory for files
    error: type[Exception] | tuple[type[Exception], ...]
    names: str  # what the message must contain: the field, index or file
