"""`python -m benchmarks [CASE ...] [--json FILE] [--threads N]`: run cases, print a table, optionally write JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import torch

import benchmarks.cases

from .harness import HEADER, machine, measure, report


def main() -> int:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.cases.__path__))
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(names))
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; there are {', '.join(names)}")
    torch.set_num_threads(options.threads)

    print(", ".join(f"{key} {value}" for key, value in machine().items()), "\n", HEADER, sep="\n")
    results = []
    for name in options.cases or names:
        for case in importlib.import_module(f"benchmarks.cases.{name}").cases():
            results.append(measure(case))
            print(results[-1].row(), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report(results), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
