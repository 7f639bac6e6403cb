"""Safetensors files read and written tensor by tensor: memory holds one tensor, never a shard.

Format: 8 bytes with the length of a JSON header, the header (name -> dtype, shape, offsets), the data. Specification:
github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoint import check_shard


CHUNK = 1 << 22  # bytes copied at once


class Stored(NamedTuple):
    """A tensor in a file: where its bytes begin there, and how many there are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int


def read_header(file: Path) -> list[Stored]:
    """The tensors of a file in the order of their bytes. Raises `OSError` where it is truncated or corrupt."""
    check_shard(file)
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        tensors.append(Stored(name, entry["dtype"], tuple(entry["shape"]), file, 8 + length + first, last - first))
    return sorted(tensors, key=lambda tensor: tensor.start)


def write_shard(
    out: Path,
    tensors: Iterable[Stored],
    *,
    change: Callable[[Stored], Callable[[bytes], bytes] | None],
    advance: Callable[[int], Any],
) -> None:
    """Write a file with these tensors.

    Args:
        change: what becomes of a tensor's bytes, or None where they are copied as they are.
        advance: told of every piece that is written, in bytes.
    """
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in tensors:
        offsets = [place, place + tensor.size]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        place += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of eight
    with out.open("xb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            with tensor.file.open("rb") as source:
                source.seek(tensor.start)
                _copy(source, target, tensor, change(tensor), advance)


def _copy(source: Any, target: Any, tensor: Stored, change: Callable | None, advance: Callable[[int], Any]) -> None:
    if change is not None:
        target.write(change(source.read(tensor.size)))
        advance(tensor.size)
        return
    left = tensor.size
    while left:
        piece = source.read(min(CHUNK, left))
        if not piece:
            raise OSError(f"{tensor.file}: ended within {tensor.name}")
        target.write(piece)
        advance(len(piece))
        left -= len(piece)


def same_bytes(one: Stored, other: Stored) -> bool:
    """Whether two tensors are alike, compared piece by piece."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        sizes = [CHUNK] * (one.size // CHUNK) + [one.size % CHUNK]
        return all(first.read(size) == second.read(size) for size in sizes)


def rows_in_halves(data: bytes, shape: tuple[int, ...], head_dim: int) -> bytes:
    """The bytes of a query or key projection of interleaved pairs, its rows reordered as `in_halves` does."""
    rows = np.frombuffer(data, dtype=np.uint8).reshape(shape[0] // head_dim, head_dim // 2, 2, -1)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes()
