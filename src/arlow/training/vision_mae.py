"""`arlow train vision-mae`: masked autoencoding of pictures and clips, without words.

Sources -> draws -> rows of pixels and a mask -> `MaskedAutoencoder` -> checkpoints that hold encoder and processors.

Source: arXiv 2111.06377.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch.utils.data import ConcatDataset, Dataset
from transformers import TrainerCallback

from ..configuration_arlow import ArlowVisionConfig
from ..data.bad_samples import LIST_NAME, BadSamples
from ..data.images import Clipping, Item, Items, Kind, MixedDraws, Source, Stream, load_clip, load_image
from ..errors import cut, message
from ..image_processing_arlow import ArlowImageProcessor
from ..video_processing_arlow import ArlowVideoProcessor
from .loop import ArlowTrainer, run, saved_bytes, total_draws
from .masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderConfig, draw_mask
from .parts import ENCODER, IMAGE_PROCESSOR, VIDEO_PROCESSOR, find_encoder, find_processor, load_encoder
from .recipe import CommonRecipe, FilePath
from .reconstruction_sheet import reconstruct, write_sheet


PROCESSOR_FILE = "processor_config.json"
FEWEST_BLOCKS = 4  # merge blocks of the smallest picture: three to hide, one to see


def _to_source(value: Any) -> Any:
    return {"folder": value} if isinstance(value, str) else value


AnySource = Annotated[Source, BeforeValidator(_to_source)]


class Recipe(CommonRecipe):
    """The fields of the stage `vision-mae`."""

    # Model
    config: dict[str, Any] | FilePath | None = Field(
        None, description="a new encoder: fields of ArlowVisionConfig, or the path of a config.json"
    )
    model: FilePath | None = Field(
        None, description="go on with an encoder: the directory of one, or of a vision-language model that has one"
    )
    decoder_width: PositiveInt = Field(512, description="width of the decoder, which is not kept")
    decoder_depth: PositiveInt = Field(8, description="blocks of the decoder")
    decoder_heads: PositiveInt = Field(8, description="heads of the decoder")
    mask_ratio: PositiveFloat = Field(0.75, lt=1, description="share of the merge blocks that are hidden")

    # Data
    images: AnySource | None = Field(
        None, description="pictures: a folder, {dataset: NAME, split: train} or {shards: a-{000..099}.tar}"
    )
    videos: AnySource | None = Field(None, description="clips, given in the same way")
    video_probability: float = Field(
        0.25, ge=0, le=1, description="share of batches that are clips, if both are given"
    )
    eval_images: AnySource | None = Field(
        None, description="pictures to evaluate on; default: some that are trained on"
    )
    eval_videos: AnySource | None = Field(None, description="clips to evaluate on; default: some that are trained on")
    eval_samples: NonNegativeInt = Field(64, description="pictures, and clips, of an evaluation; 0: no evaluation")
    sheet_samples: PositiveInt = Field(8, description="how many of them the sheet of reconstructions shows")
    steps_per_epoch: PositiveInt | None = Field(
        None, description="an epoch is at most so many steps; of streams, whose length is unknown, exactly"
    )

    # Pixels
    min_pixels: PositiveInt = Field(56 * 56, description="least area of a picture or frame, after cropping")
    max_pixels: PositiveInt = Field(224 * 224, description="largest area of a picture, after cropping")
    video_max_pixels: PositiveInt | None = Field(None, description="largest area of a frame; default: max_pixels")
    processor: dict[str, Any] = Field(
        default_factory=dict, description="more options of both processors, such as image_mean and image_std"
    )
    crop_scale: list[float] = Field(
        [0.2, 1.0], min_length=2, max_length=2, description="least and largest share of a picture's area that is taken"
    )
    flip: bool = Field(True, description="mirror every other picture")
    video_frames: PositiveInt = Field(16, description="frames of a clip, at most")
    video_fps: PositiveFloat = Field(8.0, description="frames per second of a clip, about")

    @model_validator(mode="after")
    def _check_sources(self) -> Recipe:
        if (self.config is None) == (self.model is None):
            raise ValueError("give either config (a new encoder) or model")
        if self.images is None and self.videos is None:
            raise ValueError("give images, videos or both")
        for kind in ("images", "videos"):
            if getattr(self, kind) is None and getattr(self, f"eval_{kind}") is not None:
                raise ValueError(f"eval_{kind} is given without {kind}")
        return self

    @model_validator(mode="after")
    def _check_pixels(self) -> Recipe:
        least, most = self.crop_scale
        if not 0 < least <= most <= 1:
            raise ValueError(message("crop_scale", self.crop_scale, "must rise within 0..1"))
        for name in ("max_pixels", "video_max_pixels"):
            most = getattr(self, name)
            if most is not None and most < self.min_pixels:
                raise ValueError(message(name, most, f"is less than min_pixels={self.min_pixels}"))
        return self


def train(recipe: Recipe) -> Path:
    """Train, as the recipe says.

    Returns:
        `output_dir`, with `vision_encoder/`, `image_processor/`, `video_processor/` and `processor_config.json`.

    Raises:
        ValueError, OSError: a field, file or source that will not do; before anything is written.
        Stopped: SIGTERM came; a checkpoint was saved.
    """
    torch.manual_seed(recipe.seed)
    model = make_model(recipe)
    vision = model.config.vision_config
    processing = make_processing(recipe, vision)
    vision.image_mean, vision.image_std = processing.image.image_mean, processing.image.image_std
    bad_samples = BadSamples(recipe.output_dir / LIST_NAME, limit=recipe.bad_samples_limit)
    opened = open_sources(recipe)
    loaders = make_loaders(recipe, processing)
    train_data = make_draws(recipe, opened, loaders, bad_samples)
    eval_parts = make_eval_draws(recipe, opened, loaders, bad_samples)
    sheet = SheetCallback(recipe, processing, eval_parts)
    return run(
        recipe,
        model=model,
        train_data=train_data,
        collate=collate,
        eval_data=ConcatDataset(eval_parts) if eval_parts else None,
        processing=processing,
        count_tokens=count_patches,
        callbacks=[sheet] if eval_parts else [],
        trainer_class=VisionTrainer,
        copied=saved_bytes(model.tower),  # by itself, for other stages
    )


# Model and processors


def make_model(recipe: Recipe) -> MaskedAutoencoder:
    """The autoencoder, its encoder new or loaded, float32.

    Raises:
        ValueError: a config that will not do, or a checkpoint without a vision encoder.
        OSError: a file that is missing or damaged.
    """
    tower = None if recipe.model is None else load_encoder(recipe.model, field="model")
    if tower is not None:
        vision = tower.config
    elif isinstance(recipe.config, dict):
        vision = _checked("config", ArlowVisionConfig, **recipe.config)
    else:
        vision = read_config(recipe.config)
    config = MaskedAutoencoderConfig(
        vision_config=vision,
        decoder_width=recipe.decoder_width,
        decoder_depth=recipe.decoder_depth,
        decoder_heads=recipe.decoder_heads,
    )
    config._attn_implementation = recipe.attention
    model = MaskedAutoencoder(config)
    if tower is not None:
        model.tower.load_state_dict(tower.state_dict())
    return model


def read_config(path: Path | None) -> ArlowVisionConfig:
    """The vision config in a `config.json`, of an encoder or of a vision-language model."""
    if path is None or not path.is_file():
        raise OSError(message("config", str(path), "no such file"))
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return ArlowVisionConfig.from_dict(fields.get("vision_config", fields))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(cut(f"config={str(path)!r}: {error}")) from error


class VisionProcessing(NamedTuple):
    """Both processors, saved where the next stages look for them."""

    image: ArlowImageProcessor
    video: ArlowVideoProcessor

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `image_processor/`, `video_processor/` and `processor_config.json`."""
        self.image.save_pretrained(Path(folder, IMAGE_PROCESSOR))
        self.video.save_pretrained(Path(folder, VIDEO_PROCESSOR))
        parts = {IMAGE_PROCESSOR: self.image.to_dict(), VIDEO_PROCESSOR: self.video.to_dict()}
        text = json.dumps({**parts, "processor_class": "ArlowProcessor"}, indent=2, sort_keys=True)
        Path(folder, PROCESSOR_FILE).write_text(text + "\n", encoding="utf-8")


def make_processing(recipe: Recipe, vision: ArlowVisionConfig) -> VisionProcessing:
    """Processors that fit the encoder: those beside `model` if there are any, with the recipe's options over them.

    Raises:
        ValueError: an option that is unknown or impossible, or pictures too small to hide anything of.
    """
    geometry = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
    }
    clash = geometry.keys() & recipe.processor.keys()
    if clash:
        raise ValueError(message("processor", sorted(clash), "follows from the vision config"))
    least = FEWEST_BLOCKS * (vision.patch_size * vision.spatial_merge_size) ** 2
    if recipe.min_pixels < least:
        raise ValueError(message("min_pixels", recipe.min_pixels, f"must be at least {least}, {FEWEST_BLOCKS} blocks"))
    made: list[Any] = []
    frames = recipe.video_frames  # later stages sample clips as this one does
    sampling = {
        "fps": recipe.video_fps,
        "max_frames": frames,
        "min_frames": min(frames, ArlowVideoProcessor.min_frames),
    }
    classes: tuple[tuple[Any, int | None, dict[str, Any]], ...] = (
        (ArlowImageProcessor, recipe.max_pixels, {}),
        (ArlowVideoProcessor, recipe.video_max_pixels, sampling),
    )
    for kind, most, own in classes:
        bounds = {"min_pixels": recipe.min_pixels, "max_pixels": most or recipe.max_pixels, **own}
        options = geometry | bounds | _saved_options(recipe.model) | geometry | bounds | recipe.processor
        made.append(_checked("processor", kind, **options))
    return VisionProcessing(*made)


def _saved_options(folder: Path | None) -> dict[str, Any]:
    """How pixels are normalised, of a processor saved in or beside a model; nothing if there is none."""
    place = None if folder is None else find_processor(find_encoder(folder, field="model"), IMAGE_PROCESSOR)
    if place is None:
        return {}
    saved = ArlowImageProcessor.from_pretrained(place)
    names = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize", "resample")
    return {name: getattr(saved, name) for name in names}


def _checked(field: str, kind: Callable, **options: Any) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(cut(f"{field}: {error}")) from error


# Data


Opened = dict[Kind, Items | Stream]
Loaders = dict[Kind, Callable[..., "Sample"]]


class Sample(NamedTuple):
    """One picture or clip of N patches."""

    kind: Kind
    rows: np.ndarray  # (N, C*P*P) of a picture, (N, C*T*P*P) of a clip, float32
    grid: tuple[int, int, int]
    mask: np.ndarray  # (N,) bool, True where hidden


def open_sources(recipe: Recipe) -> dict[str, Items | Stream]:
    """The sources by field."""
    found: dict[str, Items | Stream] = {}
    for name in ("images", "videos", "eval_images", "eval_videos"):
        source: Source | None = getattr(recipe, name)
        if source is not None:
            found[name] = source.open("video" if "videos" in name else "image", name=name, seed=recipe.seed)
    return found


def make_loaders(recipe: Recipe, processing: VisionProcessing) -> Loaders:
    """For pictures and for clips a function `(item, rng, whole=False) -> Sample`."""
    shared: dict[str, Any] = {"scale": tuple(recipe.crop_scale), "flip": recipe.flip}
    clipping = Clipping(recipe.video_frames, recipe.video_fps)
    masking = {"ratio": recipe.mask_ratio, "merge_size": processing.image.merge_size}
    image = partial(load_image, processor=processing.image, **shared)
    video = partial(load_clip, processor=processing.video, clipping=clipping, **shared)
    return {
        "image": partial(load_sample, kind="image", load=image, masking=masking),
        "video": partial(load_sample, kind="video", load=video, masking=masking),
    }


def load_sample(
    item: Item,
    rng: np.random.Generator,
    *,
    kind: Kind,
    load: Callable,
    masking: Mapping[str, Any],
    whole: bool = False,
) -> Sample:
    """One sample: a random part of the item (the whole if `whole`), and what of it is hidden."""
    rows, grid = load(item, None if whole else rng)
    return Sample(kind, rows, grid, draw_mask(grid, rng=rng, **masking))


def make_draws(
    recipe: Recipe, opened: dict[str, Items | Stream], loaders: Loaders, bad_samples: BadSamples
) -> Dataset:
    """The samples of the whole run, in order."""
    share = recipe.video_probability if recipe.images and recipe.videos else float(recipe.images is None)
    kinds: dict[str, Kind] = {"images": "image", "videos": "video"}

    def draws(name: str) -> Callable[[int], Dataset]:
        shared: dict[str, Any] = {"seed": recipe.seed, "bad_samples": bad_samples, "batch_size": recipe.batch_size}
        return lambda count: opened[name].draws(loaders[kinds[name]], count=count, **shared)

    count = count_draws(recipe, opened, share)
    if 0 < share < 1:
        readers = math.lcm(*(opened[name].readers for name in kinds))
        order: dict[str, Any] = {"batch_size": recipe.batch_size, "seed": recipe.seed, "readers": readers}
        return MixedDraws(draws("images"), draws("videos"), share=share, count=count, **order)
    return draws("videos" if share else "images")(count)


def count_draws(recipe: Recipe, opened: dict[str, Items | Stream], share: float) -> int:
    """How many samples a run draws, over all devices. An epoch is a pass over the pictures, or over the clips if there
    are no pictures, and at most `steps_per_epoch`."""
    if recipe.max_steps is not None:
        return total_draws(recipe, 0)
    assert recipe.epochs is not None  # one of the two, as the recipe checks
    name = "videos" if share == 1 else "images"
    items, limits = opened[name], []
    if isinstance(items, Items):
        limits.append(total_draws(recipe, math.ceil(len(items) / (1 if share == 1 else 1 - share))))
    if recipe.steps_per_epoch is not None:
        steps = math.ceil(recipe.epochs * recipe.steps_per_epoch)
        limits.append(total_draws(recipe.model_copy(update={"max_steps": steps}), 0))
    if not limits:
        problem = f"{name} is a stream, whose length is unknown"
        raise ValueError(message("epochs", recipe.epochs, problem, "give max_steps, or steps_per_epoch too"))
    return min(limits)


def make_eval_draws(
    recipe: Recipe, opened: dict[str, Items | Stream], loaders: Loaders, bad_samples: BadSamples
) -> list[Dataset]:
    """Whole pictures, then whole clips, the same with the same masks at every evaluation."""
    parts = []
    names: tuple[tuple[str, Kind], ...] = (("images", "image"), ("videos", "video"))
    for name, kind in names:
        items = opened.get(f"eval_{name}", opened.get(name))
        if items is not None and recipe.eval_samples:
            count = min(recipe.eval_samples, len(items)) if isinstance(items, Items) else recipe.eval_samples
            shared: dict[str, Any] = {"seed": recipe.seed, "bad_samples": bad_samples, "batch_size": recipe.batch_size}
            parts.append(items.draws(partial(loaders[kind], whole=True), count=count, **shared))
    return parts


def collate(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Samples to the arguments of [`MaskedAutoencoder`]: pictures first, then clips."""
    ordered = sorted(samples, key=lambda sample: sample.kind)  # image, video
    names = {"image": ("pixel_values", "grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
    batch = {}
    for kind, (rows_name, grid_name) in names.items():
        chosen = [sample for sample in ordered if sample.kind == kind]
        if chosen:
            batch[rows_name] = torch.from_numpy(np.concatenate([sample.rows for sample in chosen]))
            batch[grid_name] = torch.tensor([sample.grid for sample in chosen])
    mask = torch.from_numpy(np.concatenate([sample.mask for sample in ordered]))
    return batch | {"visible": (~mask).nonzero()[:, 0], "masked": mask.nonzero()[:, 0]}


def count_patches(batch: dict[str, torch.Tensor]) -> int:
    """For the speed that is logged: all patches of a batch, those that are hidden as well."""
    return batch["visible"].numel() + batch["masked"].numel()


# Training


class VisionTrainer(ArlowTrainer):
    """Saves the encoder by itself, too, beside the whole autoencoder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_names = ["masked"]  # what tells the Trainer that an evaluation has a loss

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        part = None
        if state_dict is not None:  # gathered from all devices; saving it empties it
            names = [name for name in state_dict if name.startswith("tower.")]
            part = {name.removeprefix("tower."): state_dict[name] for name in names}
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            tower = self.accelerator.unwrap_model(self.model, keep_torch_compile=False).tower
            tower.save_pretrained(Path(output_dir or self.args.output_dir, ENCODER), state_dict=part)


class SheetCallback(TrainerCallback):
    """Writes `sheets/step-<N>.png` at every evaluation."""

    def __init__(self, recipe: Recipe, processing: VisionProcessing, parts: list[Dataset]) -> None:
        self.folder, self.wanted, self.parts = recipe.output_dir / "sheets", recipe.sheet_samples, parts
        self.colours = {"mean": processing.image.image_mean, "std": processing.image.image_std}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        was_training = model.training
        model.eval()
        items = []
        for part in self.parts:  # of every kind as many; all processes take part, a sharded model needs them
            for index in range(min(len(part), max(self.wanted // len(self.parts), 1))):  # type: ignore[arg-type]
                batch = {name: value.to(args.device) for name, value in collate([part[index]]).items()}
                items.append(reconstruct(model, batch, **self.colours))
        model.train(was_training)
        if state.is_world_process_zero:
            loss = "" if not metrics or "eval_loss" not in metrics else f", loss {metrics['eval_loss']:.3f}"
            title = f"step {state.global_step}{loss}; brightness and contrast of a painted patch are the true ones"
            write_sheet(items, self.folder / f"step-{state.global_step:06}.png", title=title)
