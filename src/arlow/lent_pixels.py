"""The pixels of a Pillow image as an array over Pillow's own memory, through the Arrow C data interface.

Pillow keeps four bytes for a pixel of RGB. An array of three is a copy of all of them, which for a photograph of 12
megapixels takes two thirds as long as decoding it; filters take four samples a pixel as fast as three.

Sources: arrow.apache.org/docs/format/CDataInterface.html; Pillow's reference, "Arrow support".
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import PIL
from PIL import Image


# Earlier ones lend, too, but not always their pixels (11.2 to 12.2: not those of images with aligned lines or that are
# borrowed themselves), and 11.2 never takes the memory back.
LENDS = int(PIL.__version__.partition(".")[0]) >= 13


class _ArrowArray(ctypes.Structure):
    """`struct ArrowArray` of the interface."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    *((name, ctypes.c_void_p) for name in ("dictionary", "release", "private_data")),
]

# A prototype of our own: the attributes of `ctypes.pythonapi.PyCapsule_GetPointer` are everybody's.
_address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Loan:
    """What NumPy makes an array of: the memory stays Pillow's as long as the capsules live."""

    def __init__(self, capsules: Any, address: int, shape: tuple[int, ...]) -> None:
        self.capsules = capsules
        self.__array_interface__ = {"data": (address, True), "shape": shape, "typestr": "|u1", "version": 3}


def lent_pixels(image: Image.Image) -> np.ndarray | None:
    """(H, W, 4) uint8, read-only, of a loaded image of mode RGB: red, green, blue and one byte that means nothing.

    None where Pillow cannot lend its memory: it is older than 13, or the image lies in several blocks, as one of more
    than 16 MB does unless it was made [`in_one_block`].
    """
    if not LENDS or image.mode != "RGB" or 0 in image.size:
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
