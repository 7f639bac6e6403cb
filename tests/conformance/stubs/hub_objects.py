"""Stands in for `utils/fetch_hub_objects_for_ci.py`: a local file of the wanted kind instead of one from the hub."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


FOLDER = Path(__file__).parent / "hub_objects"


def url_to_local_path(url: str) -> str:
    """A picture or a film with the name at the end of `url`, made when it is first asked for; other kinds (sound)
    keep their URL, no test of Arlow's opens them."""
    path = FOLDER / url.rsplit("/", 1)[-1]
    maker = {".jpg": _picture, ".png": _picture, ".mp4": _film}.get(path.suffix)
    if maker is None:
        return url
    if not path.exists():
        FOLDER.mkdir(exist_ok=True)
        maker(path)
    return str(path)


def _frame(width: int, height: int, shift: int = 0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x + shift, y * 2, (x + y) // 2], axis=-1).astype(np.uint8)


def _picture(path: Path) -> None:
    Image.fromarray(_frame(640, 480)).save(path)


def _film(path: Path) -> None:
    """30 frames a second, 320x240; eleven frames where the name says tiny, else ten seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.time_base = Fraction(1, 30)
        for i in range(11 if path.name.startswith("tiny") else 300):
            frame = av.VideoFrame.from_ndarray(_frame(320, 240, i), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
