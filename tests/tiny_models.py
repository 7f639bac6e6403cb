"""Small models with random weights, and batches of text, images and videos for them. Everything follows from seeds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from arlow import ArlowConfig, ArlowForCausalLM, ArlowForConditionalGeneration, ArlowTextConfig, ArlowVisionConfig
from arlow.vision import ArlowVLVisionModel


IMAGE, VIDEO, START, END = 5, 6, 3, 4  # ids of ArlowConfig.tiny()
FIRST_WORD = 16  # ids below are special
PAD = 0
PATCH = 4  # pixels
STILL = 3 * PATCH * PATCH  # width of a row of one still patch
CLIP = 2 * STILL  # width of a row of two frames
SPREAD = 0.15  # of the weights: about 1/sqrt(width), so that every input matters to the output


def tiny_text_config(**overrides: object) -> ArlowTextConfig:
    fields = {"vocab_size": 160, "num_hidden_layers": 3, "initializer_range": SPREAD, "pad_token_id": PAD}
    return ArlowTextConfig.tiny(**{**fields, **overrides})


def tiny_vision_config(**overrides: object) -> ArlowVisionConfig:
    return ArlowVisionConfig.tiny(**{"patch_size": PATCH, "initializer_range": SPREAD, **overrides})


def tiny_vlm_config(
    *, text: dict | None = None, vision: dict | None = None, attn: str = "sdpa", **overrides: object
) -> ArlowConfig:
    config = ArlowConfig.tiny(
        text_config=tiny_text_config(**(text or {})), vision_config=tiny_vision_config(**(vision or {})), **overrides
    )
    config._attn_implementation = attn
    return config


def tiny_vlm(*, seed: int = 0, **overrides: object) -> ArlowForConditionalGeneration:
    """A vision-language model in eval mode; `text`, `vision`: fields of the parts, others: of the composite."""
    torch.manual_seed(seed)
    return shaken(ArlowForConditionalGeneration(tiny_vlm_config(**overrides)))


def tiny_causal_lm(*, seed: int = 0, **overrides: object) -> ArlowForCausalLM:
    torch.manual_seed(seed)
    return shaken(ArlowForCausalLM(tiny_text_config(**overrides)))


def tiny_vision(*, seed: int = 0, attn: str = "sdpa", **overrides: object) -> ArlowVLVisionModel:
    torch.manual_seed(seed)
    config = tiny_vision_config(**overrides)
    config._attn_implementation = attn
    return shaken(ArlowVLVisionModel(config))


@torch.no_grad()
def shaken(model):
    """Norms, biases and gates away from their neutral start, so that none of them can be forgotten unnoticed."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


# Media as packed rows


def random_images(grids, *, seed: int = 0, width: int = STILL) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (patches, width) and grids (items, 3) for a list of (t, h, w). An item depends on the seed, its place in
    the list and nothing else."""
    rows = [
        torch.randn(t * h * w, width, generator=torch.Generator().manual_seed(1000 * seed + i))
        for i, (t, h, w) in enumerate(grids)
    ]
    return torch.cat(rows), torch.tensor(grids)


def random_videos(grids, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return random_images(grids, seed=seed + 500, width=CLIP)


# Prompts


@dataclass(frozen=True)
class Picture:
    """An image (t = 1) or a video in a prompt, by its grid of patches."""

    kind: int  # 1 image, 2 video
    grid: tuple[int, int, int]
    seed: int
    marked: bool = True  # between <|vision_start|> and <|vision_end|>

    def tokens(self) -> tuple[list[int], list[int]]:
        """Ids and token types."""
        t, h, w = self.grid
        count = h * w // 4
        one = [IMAGE if self.kind == 1 else VIDEO] * count, [self.kind] * count
        if self.marked:
            one = [START, *one[0], END], [0, *one[1], 0]
        return one[0] * t, one[1] * t

    def rows(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        t, h, w = self.grid
        return torch.randn(t * h * w, STILL if self.kind == 1 else CLIP, generator=generator)


def image(h: int, w: int, *, seed: int = 1, marked: bool = True) -> Picture:
    return Picture(1, (1, h, w), seed, marked)


def video(t: int, h: int, w: int, *, seed: int = 2, marked: bool = True) -> Picture:
    return Picture(2, (t, h, w), seed, marked)


@dataclass
class Prompt:
    """One row of a batch."""

    ids: list[int]
    types: list[int]
    media: list[Picture] = field(default_factory=list)

    def __add__(self, other: Prompt) -> Prompt:
        return Prompt(self.ids + other.ids, self.types + other.types, self.media + other.media)


def prompt(*parts: int | Picture, seed: int = 0) -> Prompt:
    """A row from parts: a number stands for so many words, a `Picture` for its placeholders."""
    generator = torch.Generator().manual_seed(seed)
    row = Prompt([], [])
    for part in parts:
        if isinstance(part, int):
            words = torch.randint(FIRST_WORD, 160, (part,), generator=generator).tolist()
            row += Prompt(words, [0] * part)
        else:
            row += Prompt(*part.tokens(), [part])
    return row


def words(ids) -> Prompt:
    """A row of given text ids."""
    return Prompt(list(ids), [0] * len(ids))


def pixels(media: list[Picture]) -> dict[str, torch.Tensor]:
    """The arguments for a list of media, in order."""
    inputs = {}
    for kind, values, grid in ((1, "pixel_values", "image_grid_thw"), (2, "pixel_values_videos", "video_grid_thw")):
        items = [item for item in media if item.kind == kind]
        if items:
            inputs[values] = torch.cat([item.rows() for item in items])
            inputs[grid] = torch.tensor([item.grid for item in items])
    return inputs


def batch(*rows: Prompt, side: str = "left") -> dict[str, torch.Tensor]:
    """What a processor gives for these rows."""
    length = max(len(row.ids) for row in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        extra = [fill] * (length - len(values))
        return extra + values if side == "left" else values + extra

    return {
        "input_ids": torch.tensor([padded(row.ids, PAD) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row.ids), 0) for row in rows]),
        "mm_token_type_ids": torch.tensor([padded(row.types, 0) for row in rows]),
        **pixels([item for row in rows for item in row.media]),
    }
