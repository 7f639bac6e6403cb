"""Errors are part of the interface: one place decides how a wrong value is shown to a person."""

from __future__ import annotations

import functools
import itertools
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
    text = _show(value, limit)
    if len(text) <= limit:
        return text
    # Of a long path the end says more than the beginning.
    tail = limit // 2 if isinstance(value, str) else 0
    return text[: limit - 1 - tail] + "…" + text[len(text) - tail :]


def _show(value: Any, limit: int) -> str:
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 2 * limit else value[:limit] + value[-limit:])
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(_show(item, limit) for item in value[:limit])
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        items = itertools.islice(value.items(), limit)
        return "{" + ", ".join(f"{_show(key, limit)}: {_show(item, limit)}" for key, item in items) + "}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{type(value).__name__} of shape {tuple(shape)}"
    return type(value).__name__


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
