"""Run cases, print a table, optionally write JSON; with --docs rewrite docs/performance.md from such files instead.

usage: python -m benchmarks [CASE ...] [--json FILE] [--threads N] [--dtype DTYPE] [--quick], or --docs FILE ...
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers.utils import logging

import benchmarks.cases

from . import page
from .harness import Result, machine, measure, report
from .settings import DTYPE, DTYPES, QUICK


def main() -> int:
    names = sorted(module.name for module in pkgutil.iter_modules(benchmarks.cases.__path__))
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=DTYPES[0],
        help="of the models, where a case leaves it open (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="one round at small sizes: only to see that all runs")
    parser.add_argument(
        "--docs", nargs="+", type=Path, metavar="FILE", help="run nothing: these figures go into the docs"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.cases) - set(names))
    if unknown:
        parser.error(f"unknown case {unknown[0]!r}; there are {', '.join(names)}")
    if options.docs:
        try:
            page.write([json.loads(path.read_text(encoding="utf-8")) for path in options.docs])
        except (OSError, ValueError) as error:
            parser.error(str(error))
        return 0
    os.environ[DTYPE] = options.dtype  # before the cases are imported, and for the processes they start
    if options.quick:
        os.environ[QUICK] = "1"
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    facts = machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()), "\n", page.HEADER, sep="\n")
    results = []
    for name in options.cases or names:
        for result in run(name):
            results.append(result)
            print(page.row(result), flush=True)
            if options.json:  # after every case: a run that breaks off keeps what it has
                options.json.write_text(json.dumps(report(results, facts), indent=2) + "\n", encoding="utf-8")
    return 0


def run(name: str) -> Iterator[Result]:
    """The results of a file of cases."""
    for case in importlib.import_module(f"benchmarks.cases.{name}").cases():
        yield measure(case)
    gc.collect()  # its models


if __name__ == "__main__":
    sys.exit(main())
