"""The bridge: every input of the vision-language model in, hidden states of the decoder out.

Sizes: B batch, S sequence, E text width, M merged visual tokens. Features replace the embeddings of their
placeholders; DeepStack features are added after the first decoder layers; positions get three axes. Nothing of a
request stays on the module: what the next turn of a conversation needs travels on its cache object.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import accepts_precomputed_kwargs, can_return_tuple

from .checks import (
    check_features,
    check_inputs,
    check_keywords,
    check_kinds,
    check_media,
    check_stills,
    check_token_types,
)
from .configuration_arlow import ArlowConfig
from .conversation import continue_positions, remember_delta, remembered_delta, starts_a_prompt
from .errors import message
from .positions import (
    IMAGE,
    MODALITIES,
    VIDEO,
    check_placeholders,
    count_placeholders,
    get_rope_index,
    item_sizes,
    on_host,
)
from .pruning import kept_tokens
from .text import ArlowPreTrainedModel, ArlowTextModel, count_positions
from .towers import ArlowTower
from .vision import ArlowVisionOutput, ArlowVLVisionModel


class ArlowModel(ArlowPreTrainedModel):
    """The vision-language model without a head: `visual` encodes, `language_model` decodes, this class joins them."""

    config: ArlowConfig
    config_class = ArlowConfig

    def __init__(self, config: ArlowConfig) -> None:
        super().__init__(config)
        # By its type: code saved with a model has classes of its own.
        encoder = ArlowTower if config.vision_config.model_type == "arlow_tower" else ArlowVLVisionModel
        self.visual = encoder(config.vision_config)
        self.language_model = ArlowTextModel(config.text_config)
        if config.use_gated_cross_attention:
            self.language_model.enable_visual_gates()
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_rope_index(
        self,
        input_ids: torch.Tensor,
        mm_token_type_ids: torch.Tensor,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (3, B, S) and deltas (B, 1); see [`arlow.positions.get_rope_index`]. Where tokens are pruned, they
        depend on `pixel_values`. Other keywords are accepted because serving engines pass everything they have."""
        return get_rope_index(
            input_ids,
            mm_token_type_ids,
            image_grid_thw,
            video_grid_thw,
            attention_mask,
            spatial_merge_size=self.config.vision_config.spatial_merge_size,
            start=kwargs.get("start"),
            image_token_mask=self.image_token_mask(kwargs.get("pixel_values"), image_grid_thw),
        )

    def image_token_mask(
        self, pixel_values: torch.Tensor | None, image_grid_thw: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Which merged tokens of all images the decoder gets, (M,) bool; `None`: all. See `arlow.pruning`.

        Raises:
            ValueError: tokens are pruned, and there are no pixels to tell which.
        """
        vision = self.config.vision_config
        if not vision.token_pruning_ratio or image_grid_thw is None:
            return None
        if pixel_values is None:
            problem = f"token_pruning_ratio={vision.token_pruning_ratio} needs the pixels of every image"
            raise ValueError(message("pixel_values", None, problem, "pass them, or position_ids"))
        return kept_tokens(
            pixel_values,
            image_grid_thw.tolist(),
            merge=vision.spatial_merge_size,
            channels=vision.in_channels,
            ratio=vision.token_pruning_ratio,
            std=vision.image_std,
        )

    def item_sizes(self, kind: int, grids: torch.Tensor | None) -> list[int]:
        """Placeholders of every image or video."""
        vision = self.config.vision_config
        return item_sizes(grids, vision.spatial_merge_size, vision.token_pruning_ratio if kind == IMAGE else 0.0)

    @accepts_precomputed_kwargs(modality="image")
    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.LongTensor | None = None, **kwargs: Any
    ) -> ArlowVisionOutput:
        """Encode images.

        Args:
            pixel_values: (patches, C*P*P), or (patches, C*T*P*P) with a duplicated frame.
            image_grid_thw: (images, 3).

        Returns:
            `pooler_output`: one (M_i, E) tensor per image, of the tokens the decoder gets; `deepstack_features`: per
            tap the same, or `None`.
        """
        check_media(pixel_values, image_grid_thw, ("pixel_values", "image_grid_thw"))
        image_grid_thw = on_host(image_grid_thw)
        check_stills(image_grid_thw)
        output = self.visual(pixel_values, image_grid_thw, return_dict=True, **kwargs)
        return self._pruned(self._per_item(output, image_grid_thw), pixel_values, image_grid_thw)

    @accepts_precomputed_kwargs(modality="video")
    @can_return_tuple
    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.LongTensor | None = None, **kwargs: Any
    ) -> ArlowVisionOutput:
        """Encode videos: rows (patches, C*T*P*P) and grids (videos, 3), as `get_image_features` for images."""
        check_media(pixel_values_videos, video_grid_thw, ("pixel_values_videos", "video_grid_thw"))
        video_grid_thw = on_host(video_grid_thw)
        videos = {"pixel_values_videos": pixel_values_videos, "video_grid_thw": video_grid_thw}
        output = self.visual(**videos, return_dict=True, **kwargs)
        return self._per_item(output, video_grid_thw)

    def _per_item(self, output: ArlowVisionOutput, *grids: torch.Tensor) -> ArlowVisionOutput:
        sizes = [size for grid in grids for size in item_sizes(grid, self.visual.spatial_merge_size)]
        output.pooler_output = torch.split(output.pooler_output, sizes)
        if output.deepstack_features is not None:
            output.deepstack_features = [torch.split(tap, sizes) for tap in output.deepstack_features]
        return output

    def _pruned(
        self, images: ArlowVisionOutput, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None
    ) -> ArlowVisionOutput:
        """The features of images without those of tokens that are left out."""
        mask = self.image_token_mask(pixel_values, image_grid_thw)
        if mask is not None:
            masks = mask.split([len(item) for item in images.pooler_output])
            images.pooler_output, *taps = (
                tuple(item[kept] for item, kept in zip(items, masks, strict=True))
                for items in (images.pooler_output, *(images.deepstack_features or []))
            )
            images.deepstack_features = taps or None
        return images

    def _encode(
        self,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
        pixel_values_videos: torch.Tensor | None,
        video_grid_thw: torch.Tensor | None,
    ) -> dict[str, ArlowVisionOutput]:
        """Features by modality; images and videos of one batch go through the encoder together."""
        if pixel_values is None or pixel_values_videos is None:
            features = {}
            if pixel_values is not None:
                features["image"] = self.get_image_features(pixel_values, image_grid_thw, return_dict=True)
            if pixel_values_videos is not None:
                features["video"] = self.get_video_features(pixel_values_videos, video_grid_thw, return_dict=True)
            return features
        both = self.visual(pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw, return_dict=True)
        both = self._per_item(both, image_grid_thw, video_grid_thw)
        assert image_grid_thw is not None  # checked with the pixels
        images = len(image_grid_thw)
        taps = both.deepstack_features
        features = {
            name: ArlowVisionOutput(
                pooler_output=both.pooler_output[part],
                deepstack_features=None if taps is None else [tap[part] for tap in taps],
            )
            for name, part in (("image", slice(images)), ("video", slice(images, None)))
        }
        return {**features, "image": self._pruned(features["image"], pixel_values, image_grid_thw)}

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        mm_encoder_outputs: dict[str, ArlowVisionOutput] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: (B, S) token ids with placeholders; or give `inputs_embeds` (B, S, E).
            attention_mask, position_ids, past_key_values: as in [`ArlowTextModel`]. Positions that are not given are
                computed, three axes where there are media.
            pixel_values, image_grid_thw: all images of the batch; see [`ArlowVLVisionModel`].
            pixel_values_videos, video_grid_thw: all videos of the batch.
            mm_token_type_ids: (B, S): 0 text, 1 image, 2 video; default: read off the placeholders.
            mm_encoder_outputs: features already encoded, by "image" and "video"; instead of pixels.

        Raises:
            ValueError: placeholders and media disagree (with row and counts); pixels and features both given; both or
                neither of `input_ids` and `inputs_embeds`.
        """
        check_keywords(kwargs, ArlowModel.forward)
        check_inputs(input_ids, inputs_embeds, self.config.text_config)
        check_kinds(attention_mask, position_ids, past_key_values, mm_encoder_outputs)
        if mm_encoder_outputs and (pixel_values is not None or pixel_values_videos is not None):
            problem = "features and pixels were both given"
            raise ValueError(message("mm_encoder_outputs", list(mm_encoder_outputs), problem, "give one of the two"))
        check_media(pixel_values, image_grid_thw, ("pixel_values", "image_grid_thw"))
        check_media(pixel_values_videos, video_grid_thw, ("pixel_values_videos", "video_grid_thw"))
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        found = self._placeholders(input_ids, inputs_embeds)
        # What the processor marked decides: a placeholder token that the model itself wrote later is text.
        types = found if mm_token_type_ids is None else aligned_types(mm_token_type_ids, found)
        image_grid_thw, video_grid_thw = on_host(image_grid_thw), on_host(video_grid_thw)
        check_stills(image_grid_thw)
        grids = {IMAGE: image_grid_thw, VIDEO: video_grid_thw}

        features = mm_encoder_outputs or {}
        if pixel_values is not None or pixel_values_videos is not None:
            self._check_grids(types, found, {IMAGE: pixel_values, VIDEO: pixel_values_videos}, grids)
            features = self._encode(pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw)
        elif features or starts_a_prompt(past_key_values, kwargs):
            # A later step may see a placeholder that the model itself wrote; a prompt may not hold one for nothing.
            # Embeddings may have their features in place: then only what still is a placeholder's embedding counts.
            self._check_features(types if features or input_ids is not None else found, found, features)
        if position_ids is None:
            kept = self.image_token_mask(pixel_values, image_grid_thw)
            position_ids = self._positions(types, inputs_embeds, attention_mask, past_key_values, grids, kept)
        media = bool(features) or input_ids is None
        if mm_encoder_outputs is None and self._others_encode(past_key_values, kwargs):
            features = features or self._blank_image(inputs_embeds.device)
            kwargs = self._with_encoder_states(inputs_embeds, kwargs)
        inputs_embeds, deepstack = self._fuse(inputs_embeds, types, features)

        outputs = self.language_model(
            input_ids=None,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            deepstack=deepstack,
            **kwargs,
        )
        remember_delta(outputs.past_key_values, position_ids, attention_mask, media=media)
        return outputs

    def _others_encode(self, past_key_values: Cache | None, kwargs: dict[str, Any]) -> bool:
        """Whether other processes may encode media in this step: then one without any must run the same modules, since
        each of them waits for all processes (gradients of DDP and ZeRO-2, weights of FSDP and ZeRO-3)."""
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return False
        if torch.distributed.get_world_size() == 1:
            return False
        # In evaluation only weights that are spread over the processes wait, and only prompts hold media.
        return self.training or (starts_a_prompt(past_key_values, kwargs) and is_spread(self.visual))

    def _blank_image(self, device: torch.device) -> dict[str, ArlowVisionOutput]:
        """The features of a blank picture. No placeholder takes them, so they change nothing; but the encoder, its
        mergers and the gates of the decoder have run, and get gradients of zero."""
        config = self.config.vision_config
        side = config.smallest_side
        pixels = torch.zeros(side * side, config.in_channels * config.patch_size**2, device=device)
        return {"image": self.get_image_features(pixels, torch.tensor([[1, side, side]]), return_dict=True)}

    def _with_encoder_states(self, inputs_embeds: torch.Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Cross-attention without encoder states would not run either: one state that every row leaves out."""
        text = self.config.text_config
        if not text.use_cross_attention or kwargs.get("encoder_hidden_states") is not None:
            return kwargs
        rows = len(inputs_embeds)
        return {
            **kwargs,
            "encoder_hidden_states": inputs_embeds.new_zeros(rows, 1, text.encoder_hidden_size),
            "encoder_attention_mask": torch.zeros(rows, 1, dtype=torch.long, device=inputs_embeds.device),
        }

    def _placeholders(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """0 text, 1 image, 2 video for every token (B, S). Without ids, a placeholder is known by its embedding."""
        types = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        for kind, token in ((IMAGE, self.config.image_token_id), (VIDEO, self.config.video_token_id)):
            if input_ids is not None:
                here = input_ids == token
            else:
                token = torch.tensor(token, device=inputs_embeds.device)
                here = (inputs_embeds == self.get_input_embeddings()(token).to(inputs_embeds)).all(-1)
            types = types.masked_fill(here, kind)
        return types

    def _check_grids(
        self,
        types: torch.Tensor,
        found: torch.Tensor,
        pixels: dict[int, torch.Tensor | None],
        grids: dict[int, torch.Tensor | None],
    ) -> None:
        """Placeholders against grids, row by row, before anything is encoded."""
        check_token_types(types, found)
        counts = count_placeholders(types)
        for kind in MODALITIES:
            if pixels[kind] is None:
                check_placeholders(counts[kind], [], kind)
            else:
                check_placeholders(counts[kind], self.item_sizes(kind, grids[kind]), kind)

    def _check_features(
        self, types: torch.Tensor, found: torch.Tensor, features: dict[str, ArlowVisionOutput]
    ) -> None:
        """As many feature rows as placeholders, row by row; a chunk of a prompt may hold parts of items."""
        if torch.compiler.is_compiling():
            return
        check_token_types(types, found)
        counts = count_placeholders(types)
        unknown = sorted(set(features) - set(MODALITIES.values()))
        if unknown:
            raise ValueError(message("mm_encoder_outputs", unknown, "unknown kinds", "use 'image' and 'video'"))
        for kind, name in MODALITIES.items():
            output = features.get(name)
            sizes = [] if output is None else [len(item) for item in output.pooler_output]
            if output is not None:
                width, taps = self.config.text_config.hidden_size, len(self.config.deepstack_decoder_layers)
                check_features(name, output.pooler_output, output.deepstack_features, width=width, count=taps)
            if sizes != [sum(counts[kind])]:  # a chunk comes as one piece, over all rows
                check_placeholders(counts[kind], sizes, kind)

    def _positions(
        self,
        types: torch.Tensor,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict | None,
        past_key_values: Cache | None,
        grids: dict[int, torch.Tensor | None],
        image_token_mask: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Positions of the new tokens, (4, B, S) with the text row first, when the caller gave none; `None` leaves
        plain text to the decoder."""
        delta = remembered_delta(past_key_values, len(types))
        media = any(grid is not None for grid in grids.values())
        if delta is None and not media:
            return None
        text = count_positions(inputs_embeds, attention_mask, past_key_values).expand(types.shape)
        merge = self.config.vision_config.spatial_merge_size
        return continue_positions(text, types, attention_mask, delta, grids, merge, image_token_mask)

    def _fuse(
        self, inputs_embeds: torch.Tensor, types: torch.Tensor, features: dict[str, ArlowVisionOutput]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor] | None]:
        """Embeddings (B, S, E) with the features in place, and what each decoder layer adds (B, S, E)."""
        deepstack: dict[int, torch.Tensor] = {}
        for kind, name in MODALITIES.items():
            output = features.get(name)
            if output is None:
                continue
            here = (types == kind)[..., None]  # [B, S, 1]
            inputs_embeds = inputs_embeds.masked_scatter(here, _joined(output.pooler_output, inputs_embeds))
            taps = output.deepstack_features or []
            for layer, tap in zip(self.config.deepstack_decoder_layers, taps, strict=len(taps) > 0):
                added = deepstack.get(layer, torch.zeros_like(inputs_embeds))
                deepstack[layer] = added.masked_scatter(here, _joined(tap, inputs_embeds))
        return inputs_embeds, deepstack or None


def is_spread(module: torch.nn.Module) -> bool:
    """Whether weights of the module are split over processes, by FSDP2 (`DTensor`) or ZeRO-3 (`ds_id`)."""
    return any(type(weight).__name__ == "DTensor" or "ds_id" in vars(weight) for weight in module.parameters())


def aligned_types(marked: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Types (B, S) of the new tokens from those of the whole conversation. Assisted decoding adds its candidates to
    the ids only: what comes after the marked tokens is text."""
    missing = max(found.shape[1] - marked.shape[1], 0)
    return torch.nn.functional.pad(marked, (0, missing))[:, -found.shape[1] :].to(found)


def _joined(items: tuple[torch.Tensor, ...] | list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return torch.cat(tuple(items)).to(like)  # [M, E]
