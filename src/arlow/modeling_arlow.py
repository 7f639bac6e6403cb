"""The public face of the models: the heads over the decoder, their losses and generation.

The parts live in rooms of their own: `text`, `vision`, `fusion`, `rope`, `positions`, `attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.generation import GenerationMixin
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.auto import AutoModel
from transformers.utils.generic import can_return_tuple

from .checks import check_keywords, check_labels, check_row_labels, check_spans, is_one_class
from .configuration_arlow import ArlowConfig, ArlowTextConfig
from .earlier_weights import not_undone, row_converters
from .fusion import ArlowModel
from .generation import MediaGeneration
from .linear_loss import LanguageHead, checkpointed_loss, summed_loss
from .rope import ArlowRotaryEmbedding, apply_rotary_pos_emb
from .text import ArlowGroupedQueryAttention, ArlowPreTrainedModel, ArlowRMSNorm, ArlowTextModel
from .towers import ArlowTower
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
    "ArlowTower",
    "ArlowVLVisionModel",
    "apply_rotary_pos_emb",
]


VISION_KEYS = [r"^(model\.)?visual\.", r"visual_gates$"]  # of a whole checkpoint, where the text half is loaded


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
    return _mean(summed_loss(logits.flatten(0, -2), labels), labels, num_items_in_batch)


def _mean(total: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    items = (labels != -100).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    return total / items.to(total.device).clamp(min=1)


def next_token_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_size: int | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """`token_loss` of each position's logits against the token after it. `shift_labels`: labels already shifted."""
    return token_loss(logits, shifted(labels) if shift_labels is None else shift_labels, num_items_in_batch)


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """(..., S): for each position the label of the next one; -100 for the last."""
    return nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]


def row_loss(
    labels: torch.Tensor, pooled_logits: torch.Tensor, config: ArlowTextConfig, **kwargs: Any
) -> torch.Tensor:
    """Loss of a sequence head by `config.problem_type`. Rows whose class is -100 are left out; zero when all are.

    Args:
        labels: (B,) classes; or numbers (B,) or (B, num_labels).
        pooled_logits: (B, num_labels).
    """
    if is_one_class(labels, config):
        return token_loss(pooled_logits, labels.long())
    labels = labels if labels.is_floating_point() else labels.to(pooled_logits.dtype)
    return ForSequenceClassificationLoss(labels, pooled_logits, config)


def span_loss(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    start_positions: torch.Tensor,
    end_positions: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Mean of both ends' cross-entropies. Positions outside the row are left out; zero when all are.

    Args:
        start_logits, end_logits: (B, S).
        start_positions, end_positions: (B,) token numbers.
    """
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        positions = positions.flatten().long()
        labels = positions.masked_fill((positions < 0) | (positions >= logits.shape[1]), -100)
        losses.append(token_loss(logits, labels, num_items_in_batch))
    return (losses[0] + losses[1]) / 2


class _LanguageHead:
    """What both models that predict tokens do with the decoder's hidden states."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _loss_function = staticmethod(next_token_loss)
    config: Any
    lm_head: nn.Module
    loss_function: Callable
    tp_size: int | None
    training: bool

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        if type(new_embeddings) is nn.Linear and "forward" not in vars(new_embeddings):
            # The plain layer that `resize_token_embeddings` makes; not one whose forward others have wrapped.
            new_embeddings.__class__ = LanguageHead
        self.lm_head = new_embeddings

    def _check_labels(
        self,
        labels: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
    ) -> None:
        tokens = inputs_embeds if input_ids is None else input_ids
        check_labels(labels, tokens, self.config.get_text_config().vocab_size, logits_to_keep)

    def _predict(
        self,
        outputs: BaseModelOutputWithPast,
        labels: torch.Tensor | None,
        logits_to_keep: int | torch.Tensor,
        skip_logits: bool | None,
        kwargs: dict[str, Any],
    ) -> CausalLMOutputWithPast:
        """Logits (B, S, vocab), and the loss where there are labels; in training the loss alone."""
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        logits = loss = None
        if labels is not None and (self.training if skip_logits is None else skip_logits):
            loss = self._loss_alone(hidden_states, labels, **kwargs)
        if loss is None:
            logits = self.lm_head(hidden_states.contiguous())  # a strided slice makes the product copy the weight
        if labels is not None and loss is None:
            vocab_size = self.config.get_text_config().vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss_alone(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | None:
        """`next_token_loss` without all logits at once; `None` where another loss was set, which needs them."""
        if self.loss_function is not next_token_loss:
            return None
        labels = shifted(labels) if shift_labels is None else shift_labels
        if isinstance(self.lm_head, LanguageHead) and self.tp_size is None:
            total = self.lm_head(hidden_states, labels)
        else:  # an adapter or a quantised layer in its place, or one split over devices
            total = checkpointed_loss(self.lm_head, hidden_states, labels)
        return _mean(total, labels, num_items_in_batch)


class ArlowForCausalLM(_LanguageHead, ArlowPreTrainedModel, GenerationMixin):
    """The text decoder with a language-modelling head; also loads the text half of a vision-language checkpoint."""

    config: ArlowTextConfig
    config_class = ArlowTextConfig
    input_modalities = ("text",)
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _keys_to_ignore_on_load_unexpected = VISION_KEYS

    def __init__(self, config: ArlowTextConfig) -> None:
        super().__init__(config)
        self.model = ArlowTextModel(config)
        self.lm_head = LanguageHead(config.hidden_size, config.vocab_size, bias=False)
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
        skip_logits: bool | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Args:
            labels: (B, S), the ids themselves (the shift happens here); -100 is left out of the loss.
            logits_to_keep: compute logits for the last n positions only (0: all), or for the given ones.
            skip_logits: with `labels`, return the loss without logits, which then never exist all at once. Default:
                in training, not in evaluation (as Liger's integrations do). A `loss_function` set on the model gets
                its logits always.

        The other arguments are those of [`ArlowTextModel`].

        Returns:
            `logits` (B, S, vocab), `None` where skipped; `loss` with `labels`; `past_key_values`; and what was asked
            to be recorded.
        """
        check_keywords(kwargs, ArlowForCausalLM.forward)
        self._check_labels(labels, input_ids, inputs_embeds, logits_to_keep)
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
        return self._predict(outputs, labels, logits_to_keep, skip_logits, kwargs)


class ArlowForConditionalGeneration(_LanguageHead, MediaGeneration, ArlowPreTrainedModel, GenerationMixin):
    """Text from text, images and videos."""

    config: ArlowConfig
    config_class = ArlowConfig
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: ArlowConfig) -> None:
        super().__init__(config)
        self.model = ArlowModel(config)
        self.lm_head = LanguageHead(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
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
        skip_logits: bool | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Args:
            labels: (B, S), the ids themselves (the shift happens here); -100 is left out of the loss.
            logits_to_keep: compute logits for the last n positions only (0: all), or for the given ones.
            skip_logits: with `labels`, return the loss without logits, which then never exist all at once. Default:
                in training, not in evaluation (as Liger's integrations do). A `loss_function` set on the model gets
                its logits always.

        The other arguments are those of [`ArlowModel`] and [`ArlowTextModel`].

        Returns:
            `logits` (B, S, vocab), `None` where skipped; `loss` with `labels`; `past_key_values`; and what was asked
            to be recorded.
        """
        check_keywords(kwargs, ArlowForConditionalGeneration.forward)
        self._check_labels(labels, input_ids, inputs_embeds, logits_to_keep)
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
        return self._predict(outputs, labels, logits_to_keep, skip_logits, kwargs)


class _TextHead(ArlowPreTrainedModel):
    """The heads build their backbone through AutoModel, which must know the config's class. It does where this package
    is installed; a config that came as code saved with a model has a class of its own."""

    config: ArlowTextConfig
    config_class = ArlowTextConfig
    input_modalities = ("text",)
    _keys_to_ignore_on_load_unexpected = VISION_KEYS

    def __init__(self, config: ArlowTextConfig) -> None:
        if type(config) not in AutoModel._model_mapping:
            AutoModel.register(type(config), ArlowTextModel, exist_ok=True)
        super().__init__(config)


class ArlowForSequenceClassification(_TextHead, GenericForSequenceClassification, ArlowPreTrainedModel):
    """The text decoder with a linear head on each row's last real token."""

    accepts_loss_kwargs = False  # its loss is a mean over rows: the Trainer averages it over accumulated batches
    _loss_function = staticmethod(row_loss)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """
        Args:
            labels: (B,), a class per row, -100 is left out of the loss; floats (B, num_labels) for several labels at
                once; numbers (B,) or (B, num_labels) for regression.

        The other arguments are those of [`ArlowTextModel`].

        Returns:
            `logits` (B, num_labels), `loss` with `labels`, `past_key_values`, and what was asked to be recorded.
        """
        check_keywords(kwargs, ArlowForSequenceClassification.forward)
        tokens = inputs_embeds if input_ids is None else input_ids
        if tokens is not None:
            check_row_labels(labels, len(tokens), self.config)
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **{**kwargs, "return_dict": True},
        )


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
        check_keywords(kwargs, ArlowForTokenClassification.forward)
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
    _loss_function = staticmethod(span_loss)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """
        Args:
            start_positions: (B,), the answer's first token; positions outside the row are left out of the loss.
            end_positions: (B,), its last one.

        The other arguments are those of [`ArlowTextModel`].

        Returns:
            `start_logits` and `end_logits` (B, S), `loss` with both positions, and what was asked to be recorded.
        """
        check_keywords(kwargs, ArlowForQuestionAnswering.forward)
        tokens = inputs_embeds if input_ids is None else input_ids
        if tokens is not None:
            check_spans(start_positions, end_positions, len(tokens))
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            start_positions=start_positions,
            end_positions=end_positions,
            **{**kwargs, "return_dict": True},
        )


# Parts of a vision-language checkpoint, with or without its head, loaded as models of their own


class _LoadOnly(WeightRenaming):
    """A prefix that is dropped on load and not put back on save: a part is saved under its own plain names."""

    def reverse_transform(self) -> WeightRenaming:
        return not_undone()


_LANGUAGE, _VISUAL = r"^(?:model\.)?language_model\.", r"^(?:model\.)?visual\."
_PREFIXES: dict[type, tuple[str, str]] = {
    **dict.fromkeys((ArlowForCausalLM, *_TextHead.__subclasses__()), (_LANGUAGE, "model.")),
    ArlowTextModel: (_LANGUAGE, ""),
    ArlowVLVisionModel: (_VISUAL, ""),
    ArlowTower: (_VISUAL, ""),
}
for _class, _prefix in _PREFIXES.items():
    _converters = row_converters() if _class is ArlowTextModel else []  # every model with a decoder has this one in it
    register_checkpoint_conversion_mapping(_class.__name__, [_LoadOnly(*_prefix), *_converters], overwrite=True)
