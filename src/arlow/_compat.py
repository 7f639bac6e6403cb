"""Differences between versions of the libraries below Arlow, a line each; every entry names what removes it."""

from __future__ import annotations

from collections.abc import Callable


def torch_varlen_kernel() -> Callable | None:
    """PyTorch's own variable-length flash kernel, or `None` (removed when our floor is torch 2.10)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn
