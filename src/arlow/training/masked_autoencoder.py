"""The masked autoencoder: the vision encoder over the visible patches, a decoder that paints the masked ones.

Flow: rows of pixels -> the encoder on the visible rows -> a narrower width, mask tokens in the gaps -> decoder blocks
over the full grid -> pixels of the masked rows, compared with the true ones.

Sizes: N patches of all media, V visible, K masked, E embed_dim, D decoder width; C channels, T frames per group,
P patch side.

Source: masked autoencoders, arXiv 2111.06377; whole blocks as units of masking, SimMIM 2111.09886 and Hiera
2306.00989; tubes, VideoMAE 2203.12602.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..configuration_arlow import ArlowVisionConfig
from ..errors import message, value_errors
from ..rope import VisionRotary
from ..segments import Grid, make_layout
from ..text import ArlowPreTrainedModel
from ..vision import ArlowVisionBlock, ArlowVLVisionModel, normalised, select_rows


VARIANCE_FLOOR = 1e-6  # of a patch's pixels: a flat patch is divided by a thousandth


@value_errors
@strict
class MaskedAutoencoderConfig(PreTrainedConfig):
    """Config of [`MaskedAutoencoder`]: the encoder's, and the sizes of the decoder."""

    model_type = "arlow_masked_autoencoder"
    sub_configs: ClassVar = {"vision_config": ArlowVisionConfig}

    vision_config: Any = None  # an ArlowVisionConfig or its fields; afterwards an ArlowVisionConfig
    decoder_width: int = 512
    decoder_depth: int = 8  # blocks
    decoder_heads: int = 8
    initializer_range: float | int | None = None  # standard deviation; default: the encoder's

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.vision_config, ArlowVisionConfig):
            self.vision_config = ArlowVisionConfig(**(self.vision_config or {}))
        if self.initializer_range is None:
            self.initializer_range = self.vision_config.initializer_range
        super().__post_init__(**kwargs)
        self.decoder()

    @property
    def hidden_size(self) -> int:
        """Width of the encoder: what DeepSpeed sizes its buckets by."""
        return self.vision_config.embed_dim

    def decoder(self) -> ArlowVisionConfig:
        """The decoder's blocks as an encoder's: the same grid and windows, plain attention.

        Raises:
            ValueError: sizes that do not fit together.
        """
        vision = self.vision_config
        try:
            config = ArlowVisionConfig(
                depth=self.decoder_depth,
                embed_dim=self.decoder_width,
                num_heads=self.decoder_heads,
                hidden_act=vision.hidden_act,
                in_channels=vision.in_channels,
                patch_size=vision.patch_size,
                spatial_merge_size=vision.spatial_merge_size,
                temporal_patch_size=vision.temporal_patch_size,
                rope_theta=vision.rope_theta,
                temporal_window_size=vision.temporal_window_size,
                deepstack_visual_indexes=[],
            )
        except ValueError as error:
            raise ValueError(f"decoder: {error}") from error
        config._attn_implementation = vision._attn_implementation
        return config


@dataclass
class MaskedAutoencoderOutput(ModelOutput):
    """`loss` (); `predictions` (K, C*T*P*P) of the masked patches, in units of their own mean and deviation."""

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None


class MaskedAutoencoder(ArlowPreTrainedModel):
    """A vision encoder and the decoder that trains it. `tower` is an ordinary [`ArlowVLVisionModel`].

    What the decoder reads are the patch states before merging. The merger and the DeepStack mergers have no part in
    the loss; they are frozen, and trained when the encoder is joined to a text model.
    """

    config: MaskedAutoencoderConfig
    config_class = MaskedAutoencoderConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    accepts_loss_kwargs = False  # the loss is a mean over items: gradient accumulation averages it

    def __init__(self, config: MaskedAutoencoderConfig) -> None:
        super().__init__(config)
        vision, decoder = config.vision_config, config.decoder()
        self.tower = ArlowVLVisionModel(vision)
        self.tower.merger.requires_grad_(False)
        self.tower.deepstack_mergers.requires_grad_(False)
        self.decoder_config = decoder
        self.encoder_norm = nn.LayerNorm(vision.embed_dim, eps=1e-6)
        self.decoder_embed = nn.Linear(vision.embed_dim, decoder.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(decoder.embed_dim))
        self.decoder_rotary = VisionRotary(decoder)
        self.decoder_blocks = nn.ModuleList(ArlowVisionBlock(decoder) for _ in range(decoder.depth))
        self.decoder_norm = nn.LayerNorm(decoder.embed_dim, eps=1e-6)
        pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self.decoder_head = nn.Linear(decoder.embed_dim, pixels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.mask_token, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.tower.get_input_embeddings()

    def forward(
        self,
        visible: torch.Tensor,
        masked: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        grid_thw: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
    ) -> MaskedAutoencoderOutput:
        """
        Args:
            visible: (V,) int64, rising: the rows the encoder sees, counted through pictures, then videos.
            masked: (K,) int64, rising: the rows to paint; of every item at least one.
            pixel_values: (patches, C*P*P), one still patch a row.
            grid_thw: (pictures, 3) int64, patches along t, h, w.
            pixel_values_videos: (patches, C*T*P*P).
            video_grid_thw: (videos, 3) int64.

        Returns:
            The loss, a mean over the items of each item's mean squared error: a batch gets the mean of what its items
            get alone. And the predictions.
        """
        media = {
            "pixel_values": pixel_values,
            "grid_thw": grid_thw,
            "pixel_values_videos": pixel_values_videos,
            "video_grid_thw": video_grid_thw,
        }
        encoded = self.tower(**media, visible=visible).last_hidden_state  # [V, E]
        thw = torch.cat([each for each in (grid_thw, video_grid_thw) if each is not None])
        grids = [Grid(*row) for row in thw.tolist()]
        predictions = self._decode(encoded, visible, masked, thw, grids)  # [K, C*T*P*P]
        rows = [each for each in (pixel_values, pixel_values_videos) if each is not None]
        target = normalise(self.true_rows(rows, masked))
        errors = (predictions.float() - target).square().mean(dim=1)  # [K]
        return MaskedAutoencoderOutput(mean_over_items(errors, masked, grids), predictions)

    def _decode(
        self,
        encoded: torch.Tensor,
        visible: torch.Tensor,
        masked: torch.Tensor,
        thw: torch.Tensor,
        grids: list[Grid],
    ) -> torch.Tensor:
        """The pixels of the masked rows, (K, C*T*P*P)."""
        known = self.decoder_embed(self.encoder_norm(encoded))  # [V, D]
        count = sum(t * h * w for t, h, w in grids)
        hidden_states = self.mask_token.to(known.dtype).expand(count, -1).index_copy(0, visible, known)  # [N, D]
        layout = make_layout(self.decoder_config, self.decoder_rotary, hidden_states, thw, grids)
        for block in self.decoder_blocks:
            hidden_states = block(hidden_states, layout)
        return self.decoder_head(self.decoder_norm(hidden_states[masked]))

    def true_rows(self, rows: list[torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
        """The rows at `chosen` as (K, C*T*P*P) float32; a still patch stands for T equal frames, as it does in the
        encoder."""
        vision = self.config.vision_config
        C, T, square = vision.in_channels, vision.temporal_patch_size, vision.patch_size**2
        full = [
            each if each.shape[1] == C * T * square else each.view(-1, C, 1, square).expand(-1, -1, T, -1).flatten(1)
            for each in select_rows(rows, chosen)
        ]
        pixels = torch.cat(full)
        return normalised(pixels, vision) if pixels.dtype == torch.uint8 else pixels.float()


def row_statistics(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (K, 1) of the pixels of each row."""
    variance, mean = torch.var_mean(rows, dim=1, keepdim=True)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def normalise(rows: torch.Tensor) -> torch.Tensor:
    """Every patch (K, pixels) with mean 0 and variance 1: what is to be painted is its pattern."""
    mean, deviation = row_statistics(rows)
    return (rows - mean) / deviation


def mean_over_items(errors: torch.Tensor, masked: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
    """Errors (K,) of the masked rows, averaged within each item, then over the items."""
    ends = torch.tensor([t * h * w for t, h, w in grids], device=masked.device).cumsum(0)
    item = torch.searchsorted(ends, masked, right=True)  # [K]
    counts = torch.bincount(item, minlength=len(grids))
    return (errors / counts[item]).sum() / len(grids)


def draw_mask(grid: tuple[int, int, int], *, ratio: float, merge_size: int, rng: np.random.Generator) -> np.ndarray:
    """Which patches of an item are hidden, (t*h*w,) bool in packed order.

    Whole merge blocks are: then what the merger reads as one token, and what progressive patches average, is either
    seen or not, as it will be in use. Of a video the same places of every frame group are hidden (a tube), for what
    moves little could else be copied from the next frame. At least one block is hidden and one seen.

    Raises:
        ValueError: an item of a single block.
    """
    t, h, w = grid
    blocks = (h // merge_size) * (w // merge_size)
    if blocks < 2:
        raise ValueError(message("grid", grid, "a single block of patches, nothing to hide", "raise min_pixels"))
    hidden = min(max(round(blocks * ratio), 1), blocks - 1)
    mask = np.zeros(blocks, dtype=bool)
    mask[rng.permutation(blocks)[:hidden]] = True
    return np.tile(np.repeat(mask, merge_size**2), t)
