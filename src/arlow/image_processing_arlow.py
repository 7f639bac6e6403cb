"""Pictures in, packed rows of patches out: what `ArlowForConditionalGeneration` takes as `pixel_values`.

Every picture passes the border (`media.load_picture`), is resized once as uint8, cut into rows and written
as float32 straight into the tensor that is returned. Output:

    pixel_values    (image patches, 3*P*P) float32, all pictures one after the other, merge-block order within each
    image_grid_thw  (images, 3) int64: 1, patches along the height, patches along the width, before merging
    num_crops       (pictures,) int64, only with `do_pan_and_scan`: how many crops follow each picture as images
"""

# No `from __future__ import annotations`: Transformers reads the TypedDict's annotations at run time.

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature

from .errors import is_number, message
from .media import Picture, flatten_images, in_threads, is_array, load_picture, open_image
from .patches import kept_count, pack_image, pan_and_scan_boxes
from .pixel_options import Integer, Number, PixelKwargs, PixelOptions, PixelProcessor, check_tensor_type


Box = tuple[int, int, int, int]  # top, left, height, width in pixels of the upright picture
View = tuple[np.ndarray, tuple[int, int, int]]  # rows (patches, 3*P*P) uint8, and their grid
Plan = list[tuple[Box, int, int]]  # what is cut out, and the height and width (pixels) it is resized to


class ArlowImageProcessorKwargs(PixelKwargs, total=False):
    """Options of `ArlowImageProcessor`, for construction and calls."""

    scale_while_decoding: bool | None  # JPEG files at least twice as large as needed: faster, one or two levels off
    do_pan_and_scan: bool | None  # crops of elongated pictures follow them as images of their own
    pan_and_scan_min_crop_size: Integer  # pixels
    pan_and_scan_max_num_crops: Integer
    pan_and_scan_min_ratio_to_activate: Number  # longer side over shorter side
    max_tokens_per_image: Integer  # tokens after merging, of a picture and of each of its crops
    token_pruning_ratio: Number  # share of the tokens that the decoder does not get; must be the model's
    disable_grouping: bool | None  # accepted and unused


@dataclass(frozen=True, kw_only=True)
class ImageOptions(PixelOptions):
    """The options of one call, validated: `ValueError` names the field and the value. Units as above."""

    scale_while_decoding: bool
    do_pan_and_scan: bool
    pan_and_scan_min_crop_size: int
    pan_and_scan_max_num_crops: int
    pan_and_scan_min_ratio_to_activate: float
    max_tokens_per_image: int | None
    token_pruning_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = self.pan_and_scan_min_ratio_to_activate
        self._check_number("pan_and_scan_min_ratio_to_activate", ratio, above=0)
        pruned = self.token_pruning_ratio
        if not is_number(pruned, above=-1) or not 0 <= pruned < 1:
            raise ValueError(message("token_pruning_ratio", pruned, "must lie in [0, 1)"))

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

    def needed(self, height: int, width: int, *, name: str) -> tuple[int, int]:
        """Of how many pixels in height and width a file of this size may be decoded: crops are cut out of all."""
        (_, *target), *crops = self.plan(height, width, name=name)
        return (height, width) if crops else (target[0], target[1])

    def tokens(self, h: int, w: int) -> int:
        """Tokens of a picture of `h` x `w` patches that reach the decoder."""
        return kept_count(h // self.merge_size, w // self.merge_size, self.token_pruning_ratio)

    def _target(self, height: int, width: int, *, name: str) -> tuple[int, int]:
        tokens = self.max_tokens_per_image
        most = self.max_pixels if tokens is None else min(self.max_pixels, tokens * self.factor**2)
        target = self.target(height, width, most=most, name=name)
        if not self.do_resize and tokens is not None and height * width > tokens * self.factor**2:
            size = f"{name} of {height}x{width} pixels"
            raise ValueError(f"{size}: more than max_tokens_per_image={tokens} tokens, and do_resize=False")
        return target


class ArlowImageProcessor(PixelProcessor, PilBackend):
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

    size = {"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 1280}
    scale_while_decoding = False
    do_pan_and_scan = False
    pan_and_scan_min_crop_size = 256
    pan_and_scan_max_num_crops = 4
    pan_and_scan_min_ratio_to_activate = 1.6
    max_tokens_per_image = None
    token_pruning_ratio = 0.0

    valid_kwargs: Any = ArlowImageProcessorKwargs
    options_type: Any = ImageOptions
    model_input_names = ["pixel_values", "image_grid_thw"]

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
        check_tensor_type(return_tensors)
        self._refuse_unknown(kwargs, where="preprocess")
        options: ImageOptions = self._options(kwargs)
        views = in_threads(lambda each: self._views(*each, options), flatten_images(images))
        rows, grids = zip(*(view for of_one in views for view in of_one), strict=True)
        data = {"pixel_values": options.values(rows), "image_grid_thw": np.array(grids, dtype=np.int64)}
        if options.do_pan_and_scan:
            data["num_crops"] = np.array([len(of_one) - 1 for of_one in views], dtype=np.int64)
        features = BatchFeature(data=data, tensor_type=return_tensors)
        return features if device is None or return_tensors is None else features.to(device)

    def _views(self, name: str, source: object, options: ImageOptions) -> list[View]:
        """A picture and its crops."""
        target = functools.partial(options.needed, name=name) if options.scale_while_decoding else None
        picture = load_picture(
            source,
            policy=self.policy,
            name=name,
            input_data_format=options.input_data_format,
            value_range=options.value_range,
            convert_rgb=options.do_convert_rgb,
            target=target,
        )
        plan = options.plan(picture.height, picture.width, name=name)
        return [_view(picture, *step, options=options) for step in plan]

    def plan(self, height: int, width: int, **kwargs: Any) -> Plan:
        """What `preprocess` makes of a picture of `height` x `width` pixels, without the picture.

        Returns `[((top, left, height, width), target height, target width), ...]` in pixels: the picture, then its
        crops. `kwargs` are options as in a call.
        """
        self._refuse_unknown(kwargs, where="plan")
        return self._options(kwargs).plan(height, width)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Rows of `pixel_values` (patches before merging) of a picture of `height` x `width` pixels, crops included.

        Serving engines ask this to count placeholders. `images_kwargs` are options as in a call.
        """
        options = images_kwargs or {}
        patch_size = self._options(options).patch_size
        return sum(h * w for _, h, w in self.plan(height, width, **options)) // patch_size**2

    def get_number_of_image_tokens(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """Placeholders of a picture of `height` x `width` pixels, crops included."""
        options = self._options(images_kwargs or {})
        plan = self.plan(height, width, **(images_kwargs or {}))
        return sum(options.tokens(h // options.patch_size, w // options.patch_size) for _, h, w in plan)


def _view(picture: Picture, box: Box, height: int, width: int, *, options: ImageOptions) -> View:
    """The part `box` of a picture, as the options resize it."""
    top, left, box_height, box_width = box
    if (box_height, box_width) != (picture.height, picture.width):
        picture = Picture(image=picture.image.crop((left, top, left + box_width, top + box_height)))
    pixels = options.resize(picture, height=height, width=width)
    rows = pack_image(pixels, patch_size=options.patch_size, merge_size=options.merge_size)
    return rows, (1, height // options.patch_size, width // options.patch_size)
