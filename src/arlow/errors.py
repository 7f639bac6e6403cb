"""Errors are part of the interface: one place decides how a wrong value is shown to a person."""

from __future__ import annotations

import difflib
import functools
import itertools
import math
import numbers
from collections.abc import Collection, Iterable
from typing import Any

from huggingface_hub.errors import StrictDataclassError


MAX_VALUE_CHARS = 80
MAX_MESSAGE_CHARS = 299


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


def cut(text: str) -> str:
    """`text` in one line, of less than 300 characters."""
    text = " ".join(line.strip() for line in text.strip().splitlines())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def message(field: str, value: object, problem: str, remedy: str = "") -> str:
    """`field=value: problem; remedy`, the shape of every error Arlow raises, cut below 300 characters."""
    return cut(f"{field}={shorten(value)}: {problem}" + (f"; {remedy}" if remedy else ""))


def is_number(value: Any, *, above: float) -> bool:
    """Whether `value` is a number (no bool) over `above`, and finite as a float."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return above < float(value) < math.inf
    except OverflowError:  # an integer of hundreds of digits
        return False


def refuse_unknown(where: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise `TypeError` for the first keyword of `given` that `where` does not know, with the nearest known one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{where} got an unexpected keyword argument {shorten(str(key))}{hint}")


def refuse_misspelt(where: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise `TypeError` for the first keyword of `given` that is nearly one of `known`, for a place that must let
    keywords of other libraries pass. Tokens of a model have names of their own: `boi_token` is no slip of `bos_token`.
    What begins with an underscore is Transformers' own and passes, too.
    """
    for key in given:
        cutoff = 0.9 if key.endswith("_token") else 0.8
        passes = key in known or key.startswith("_")  # to look for likenesses takes a while
        if not passes and difflib.get_close_matches(key, known, n=1, cutoff=cutoff):
            refuse_unknown(where, [key], known)


def value_errors(cls: Any) -> Any:
    """Class decorator for strict dataclasses: their own error type is not a `ValueError`, users expect one."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(cut(f"{type(self).__name__}: {error}")) from error

    cls.__init__ = __init__
    return cls
