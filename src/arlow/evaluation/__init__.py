"""Evaluation: perplexity of texts, answers about pictures and clips, captions. `arlow eval` runs these functions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .caption import evaluate_captions
    from .perplexity import evaluate_perplexity
    from .vqa import evaluate_vqa

__all__ = ["evaluate_captions", "evaluate_perplexity", "evaluate_vqa"]

_MODULE_OF = {"evaluate_captions": "caption", "evaluate_perplexity": "perplexity", "evaluate_vqa": "vqa"}


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:  # torch comes with the function that needs it
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
