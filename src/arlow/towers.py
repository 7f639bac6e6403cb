"""A vision encoder of Transformers behind Arlow's interface: packed rows and grids in, one feature per token out.

Sizes: N patches of all media, D width of the tower, M tokens, W text width; C channels, P patch side, m merge side.
Rows are those of [`ArlowVLVisionModel`] with one frame each, so processors, collators and the bridge need not know
which encoder there is: here they become pictures again, and those of one size go through the tower together.

Sources: SigLIP, arXiv 2303.15343; SigLIP 2, 2502.14786; CLIP, 2103.00020; DINOv2, 2304.07193; DINOv3, 2508.10104; the
projector, LLaVA-1.5 2310.03744; pixel shuffle, 2404.16821.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.auto import AutoModel

from .attention import FLASH
from .checks import check_keywords
from .configuration_tower import ArlowTowerConfig
from .errors import message
from .segments import read_media
from .text import ArlowPreTrainedModel
from .vision import ArlowVisionOutput


class ArlowTower(ArlowPreTrainedModel):
    """A vision model of Transformers (`tower`) and the projector (`merger`) to the text width."""

    config: ArlowTowerConfig  # type: ignore[assignment]
    config_class = ArlowTowerConfig  # type: ignore[assignment]
    main_input_name = "pixel_values"
    input_modalities = ("image", "video")
    _can_record_outputs: dict = {}

    def __init__(self, config: ArlowTowerConfig) -> None:
        super().__init__(config)
        self.spatial_merge_size = config.spatial_merge_size
        if config._attn_implementation == FLASH:  # where it cannot run, Transformers would refuse to build the tower
            config.tower_config._attn_implementation = "sdpa"
        # In one dtype with the projector, whatever the tower was saved in.
        self.tower = AutoModel.from_config(config.tower_config, dtype=torch.get_default_dtype())
        self.merger = ArlowProjector(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tower.get_input_embeddings()

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        grid_thw: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> ArlowVisionOutput:
        """
        Args:
            pixel_values: (patches, C*P*P), as the tower's own image processor normalises them.
            grid_thw: (items, 3) int64, patches along t, h, w of each item; t is 1.
            pixel_values_videos, video_grid_thw: the same of videos, t counts frames.

        Returns:
            `last_hidden_state` (N, D) in the order of the rows, `pooler_output` (M, W).

        Raises:
            ValueError: no pixels; a row width, grid or row count that does not fit; a size the tower cannot take.
        """
        check_keywords(kwargs, ArlowTower.forward)
        kwargs.pop("return_dict", None)
        media = read_media(self.config, pixel_values, grid_thw, pixel_values_videos, video_grid_thw)
        grids = media.grids
        rows = torch.cat(media.rows).split([t * h * w for t, h, w in grids])
        features: list[torch.Tensor] = [rows[0]] * len(rows)
        for size in dict.fromkeys((h, w) for _, h, w in grids):
            members = [i for i, (_, h, w) in enumerate(grids) if (h, w) == size]
            encoded = self._encode(torch.cat([rows[i] for i in members]), *size, **kwargs)
            for i, part in zip(members, encoded.split([len(rows[i]) for i in members]), strict=True):
                features[i] = part
        hidden_states = torch.cat(features)
        return ArlowVisionOutput(last_hidden_state=hidden_states, pooler_output=self.merger(hidden_states))

    def _encode(self, rows: torch.Tensor, h: int, w: int, **kwargs: Any) -> torch.Tensor:
        """Rows (F*h*w, C*P*P) of F pictures of one size -> features (F*h*w, D) in the same order."""
        P, m, side = self.config.patch_size, self.spatial_merge_size, self.config.only_side
        if side is not None and (h, w) != (side, side):
            raise ValueError(message("grid_thw", [1, h, w], f"the tower takes {side}x{side} patches only"))
        blocks = rows.view(-1, h // m, w // m, m, m, self.config.in_channels, P, P).to(self.tower.dtype)
        if self.config.tower_config.model_type == "siglip2_vision_model":  # patches, channels last
            pixels = blocks.permute(0, 1, 3, 2, 4, 6, 7, 5).reshape(len(blocks), h * w, -1)
            shape = torch.tensor([[h, w]], device=rows.device).expand(len(blocks), 2)
            mask = torch.ones(pixels.shape[:2], dtype=torch.long, device=rows.device)
            kwargs |= {"spatial_shapes": shape, "pixel_attention_mask": mask}
        else:
            pixels = blocks.permute(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(blocks), -1, h * P, w * P)
        if self.config.feature_layer != -1:
            kwargs["output_hidden_states"] = True
        try:
            output = self.tower(pixel_values=pixels, **kwargs)
        except ValueError as error:
            raise ValueError(message("grid_thw", [1, h, w], f"the tower cannot take it ({error})")) from error
        if self.config.feature_layer == -1:
            features = output.last_hidden_state
        else:
            features = output.hidden_states[self.config.feature_layer]
        features = features[:, -h * w :]  # behind class and register tokens
        if features.shape[1] != h * w:
            problem = f"the tower gave {features.shape[1]} features for {h * w} patches"
            raise ValueError(message("grid_thw", [1, h, w], problem))
        features = features.view(-1, h // m, m, w // m, m, features.shape[-1])
        return features.transpose(2, 3).flatten(0, 4)


class ArlowProjector(nn.Module):
    """Features (N, D) of patches in merge-block order -> (M, W): m*m patches side by side, norm, MLP or one layer."""

    def __init__(self, config: ArlowTowerConfig) -> None:
        super().__init__()
        self.width = config.embed_dim * config.spatial_merge_size**2
        self.norm = nn.LayerNorm(self.width)
        self.fc1 = nn.Linear(self.width, config.hidden_size)
        self.is_mlp = config.projector == "mlp"
        if self.is_mlp:
            self.act = ACT2FN[config.projector_act]
            self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(self.norm(features.view(-1, self.width)))
        return self.fc2(self.act(hidden)) if self.is_mlp else hidden
