"""`arlow convert SRC DST`: an older or another family's checkpoint as one of today's Arlow."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .convert import convert
from .families import FAMILIES


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a checkpoint of an earlier Arlow, or a text model of another family, as today's Arlow."
    parser.epilog = "example: arlow convert --from qwen2 ./qwen2-0.5b ./my-arlow-text"
    parser.add_argument("source", metavar="SRC", help="a directory with safetensors, or a hub name")
    parser.add_argument("destination", type=Path, metavar="DST", help="a new directory")
    parser.add_argument("--from", dest="family", choices=FAMILIES, help="the family; if not given: an earlier Arlow")


def check(options: argparse.Namespace) -> Callable[[], int]:
    def work() -> int:
        print(f"wrote {convert(options.source, options.destination, family=options.family, progress=True)}")
        return 0

    return work
