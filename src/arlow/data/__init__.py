"""Training data: what is read, drawn or made, and in which order."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .shapes import make_sample, pretraining_texts, write, write_dataset

__all__ = ["make_sample", "pretraining_texts", "write", "write_dataset"]


def __getattr__(name: str) -> object:
    if name in __all__:  # on first use: the other rooms need none of what drawing needs
        from . import shapes

        return getattr(shapes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
