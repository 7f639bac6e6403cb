"""`arlow data shapes OUT`: the synthetic data that arlow-tiny is trained on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write synthetic training data: pictures, clips and texts with questions and answers."
    parser.epilog = "example: arlow data shapes ./data --scale 0.1"
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("kind", choices=["shapes"], help="what to write")
    parser.add_argument("out", type=Path, metavar="OUT", help="a directory; what a stopped run left is completed")
    parser.add_argument("--scale", type=float, default=1.0, help="how much: 1 is what arlow-tiny was trained on")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other samples")
    parser.add_argument("--workers", type=int, default=0, help="processes; the files do not depend on it")


def check(options: argparse.Namespace) -> Callable[[], int]:
    """Raises `ValueError` or `OSError` before anything is written."""
    from .shapes import planned, write

    fields = {"scale": options.scale, "seed": options.seed, "workers": options.workers}
    planned(options.out, **fields)

    def work() -> int:
        for split, path in write(options.out, **fields).items():
            print(f"{split:12} {path}")
        return 0

    return work
