"""Errors are part of the interface: one place decides how a wrong value is shown to a person."""

from __future__ import annotations

import functools
from typing import Any

from huggingface_hub.errors import StrictDataclassError


MAX_VALUE_CHARS = 80
MAX_MESSAGE_CHARS = 300


class CheckpointMismatch(ValueError, RuntimeError):
    """Tensors of a checkpoint do not fit the config. A `RuntimeError` too: what stock Transformers models raise, and
    what code around them catches."""


def shorten(value: object, limit: int = MAX_VALUE_CHARS) -> str:
    """`value` as text of at most `limit` characters, safe to put into a message: arrays and tensors become their
    shape, objects their class name, so that a message never carries addresses or megabytes."""
    shape = getattr(value, "shape", None)
    if shape is not None and not isinstance(value, (str, bytes)):
        text = f"{type(value).__name__} of shape {tuple(shape)}"
    elif isinstance(value, bytes):
        text = f"{len(value)} bytes"
    elif value is None or isinstance(value, (str, int, float, bool, list, tuple, dict, set)):
        text = repr(value)
    else:
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def message(field: str, value: object, problem: str, remedy: str = "") -> str:
    """`field=value: problem; remedy`, the shape of every error Arlow raises, cut at 300 characters."""
    text = f"{field}={shorten(value)}: {problem}" + (f"; {remedy}" if remedy else "")
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def value_errors(cls: Any) -> Any:
    """Class decorator for strict dataclasses: their own error type is not a `ValueError`, users expect one."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except StrictDataclassError as error:
            text = f"{type(self).__name__}: {' '.join(str(error).split())}"
            raise ValueError(text[:MAX_MESSAGE_CHARS]) from error

    cls.__init__ = __init__
    return cls
