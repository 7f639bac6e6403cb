"""What differs between the versions of the libraries that Arlow accepts, one function each. Each names the lowest
version that no longer needs it, so that it is deleted when that version becomes the floor in `pyproject.toml`."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable


@functools.cache
def torch_varlen_kernel() -> Callable | None:
    """PyTorch's own variable-length flash attention, or None where this torch has none that Arlow can use.

    Removed by torch 2.12: `varlen_attn` is missing up to 2.9, and has neither windows nor grouped heads in 2.10.
    In 2.12: (query (T, H, D), key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa, ...).
    """
    try:
        kernel = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    accepted = inspect.signature(kernel).parameters
    return kernel if {"scale", "window_size", "enable_gqa"} <= set(accepted) else None


@functools.cache
def one_thread() -> dict[str, int]:
    """Keywords with which PyAV converts a frame in one thread. Since 17.0 it starts several for every frame, which
    takes longer than the conversion itself.

    Removed by av 18: up to 16 there is no such keyword, nor are there threads.
    """
    frame = importlib.import_module("av").VideoFrame(16, 16, "yuv420p")
    try:
        frame.reformat(format="gray", threads=1)
    except TypeError:
        return {}
    return {"threads": 1}


def share_among_cpus() -> None:
    """Let Accelerate share out a model (FSDP) among processes on CPUs. By itself it does so among GPUs only, and would
    train whole copies without a word.

    As of accelerate 1.15 no version does.
    """
    accelerate = importlib.import_module("accelerate")
    kinds, state = accelerate.utils.DistributedType, accelerate.PartialState()
    if state.distributed_type == kinds.MULTI_CPU:
        state.distributed_type = kinds.MULTI_GPU
