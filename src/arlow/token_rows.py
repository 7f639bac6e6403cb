"""Rows of text and their encodings: what a call of the tokenizer does to them without touching the tokenizer.

In: the texts of a call, `tokenizers.Encoding` objects. Out: rows (first text, second text or None), encodings cut,
joined and masked. Every function works on the objects of one call.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding
from transformers.tokenization_utils_base import TruncationStrategy

from .errors import message


def text_rows(text: Any, text_pair: Any, pretokenized: bool) -> tuple[list[tuple[Any, Any]], bool]:
    """The texts of a call as (first, second or None), and whether it was a batch."""
    batched = isinstance(text, (list, tuple))
    if pretokenized:
        batched = batched and len(text) > 0 and isinstance(text[0], (list, tuple))
    if not batched:
        return [(text, text_pair or None)], False
    if text_pair is not None:
        if not isinstance(text_pair, (list, tuple)) or len(text_pair) != len(text):
            raise ValueError(message("text_pair", text_pair, f"is not a list of {len(text)} texts, one per text"))
        return list(zip(text, text_pair, strict=True)), True
    paired = (tuple, list) if not pretokenized else tuple
    return [tuple(row) if isinstance(row, paired) and len(row) == 2 else (row, None) for row in text], True


def text_error(texts: list[Any]) -> Exception:
    """The error for a batch the Rust library refused, naming the row."""
    for row, text in enumerate(texts):
        for part in text if isinstance(text, (list, tuple)) else [text]:
            if not isinstance(part, (str, list, tuple)):
                return TypeError(message(f"text[{row}]", part, "is not a string"))
            try:
                "".join(part).encode()
            except UnicodeEncodeError as error:
                at = f"character {error.start} is a lone surrogate (U+{ord(error.object[error.start]):04X})"
                return ValueError(f"text[{row}]: {at}, which is no text")
            except TypeError:
                return TypeError(message(f"text[{row}]", part, "is not a list of words"))
    return TypeError("text: is neither a string nor a list of strings")


def arrays(column: list[Any]) -> list[Any]:
    """Rows of numbers as int64 arrays, from which tensors are made several times sooner than from lists."""
    return [np.array(row, dtype=np.int64) if isinstance(row, list) else row for row in column]


@functools.lru_cache(maxsize=64)
def any_of(tokens: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _state(encoding: Encoding) -> dict[str, Any]:
    return json.loads(encoding.__getstate__())


def _from_state(state: dict[str, Any]) -> Encoding:
    encoding = Encoding()
    encoding.__setstate__(json.dumps(state).encode())
    return encoding


def detached(encoding: Encoding) -> Encoding:
    """A copy that belongs to no sequence yet: joined as a second text, a fresh encoding would still claim to be the
    first (seen in tokenizers 0.23)."""
    return _from_state({**_state(encoding), "sequence_ranges": {}})


def joined(pieces: list[tuple[Encoding, int]]) -> Encoding:
    """One encoding of pieces that start at the given characters of a text. (`Encoding.merge` guesses those starts.)"""
    whole = _state(Encoding())
    words = 0
    for encoding, start in pieces:
        state = _state(encoding)
        state["offsets"] = [(first + start, last + start) for first, last in state["offsets"]]
        state["words"] = [None if word is None else word + words for word in state["words"]]
        words = max([words, *(word + 1 for word in state["words"] if word is not None)])
        for key in ("ids", "type_ids", "tokens", "words", "offsets", "special_tokens_mask", "attention_mask"):
            whole[key] += state[key]
    return _from_state(whole)


class Cut:
    """How a call truncates: to `max_length` tokens, special tokens included."""

    def __init__(self, max_length: int, stride: int, strategy: TruncationStrategy, side: str):
        self.max_length, self.stride, self.strategy, self.side = max_length, stride, strategy, side

    def apply(self, first: Encoding, second: Encoding | None, *, reserved: int) -> None:
        """Shorten the encodings of a row in place, leaving room for `reserved` special tokens."""
        room = self.max_length - reserved
        if room < 0:
            raise ValueError(message("max_length", self.max_length, f"has no room for {reserved} special tokens"))
        lengths = (len(first), 0 if second is None else len(second))
        if sum(lengths) <= room:
            return
        for encoding, length in zip((first, second), self._shares(*lengths, room, second is not None), strict=True):
            if encoding is not None and length < len(encoding):
                if 0 < length <= self.stride:
                    raise ValueError(message("stride", self.stride, f"is not below the {length} tokens that are kept"))
                encoding.truncate(length, stride=self.stride if length else 0, direction=self.side)

    def _shares(self, first: int, second: int, room: int, paired: bool) -> tuple[int, int]:
        """Tokens that both texts keep; the longer text of a pair gives first, as in the Rust library."""
        if self.strategy is TruncationStrategy.LONGEST_FIRST:
            if not paired:
                return room, 0
            short, long = sorted((first, second))
            if short > room // 2:
                short, long = room // 2, room - room // 2
            else:
                long = room - short
            return (long, short) if first > second else (short, long)
        if self.strategy is TruncationStrategy.ONLY_FIRST:
            first = room - second
        else:
            second = room - first
        if first <= 0 or (paired and second <= 0) or not (paired or self.strategy is TruncationStrategy.ONLY_FIRST):
            raise ValueError(message("truncation", self.strategy.value, f"cannot reach max_length={self.max_length}"))
        return first, second


def mask_spans(ranges: Any, spans: Sequence[tuple[int, int]]) -> list[int]:
    """1 for every character range that touches one of the `spans`, or reaches across an empty one, else 0.

    Both are `[start, end)` and sorted: one walk along both is enough. An empty range (padding) touches nothing.
    """
    mask, at = [], 0
    for start, end in ranges:
        start, end = int(start), int(end)
        while at < len(spans) and spans[at][1] <= start < end:
            at += 1
        mask.append(int(start < end and at < len(spans) and spans[at][0] < end and start < spans[at][1]))
    return mask
