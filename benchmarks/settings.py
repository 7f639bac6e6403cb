"""Where the cases run, and at which sizes."""

from __future__ import annotations

import os
from typing import Any

import torch


QUICK, DTYPE = "BENCHMARKS_QUICK", "BENCHMARKS_DTYPE"  # environment variables that `--quick` and `--dtype` set
DTYPES = ("bfloat16", "float32")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quick() -> bool:
    """Whether one round at small sizes is wanted: it shows that a case runs, its figures mean nothing."""
    return os.environ.get(QUICK) == "1"


def dtype() -> torch.dtype:
    """That of the models whose dtype the case leaves open."""
    return getattr(torch, os.environ.get(DTYPE, DTYPES[0]))


def named(kind: torch.dtype) -> str:
    """A dtype as the names of the cases have it: "bf16", "float32"."""
    return str(kind).removeprefix("torch.").replace("bfloat", "bf")


def sized(full: Any, small: Any, *, cuda: Any = None) -> Any:
    """The size of a case: `full`, on a GPU `cuda` where that is given, `small` with `--quick`."""
    if quick():
        return small
    return cuda if cuda is not None and DEVICE.type == "cuda" else full


def asked(cpu: float | None, cuda: float | None) -> float | None:
    """The target where the cases run."""
    return cuda if DEVICE.type == "cuda" else cpu
