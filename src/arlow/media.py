"""The border for still pictures: whatever a user holds becomes one `Picture`, uint8 RGB and upright.

A path, URL, data URI, bytes, Pillow image, NumPy array or torch tensor of the same picture give the same pixels:

- EXIF orientation is applied; of an animation the first frame is taken; colour profiles are ignored.
- Transparency, also of palettes and of a transparent colour, is laid over `background` (white).
- Grey becomes three equal channels; CMYK (also Adobe's inverted) and palettes are converted as Pillow does.
- 16-bit samples keep their upper byte (`value >> 8`), as Pillow does for 16-bit colour.
- 32-bit integer and float samples (Pillow modes `I` and `F`) obey the rules for arrays below. A 16-bit PGM, which
  Pillow opens as `I`, is 16 bit.

Arrays have 2 axes, or 3 of which one has 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels. What is ambiguous is
an error that names the argument which settles it: `input_data_format` when the first and the last axis could both be
the channels, `value_range` for booleans, 16-bit integers, integers outside 0..255 and floats whose maximum is above 0
and below 16: those may be in 0..1, resized or compressed so that they overshoot, or in 0..255 and nearly black. Other
floats are in 0..255 and are rounded. Floats that overshoot the `value_range` given are clipped, see `_overshoots`.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image

from .errors import shorten
from .lent_pixels import lent_pixels
from .media_fetch import DEFAULT_POLICY, MediaPolicy, fetch_bytes, short_source
from .pillow_settings import in_one_block, strictly


InputFormat = Literal["channels_first", "channels_last"]
ValueRange = Literal["0..1", "0..255", "0..65535"]
Item = TypeVar("Item")
Result = TypeVar("Result")
Target = Callable[[int, int], tuple[int, int]]

INPUT_FORMATS = (None, "channels_first", "channels_last")
VALUE_RANGES = (None, "0..1", "0..255", "0..65535")
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # Pillow's formats whose frames follow one another in time
CHANNELS = (1, 2, 3, 4)  # grey, grey + alpha, RGB, RGBA
WHITE = (255, 255, 255)
EXPECTED = "a path, URL, data URI, bytes, Pillow image, NumPy array or torch tensor"

DIM = 16  # the least maximum of floats that is taken for 0..255 unasked
ICON = b"\0\0\1\0"  # how an ICO file begins

_TOP = {"0..1": 1, "0..255": 255, "0..65535": 65535}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations
_UPRIGHT = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Picture:
    """One still picture behind the border; treat it as immutable.

    It holds an array or a Pillow image, whichever it was made from, and makes the other on demand: a decoded file is
    resized without being copied to NumPy, a video frame is packed without passing through Pillow.
    """

    __slots__ = ("_image", "_pixels", "height", "source", "width")

    def __init__(
        self,
        pixels: np.ndarray | None = None,
        source: str = "",
        *,
        image: Any = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._pixels: Any = pixels
        self._image: Any = image
        self.source = source  # short, for messages
        # In pixels, of the file: `size` is given where it was decoded smaller.
        self.height, self.width = size or ((image.height, image.width) if pixels is None else pixels.shape[:2])

    @property
    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright, C-contiguous."""
        if self._pixels is None:
            self._pixels = np.asarray(self._image)
        return self._pixels

    @property
    def samples(self) -> np.ndarray:
        """The same with three or four samples a pixel, whichever takes no copy. A fourth means nothing."""
        lent = lent_pixels(self._image) if self._pixels is None else None
        return self.pixels if lent is None else lent

    @property
    def image(self) -> Image.Image:
        """The same picture as a Pillow image of mode RGB."""
        if self._image is None:
            self._image = Image.fromarray(self._pixels)
        return self._image

    def __repr__(self) -> str:
        return f"Picture({self.height}x{self.width}, {self.source!r})"


def check_size(height: int, width: int, *, policy: MediaPolicy = DEFAULT_POLICY, name: str = "image") -> None:
    """Raise `ValueError` unless a picture of `height` x `width` pixels is within the policy."""
    size = f"{name} of {height}x{width} pixels"
    if height < 1 or width < 1:
        raise ValueError(f"{size}: is empty")
    if height * width > policy.max_pixels:
        raise ValueError(
            f"{size}: {height * width} pixels are more than the policy's max_pixels={policy.max_pixels}; "
            "raise MediaPolicy.max_pixels if this is meant"
        )
    if max(height, width) > policy.max_aspect_ratio * min(height, width):
        raise ValueError(f"{size}: the aspect ratio is over the policy's max_aspect_ratio={policy.max_aspect_ratio:g}")


def load_picture(
    source: object,
    *,
    policy: MediaPolicy = DEFAULT_POLICY,
    name: str = "image",
    input_data_format: InputFormat | None = None,
    value_range: ValueRange | None = None,
    background: tuple[int, int, int] = WHITE,
    convert_rgb: bool = True,
    target: Target | None = None,
) -> Picture:
    """`source` as a `Picture`.

    Args:
        source: path, URL, data URI, bytes of a file, Pillow image, NumPy array, torch tensor or `Picture`.
        policy: what may be fetched and how large a picture may be; checked before anything is decoded.
        name: how the picture is called in messages, such as `images[1]`.
        input_data_format: which axis of an array holds the channels; needed only when both ends could.
        value_range: what the samples of an array (or of a Pillow image of mode `I`, `F` or `I;16`) span.
        background: RGB colour under transparent pixels, 0..255 each.
        convert_rgb: `False` refuses pictures that are not RGB already, instead of converting them.
        target: `target(height, width)` of the file, upright: the size (pixels) it will be resized to. A JPEG at least
            twice as high and wide is then decoded at a half, a quarter or an eighth: half the time.

    Raises:
        TypeError: `source` is none of these, or an array of a type that holds no samples.
        ValueError: the policy refuses it, or an array is empty, ambiguous, out of range or not finite.
        OSError: it cannot be read, or is truncated, corrupt or of a format the policy does not list.
    """
    if input_data_format not in INPUT_FORMATS:
        raise ValueError(f"input_data_format={shorten(input_data_format)}: expected one of {INPUT_FORMATS}")
    if value_range not in VALUE_RANGES:
        raise ValueError(f"value_range={shorten(value_range)}: expected one of {VALUE_RANGES}")
    if isinstance(source, Picture):
        return source
    shown = describe(source)
    array = _as_array(source, name=name)
    if array is not None:
        array = _channels_last(array, input_data_format=input_data_format, name=name)
        check_size(*array.shape[:2], policy=policy, name=name)
        array = _to_uint8(array, value_range=value_range, name=name)
        if array.shape[2] == 3:
            return Picture(np.ascontiguousarray(array), shown)
        image = Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))
        size = image.height, image.width
    else:
        image, size = _open(source, policy=policy, name=name, target=target)
    if not convert_rgb and image.mode != "RGB":
        raise ValueError(f"{name}={shown}: mode {image.mode} is not RGB; set do_convert_rgb=True")
    upright = _to_rgb(image, value_range=value_range, background=background, name=name)
    return Picture(source=shown, image=upright, size=_upright_size(image, *size))


def open_image(source: object, *, policy: MediaPolicy = DEFAULT_POLICY, name: str = "image") -> Image.Image:
    """A path, URL, data URI, bytes or Pillow image as a loaded Pillow image, checked, but of its own mode and not yet
    upright: what `load_picture` begins with, and accepts. Raises as `load_picture` does."""
    return _open(source, policy=policy, name=name, target=None)[0]


def _open(
    source: object, *, policy: MediaPolicy, name: str, target: Target | None
) -> tuple[Image.Image, tuple[int, int]]:
    """What `open_image` gives, and the height and width of the file, as it is stored."""
    if isinstance(source, Image.Image):
        image = _load_pillow(source, policy=policy, name=name)
        return image, (image.height, image.width)
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        raise TypeError(f"{name}={shorten(source)}: expected {EXPECTED}")
    data = fetch_bytes(source, policy=policy, name=name)
    return _decode(data, policy=policy, name=name, shown=describe(source), target=target)


def flatten_images(images: object, *, name: str = "images") -> list[tuple[str, object]]:
    """What a user passes as `images` as a flat list of `(name, source)`, in order; nothing is loaded.

    One picture, a list of pictures, or a list of lists (one per row of a batch; a row may be empty, or `None`). An
    array or tensor of 4 axes is a list of pictures. Raises `TypeError` for another `None` and deeper nesting,
    `ValueError` when there is no picture at all.
    """
    found = list(_flatten(fill_rows(images), name=name, depth=0))
    if not found:
        raise ValueError(f"{name}={shorten(images)}: holds no picture")
    return found


def fill_rows(media: Any) -> Any:
    """Media as they are given to a call, rows of `None` as empty rows. Beside lists, `None` is a row without media;
    beside media it stays, for it is no picture."""
    if isinstance(media, (list, tuple)) and any(isinstance(row, (list, tuple)) for row in media):
        return [[] if row is None else row for row in media]
    return media


def _flatten(images: Any, *, name: str, depth: int) -> Iterator[tuple[str, object]]:
    if isinstance(images, (list, tuple)):
        if depth == 2:
            raise TypeError(f"{name}={shorten(images)}: lists of pictures may be nested two deep at most")
        for index, item in enumerate(images):
            yield from _flatten(item, name=f"{name}[{index}]", depth=depth + 1)
    elif images is None:
        raise TypeError(f"{name}=None: expected a picture")
    elif is_array(images) and images.ndim == 4:
        for index in range(images.shape[0]):
            yield f"{name}[{index}]", images[index]
    else:
        yield name, images


def flatten_pictures(
    images: object,
    *,
    policy: MediaPolicy = DEFAULT_POLICY,
    name: str = "images",
    input_data_format: InputFormat | None = None,
    value_range: ValueRange | None = None,
    background: tuple[int, int, int] = WHITE,
    convert_rgb: bool = True,
) -> list[Picture]:
    """`flatten_images`, each loaded by `load_picture` under its own name such as `images[0][1]`."""
    return [
        load_picture(
            source,
            policy=policy,
            name=item,
            input_data_format=input_data_format,
            value_range=value_range,
            background=background,
            convert_rgb=convert_rgb,
        )
        for item, source in flatten_images(images, name=name)
    ]


def is_animation(source: Any) -> bool:
    """Whether `source` is a Pillow image that plays; the pages of a TIFF and the views of an MPO do not."""
    if not isinstance(source, Image.Image) or source.format not in ANIMATED:
        return False
    try:
        with _lock_of(source):
            return bool(getattr(source, "is_animated", False))
    except Exception:  # damaged behind the first frame: `open_animation` says so
        return True


def open_animation(
    image: Any, *, policy: MediaPolicy = DEFAULT_POLICY, name: str = "video"
) -> tuple[list[Image.Image], list[float]]:
    """The frames of a Pillow image that plays, and how long each is shown in seconds (0: not said).

    Raises `ValueError` when they are more, or take more bytes at once, than the policy allows, `OSError` when they
    cannot be read.
    """
    check_size(image.height, image.width, policy=policy, name=name)
    frames: list[Image.Image] = []
    seconds: list[float] = []
    most = min(policy.max_frames, policy.max_bytes // (image.height * image.width * 3))
    try:
        with _lock_of(image), strictly():
            at, count = image.tell(), image.n_frames
            for index in range(count if count <= most else 0):
                image.seek(index)
                frames.append(image.copy())
                seconds.append(image.info.get("duration", 0) / 1000)
            image.seek(at)
    except Exception as error:  # a decoder of damaged data may raise anything
        raise OSError(_undecodable(name, describe(image), error)) from error
    if count > most:
        limits = f"max_frames={policy.max_frames}, max_bytes={policy.max_bytes}"
        raise ValueError(f"{name}: {count} frames are more than the policy keeps ({limits}); pass the file itself")
    return frames, seconds


def describe(source: object) -> str:
    """`source` in a few words, for messages: never credentials, pixels or payloads."""
    if isinstance(source, Image.Image):
        return f"{source.mode} image of {source.height}x{source.width} pixels"
    if isinstance(source, (bytearray, memoryview)):
        return f"{len(source)} bytes"
    return short_source(source)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[work(each) for each in items]` on as many threads as torch has: decoding and resizing let others run. Of
    several errors the first in order is raised."""
    import torch  # here: `media` is read where torch is not

    workers = min(len(items), torch.get_num_threads())
    if workers < 2:
        return [work(each) for each in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))


# Arrays


def _is_tensor(source: object) -> bool:
    torch = sys.modules.get("torch")  # a tensor can only exist where torch is imported already
    return torch is not None and isinstance(source, torch.Tensor)


def is_array(source: Any) -> bool:
    """Whether `source` is a NumPy array or a torch tensor."""
    return isinstance(source, np.ndarray) or _is_tensor(source)


def _as_array(source: Any, *, name: str) -> np.ndarray | None:
    """An array or tensor as a NumPy array, anything else as None."""
    if isinstance(source, np.ndarray):
        return source
    if not _is_tensor(source):
        return None
    torch = sys.modules["torch"]
    if source.is_meta:
        raise ValueError(f"{name}={shorten(source)}: a tensor on the meta device holds no pixels")
    tensor = source.detach()
    tensor = tensor if tensor.layout == torch.strided else tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()  # bfloat16 and the 8-bit floats have no NumPy type
    return tensor.cpu().numpy()


def _channels_last(array: np.ndarray, *, input_data_format: InputFormat | None, name: str) -> np.ndarray:
    """`array` as (H, W, C), C in 1..4; a view."""
    if array.size == 0:
        raise ValueError(f"{name}={shorten(array)}: the array is empty")
    if array.ndim == 2:
        return array[:, :, None]  # (H, W, 1)
    if array.ndim != 3:
        remedy = "; pass a list of pictures" if array.ndim > 3 else ""
        raise ValueError(f"{name}={shorten(array)}: a picture has 2 or 3 axes, not {array.ndim}{remedy}")
    first, last = array.shape[0] in CHANNELS, array.shape[2] in CHANNELS
    if input_data_format is None and first and last:
        raise ValueError(
            f"{name}={shorten(array)}: either the first or the last axis could be the channels; "
            'pass input_data_format="channels_first" or "channels_last"'
        )
    is_first = input_data_format == "channels_first" or (input_data_format is None and first)
    if not (first if is_first else last):
        where = (
            f"the {'first' if is_first else 'last'} axis" if input_data_format else "neither the first nor last axis"
        )
        verb = "has no" if input_data_format else "has"
        raise ValueError(f"{name}={shorten(array)}: {where} {verb} 1, 2, 3 or 4 channels; see input_data_format")
    return np.moveaxis(array, 0, -1) if is_first else array  # (H, W, C)


def _to_uint8(array: np.ndarray, *, value_range: ValueRange | None, name: str) -> np.ndarray:
    """The samples as uint8, rounded from floats; see the top of this file."""
    kind, dtype = array.dtype.kind, array.dtype
    if kind not in "buif":
        raise TypeError(f"{name}={shorten(array)}: dtype {dtype} holds no samples; use uint8, or floats")
    if value_range is None:
        if dtype == np.uint8:
            return array
        if kind == "b":
            raise ValueError(f'{name}={shorten(array)}: holds booleans; pass value_range="0..1"')
        if dtype.itemsize == 2 and kind == "u":
            raise ValueError(f'{name}={shorten(array)}: holds uint16; pass value_range="0..255" or "0..65535"')
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name}={shorten(array)}: holds NaN or infinite samples")
    if value_range is None and kind == "f" and 0 < high < DIM:
        raise ValueError(
            f"{name}={shorten(array)}: its floats, {low:g} to {high:g}, could be meant in 0..1 or in 0..255; "
            'pass value_range="0..1" or "0..255"'
        )
    top = _TOP[value_range or "0..255"]
    if (low < 0 or high > top) and not (kind == "f" and _overshoots(low / top, high / top, told=bool(value_range))):
        remedy = '; pass value_range="0..65535" if it has 16 bits, else rescale it'
        if kind == "f" and _overshoots(low / top, high / top, told=True):
            remedy = '; pass value_range="0..255" to clip them'
        remedy = "" if value_range else remedy
        raise ValueError(f"{name}={shorten(array)}: samples from {low:g} to {high:g} are outside 0..{top}{remedy}")
    if top == 65535:
        return (array.clip(0, top) if kind == "f" else array).astype(np.uint16).__rshift__(8).astype(np.uint8)
    if top == 1:
        array = array.astype(np.float64 if dtype == np.float64 else np.float32) * 255
    if kind == "f":
        array = np.rint(array.clip(0, 255))
    return array.astype(np.uint8)


def _overshoots(low: float, high: float, *, told: bool) -> bool:
    """Whether floats of a range 0..1 stick out by no more than rounding, or, when a caller told the range, than
    resampling does: less than half of it. So far below 0 only if they are above 1 too, else they are centred on 0."""
    if not told:
        return low >= -1e-5 and high <= 1 + 1e-5
    return high < 1.5 and (low > -0.25 or (low > -0.5 and high > 1))


# Files and Pillow images


_LOAD_LOCKS = tuple(threading.Lock() for _ in range(64))  # a lazily opened image may be shared between threads


def _lock_of(image: Image.Image) -> threading.Lock:
    return _LOAD_LOCKS[(id(image) >> 6) % len(_LOAD_LOCKS)]


def _load_pillow(image: Image.Image, *, policy: MediaPolicy, name: str) -> Image.Image:
    check_size(image.height, image.width, policy=policy, name=name)
    try:
        with _lock_of(image), strictly():
            image.load()
    except Exception as error:  # a decoder of damaged data may raise anything
        raise OSError(_undecodable(name, describe(image), error)) from error
    return image


def _decode(
    data: bytes, *, policy: MediaPolicy, name: str, shown: str, target: Target | None
) -> tuple[Image.Image, tuple[int, int]]:
    """The first frame of an encoded picture, loaded, and the height and width of the file. The header is checked
    before pixels are decoded."""
    formats = _known_formats(policy.image_formats)
    try:
        with strictly():
            for size in _icon_sizes(data) if data.startswith(ICON) and "ICO" in formats else ():
                check_size(*size, policy=policy, name=name)  # Pillow decodes an icon as it opens it
            image = Image.open(io.BytesIO(data), formats=formats)
            check_size(image.height, image.width, policy=policy, name=name)
            if image.format == "PNG":
                image.verify()  # the checksums, which decoding skips; a verified image has to be opened again
                image = Image.open(io.BytesIO(data), formats=formats)
            size, needed = (image.height, image.width), None
            if target is not None and image.format == "JPEG":
                needed = _upright_size(image, *target(*_upright_size(image, *size)))[::-1]
                image.draft(None, needed)
            with in_one_block(image.width, image.height):
                image.load()
            if needed is None:
                size = image.height, image.width
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}={shown}: more pixels than Pillow allows; raise PIL.Image.MAX_IMAGE_PIXELS and policy.max_pixels"
        ) from error
    except Exception as error:  # a decoder of damaged data may raise anything
        if isinstance(error, ValueError) and str(error).startswith(f"{name} of "):  # from check_size
            raise
        raise OSError(_undecodable(name, shown, error)) from error
    if image.format == "JPEG" and _ends_early(image, data, needed):
        raise OSError(f"{name}={shown}: the JPEG data end before the picture does")
    return image, size


def _icon_sizes(data: bytes) -> list[tuple[int, int]]:
    """The true (height, width) of each picture in an ICO file: its directory may say anything up to 256."""
    sizes = []
    for entry in range(struct.unpack_from("<H", data, 4)[0]):
        (start,) = struct.unpack_from("<I", data, 6 + 16 * entry + 12)
        if data[start : start + 8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack_from(">II", data, start + 16)
        else:  # a bitmap without its file header, colours and mask one above the other
            width, height = struct.unpack_from("<ii", data, start + 4)
            height = abs(height) // 2
        sizes.append((height, width))
    return sizes


def _undecodable(name: str, shown: str, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{name}={shown}: is no picture of a format in MediaPolicy.image_formats, or its header is damaged"
    reason = shorten(" ".join(str(error).split()) or type(error).__name__, 120).strip("'\"")
    return f"{name}={shown}: the picture is truncated or corrupt ({reason})"


def _known_formats(formats: tuple[str, ...]) -> list[str]:
    if any(each not in Image.OPEN for each in formats):
        Image.init()
    return [each for each in formats if each in Image.OPEN]


def _ends_early(image: Image.Image, data: bytes, needed: tuple[int, int] | None) -> bool:
    """Whether a JPEG has an end marker but too little data: its decoder then fills the rest with mid-grey, silently.
    `needed`: the size it was decoded for.

    Only a picture whose last corner is exactly that grey is suspected. It is decoded once more with zero bits put
    before the end marker: a complete picture does not read them, an incomplete one changes.
    """
    width, height = image.size
    corner = image.crop((max(0, width - 4), max(0, height - 4), width, height))
    samples = np.asarray(corner)
    if samples.min() < 127 or samples.max() > 128:
        return False
    end = data.rfind(b"\xff\xd9")
    try:
        with strictly():
            again = Image.open(io.BytesIO(data[:end] + bytes(4096) + data[end:]), formats=["JPEG"])
            if needed is not None:
                again.draft(None, needed)
            again.load()
    except Exception:
        return True
    return again.tobytes() != image.tobytes()


def _to_rgb(
    image: Image.Image, *, value_range: ValueRange | None, background: tuple[int, int, int], name: str
) -> Image.Image:
    """A loaded Pillow image of any mode as upright RGB."""
    turn = _UPRIGHT.get(_orientation(image))
    try:
        if image.mode in (*_SIXTEEN_BIT, "I", "F"):
            image = _deep_grey(image, value_range=value_range, name=name)
        if image.mode == "La":
            image = image.convert("LA")  # premultiplied grey has no direct way to RGBA
        if image.has_transparency_data:
            over = image.convert("RGBA")
            image = Image.new("RGBA", over.size, (*background, 255))
            image.alpha_composite(over)
        image = image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, SyntaxError, KeyError) as error:
        raise OSError(_undecodable(name, describe(image), error)) from error
    return image if turn is None else image.transpose(turn)


def _upright_size(image: Image.Image, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image as it is stored when it is upright, and the reverse."""
    return (width, height) if _orientation(image) in QUARTER_TURNS else (height, width)


def _orientation(image: Image.Image) -> int:
    try:
        with _lock_of(image):  # while one thread reads them, another would find them read and empty
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata do not make a picture unreadable
        return 1


def _deep_grey(image: Image.Image, *, value_range: ValueRange | None, name: str) -> Image.Image:
    """A grey image of 16-bit, 32-bit integer or float samples as `L`, or `LA` when one value is transparent."""
    is_16_bit = image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM"))
    samples = np.asarray(image)
    grey = _to_uint8(samples, value_range=value_range or ("0..65535" if is_16_bit else None), name=name)
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    alpha = np.where(samples == transparent, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, alpha], axis=-1))  # (H, W, 2): LA
