"""The border for still pictures: whatever a user holds becomes one `Picture`, uint8 RGB and upright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .media_fetch import DEFAULT_POLICY, MediaPolicy


@dataclass(frozen=True, eq=False)
class Picture:
    """One still picture behind the border."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB, upright, C-contiguous
    source: str  # short, for messages


def check_size(height: int, width: int, *, policy: MediaPolicy = DEFAULT_POLICY, name: str = "image") -> None:
    """Raise `ValueError` unless a picture of `height` x `width` pixels is within the policy."""
    raise NotImplementedError


def load_picture(
    source: object,
    *,
    policy: MediaPolicy = DEFAULT_POLICY,
    name: str = "image",
    input_data_format: Literal["channels_first", "channels_last"] | None = None,
    value_range: Literal["0..1", "0..255", "0..65535"] | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> Picture:
    """`source` (path, URL, data URI, bytes, Pillow image, NumPy array or torch tensor) as a `Picture`."""
    raise NotImplementedError
