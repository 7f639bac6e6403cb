"""The pixels of a Pillow image as an array over Pillow's own memory, through the Arrow C data interface.

Pillow keeps four bytes for a pixel of RGB. An array of three is a copy of all of them, which for a photograph of 12
megapixels takes two thirds as long as decoding it; filters take four samples a pixel as fast as three.

Sources: arrow.apache.org/docs/format/CDataInterface.html; Pillow's reference, "Arrow support" (from Pillow 11.2 on).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from PIL import Image


class _ArrowArray(ctypes.Structure):
    """`struct ArrowArray` of the interface."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
]

_address_in = ctypes.pythonapi.PyCapsule_GetPointer
_address_in.restype, _address_in.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class _Loan:
    """What NumPy makes an array of: the memory stays Pillow's as long as the capsules live."""

    def __init__(self, capsules: Any, address: int, shape: tuple[int, ...]) -> None:
        self.capsules = capsules
        self.__array_interface__ = {"data": (address, True), "shape": shape, "typestr": "|u1", "version": 3}


def lent_pixels(image: Image.Image) -> np.ndarray | None:
    """(H, W, 4) uint8, read-only, of a loaded image of mode RGB: red, green, blue and one byte that means nothing.

    None where Pillow cannot lend its memory: it is older than 11.2, or the image lies in several blocks, as one of
    more than 16 MB does unless it was made while [`in_one_block`] was on.
    """
    if image.mode != "RGB" or not hasattr(image, "__arrow_c_array__") or 0 in image.size:
        return None
    try:
        capsules = image.__arrow_c_array__()
    except ValueError:
        return None
    samples = _ArrowArray.from_address(_address_in(capsules[1], b"arrow_array")).children[0].contents
    width, height = image.size
    if samples.length != height * width * 4 or samples.offset:
        return None
    return np.asarray(_Loan(capsules, samples.buffers[1], (height, width, 4)))


def in_one_block(wanted: bool) -> bool:
    """Sets whether Pillow makes images in one block of memory, and says whether it did before. It is a setting of the
    process, and of no other effect."""
    core: Any = Image.core
    if not hasattr(core, "set_use_block_allocator"):  # an older Pillow
        return wanted
    before = bool(core.get_use_block_allocator())
    core.set_use_block_allocator(int(wanted))
    return before
