"""The text decoder: embeddings and positions in, hidden states out.

Sizes: B batch, S sequence, E hidden_size, D head_dim, L encoder tokens. A hidden state is [B, S, E] everywhere.

Pre-norm LLaMA layers with grouped-query attention (arXiv 2305.13245), RoPE, SwiGLU (2002.05202), sliding windows by
layer type, optionally with norms of queries and keys (2302.05442) and a gated cross-attention (2204.14198) over the
states of an encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import FLASH, attention_function, make_masks
from .checkpoint import check_checkpoint, check_loaded, listed, saved_config
from .checks import check_encoder_states, check_inputs, check_keywords, check_kinds, check_mask, check_positions
from .configuration_arlow import ArlowConfig, ArlowTextConfig
from .earlier_config import EARLIER, generation_of
from .earlier_weights import interleaved_rows
from .errors import CheckpointMismatch, message
from .joint import call, project
from .rope import ArlowRotaryEmbedding, RotaryTables, apply_rotary_pos_emb


_is_reported: ContextVar[bool] = ContextVar("is_reported", default=False)  # who loads looks at what was not found


class ArlowRMSNorm(nn.Module):
    """Root-mean-square norm (arXiv 1910.07467) over the last axis; float32 statistics, result in the input's dtype."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled() and hidden_states.dtype == self.weight.dtype:
            return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)
        x = hidden_states.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


class ArlowPreTrainedModel(PreTrainedModel):
    """What all Arlow models share: initialisation, what Transformers may do with them, and their saved code."""

    config: ArlowConfig
    config_class = ArlowConfig
    base_model_prefix = "model"
    input_modalities: tuple[str, ...] = ("text", "image", "video")
    supports_gradient_checkpointing = True
    _no_split_modules = ["ArlowDecoderLayer", "ArlowVisionBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        wanted = self.config_class.__name__  # by name: code saved with a model has a class of its own
        if isinstance(config, PreTrainedConfig) and wanted not in [kind.__name__ for kind in type(config).__mro__]:
            problem = f"{type(self).__name__} is built from an {wanted}"
            remedy = "pass its text_config or vision_config" if isinstance(config, ArlowConfig) else ""
            raise TypeError(message("config", type(config).__name__, problem, remedy))
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryTables):
            module.refill()
        elif isinstance(module, ArlowCrossAttention):
            init.zeros_(module.gate)
        elif isinstance(module, ArlowTextModel) and module.visual_gates is not None:
            init.zeros_(module.visual_gates)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass reads the files that its base reads: Transformers knows conversions by the name of a class."""
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[1:]:
            conversions = get_checkpoint_conversion_mapping(base.__name__)
            if conversions:
                register_checkpoint_conversion_mapping(cls.__name__, conversions, overwrite=True)
                return

    def freeze_cross_attention(self) -> None:
        """Exclude every cross-attention layer, its norm included, from training."""
        self._train_cross_attention(False)

    def unfreeze_cross_attention(self) -> None:
        """Include every cross-attention layer in training again."""
        self._train_cross_attention(True)

    def _train_cross_attention(self, train: bool) -> None:
        for module in self.modules():
            if isinstance(module, ArlowDecoderLayer) and module.cross_attn is not None:
                module.cross_attn.requires_grad_(train)
                module.cross_attn_layernorm.requires_grad_(train)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, use_safetensors: bool | None = None, **kwargs: Any
    ) -> Any:
        """Load a checkpoint, as every Transformers model does.

        Safetensors only, unless `use_safetensors=False` asks for a pickled checkpoint, which can run code. With
        `output_loading_info=True` or a `state_dict`, tensors that are missing or left over are for the caller to see.

        Raises:
            OSError: the checkpoint is missing, truncated or corrupt, or is a pickle nobody asked for.
            ValueError: tensors are missing, left over or of another shape ([`CheckpointMismatch`]); its index points
                outside its directory; a config of an Arlow generation that is not read, or cannot be told.
        """
        if use_safetensors is None and kwargs.get("state_dict") is None and kwargs.get("gguf_file") is None:
            use_safetensors = True
        where = {"subfolder": kwargs.get("subfolder", ""), "variant": kwargs.get("variant")}
        check_checkpoint(pretrained_model_name_or_path, pickled=use_safetensors is False, **where)
        token = _is_reported.set(bool(kwargs.get("output_loading_info")))
        try:
            return super().from_pretrained(
                pretrained_model_name_or_path, *model_args, use_safetensors=use_safetensors, **kwargs
            )
        finally:
            _is_reported.reset(token)

    # The two steps of a load that know which files are read: not the adapter's, where one is loaded with its base.

    @staticmethod
    def _load_pretrained_model(model: Any, *args: Any, **kwargs: Any) -> Any:
        files = args[1] if len(args) > 1 else kwargs.get("checkpoint_files")
        saved = saved_config(files)
        earlier = getattr(model.config, EARLIER, None)
        if kwargs.get("expected_keys") is None:  # not an adapter's tensors
            model.__dict__["_saved_config"] = saved if files else None
            if earlier is not None and not saved:
                problem = "without a config.json beside the weights, the order of their rows cannot be told"
                raise ValueError(message("config", f"one of Arlow {earlier}", problem, "load the directory"))
        is_earlier = generation_of(saved) is not None
        with interleaved_rows(is_earlier) as turned:
            loaded = PreTrainedModel._load_pretrained_model(model, *args, **kwargs)
        if is_earlier and not turned and any(isinstance(m, ArlowGroupedQueryAttention) for m in model.modules()):
            problem = "the rows of an earlier Arlow's queries and keys were not reordered"
            raise ValueError(message("model", type(model).__name__, problem, "convert it: arlow convert"))
        return loaded

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        wrong = {name for name, *_ in loading_info.mismatched_keys}
        if wrong and not load_config.ignore_mismatched_sizes:
            problem = f"tensors of another shape than the config says: {listed(wrong)}"
            raise CheckpointMismatch(message("checkpoint", str(load_config.pretrained_model_name_or_path), problem))
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        for config in (model.config, model.config.get_text_config()):
            vars(config).pop(EARLIER, None)  # the model has today's weights
        saved = model.__dict__.pop("_saved_config", None)
        if saved is not None:
            missing, left_over = loading_info.missing_keys, loading_info.unexpected_keys
            if _is_reported.get():
                missing, left_over = set(), set()  # for the caller to see
            check_loaded(model, missing, left_over, saved)
        return loading_info

    # Flash attention: whether it can run depends on the activations, so nothing is refused when a model is loaded.
    # `attention.backend_for` chooses at every forward and falls back to SDPA.

    def _check_and_adjust_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> Any:
        if attn_implementation == FLASH:
            return attn_implementation
        with _known_backend(attn_implementation):
            return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def get_correct_attn_implementation(self, requested_attention: Any, *args: Any, **kwargs: Any) -> Any:
        if requested_attention == FLASH:
            return requested_attention
        with _known_backend(requested_attention):
            return super().get_correct_attn_implementation(requested_attention, *args, **kwargs)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any) -> None:
        """As the library's; but where flash attention is asked for, a tower of Transformers gets SDPA."""
        if attn_implementation == FLASH:
            attn_implementation = _flash_in(self.config)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    @staticmethod
    def create_masks_for_generate(
        config: Any, inputs_embeds: Any, attention_mask: Any, past_key_values: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Masks for a static cache, which `generate` makes ahead of a compiled forward."""
        return make_masks(config.get_text_config(), inputs_embeds, attention_mask, past_key_values, None)[1]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """After this, saving the model also saves the code of the model and of its config, so that it loads with
        `trust_remote_code=True` where this package is not installed."""
        super().register_for_auto_class(auto_class)
        cls.config_class.register_for_auto_class()


def _flash_in(config: Any) -> Any:
    """Flash attention for a config and its parts, SDPA for those that are none of Arlow's."""
    if not config.model_type.startswith("arlow"):
        return "sdpa"
    return {"": FLASH, **{name: _flash_in(getattr(config, name)) for name in config.sub_configs}}


@contextlib.contextmanager
def _known_backend(name: Any) -> Iterator[None]:
    """The library's refusal of a backend, made short."""
    try:
        yield
    except ValueError as error:
        # The library's first words, which its tests look for.
        text = f'Specified `attn_implementation="{str(name)[:80]}"` is not supported'
        raise ValueError(f"{text}; use eager, sdpa or flash_attention_2") from error


class ArlowTextModel(ArlowPreTrainedModel):
    """The decoder without a head."""

    config: ArlowTextConfig
    config_class = ArlowTextConfig
    input_modalities = ("text",)

    def __init__(self, config: ArlowTextConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(ArlowDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = ArlowRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = ArlowRotaryEmbedding(config)
        self.visual_gates: nn.Parameter | None = None  # (layers,), set by `enable_visual_gates`
        self.gradient_checkpointing = False
        self.post_init()

    def enable_visual_gates(self) -> None:
        """Give every layer a gate on its DeepStack injection: features are scaled by sigmoid(gate)."""
        self.visual_gates = nn.Parameter(torch.zeros(self.config.num_hidden_layers))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        deepstack: dict[int, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids: (B, S) token ids; or give `inputs_embeds`.
            attention_mask: (B, past + S) with 1 for real tokens, a ready (B, 1, S, K) mask, or a dict of those by
                layer type.
            position_ids: (B, S); or (3, B, S) with the axes t, h, w; or (4, B, S), the text positions first.
                Positions that restart within a row mean packed sequences.
            past_key_values: cache of the tokens before.
            inputs_embeds: (B, S, E).
            use_cache: whether to return a cache.
            encoder_hidden_states: (B, L, encoder_hidden_size) for cross-attention layers.
            encoder_attention_mask: (B, L) with 1 for real encoder tokens.
            deepstack: decoder layer -> (B, S, E), added to that layer's output.

        Returns:
            `last_hidden_state` (B, S, E) after the final norm, `past_key_values`, and what was asked to be recorded.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; an argument of the wrong shape.
        """
        check_keywords(kwargs, ArlowTextModel.forward)
        check_inputs(input_ids, inputs_embeds, self.config)
        check_kinds(attention_mask, position_ids, past_key_values)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        check_positions(position_ids, inputs_embeds)
        check_mask(attention_mask, inputs_embeds, past_key_values)

        # Before a fresh cache exists: an empty cache would hide packed sequences from the mask makers.
        backend, masks = make_masks(
            self.config, inputs_embeds, attention_mask, past_key_values, position_ids, training=self.training
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        text_positions, rotary_positions = self._positions(
            position_ids, inputs_embeds, attention_mask, past_key_values
        )
        encoder = self._encoder_states(encoder_hidden_states, encoder_attention_mask, inputs_embeds, past_key_values)

        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, rotary_positions)
        for i, layer in enumerate(self.layers):
            hidden_states = layer(
                hidden_states,
                None if encoder is None else encoder.states,
                attention_mask=masks[self.config.layer_types[i]],
                position_embeddings=position_embeddings,
                position_ids=text_positions,
                past_key_values=past_key_values,
                backend=backend,
                encoder=encoder,
                **kwargs,
            )
            if deepstack is not None and i in deepstack:
                gate = 1 if self.visual_gates is None else self.visual_gates[i].sigmoid().to(hidden_states)
                hidden_states = hidden_states + deepstack[i].to(hidden_states) * gate
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _positions(
        self,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict | None,
        past_key_values: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Text positions (B or 1, S) for the attention kernels, and those the rotary embedding reads."""
        if position_ids is None:
            position_ids = count_positions(inputs_embeds, attention_mask, past_key_values)
        if position_ids.ndim == 2:
            return position_ids, position_ids
        return position_ids[0], position_ids[-3:]

    def _encoder_states(
        self,
        states: torch.Tensor | None,
        mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        cache: Cache | None,
    ) -> EncoderStates | None:
        """The encoder side of this forward: what was given, or what an earlier call left on the cache."""
        if not self.config.use_cross_attention:
            if states is not None:
                problem = "this model has no cross-attention layers"
                raise ValueError(message("encoder_hidden_states", states, problem, "set use_cross_attention=True"))
            return None
        stored: EncoderStates | None = getattr(cache, "encoder_states", None)
        if cache is not None and stored is not None:
            # Other states from here on; or the cache was reset, and another generation begins.
            other = states is not None and states is not stored.states
            if other or (not torch.compiler.is_compiling() and cache.get_seq_length() == 0):
                stored = cache.encoder_states = None
        if stored is not None:
            states, mask = stored.states, stored.mask if mask is None else mask
        if states is None:
            if mask is not None:
                raise ValueError(message("encoder_attention_mask", mask, "needs encoder_hidden_states, too"))
            return None
        check_encoder_states(states, mask, inputs_embeds, self.config.encoder_hidden_size)
        if stored is not None and mask is stored.mask:
            return stored
        encoder = EncoderStates(states, mask, None if stored is None else stored.key_values)
        if cache is not None:
            cache.encoder_states = encoder
        return encoder


class EncoderStates:
    """The encoder side of one generation: states (B, L, width), their mask (B, L), and each layer's keys and values.

    It travels on the cache object, so that keys and values are computed once per generation and go when it goes.
    """

    def __init__(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None,
        key_values: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        self.states = states
        self.mask = mask
        self.key_values = {} if key_values is None else key_values


class ArlowDecoderLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention where the config says so, MLP; each pre-norm with a residual."""

    def __init__(self, config: ArlowTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = ArlowRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = ArlowGroupedQueryAttention(config, layer_idx)
        self.cross_attn = None
        if layer_idx in config.cross_attention_layers:
            self.cross_attn_layernorm = ArlowRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.cross_attn = ArlowCrossAttention(config, layer_idx)
        self.post_attention_layernorm = ArlowRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = ArlowMLP(config)
        self.resid_dropout = config.resid_dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        backend: str = "sdpa",
        encoder: EncoderStates | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            backend=backend,
            **kwargs,
        )
        hidden_states = hidden_states + self._drop(attended)
        if self.cross_attn is not None and encoder is not None:
            # The states come as a tensor argument, so that checkpointing and dispatching see them.
            normed, keep = self.cross_attn_layernorm(hidden_states), past_key_values is not None
            crossed = self.cross_attn(normed, encoder_hidden_states, encoder, keep=keep)
            hidden_states = hidden_states + self._drop(crossed)
        return hidden_states + self._drop(self.mlp(self.post_attention_layernorm(hidden_states)))

    def _drop(self, update: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(update, p=self.resid_dropout) if self.training else update


class ArlowGroupedQueryAttention(nn.Module):
    """Self-attention in which groups of query heads share a key and value head."""

    def __init__(self, config: ArlowTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.layer_type = config.layer_types[layer_idx]
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.attention_dropout = config.attention_dropout
        self.sliding_window = config.sliding_window if self.layer_type == "sliding_attention" else None
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.q_norm, self.k_norm = (
            ArlowRMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.qk_norm else nn.Identity() for _ in "qk"
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        backend: str | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`position_embeddings` are cos and sin (B, S, D). Returns the output (B, S, E) and the weights, if any."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)  # head counts differ under tensor parallelism
        query, key, value = project(hidden_states, (self.q_proj, self.k_proj, self.v_proj))
        query = self.q_norm(query.view(heads)).transpose(1, 2)  # [B, H, S, D]
        key = self.k_norm(key.view(heads)).transpose(1, 2)
        value = value.view(heads).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        output, weights = attention_function(backend or self.config._attn_implementation)(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return call(self.o_proj, output.reshape(*hidden_states.shape[:-1], -1)), weights  # [B, S, E]


class ArlowCrossAttention(nn.Module):
    """Attention from text to encoder states, behind a tanh gate that starts at zero: untrained, it changes nothing.

    Keys are not rotated: encoder states carry their own sense of place.
    """

    def __init__(self, config: ArlowTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = False
        self.attention_dropout = config.attention_dropout
        bias, width = config.attention_bias, config.encoder_hidden_size
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, hidden_states: torch.Tensor, states: torch.Tensor, encoder: EncoderStates, *, keep: bool
    ) -> torch.Tensor:
        """`states` (B, L, width) are those of `encoder`, on this layer's device. `keep`: leave keys and values with
        `encoder` for the next call."""
        query = self._heads(self.q_proj(hidden_states))
        key_value = encoder.key_values.get(self.layer_idx)
        if key_value is None:
            states = states.to(hidden_states)
            key_value = self._heads(self.k_proj(states)), self._heads(self.v_proj(states))  # [B, KV, L, D]
            if keep:
                encoder.key_values[self.layer_idx] = key_value
        key, value = key_value
        mask, real = None, None
        if encoder.mask is not None:
            mask = encoder.mask.to(query.device).bool()[:, None, None]  # [B, 1, 1, L]
            mask = mask.expand(-1, 1, query.shape[2], -1)  # [B, 1, S, L]
            real = mask.any(dim=-1, keepdim=True)  # [B, 1, S, 1]
            mask, real = mask | ~real, real[:, 0]  # a softmax over nothing is NaN in some kernels
        output = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.attention_dropout if self.training else 0.0,
            scale=self.scaling,
            enable_gqa=self.num_key_value_groups > 1,
        )
        output = self.o_proj(output.transpose(1, 2).flatten(2))  # [B, S, E]
        if real is not None:
            output = torch.where(real, output, 0)  # a row without any encoder token takes nothing
        return self.gate.tanh() * output

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class ArlowMLP(nn.Module):
    """Gated MLP: down(act(gate(x)) * up(x)), no bias."""

    def __init__(self, config: ArlowTextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        self.dropout = config.mlp_dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = project(x, (self.gate_proj, self.up_proj))
        x = self.act_fn(gate) * up
        return call(self.down_proj, nn.functional.dropout(x, p=self.dropout) if self.training else x)


ArlowPreTrainedModel._can_record_outputs = {
    "hidden_states": ArlowDecoderLayer,
    "attentions": ArlowGroupedQueryAttention,
}


def count_positions(
    inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | dict | None, past_key_values: Cache | None
) -> torch.Tensor:
    """Text positions nobody gave: the number of tokens before, (1, S), as in LLaMA; real tokens only where a 2-D
    mask says which are, (B, S), so that a padded row gets what it gets alone."""
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    sequence, device = inputs_embeds.shape[1], inputs_embeds.device
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        counted = attention_mask.long().cumsum(-1)[:, -sequence:] - 1
        return counted.clamp(min=0).to(device)
    return (torch.arange(sequence, device=device) + past)[None]
