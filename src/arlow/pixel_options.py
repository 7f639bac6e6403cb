"""What pictures and videos have in common: the options of a call, and the processor that stores and merges them.

`PixelKwargs` declares them, `PixelOptions` are those of one call, validated once and trusted behind; `PixelProcessor`
keeps them. `image_processing_arlow` and `video_processing_arlow` extend all three.
"""

# No `from __future__ import annotations`: Transformers reads the TypedDict's annotations at run time.

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, ClassVar, TypedDict

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from .errors import is_number, message, shorten
from .media import INPUT_FORMATS, VALUE_RANGES, Picture, in_threads
from .media_fetch import DEFAULT_POLICY, MediaPolicy
from .patches import normalise_rows, resize_pixels, target_size


logger = logging.get_logger(__name__)

BOUNDS = ("min_pixels", "max_pixels")  # stored as `size`
CALL_ONLY = ("return_tensors", "device", "data_format", "disable_grouping", "video_metadata")  # of one call
# Found in saved files, beside the options.
FILE_ONLY = ("image_processor_type", "video_processor_type", "feature_extractor_type", "processor_class", "auto_map")
# Keywords of `from_pretrained` that say where files are and how to get them.
HUB_KEYWORDS = frozenset((
    "cache_dir", "force_download", "local_files_only", "token", "use_auth_token", "revision", "code_revision",
    "subfolder", "proxies", "resume_download", "mirror", "user_agent", "trust_remote_code", "use_fast", "backend",
    "config", "image_processor_filename", "return_unused_kwargs", "_commit_hash", "_from_auto", "_from_pipeline",
))  # fmt: skip
Integer = Any  # an int or None, NumPy's too; `PixelOptions` checks them, with better words than Transformers' types
Number = Any  # likewise a number, also a fraction
INTEGER_OR_NONE = int | None
# What `size` may hold, and which bound that is. Saved files of other models name the bounds as they are.
SIZE_KEYS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"} | {name: name for name in BOUNDS}
TORCH_FILTERS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
GEOMETRY = ("patch_size", "temporal_patch_size", "merge_size")  # others read these attributes: they are never None


class RowKwargs(TypedDict, total=False):
    """Options of pictures and of videos for any encoder, for construction and calls. `None` in a call means the
    processor's own value; `None` at construction is stored, saved, and means the class's default."""

    patch_size: Integer  # pixels, side of a patch
    merge_size: Integer  # patches, side of the block that becomes one token
    do_convert_rgb: bool | None  # False: pictures that are not RGB are refused
    input_data_format: Any  # "channels_first" | "channels_last", for arrays where both could be
    value_range: str | None  # "0..1" | "0..255" | "0..65535", what the samples of an array span
    return_tensors: Any  # "pt", "np" or None (NumPy)
    device: Any  # where "pt" tensors go
    data_format: Any  # accepted and unused: rows have one layout


class PixelKwargs(RowKwargs, total=False):
    """Those of Arlow's own encoder."""

    temporal_patch_size: Integer  # frames per row of a video; still pictures have one
    size: Any  # {"shortest_edge": min_pixels, "longest_edge": max_pixels}: bounds of the area of each resized picture
    min_pixels: Integer  # the same bounds by themselves
    max_pixels: Integer
    do_resize: bool | None  # False: sides must be multiples of patch_size * merge_size already
    resample: Any  # PIL.Image.Resampling or its number
    do_rescale: bool | None  # False: rows hold what the border makes of any picture, samples in 0..255
    rescale_factor: Number
    do_normalize: bool | None
    image_mean: Any  # one number or one per channel, after rescaling
    image_std: Any
    output_dtype: str | None  # "uint8": samples in 0..255, a quarter of the bytes, which the encoder normalises


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """The options of one call, validated: `ValueError` names the field and the value. Units as above."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    do_resize: bool
    resample: Any
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: float | tuple[float, ...]
    image_std: float | tuple[float, ...]
    output_dtype: str
    do_convert_rgb: bool
    input_data_format: Any
    value_range: Any

    CHOICES = {
        "input_data_format": INPUT_FORMATS, "value_range": VALUE_RANGES, "output_dtype": ("float32", "uint8"),
    }  # fmt: skip
    sample_dtype = "uint8"  # of resized pictures

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int or (value is not None and field.type == INTEGER_OR_NONE):
                check_integer(field.name, value)
            elif field.type is bool and not isinstance(value, bool):
                raise ValueError(message(field.name, value, "must be True or False"))
        if isinstance(self.resample, bool) or self.resample not in list(Image.Resampling):
            raise ValueError(message("resample", self.resample, "is no filter of PIL.Image.Resampling (0..5)"))
        self._check_number("rescale_factor", self.rescale_factor, above=0)
        self._check_number("image_mean", self.image_mean, above=-math.inf)
        self._check_number("image_std", self.image_std, above=0)
        for name, allowed in self.CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(message(name, getattr(self, name), f"expected one of {allowed}"))
        self._check_area()
        if self.output_dtype == "uint8":
            self._check_samples()
        if not self.do_rescale and self.value_range == "0..1":
            problem = 'the samples of value_range="0..1" become 0..255, and would stay that'
            raise ValueError(message("do_rescale", False, problem, "leave do_rescale=True, which gives 0..1 again"))

    def _check_number(self, field: str, value: Any, *, above: float) -> None:
        """One number; of `image_mean` and `image_std` also three, one per channel."""
        many = field.startswith("image_") and isinstance(value, (list, tuple))
        if many and len(value) != 3:
            raise ValueError(message(field, value, "must be one number or three, one per channel"))
        for each in value if many else (value,):
            if not is_number(each, above=above):
                problem = "must be a finite number" + (f" above {above}" if above == 0 else "")
                raise ValueError(message(field, each, problem))

    def _check_samples(self) -> None:
        """Rows of samples are rescaled and normalised by the encoder, whatever these options say."""
        if not (self.do_rescale and self.do_normalize):
            given = f"not do_rescale={self.do_rescale}, do_normalize={self.do_normalize}"
            raise ValueError(message("output_dtype", "uint8", f"is rescaled and normalised by the encoder, {given}"))
        if not math.isclose(self.rescale_factor, 1 / 255, rel_tol=1e-6):
            problem = 'output_dtype="uint8" is rescaled by 1/255, in the encoder'
            raise ValueError(message("rescale_factor", self.rescale_factor, problem))

    def _check_area(self) -> None:
        if self.min_pixels > self.max_pixels:
            size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
            raise ValueError(message("size", size, "min_pixels (shortest_edge) is over max_pixels (longest_edge)"))
        if self.max_pixels < self.factor**2:
            problem = f"is less than one token of {self.factor}x{self.factor} pixels (patch_size * merge_size)"
            raise ValueError(message("max_pixels", self.max_pixels, problem))

    @property
    def factor(self) -> int:
        """Pixels, side of the block that becomes one token."""
        return self.patch_size * self.merge_size

    def target(self, height: int, width: int, *, most: int, name: str) -> tuple[int, int]:
        """The size (pixels) a picture of `height` x `width` pixels is resized to, its area at most `most`.

        With `do_resize=False` it is the picture's own, whatever its area; `ValueError` if it is not whole tokens.
        """
        factor = self.factor
        if self.do_resize:
            least = min(self.min_pixels, most)
            return target_size(height, width, factor=factor, min_pixels=least, max_pixels=most, name=name)
        if height < 1 or width < 1 or height % factor or width % factor:
            problem = f"do_resize=False needs multiples of patch_size * merge_size = {factor}"
            raise ValueError(f"{name} of {height}x{width} pixels: {problem}")
        return height, width

    def resize(self, picture: Picture, *, height: int, width: int) -> np.ndarray:
        """A picture as (height, width, 3) uint8, resized once and antialiased."""
        if self.resample in TORCH_FILTERS:
            return resize_pixels(picture.samples, height, width, mode=TORCH_FILTERS[self.resample])
        return np.asarray(picture.image.resize((width, height), self.resample))

    def values(self, packed: Sequence[np.ndarray]) -> np.ndarray:
        """Packed rows (N_i, 3*K) uint8 of several media as the (N, 3*K) that the encoder takes, of `output_dtype`."""
        if self.output_dtype == "uint8":
            return np.concatenate(packed)
        out = np.empty((sum(map(len, packed)), packed[0].shape[1]), dtype=np.float32)
        places = np.split(out, np.cumsum([len(rows) for rows in packed[:-1]]))
        in_threads(lambda each: self.normalise(each[0], out=each[1]), list(zip(packed, places, strict=True)))
        return out

    def normalise(self, rows: np.ndarray, *, out: np.ndarray) -> None:
        """Packed rows (N, 3*K) uint8 as float32 in `out`, of the same shape."""
        normalise_rows(
            rows,
            scale=self.rescale_factor if self.do_rescale else 1.0,
            mean=self.image_mean if self.do_normalize else 0.0,
            std=self.image_std if self.do_normalize else 1.0,
            out=out,
        )


def check_integer(field: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(message(field, value, "must be a positive integer"))


def plain(value: Any) -> Any:
    """NumPy's numbers and fractions as Python's own, also in lists and tuples: what a saved file can hold."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    if isinstance(value, Fraction) and is_number(value, above=-math.inf):
        return float(value)
    return value


def check_tensor_type(return_tensors: Any) -> None:
    """Raise `ValueError` unless tensors can be returned so."""
    if return_tensors not in (None, "pt", "np"):  # TensorType members are strings too
        raise ValueError(message("return_tensors", return_tensors, 'expected "pt", "np" or None'))


class PixelProcessor(BaseImageProcessor):
    """A mixin before Transformers' classes: options are checked and stored, saved, and merged with those of a call.

    A subclass says with `options_type` and `valid_kwargs` which options there are; their defaults are its attributes.
    """

    patch_size = 14
    temporal_patch_size = 2
    merge_size = 2
    do_resize = True
    resample = Image.Resampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    output_dtype = "float32"
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    do_convert_rgb = True
    input_data_format = None
    value_range = None

    # Options of a call that leaves rows as `options_type.sample_dtype`, small to keep; `normalise` does the rest.
    raw: ClassVar[dict[str, Any]] = {"do_rescale": False, "do_normalize": False, "output_dtype": "float32"}
    policy: MediaPolicy = DEFAULT_POLICY
    encoder: Mapping[str, Any] | None = None  # the vision config beside which it was loaded, if any; never saved
    default_to_square = False
    options_type: type[PixelOptions]

    def __init__(self, **kwargs: Any) -> None:
        auto_map = kwargs.get("auto_map")
        kwargs = {key: plain(value) for key, value in kwargs.items() if key not in FILE_ONLY}
        self._refuse_unknown(kwargs, where=type(self).__name__)
        kwargs = {key: value for key, value in kwargs.items() if value is not None or key not in GEOMETRY}
        options = self._options(kwargs)  # before anything is stored: an impossible value leaves no half-made object
        for key in ("size", *BOUNDS):
            kwargs.pop(key, None)
        super().__init__(size={"shortest_edge": options.min_pixels, "longest_edge": options.max_pixels}, **kwargs)
        if auto_map is not None:
            self.auto_map = auto_map

    def seen(self, height: int, width: int) -> tuple[int, int, int, int]:
        """What of a picture of `height` x `width` pixels reaches the model: left, top, right and bottom."""
        return 0, 0, width, height

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved processor; options among `kwargs` replace saved ones.

        Auto classes and `ArlowProcessor` hand one set of keywords to several parts, so theirs are not checked here.
        With `return_unused_kwargs=True` unknown ones come back, as in Transformers.

        Raises:
            TypeError: a keyword that is neither an option nor says where the files are.
            ValueError: an impossible value, in the file or given.
            OSError: files are missing or cannot be read.
        """
        if not kwargs.get("_from_auto") and not kwargs.get("return_unused_kwargs"):
            options = [key for key in kwargs if key not in HUB_KEYWORDS]
            cls._refuse_unknown(options, where=f"{cls.__name__}.from_pretrained")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From what `to_dict` gives; options among `kwargs` replace those saved. Keys that this version does not know
        are reported and ignored, so that the file of a newer one still loads."""
        saved = image_processor_dict
        known = {*cls.valid_kwargs.__annotations__, *FILE_ONLY}
        if unknown := sorted(saved.keys() - known):
            logger.warning(f"{cls.__name__}: unknown keys in the saved file are ignored: {shorten(unknown)}")
        return super().from_dict({key: value for key, value in saved.items() if key in known}, **kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """The attributes to store: the bounds of the area live in `size` alone; nothing is padded or cropped."""
        stored = super()._standardize_kwargs(**kwargs)
        for key in (*BOUNDS, "crop_size", "pad_size", *CALL_ONLY):
            stored.pop(key, None)
        return stored

    @property
    def min_pixels(self) -> int:
        """Pixels, lower bound of the area of a resized picture or frame."""
        return self.size["shortest_edge"]

    @property
    def max_pixels(self) -> int:
        """Pixels, upper bound of the area of a resized picture or frame."""
        return self.size["longest_edge"]

    def to_dict(self) -> dict[str, Any]:
        """What is saved: every option, not the policy."""
        saved = super().to_dict()
        for name in ("policy", "encoder"):
            saved.pop(name, None)
        return saved

    @classmethod
    def _refuse_unknown(cls, keywords: Iterable[str], *, where: str) -> None:
        known = cls.valid_kwargs.__annotations__
        for key in keywords:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"{where}: unknown option {shorten(key)}{hint}")

    def _options(self, kwargs: Mapping[str, Any]) -> Any:
        """The options of a call, an `options_type`: `kwargs` over the processor's own values."""
        options = self.options_type(**self._values(kwargs))
        if options.output_dtype == "uint8" and self.encoder is not None:
            for name in ("image_mean", "image_std"):
                ours, theirs = getattr(options, name), self.encoder.get(name, 0.5)
                if not np.allclose(ours, theirs):
                    raise ValueError(message(name, ours, f"of uint8 rows, which the encoder normalises by {theirs}"))
        return options

    def _values(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every field of `options_type` that a caller may give. Where the call and the processor say None, the class
        decides."""
        given = {key: value for key, value in kwargs.items() if value is not None}
        known = self.valid_kwargs.__annotations__
        values = {}
        for field in fields(self.options_type):
            name = field.name
            if name in BOUNDS or not hasattr(type(self), name):
                continue
            own = getattr(self, name) if name in known else None  # what is no option is the class's own
            values[name] = plain(given.get(name, getattr(type(self), name) if own is None else own))
        for key in ("image_mean", "image_std"):
            values[key] = tuple(values[key]) if isinstance(values[key], list) else values[key]
        bounds = self._bounds(self.size or type(self).size) | self._bounds(given.get("size"))
        return values | bounds | {key: plain(given[key]) for key in BOUNDS if key in given}

    def _bounds(self, size: Any) -> dict[str, Any]:
        """`size` as `min_pixels` and `max_pixels`; a bound may be left out, another key is an error."""
        if size is None:
            return {}
        try:
            given: dict[str, Any] = dict(size)  # a dict or Transformers' SizeDict
        except (TypeError, ValueError):
            given = {}
        bounds = {SIZE_KEYS.get(key, key): plain(value) for key, value in given.items()}
        if not given or not given.keys() <= SIZE_KEYS.keys() or len(bounds) < len(given):
            expected = 'expected {"shortest_edge": min_pixels, "longest_edge": max_pixels}'
            raise ValueError(message("size", given or size, expected))
        return bounds
