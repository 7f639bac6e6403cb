"""Real pictures for tests, made by Pillow and NumPy: smooth content, so that codecs and resizing behave as usual."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(height: int = 40, width: int = 60, *, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(height, width, channels) uint8 of low-frequency colour noise; (height, width) for 1 channel."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(small[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
    ]
    stacked = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return stacked[..., 0] if channels == 1 else stacked


def filtered(image: Image.Image, size: tuple[int, int], resample=Image.Resampling.BICUBIC) -> np.ndarray:
    """(H, W, 3) an RGB image resized in floating point by Pillow, channel by channel: what whole levels stand for."""
    planes = [Image.fromarray(np.asarray(plane, dtype=np.float32)) for plane in image.split()]
    return np.stack([plane.resize((size[1], size[0]), resample) for plane in planes], axis=-1).clip(0, 255)


def assert_resized(actual: np.ndarray, expected: np.ndarray) -> None:
    """As near to the filter's own values as whole levels get after two passes. The first pass of any 8-bit resizer
    cuts off what overshoots; at hard edges a few samples show it."""
    error = np.abs(actual - expected)
    assert np.sqrt(np.mean(error**2)) < 0.45 and np.quantile(error, 0.999) < 1.5


def picture(height: int = 40, width: int = 60, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of any common Pillow mode."""
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return Image.fromarray(
            pixels(height, width, channels=len(mode), seed=seed), mode=None if mode != "CMYK" else mode
        )
    if mode == "I;16":
        return Image.fromarray(pixels(height, width, channels=1, seed=seed).astype(np.uint16) * 257)
    return picture(height, width, seed=seed).convert(mode)


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    """The file's bytes."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write(path: Path, image: Image.Image | np.ndarray | None = None, **options) -> Path:
    """A picture file whose format follows from the suffix."""
    image = picture() if image is None else image
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def png(width: int, height: int, *, bits: int, colour: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """A PNG written by hand (PNG specification, 3rd edition): depths Pillow cannot write, sizes that lie."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def oriented(upright: np.ndarray, orientation: int, format: str = "PNG", **options) -> bytes:
    """A file that a viewer shows as `upright`: pixels stored turned the other way, and the EXIF tag that says so."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # shown after a quarter turn clockwise
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(np.ascontiguousarray(stored), format, exif=exif, **options)


def opened(data: bytes) -> Image.Image:
    """A Pillow image whose pixels are not decoded yet."""
    return Image.open(io.BytesIO(data))
