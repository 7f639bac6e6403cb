"""Reports: what a run was, a table for people, a JSON file for programs."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import message


LIBRARIES = ("torch", "transformers", "tokenizers", "sacrebleu", "pycocoevalcap")


@dataclass
class Run:
    """What every report begins with."""

    task: str
    data: str
    settings: dict[str, Any]
    began: float = field(default_factory=time.time)

    def finish(self, models: list[dict[str, Any]], *, summary: dict[str, Any]) -> dict[str, Any]:
        began = datetime.datetime.fromtimestamp(self.began, datetime.timezone.utc)
        return {
            "task": self.task,
            "data": self.data,
            "settings": self.settings,
            "time": {"began": began.isoformat(timespec="seconds"), "seconds": round(time.time() - self.began, 2)},
            "versions": versions(),
            "summary": summary,
            "models": models,
        }


def versions() -> dict[str, str]:
    """Of this package, Python, and the libraries a score depends on, as far as they are installed."""
    found = {"arlow": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_any(rows: Sequence[Any], name: str) -> None:
    """Raise `ValueError` when nothing is left to score."""
    if not rows:
        raise ValueError(message(name, 0, "none is left to score; every one was skipped"))


def check_output(path: str | Path | None) -> None:
    """Raise `OSError` for a file that could not be written at the end of the run."""
    if path is None:
        return
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(message("out", str(path), "cannot be written", "name a file in a directory that exists"))


def write_json(path: str | Path, content: dict[str, Any]) -> None:
    """Write a JSON file in one step: it is the whole or not there."""
    path = Path(path)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
        try:
            json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.close()
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    """Of this process; a temporary file is made for its owner only."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def format_table(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first to the left and the others to the right, a rule under the header."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(cells))
        for cells in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([shown[0], rule, *shown[1:]])


class Progress:
    """A counter on stderr, on a terminal only."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.shown = sys.stderr.isatty()

    def __call__(self, count: int) -> None:
        self.done += count
        if self.shown:
            print(f"\r{self.name}: {self.done}/{self.total}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            print(file=sys.stderr)
