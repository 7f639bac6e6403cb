"""Stands in for `tests/distributed_testing_utils.py`: ranks as CPU processes that talk through gloo."""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes


def _get_distributed_device_type() -> str:
    return "cpu"


def _get_distributed_backend() -> str:
    return "gloo"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    """CPU ranks have nothing to choose."""


def _start_rank_processes(function: Callable, args: tuple = (), nprocs: int = 1) -> None:
    """Run `function(rank, *args)` in `nprocs` processes; the first error of any of them is raised here."""
    # Each rank is forked from a server that has imported everything once and holds no threads.
    multiprocessing.set_forkserver_preload(["torch", "arlow.modeling_arlow", "tests.test_fsdp_mixin"])
    start_processes(function, args=args, nprocs=nprocs, join=True, start_method="forkserver")


def _rank_main(rank: int, function: Callable, args: tuple, kwargs: dict, world_size: int, store: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(minutes=5)
    )
    try:
        function(rank, *args, **kwargs)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_distributed(world_size: int) -> Callable[[Callable], Callable]:
    """Decorator: a call runs the function on `world_size` ranks, each with its rank as the first argument."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            with tempfile.TemporaryDirectory() as folder:
                store = os.path.join(folder, "store")
                _start_rank_processes(_rank_main, (function, args, kwargs, world_size, store), world_size)

        return run

    return decorate
