"""The public face of the models: the heads over the decoder, their losses and generation.

The parts live in rooms of their own: `text`, `vision`, `fusion`, `rope`, `positions`, `attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming
from transformers.generation import GenerationMixin
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_outputs import CausalLMOutputWithPast, TokenClassifierOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.auto import AutoModel
from transformers.utils.generic import can_return_tuple

from .checks import check_labels, check_rows
from .configuration_arlow import ArlowConfig, ArlowTextConfig
from .errors import message
from .fusion import ArlowModel, continue_positions, item_sizes, remember_delta, uncached_items
from .positions import IMAGE, VIDEO
from .rope import ArlowRotaryEmbedding, apply_rotary_pos_emb
from .text import ArlowGroupedQueryAttention, ArlowPreTrainedModel, ArlowRMSNorm, ArlowTextModel
from .vision import ArlowVisionOutput, ArlowVLVisionModel


__all__ = [
    "ArlowForCausalLM",
    "ArlowForConditionalGeneration",
    "ArlowForQuestionAnswering",
    "ArlowForSequenceClassification",
    "ArlowForTokenClassification",
    "ArlowGroupedQueryAttention",
    "ArlowModel",
    "ArlowPreTrainedModel",
    "ArlowRMSNorm",
    "ArlowRotaryEmbedding",
    "ArlowTextModel",
    "ArlowVLVisionModel",
    "apply_rotary_pos_emb",
]


def token_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean cross-entropy in float32 over labels that are not -100; zero when there are none.

    Args:
        logits: (..., classes).
        labels: (...), int64.
        num_items_in_batch: what to divide by instead of the count here, so that accumulated gradients equal those of
            one large batch.
    """
    labels = labels.to(logits.device).flatten()
    total = nn.functional.cross_entropy(logits.float().flatten(0, -2), labels, ignore_index=-100, reduction="sum")
    if num_items_in_batch is None:
        return total / (labels != -100).sum().clamp(min=1)
    items = torch.as_tensor(num_items_in_batch, device=total.device)
    return total / items.clamp(min=1)


def next_token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """`token_loss` of each position's logits against the token after it. `shift_labels`: labels already shifted."""
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
    return token_loss(logits, shift_labels, num_items_in_batch)


class ArlowForCausalLM(ArlowPreTrainedModel, GenerationMixin):
    """The text decoder with a language-modelling head; also loads the text half of a vision-language checkpoint."""

    config: ArlowTextConfig
    config_class = ArlowTextConfig
    input_modalities = ("text",)
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _keys_to_ignore_on_load_unexpected = [r"^model\.visual\.", r"visual_gates$"]
    _loss_function = staticmethod(next_token_loss)

    def __init__(self, config: ArlowTextConfig) -> None:
        super().__init__(config)
        self.model = ArlowTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Args:
            labels: (B, S), the ids themselves (the shift happens here); -100 is left out of the loss.
            logits_to_keep: compute logits for the last n positions only (0: all), or for the given ones.

        The other arguments are those of [`ArlowTextModel`].

        Returns:
            `logits` (B, S, vocab), `loss` with `labels`, `past_key_values`, and what was asked to be recorded.
        """
        tokens = inputs_embeds if input_ids is None else input_ids
        check_labels(labels, tokens, self.config.get_text_config().vocab_size, logits_to_keep)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ArlowForConditionalGeneration(ArlowPreTrainedModel, GenerationMixin):
    """Text from text, images and videos."""

    config: ArlowConfig
    config_class = ArlowConfig
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _loss_function = staticmethod(next_token_loss)

    def __init__(self, config: ArlowConfig) -> None:
        super().__init__(config)
        self.model = ArlowModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.LongTensor | None = None, **kwargs: Any
    ) -> ArlowVisionOutput:
        """See [`ArlowModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, image_grid_thw, **kwargs)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.LongTensor | None = None, **kwargs: Any
    ) -> ArlowVisionOutput:
        """See [`ArlowModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, video_grid_thw, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        video_grid_thw: torch.LongTensor | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        mm_encoder_outputs: dict[str, ArlowVisionOutput] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Args:
            labels: (B, S), the ids themselves (the shift happens here); -100 is left out of the loss.
            logits_to_keep: compute logits for the last n positions only (0: all), or for the given ones.

        The other arguments are those of [`ArlowModel`] and [`ArlowTextModel`].

        Returns:
            `logits` (B, S, vocab), `loss` with `labels`, `past_key_values`, and what was asked to be recorded.
        """
        tokens = inputs_embeds if input_ids is None else input_ids
        check_labels(labels, tokens, self.config.get_text_config().vocab_size, logits_to_keep)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            use_cache=use_cache,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    # Generation

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Positions (4, B, S) of the whole prompt, text row first. `generate` slices them to what its cache lacks and
        goes on from the last one."""
        text = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)  # [B or 1, K]
        past, length = _cached_tokens(model_kwargs), text.shape[1]
        if past >= length:
            problem = f"must cover the {past} tokens of the cache and the new ones"
            raise ValueError(message("attention_mask", text, problem, "pass the whole conversation's"))
        types = self._conversation_types(inputs_tensor, model_kwargs, length)
        text = text.to(types.device).expand(len(types), -1)
        grids = self._new_media(types, length - past, model_kwargs)
        new = continue_positions(
            text[:, past:],
            types[:, past - length :],
            model_kwargs.get("attention_mask"),
            getattr(model_kwargs["past_key_values"], "rope_delta", None) if past else None,
            {IMAGE: grids.get("image_grid_thw"), VIDEO: grids.get("video_grid_thw")},
            self.config.vision_config.spatial_merge_size,
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
            new = self._new_media(types, length - _cached_tokens(model_kwargs), model_kwargs)
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
                remember_delta(cache, positions, None)
        return model_kwargs

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As the library's, but a model that drafts for another one sees the media, too: its prefill does not count
        as a first iteration there, and only those get features."""
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        features, ids = kwargs.get("mm_encoder_outputs") or {}, inputs["input_ids"]
        drafts = features and "mm_encoder_outputs" not in inputs and ids.shape[1] > 1 and not _cached_tokens(kwargs)
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
        if types is not None and types.shape[1] in (length, length - _cached_tokens(model_kwargs)):
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
            if grid is not None and _cached_tokens(media):
                sizes = item_sizes(grid, self.config.vision_config.spatial_merge_size)
                new = torch.tensor(uncached_items(types == kind, new_tokens, sizes, kind), device=grid.device)
                rows = grid.prod(-1)
                if pixels is not None:
                    check_rows(pixels, int(rows.sum()), (pixels_name, grid_name))
                    pixels = pixels[new.repeat_interleave(rows).to(pixels.device)]
                    pixels = pixels if len(pixels) else None
                grid = grid[new] if bool(new.any()) else None
            kept.update({pixels_name: pixels, grid_name: grid})
        return kept


def _cached_tokens(model_kwargs: dict[str, Any]) -> int:
    cache = model_kwargs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


class _TextHead(ArlowPreTrainedModel):
    """The heads build their backbone through AutoModel, which must know the config's class. It does where this package
    is installed; a config that came as code saved with a model has a class of its own."""

    config: ArlowTextConfig
    config_class = ArlowTextConfig
    input_modalities = ("text",)

    def __init__(self, config: ArlowTextConfig) -> None:
        if type(config) not in AutoModel._model_mapping:
            AutoModel.register(type(config), ArlowTextModel, exist_ok=True)
        super().__init__(config)


class ArlowForSequenceClassification(_TextHead, GenericForSequenceClassification, ArlowPreTrainedModel):
    """The text decoder with a linear head on each row's last real token."""

    accepts_loss_kwargs = False  # its loss is a mean over rows: the Trainer averages it over accumulated batches


class ArlowForTokenClassification(_TextHead, GenericForTokenClassification, ArlowPreTrainedModel):
    """The text decoder with a linear head on every token; labels of -100 are left out of the loss."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """
        Args:
            labels: (B, S), a class per token; -100 is left out of the loss.
            num_items_in_batch: labels of all accumulated batches, to divide the loss by.

        The other arguments are those of [`ArlowTextModel`].

        Returns:
            `logits` (B, S, num_labels), `loss` with `labels`, and what was asked to be recorded.
        """
        check_labels(labels, inputs_embeds if input_ids is None else input_ids, self.num_labels)
        output = super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        if labels is None:
            return output
        # The loss comes first in a tuple, so it cannot be added to what is there.
        return TokenClassifierOutput(loss=token_loss(output.logits, labels, num_items_in_batch), **output)


class ArlowForQuestionAnswering(_TextHead, GenericForQuestionAnswering, ArlowPreTrainedModel):
    """The text decoder with span logits."""

    base_model_prefix = "model"


# Parts of a vision-language checkpoint loaded as models of their own


class _LoadOnly(PrefixChange):
    """A prefix that is dropped on load and not put back on save: a part is saved under its own plain names."""

    def reverse_transform(self) -> WeightRenaming:
        return WeightRenaming(r"(?!x)x", "x")  # matches nothing


for _name, _part in (
    ("ArlowForCausalLM", _LoadOnly(prefix_to_remove="language_model", model_prefix="model")),
    ("ArlowTextModel", _LoadOnly(prefix_to_remove=r"model\.language_model")),
    ("ArlowVLVisionModel", _LoadOnly(prefix_to_remove=r"model\.visual")),
):
    register_checkpoint_conversion_mapping(_name, [_part], overwrite=True)
