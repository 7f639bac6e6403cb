"""What `generate` asks of a model that reads media: positions of a prompt, media encoded once, drafts that see them.

Sizes: B batch, K tokens of the whole conversation, S new tokens. The hooks are those of Transformers'
`GenerationMixin`; nothing is kept on the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers.generation import GenerationMixin

from .checks import check_media, check_rows
from .configuration_arlow import ArlowConfig
from .conversation import cached_tokens, continue_positions, remember_delta, remembered_delta, uncached_items
from .errors import message
from .fusion import ArlowModel
from .positions import IMAGE, VIDEO, count_placeholders
from .vision import ArlowVisionOutput


# What the hooks override. Transformers wants its mixin among the direct bases of a model, not of a part of one.
_Hooks: Any = GenerationMixin if TYPE_CHECKING else object


class MediaGeneration(_Hooks):
    """The hooks of [`ArlowForConditionalGeneration`], which must name `GenerationMixin` itself, after this class."""

    config: ArlowConfig
    model: ArlowModel

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Positions (4, B, S) of the whole prompt, text row first. `generate` slices them to what its cache lacks and
        goes on from the last one."""
        text = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)  # [B or 1, K]
        past, length = cached_tokens(model_kwargs.get("past_key_values")), text.shape[1]
        if past >= length:
            problem = f"must cover the {past} tokens of the cache and the new ones"
            raise ValueError(message("attention_mask", text, problem, "pass the whole conversation's"))
        types = self._conversation_types(inputs_tensor, model_kwargs, length)
        text = text.to(types.device).expand(len(types), -1)
        mask, merge = model_kwargs.get("attention_mask"), self.config.vision_config.spatial_merge_size
        given = {IMAGE: model_kwargs.get("image_grid_thw"), VIDEO: model_kwargs.get("video_grid_thw")}
        counts = count_placeholders(types)
        if types.shape[1] == length and all(sum(self.model.item_sizes(k, given[k])) == sum(counts[k]) for k in given):
            kept = self.model.image_token_mask(model_kwargs.get("pixel_values"), given[IMAGE])
            return continue_positions(text, types, mask, None, given, merge, kept)  # everything is known
        new_media = self._new_media(types, length - past, model_kwargs)
        new = continue_positions(
            text[:, past:],
            types[:, past - length :],
            mask,
            remembered_delta(model_kwargs.get("past_key_values"), len(types)),
            {IMAGE: new_media["image_grid_thw"], VIDEO: new_media["video_grid_thw"]},
            merge,
            self.model.image_token_mask(new_media["pixel_values"], new_media["image_grid_thw"]),
        )
        before = text[None, :, :past].expand(4, -1, -1)  # cached already: never read
        return torch.cat((before, new), dim=-1)

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Encode the media of the prompt, but not again those whose tokens the cache holds."""
        names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
        media = any(model_kwargs.get(name) is not None for name in names)
        if media and model_kwargs.get("position_ids") is not None:
            length = model_kwargs["position_ids"].shape[-1]
            types = self._conversation_types(inputs_tensor, model_kwargs, length)
            model_kwargs["mm_token_type_ids"] = types  # from here on, what the model writes is text
            new = self._new_media(types, length - cached_tokens(model_kwargs.get("past_key_values")), model_kwargs)
            model_kwargs.update({name: value for name, value in new.items() if value is not None})
            for name in names:
                if new[name] is None:
                    model_kwargs.pop(name, None)
        return super()._maybe_prepare_encoder_kwargs_for_generation(inputs_tensor, model_kwargs, *args, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, num_new_tokens: int = 1, **kwargs: Any
    ) -> dict[str, Any]:
        """The axes go on together, also after a prompt that ends with an image, where they differ."""
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, num_new_tokens=num_new_tokens, **kwargs
        )
        positions, cache = model_kwargs.get("position_ids"), model_kwargs.get("past_key_values")
        if positions is not None and positions.ndim == 3:
            axes = positions[1:, :, -num_new_tokens:]
            axes.copy_(axes.amax(dim=0, keepdim=True).expand_as(axes))
            if cache is not None and not hasattr(cache, "rope_delta"):  # a compiled prefill leaves none
                remember_delta(cache, positions, None, media=True)
        return model_kwargs

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As the library's, but a model that drafts for another one sees the media, too: its prefill does not count
        as a first iteration there, and only those get features."""
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        features, ids = kwargs.get("mm_encoder_outputs") or {}, inputs["input_ids"]
        # The cache is asked last: a static one has to wait for the device.
        drafts = features and "mm_encoder_outputs" not in inputs and ids.shape[1] > 1
        drafts = drafts and not cached_tokens(kwargs.get("past_key_values"))
        if drafts and self._fits(features):
            inputs["mm_encoder_outputs"] = features
        elif drafts:  # made for a model of another size: this one drafts from the text alone
            inputs["mm_token_type_ids"] = torch.zeros_like(ids)
        return inputs

    def _fits(self, features: dict[str, ArlowVisionOutput]) -> bool:
        width, taps = self.config.text_config.hidden_size, len(self.config.vision_config.deepstack_visual_indexes)
        return all(
            output.pooler_output[0].shape[-1] == width and len(output.deepstack_features or ()) == taps
            for output in features.values()
        )

    def _conversation_types(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any], length: int
    ) -> torch.Tensor:
        """Token types of the whole conversation of `length` tokens, (B, length), or of its new part if that is all
        that was passed."""
        ids = inputs_tensor if inputs_tensor.ndim == 2 else model_kwargs.get("input_ids")
        if ids is not None and ids.shape[1] == 0:
            ids = None
        types = model_kwargs.get("mm_token_type_ids")
        if types is not None and types.shape[1] in (
            length,
            length - cached_tokens(model_kwargs.get("past_key_values")),
        ):
            return types
        return self.model._placeholders(
            ids, inputs_tensor if ids is None else inputs_tensor.new_empty((*ids.shape, 0))
        )

    def _new_media(
        self, types: torch.Tensor, new_tokens: int, media: dict[str, Any]
    ) -> dict[str, torch.Tensor | None]:
        """Pixels and grids of the media among the last `new_tokens` tokens, whether or not the earlier ones were
        passed again; `None` where none are left."""
        names = {IMAGE: ("pixel_values", "image_grid_thw"), VIDEO: ("pixel_values_videos", "video_grid_thw")}
        kept: dict[str, torch.Tensor | None] = {}
        for kind, (pixels_name, grid_name) in names.items():
            pixels, grid = media.get(pixels_name), media.get(grid_name)
            check_media(pixels, grid, (pixels_name, grid_name))
            if grid is not None and cached_tokens(media.get("past_key_values")):
                sizes = self.model.item_sizes(kind, grid)
                new = torch.tensor(uncached_items(types == kind, new_tokens, sizes, kind), device=grid.device)
                rows = grid.prod(-1)
                if pixels is not None:
                    check_rows(pixels, int(rows.sum()), (pixels_name, grid_name))
                    pixels = pixels[new.repeat_interleave(rows).to(pixels.device)]
                    pixels = pixels if len(pixels) else None
                grid = grid[new] if bool(new.any()) else None
            kept.update({pixels_name: pixels, grid_name: grid})
        return kept
