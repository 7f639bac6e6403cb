"""Settings of Pillow that belong to the process, changed while something is decoded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from PIL import Image, ImageFile

from .lent_pixels import LENDS


ONE_BLOCK = 2**31 - 1  # bytes, more than which Pillow does not put in one block


class _Setting:
    """While entered, a setting of Pillow has the value that is `wanted`.

    Settings are the process's: whoever uses Pillow at the very same moment sees this one, too. Counted, so that
    threads may enter at once.
    """

    def __init__(self, read: Callable[[], bool], write: Callable[[bool], None], *, wanted: bool) -> None:
        self._read, self._write, self._wanted = read, write, wanted
        self._lock, self._inside, self._restore = threading.Lock(), 0, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._read() != self._wanted:
                self._write(self._wanted)
                self._restore = True
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0 and self._restore:
                    self._write(not self._wanted)
                    self._restore = False


# Some libraries let Pillow take truncated files; a truncated picture would come back grey.
strictly = _Setting(
    lambda: ImageFile.LOAD_TRUNCATED_IMAGES,
    lambda value: setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", value),
    wanted=False,
)


def has_one_block() -> bool:
    """Whether Pillow makes every image in one block of memory."""
    core: Any = Image.core
    return LENDS and bool(core.get_use_block_allocator())


def set_one_block(wanted: bool) -> None:
    """Changes that setting. Images of more than [`ONE_BLOCK`] bytes cannot be made while it is on."""
    core: Any = Image.core
    if LENDS:
        core.set_use_block_allocator(int(wanted))


_one_block = _Setting(has_one_block, set_one_block, wanted=LENDS)


def in_one_block(width: int, height: int) -> AbstractContextManager[None]:
    """While entered, a picture of this size is made in one block, if it fits: so [`lent_pixels`] can lend it."""
    return _one_block() if 4 * width * height <= ONE_BLOCK else nullcontext()
