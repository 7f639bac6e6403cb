"""Safetensors files read and written piece by piece: memory holds a head of a projection at most.

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


class Change(NamedTuple):
    """What becomes of a tensor's bytes, `unit` of them at a time."""

    work: Callable[[bytes], bytes]
    unit: int


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
    change: Callable[[Stored], Change | None],
    advance: Callable[[int], Any],
) -> None:
    """Write a file with these tensors.

    Args:
        change: what becomes of a tensor's bytes and how many go together, or None where they are copied as they are.
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


def _copy(source: Any, target: Any, tensor: Stored, change: Change | None, advance: Callable[[int], Any]) -> None:
    left = tensor.size
    while left:
        piece = source.read(min(change.unit if change else CHUNK, left))
        if not piece:
            raise OSError(f"{tensor.file}: ended within {tensor.name}")
        target.write(change.work(piece) if change else piece)
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


def rows_in_halves(tensor: Stored, head_dim: int) -> Change:
    """The rows of a query or key projection of interleaved pairs reordered as `in_halves` does, head by head."""

    def work(data: bytes) -> bytes:
        return np.frombuffer(data, dtype=np.uint8).reshape(head_dim // 2, 2, -1).swapaxes(0, 1).tobytes()

    return Change(work, tensor.size * head_dim // tensor.shape[0])
