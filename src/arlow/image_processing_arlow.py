"""Pictures in, packed rows of patches out: what `ArlowForConditionalGeneration` takes as `pixel_values`.

Every picture passes the border (`media.load_picture`), is resized once as uint8 with Pillow, cut into rows and written
as float32 straight into the tensor that is returned. Output:

    pixel_values    (image patches, 3*P*P) float32, all pictures one after the other, merge-block order within each
    image_grid_thw  (images, 3) int64: 1, patches along the height, patches along the width, before merging
    num_crops       (pictures,) int64, only with `do_pan_and_scan`: how many crops follow each picture as images
"""

# No `from __future__ import annotations`: Transformers reads the TypedDict's annotations at run time.

import difflib
import math
import numbers
from dataclasses import dataclass, fields
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature

from .errors import message, shorten
from .media import INPUT_FORMATS, VALUE_RANGES, Picture, flatten_images, is_array, load_picture, open_image
from .media_fetch import DEFAULT_POLICY, MediaPolicy
from .patches import normalise_rows, pack_image, pan_and_scan_boxes, target_size


Box = tuple[int, int, int, int]  # top, left, height, width in pixels of the upright picture
Plan = list[tuple[Box, int, int]]  # what is cut out, and the height and width (pixels) it is resized to

CALL_ONLY = ("return_tensors", "device", "data_format", "disable_grouping")  # sent by Transformers, no options of ours
LOADING_ONLY = ("image_processor_type", "feature_extractor_type", "processor_class")  # found in saved files


class ArlowImageProcessorKwargs(TypedDict, total=False):
    """Options of `ArlowImageProcessor`, for construction and calls. `None` means the processor's own value."""

    patch_size: int | None  # pixels, side of a patch
    temporal_patch_size: int | None  # frames per row of a video; still pictures have one
    merge_size: int | None  # patches, side of the block that becomes one token
    size: Any  # {"shortest_edge": min_pixels, "longest_edge": max_pixels}: bounds of the area of a resized picture
    min_pixels: int | None  # the same bounds by themselves
    max_pixels: int | None
    do_resize: bool | None  # False: sides must be multiples of patch_size * merge_size already
    resample: Any  # PIL.Image.Resampling or its number
    do_rescale: bool | None
    rescale_factor: float | int | None
    do_normalize: bool | None
    image_mean: float | int | list[float] | tuple[float, ...] | None  # one number or one per channel, after rescaling
    image_std: float | int | list[float] | tuple[float, ...] | None
    do_convert_rgb: bool | None  # False: pictures that are not RGB are refused
    do_pan_and_scan: bool | None  # crops of elongated pictures follow them as images of their own
    pan_and_scan_min_crop_size: int | None  # pixels
    pan_and_scan_max_num_crops: int | None
    pan_and_scan_min_ratio_to_activate: float | int | None  # longer side over shorter side
    max_tokens_per_image: int | None  # tokens after merging, of a picture and of each of its crops
    input_data_format: Any  # "channels_first" | "channels_last", for arrays where both could be
    value_range: str | None  # "0..1" | "0..255" | "0..65535", what the samples of an array span
    return_tensors: Any  # "pt", "np" or None (NumPy)
    device: Any  # where "pt" tensors go
    data_format: Any  # accepted and unused: rows have one layout
    disable_grouping: bool | None  # accepted and unused


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The options of one call, validated: `ValueError` names the field and the value. Units as above."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    do_resize: bool
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: float | tuple[float, ...]
    image_std: float | tuple[float, ...]
    do_convert_rgb: bool
    do_pan_and_scan: bool
    pan_and_scan_min_crop_size: int
    pan_and_scan_max_num_crops: int
    pan_and_scan_min_ratio_to_activate: float
    max_tokens_per_image: int | None
    input_data_format: Any
    value_range: Any

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and field.name != "resample":
                _check_integer(field.name, value)
            elif field.type is bool and not isinstance(value, bool):
                raise ValueError(message(field.name, value, "must be True or False"))
        if self.max_tokens_per_image is not None:
            _check_integer("max_tokens_per_image", self.max_tokens_per_image)
        if isinstance(self.resample, bool) or self.resample not in list(Image.Resampling):
            raise ValueError(message("resample", self.resample, "is no filter of PIL.Image.Resampling (0..5)"))
        _check_number("rescale_factor", self.rescale_factor, above=0)
        _check_number("pan_and_scan_min_ratio_to_activate", self.pan_and_scan_min_ratio_to_activate, above=0)
        _check_channels("image_mean", self.image_mean, above=-math.inf)
        _check_channels("image_std", self.image_std, above=0)
        self._check_choices()
        self._check_area()

    def _check_choices(self) -> None:
        for field, choices in (("input_data_format", INPUT_FORMATS), ("value_range", VALUE_RANGES)):
            if getattr(self, field) not in choices:
                raise ValueError(message(field, getattr(self, field), f"expected one of {choices}"))

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

    def plan(self, height: int, width: int, *, name: str = "image") -> Plan:
        """What becomes of a picture of `height` x `width` pixels: itself, then its crops, with their target sizes."""
        boxes: list[Box] = [(0, 0, height, width)]
        if self.do_pan_and_scan:
            boxes += pan_and_scan_boxes(
                height,
                width,
                min_crop_size=self.pan_and_scan_min_crop_size,
                max_num_crops=self.pan_and_scan_max_num_crops,
                min_ratio_to_activate=self.pan_and_scan_min_ratio_to_activate,
            )
        return [(box, *self._target(box[2], box[3], name=name)) for box in boxes]

    def _target(self, height: int, width: int, *, name: str) -> tuple[int, int]:
        tokens = self.max_tokens_per_image
        limit = self.max_pixels if tokens is None else min(self.max_pixels, tokens * self.factor**2)
        if self.do_resize:
            least = min(self.min_pixels, limit)
            return target_size(height, width, factor=self.factor, min_pixels=least, max_pixels=limit, name=name)
        size = f"{name} of {height}x{width} pixels"
        if height < 1 or width < 1 or height % self.factor or width % self.factor:
            raise ValueError(f"{size}: do_resize=False needs multiples of patch_size * merge_size = {self.factor}")
        if tokens is not None and height * width > tokens * self.factor**2:
            raise ValueError(f"{size}: more than max_tokens_per_image={tokens} tokens, and do_resize=False")
        return height, width


def _check_integer(field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(message(field, value, "must be a positive integer"))


def _check_number(field: str, value: Any, *, above: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not above < float(value) < math.inf:
        raise ValueError(message(field, value, "must be a finite number" + (f" above {above}" if above == 0 else "")))


def _check_channels(field: str, value: object, *, above: float) -> None:
    values = value if isinstance(value, (list, tuple)) else (value,)
    if isinstance(value, (list, tuple)) and len(values) != 3:
        raise ValueError(message(field, value, "must be one number or three, one per channel"))
    for each in values:
        _check_number(field, each, above=above)


class ArlowImageProcessor(PilBackend):
    """Turns pictures into `pixel_values` and `image_grid_thw`; see the top of this file for their shapes.

    Pictures may be paths, URLs, data URIs, bytes, Pillow images, NumPy arrays or torch tensors: one, a list, or a list
    per row of a batch. What may be fetched and decoded is set by `processor.policy = MediaPolicy(...)`; the policy
    belongs to the process, so it is not saved. An instance keeps no state between calls and may be used from many
    threads.

    Options are those of `ArlowImageProcessorKwargs`, here and in each call. Resizing keeps the aspect ratio, with
    sides that are multiples of `patch_size * merge_size` and an area within `size`: by default 56*56 to
    14*14*4*1280 pixels, that is 4 to 1280 tokens.

    Raises:
        TypeError: an unknown option, or something that is no picture.
        ValueError: an impossible value of an option, or a picture the policy refuses; the field or item is named.
        OSError: a picture that cannot be read, or is truncated or corrupt.
    """

    patch_size = 14
    temporal_patch_size = 2
    merge_size = 2
    size = {"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 1280}
    do_resize = True
    resample = Image.Resampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    do_convert_rgb = True
    do_pan_and_scan = False
    pan_and_scan_min_crop_size = 256
    pan_and_scan_max_num_crops = 4
    pan_and_scan_min_ratio_to_activate = 1.6
    max_tokens_per_image = None
    input_data_format = None
    value_range = None

    policy: MediaPolicy = DEFAULT_POLICY
    default_to_square = False
    valid_kwargs = ArlowImageProcessorKwargs
    model_input_names = ["pixel_values", "image_grid_thw"]

    def __init__(self, **kwargs: Any) -> None:
        kwargs = {key: value for key, value in kwargs.items() if key not in LOADING_ONLY}
        auto_map = kwargs.pop("auto_map", None)
        _refuse_unknown(kwargs, where=type(self).__name__)
        options = self._options(kwargs)  # before anything is stored: an impossible value leaves no half-made object
        for key in ("size", "min_pixels", "max_pixels"):
            kwargs.pop(key, None)
        super().__init__(size={"shortest_edge": options.min_pixels, "longest_edge": options.max_pixels}, **kwargs)
        if auto_map is not None:
            self.auto_map = auto_map

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """The attributes to store: the bounds of the area live in `size` alone; nothing is padded or cropped."""
        stored = super()._standardize_kwargs(**kwargs)
        for key in ("min_pixels", "max_pixels", "crop_size", "pad_size", *CALL_ONLY):
            stored.pop(key, None)
        return stored

    @property
    def min_pixels(self) -> int:
        """Pixels, lower bound of the area of a resized picture."""
        return self.size["shortest_edge"]

    @property
    def max_pixels(self) -> int:
        """Pixels, upper bound of the area of a resized picture."""
        return self.size["longest_edge"]

    def to_dict(self) -> dict[str, Any]:
        """What is saved: every option, not the policy."""
        saved = super().to_dict()
        saved.pop("policy", None)
        return saved

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """The same nesting with paths, URLs, data URIs and bytes opened under `self.policy` as Pillow images.

        Arrays, tensors and Pillow images stay as they are. Transformers calls this before `preprocess`; it replaces a
        method that downloads without limits.
        """
        return self._fetch(image_url_or_urls, name="images")

    def _fetch(self, images: Any, *, name: str) -> Any:
        if isinstance(images, (list, tuple)):
            return [self._fetch(item, name=f"{name}[{index}]") for index, item in enumerate(images)]
        if is_array(images) or isinstance(images, (Image.Image, Picture)):
            return images
        return open_image(images, policy=self.policy, name=name)

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Pictures as packed rows.

        Args:
            images: one picture, a list of pictures, or a list of lists of pictures (rows may be empty).
            **kwargs: options of `ArlowImageProcessorKwargs` for this call only.

        Returns:
            `pixel_values`, `image_grid_thw` and, with pan-and-scan, `num_crops`; see the top of this file.

        Raises: as the class does.
        """
        return_tensors, device = kwargs.get("return_tensors"), kwargs.get("device")
        _check_tensor_type(return_tensors)
        _refuse_unknown(kwargs, where="preprocess")
        options = self._options(kwargs)
        resized: list[np.ndarray] = []
        counts: list[int] = []
        for name, source in flatten_images(images):
            picture = load_picture(
                source,
                policy=self.policy,
                name=name,
                input_data_format=options.input_data_format,
                value_range=options.value_range,
                convert_rgb=options.do_convert_rgb,
            )
            plan = options.plan(picture.height, picture.width, name=name)
            resized += [_cut_and_resize(picture, *step, resample=options.resample) for step in plan]
            counts.append(len(plan) - 1)
        data = {"pixel_values": _pack(resized, options), "image_grid_thw": _grids(resized, options.patch_size)}
        if options.do_pan_and_scan:
            data["num_crops"] = np.array(counts, dtype=np.int64)
        features = BatchFeature(data=data, tensor_type=return_tensors)
        return features if device is None or return_tensors is None else features.to(device)

    def plan(self, height: int, width: int, **kwargs: Any) -> Plan:
        """What `preprocess` makes of a picture of `height` x `width` pixels, without the picture.

        Returns `[((top, left, height, width), target height, target width), ...]` in pixels: the picture, then its
        crops. `kwargs` are options as in a call.
        """
        _refuse_unknown(kwargs, where="plan")
        return self._options(kwargs).plan(height, width)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Rows of `pixel_values` (patches before merging) of a picture of `height` x `width` pixels, crops included.

        Serving engines ask this to count placeholders. `images_kwargs` are options as in a call.
        """
        options = images_kwargs or {}
        patch_size = self._options(options).patch_size
        return sum(h * w for _, h, w in self.plan(height, width, **options)) // patch_size**2

    def _options(self, kwargs: dict[str, Any]) -> ImageOptions:
        """The options of a call: `kwargs` over the processor's own values."""
        values = {}
        for field in fields(ImageOptions):
            if field.name not in ("min_pixels", "max_pixels"):
                given = kwargs.get(field.name)
                values[field.name] = getattr(self, field.name) if given is None else given
        bounds = _bounds(self.size) | _bounds(kwargs.get("size"))
        bounds |= {key: kwargs[key] for key in ("min_pixels", "max_pixels") if kwargs.get(key) is not None}
        for key in ("image_mean", "image_std"):
            values[key] = tuple(values[key]) if isinstance(values[key], list) else values[key]
        return ImageOptions(**values, **bounds)


def _bounds(size: Any) -> dict[str, Any]:
    """`size` as `min_pixels` and `max_pixels`; a bound may be left out, another key is an error."""
    if size is None:
        return {}
    try:
        given: dict[str, Any] = dict(size)  # a dict or Transformers' SizeDict
    except (TypeError, ValueError):
        given = {}
    names: dict[str, str] = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
    bounds = {names.get(key, key): value for key, value in given.items()}
    if not bounds or not bounds.keys() <= set(names.values()) or len(bounds) < len(given):
        shown = given or size
        raise ValueError(message("size", shown, 'expected {"shortest_edge": min_pixels, "longest_edge": max_pixels}'))
    return bounds


def _refuse_unknown(kwargs: dict[str, Any], *, where: str) -> None:
    known = ArlowImageProcessorKwargs.__annotations__
    for key in kwargs:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{where}: unknown option {shorten(key)}{hint}")


def _check_tensor_type(return_tensors: Any) -> None:
    if return_tensors not in (None, "pt", "np"):  # TensorType members are strings too
        raise ValueError(message("return_tensors", return_tensors, 'expected "pt", "np" or None'))


def _cut_and_resize(picture: Picture, box: Box, height: int, width: int, *, resample: int) -> np.ndarray:
    """The part `box` of a picture as (height, width, 3) uint8, resized once and antialiased."""
    top, left, box_height, box_width = box
    if box == (0, 0, height, width) and (height, width) == (picture.height, picture.width):
        return picture.pixels
    image = picture.image
    if (box_height, box_width) != (picture.height, picture.width):
        image = image.crop((left, top, left + box_width, top + box_height))
    return np.asarray(image.resize((width, height), resample))


def _pack(resized: list[np.ndarray], options: ImageOptions) -> np.ndarray:
    """Resized pictures as (patches, 3*P*P) float32, each written to its place in the result."""
    P = options.patch_size
    counts = [each.shape[0] * each.shape[1] // P**2 for each in resized]
    rows = np.empty((sum(counts), 3 * P * P), dtype=np.float32)
    start = 0
    for pixels, count in zip(resized, counts, strict=True):
        normalise_rows(
            pack_image(pixels, patch_size=P, merge_size=options.merge_size),
            scale=options.rescale_factor if options.do_rescale else 1.0,
            mean=options.image_mean if options.do_normalize else 0.0,
            std=options.image_std if options.do_normalize else 1.0,
            out=rows[start : start + count],
        )
        start += count
    return rows


def _grids(resized: list[np.ndarray], patch_size: int) -> np.ndarray:
    return np.array(
        [(1, each.shape[0] // patch_size, each.shape[1] // patch_size) for each in resized], dtype=np.int64
    )
