"""Pictures and videos for a vision encoder of Transformers: its own image processor prepares every picture and frame,
and what it gives is packed into the rows that every encoder of Arlow reads.

    pixel_values          (patches, 3*P*P) float32, grids in image_grid_thw
    pixel_values_videos   (patches, 3*P*P) float32, a frame at a time, grids in video_grid_thw
"""

# No `from __future__ import annotations`: Transformers reads the TypedDict's annotations at run time.

import functools
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

from .errors import message
from .image_processing_arlow import ArlowImageProcessor, ImageOptions
from .media import Picture
from .pixel_options import Integer, Number, PixelOptions, RowKwargs
from .video_processing_arlow import ArlowVideoProcessor, VideoOptions


class TowerKwargs(RowKwargs, total=False):
    """Options of pictures and of videos. Sizes, crops and normalisation are the tower's own image processor's."""

    tower_processor: Any  # the tower's image processor, or the fields it is saved with


class TowerImageKwargs(TowerKwargs, total=False):
    """Options of `ArlowTowerImageProcessor`, for construction and calls."""

    disable_grouping: bool | None  # accepted and unused


class TowerVideoKwargs(TowerKwargs, total=False):
    """Options of `ArlowTowerVideoProcessor`, for construction and calls; see `ArlowVideoProcessorKwargs`."""

    do_sample_frames: bool | None
    fps: Number
    num_frames: Integer
    min_frames: Integer
    max_frames: Integer
    sample_strategy: str | None
    max_tokens_per_video: Integer
    return_metadata: bool | None
    video_metadata: Any


class TowerImages:
    """The tower's own image processor, one picture at a time."""

    def __init__(self, fields: dict[str, Any], patch_size: int, merge_size: int) -> None:
        self.processor, self.patch_size, self.merge_size = load_processor(fields), patch_size, merge_size
        self.settings = self.processor.to_dict()
        # Most processors give one size, whatever comes.
        given = self.settings.get("crop_size") if self.settings.get("do_center_crop") else self.settings.get("size")
        self.only_size: tuple[int, int] | None = None
        if {"height", "width"} <= {*(given or {})} and self.settings.get("do_resize"):
            height, width = (given[side] // patch_size * patch_size for side in ("height", "width"))
            self.only_size = height, width

    def seen(self, height: int, width: int) -> tuple[int, int, int, int]:
        """What a picture of `height` x `width` pixels still shows after the processor's centre crop: left, top, right
        and bottom in its pixels."""
        if not self.settings.get("do_center_crop"):
            return 0, 0, width, height
        crop, size = self.settings["crop_size"], self.settings["size"]
        cuts = []
        for whole, name in ((width, "width"), (height, "height")):
            scale = size["shortest_edge"] / min(height, width) if "shortest_edge" in size else size[name] / whole
            cuts.append(max(round((whole - crop[name] / scale) / 2), 0))
        left, top = cuts
        return left, top, width - left, height - top

    def pixels(self, picture: Picture) -> np.ndarray:
        """(H, W, 3) float32, sides multiples of the patch size: what no patch covers is left out, as in the tower."""
        P = self.patch_size
        out = self.processor(picture.image, return_tensors="np")
        if "spatial_shapes" in out:  # patches already, channels last, behind them padding
            h, w = (int(side) for side in out["spatial_shapes"][0])
            values = np.asarray(out["pixel_values"][0][: h * w])
            if values.shape[1] != 3 * P * P:
                problem = f"the tower's processor cuts patches of {values.shape[1]} values"
                raise ValueError(message("patch_size", P, problem))
            # The tower takes any size: the last patches, which make no whole token, are left out; where there are too
            # few for a single one, the last is repeated.
            merge = self.merge_size
            rows, columns = (np.arange(max(side // merge, 1) * merge).clip(max=side - 1) for side in (h, w))
            patches = values.reshape(h, w, P, P, 3)[rows][:, columns]
            return patches.swapaxes(1, 2).reshape(len(rows) * P, len(columns) * P, 3)
        pixels = np.asarray(out["pixel_values"][0])
        _, height, width = pixels.shape
        return pixels[:, : height // P * P, : width // P * P].transpose(1, 2, 0)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - as many instances as processors
    def size(self, height: int, width: int) -> tuple[int, int]:
        """Pixels of what becomes of a picture of `height` x `width` pixels."""
        if self.only_size is not None:
            return self.only_size
        blank = Picture(image=Image.new("RGB", (width, height)))
        return self.pixels(blank).shape[:2]


@functools.lru_cache(maxsize=16)
def tower_images(fields: str, patch_size: int, merge_size: int) -> TowerImages:
    return TowerImages(json.loads(fields), patch_size, merge_size)


def load_processor(fields: dict[str, Any]) -> Any:
    """The image processor that was saved with these fields, by Pillow. Raises `ValueError` if there is none."""
    kind = str(fields.get("image_processor_type")).removesuffix("Fast").removesuffix("Pil")
    for name in (f"{kind}Pil", kind):
        found = get_image_processor_class_from_name(name)
        if found is not None and not getattr(found, "is_dummy", False):
            return found.from_dict(fields)
    problem = "is no image processor of Transformers, or needs torchvision, which is not installed"
    raise ValueError(message("tower_processor.image_processor_type", kind, problem))


@dataclass(frozen=True, kw_only=True)
class TowerOptions(PixelOptions):
    """Of one call: pictures become what the tower's own image processor makes of them."""

    tower_processor: dict

    CHOICES = PixelOptions.CHOICES | {"output_dtype": ("float32",)}
    sample_dtype = "float32"  # normalised already, where Arlow's own keep uint8

    @property
    def _images(self) -> TowerImages:
        return tower_images(json.dumps(self.tower_processor, sort_keys=True), self.patch_size, self.merge_size)

    def target(self, height: int, width: int, *, most: int, name: str) -> tuple[int, int]:
        if height < 1 or width < 1:
            raise ValueError(f"{name} of {height}x{width} pixels: is empty")
        height, width = self._images.size(height, width)
        if height % self.factor or width % self.factor or not height * width:
            grid = f"{height // self.patch_size}x{width // self.patch_size}"
            raise ValueError(message("merge_size", self.merge_size, f"the tower's {grid} patches do not divide by it"))
        return height, width

    def resize(self, picture: Picture, *, height: int, width: int) -> np.ndarray:
        return self._images.pixels(picture)

    def normalise(self, rows: np.ndarray, *, out: np.ndarray) -> None:
        out[:] = rows


@dataclass(frozen=True, kw_only=True)
class TowerImageOptions(TowerOptions, ImageOptions):
    pass


@dataclass(frozen=True, kw_only=True)
class TowerVideoOptions(TowerOptions, VideoOptions):
    pass


class _TowerProcessor:
    """What both have in common: the tower's processor is an option, kept as the fields it is saved with."""

    merge_size = 1
    temporal_patch_size = 1
    tower_processor: Any = None
    raw: ClassVar[dict[str, bool]] = {}  # the tower's processor normalises
    valid_kwargs: Any

    def __init__(self, **kwargs: Any) -> None:
        given = kwargs.get("tower_processor")
        if given is None:
            raise ValueError(message("tower_processor", given, "needs the tower's own image processor"))
        kwargs["tower_processor"] = given if isinstance(given, dict) else given.to_dict()
        load_processor(kwargs["tower_processor"])
        super().__init__(**kwargs)

    def seen(self, height: int, width: int) -> tuple[int, int, int, int]:
        return self._options({})._images.seen(height, width)  # type: ignore[attr-defined]

    def to_dict(self) -> dict[str, Any]:
        saved = super().to_dict()  # type: ignore[misc]
        own = {*self.valid_kwargs.__annotations__, "image_processor_type", "video_processor_type", "processor_class"}
        return {key: value for key, value in saved.items() if key in own}


class ArlowTowerImageProcessor(_TowerProcessor, ArlowImageProcessor):
    """Turns pictures into `pixel_values` and `image_grid_thw` for an [`ArlowTower`].

    Args:
        tower_processor: the tower's own image processor.
        patch_size: the tower's.
        merge_size: `spatial_merge_size` of its config.

    Raises: as [`ArlowImageProcessor`].
    """

    valid_kwargs = TowerImageKwargs
    options_type = TowerImageOptions


class ArlowTowerVideoProcessor(_TowerProcessor, ArlowVideoProcessor):
    """Turns videos into `pixel_values_videos` and `video_grid_thw` for an [`ArlowTower`]: frames are sampled as by
    [`ArlowVideoProcessor`], and the tower's own image processor prepares each.

    Raises: as [`ArlowVideoProcessor`].
    """

    valid_kwargs = TowerVideoKwargs
    options_type = TowerVideoOptions
