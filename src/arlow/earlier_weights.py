"""Weights of the earlier Arlow generations, turned into today's while they are loaded.

V2 and VL turn elements 2k and 2k + 1 of a head together, this decoder i and i + D/2. Reordering the output rows of the
query and key projections within each head, first the even ones, then the odd ones, gives the same scores: an exact
change, so the decoder keeps one rotary layout (RoPE, arXiv 2104.09864, leaves the choice of pairs open).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming


_turned: ContextVar[list[str] | None] = ContextVar("turned", default=None)  # tensors that were; None: none may be


def in_halves(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows (heads * D, ...) of a query or key projection or its bias, from interleaved pairs to pairs (i, i + D/2)."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


@contextmanager
def interleaved_rows(interleaved: bool) -> Iterator[list[str]]:
    """Within, models are loaded from files whose query and key rows are `interleaved`. Gives the names of the tensors
    that were reordered."""
    found: list[str] = []
    token = _turned.set(found if interleaved else None)
    try:
        yield found
    finally:
        _turned.reset(token)


class RotaryRows(ConversionOps):
    """`in_halves` of one projection."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        (rows,) = input_dict.values()
        rows = rows[0] if isinstance(rows, list) else rows
        return {target_patterns[0]: in_halves(rows, kwargs["config"].get_text_config().head_dim)}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


def not_undone() -> WeightRenaming:
    """The inverse of a change that a save does not take back: a renaming that matches nothing."""
    return WeightRenaming(r"(?!x)x", "x")


class WhileInterleaved(WeightConverter):
    """In force only while files with interleaved rows are read: no other load sees it (quantised ones have converters
    of their own), and no save, which writes today's rows."""

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        turned = _turned.get()
        if turned is None:
            return source_key, None
        name, pattern = super().rename_source_key(source_key)
        if pattern is not None:
            turned.append(name)
        return name, pattern

    def reverse_transform(self) -> WeightRenaming:
        return not_undone()


def row_converters() -> list[WeightConverter]:
    """For every query and key projection of a text decoder."""
    names = [f"self_attn.{part}_proj.{kind}" for part in "qk" for kind in ("weight", "bias")]
    return [WhileInterleaved(name, name, [RotaryRows()]) for name in names]
