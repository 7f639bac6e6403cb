"""Text and prompts become token ids: byte-level BPE on the `tokenizers` backend.

Calls leave no trace on the Rust tokenizer. Transformers sets truncation, padding and the handling of special tokens
on that shared object, so two threads disturb each other; here it stays as it was built, and truncation and padding
work on the encodings of one call.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers import models as rust_models
from tokenizers import pre_tokenizers as rust_pre_tokenizers
from tokenizers import trainers as rust_trainers
from transformers.tokenization_utils_base import BatchEncoding, TruncationStrategy
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import PaddingStrategy

from .chat_template import (
    CHAT_TEMPLATE,
    ROLES,
    Prompt,
    check_conversation,
    check_tools,
    render_prompts,
    split_batch,
    template_variables,
)
from .errors import message, refuse_misspelt, refuse_unknown
from .token_rows import Cut, any_of, arrays, detached, joined, mask_spans, text_error, text_rows
from .tokenizer_files import (
    BYTES,
    SAVED_FILES,
    build_backend,
    check_special_ids,
    damaged_files_named,
    read_backend,
    read_merges,
    read_texts,
    read_vocab,
)


END_OF_TEXT = "<|endoftext|>"  # ends a text, and pads
NAMED_TOKENS = {
    "im_start_token": "<|im_start|>",
    "im_end_token": "<|im_end|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<image>",
    "video_token": "<video>",
}
SPECIAL_TOKENS = (END_OF_TEXT, *NAMED_TOKENS.values())
ENCODE_OPTIONS = (
    *("add_special_tokens", "padding", "truncation", "max_length", "stride", "is_split_into_words"),
    *("pad_to_multiple_of", "padding_side", "return_tensors", "return_token_type_ids", "return_attention_mask"),
    *("return_overflowing_tokens", "return_special_tokens_mask", "return_offsets_mapping", "return_length", "verbose"),
    *("split_special_tokens", "text_pair", "text_target", "text_pair_target"),
)
# The last two do nothing; Transformers and engines pass them.
DECODE_OPTIONS = (
    *("skip_special_tokens", "clean_up_tokenization_spaces"),
    *("use_source_tokenizer", "spaces_between_special_tokens"),
)
# What a constructor knows. Saved files and other libraries may bring more.
INIT_OPTIONS = (
    *("vocab_file", "merges_file", "tokenizer_file", "vocab", "merges", "tokenizer_object", "chat_template"),
    *("padding_side", "truncation_side", "model_max_length", "model_input_names", "pad_token_type_id"),
    *("split_special_tokens", "clean_up_tokenization_spaces", "add_bos_token", "add_eos_token", "add_prefix_space"),
    *("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens", "added_tokens_decoder"),
    *("name_or_path", "processor_class", "auto_map", "verbose", "backend"),
    "add_special_tokens",  # the name of a method, no slip: Transformers refuses it with an `AttributeError`
    *(*TokenizersBackend.SPECIAL_TOKENS_ATTRIBUTES, *NAMED_TOKENS),
)
LOADING_OPTIONS = (
    *("cache_dir", "force_download", "local_files_only", "token", "revision", "code_revision", "trust_remote_code"),
    *("proxies", "subfolder", "gguf_file", "config", "use_fast", "tokenizer_type", "return_unused_kwargs"),
)


class ArlowTokenizer(TokenizersBackend):
    """Byte-level BPE with NFC normalisation and the pre-tokenisation of Qwen2.

    Loads from a directory with `tokenizer.json`, or with `vocab.json` and `merges.txt`; those files can also be named
    directly, and a vocabulary and merges can be passed as objects. Pads on the left, as generation needs. Decoding
    gives back any NFC text exactly.

    Args:
        vocab_file, merges_file: paths of `vocab.json` and `merges.txt`.
        tokenizer_file: path of `tokenizer.json`; it wins over the other two.
        vocab: `{token: id}` with all 256 byte symbols, or the path of such a JSON file.
        merges: pairs of tokens in order of rank, or the path of a `merges.txt`.
        **kwargs: as in Transformers: `tokenizer_object` (a `tokenizers.Tokenizer`), `eos_token`, `pad_token`,
            `image_token`, `chat_template`, `padding_side`, ...

    Raises:
        OSError: a file cannot be read.
        TypeError: a keyword that is almost one of the known ones.
        ValueError: a file is no tokenizer, merges do not fit the vocabulary, byte symbols are missing.
    """

    vocab_files_names = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"
    model = rust_models.BPE

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        merges_file: str | os.PathLike | None = None,
        tokenizer_file: str | os.PathLike | None = None,
        *,
        vocab: Mapping[str, int] | str | os.PathLike | None = None,
        merges: Sequence[Any] | str | os.PathLike | None = None,
        **kwargs: Any,
    ):
        if "is_local" not in kwargs:  # else `kwargs` are mostly those of a saved file, which may hold anything
            refuse_misspelt(type(self).__name__, kwargs, INIT_OPTIONS)
        tokenizer_object = kwargs.pop("tokenizer_object", None)
        if tokenizer_object is not None:
            backend = Tokenizer.from_str(tokenizer_object.to_str())
        elif tokenizer_file is not None:
            backend = read_backend(tokenizer_file)
        else:
            backend = build_backend(read_vocab(vocab, vocab_file), read_merges(merges, merges_file))
        backend.no_truncation()  # a tokenizer.json may carry the settings of somebody's last call
        backend.no_padding()
        self._tokenizer = backend
        for key in ("is_local", "local_files_only"):  # how it was loaded is no property of a tokenizer
            kwargs.pop(key, None)
        kwargs.setdefault("eos_token", END_OF_TEXT)
        kwargs.setdefault("pad_token", END_OF_TEXT)
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = CHAT_TEMPLATE
        super().__init__(**_with_named_tokens(kwargs))
        backend.encode_special_tokens = False  # `split_special_tokens` is handled per call
        special = [AddedToken(str(token), special=True, normalized=False) for token in self.all_special_tokens]
        known = self.added_tokens_encoder
        self.add_tokens([token for token in special if token.content not in known], special_tokens=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *init_inputs: Any, **kwargs: Any) -> ArlowTokenizer:
        """Load a saved tokenizer. Where a model's `config.json` lies beside it, their special tokens must agree.

        Raises:
            OSError: files are missing or cannot be read.
            TypeError: a keyword that is almost one of the known ones.
            ValueError: a file is damaged, or a special token has another id than in the config.
        """
        refuse_misspelt(cls.__name__, kwargs, INIT_OPTIONS + LOADING_OPTIONS)
        with damaged_files_named(pretrained_model_name_or_path, SAVED_FILES, kwargs):
            tokenizer = super().from_pretrained(pretrained_model_name_or_path, *init_inputs, **kwargs)
        check_special_ids(tokenizer, pretrained_model_name_or_path, kwargs)
        return tokenizer

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        return kwargs  # `__init__` reads every kind of file itself

    @classmethod
    def _patch_mistral_regex(cls, tokenizer: Tokenizer, *args: Any, **kwargs: Any) -> Tokenizer:
        return tokenizer  # the stock check asks the Hub whether a large vocabulary is Mistral's

    @classmethod
    def train(
        cls,
        source: str | os.PathLike | Sequence[str | os.PathLike] | Iterable[str],
        vocab_size: int,
        *,
        min_frequency: int = 2,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> ArlowTokenizer:
        """Train a tokenizer.

        Args:
            source: a path or a list of paths of UTF-8 text files, or any other iterable of texts (pass `iter(texts)`
                for a list of texts).
            vocab_size: tokens wanted, special tokens included; a small corpus may give fewer.
            min_frequency: how often a pair must occur to be merged.
            **kwargs: passed to the constructor.

        Raises:
            OSError: a file cannot be read.
            TypeError: a text is not a string, an unknown keyword.
            ValueError: the corpus is empty, a file is not UTF-8, `vocab_size` is below bytes + special tokens.
        """
        refuse_unknown("train", (key for key in kwargs if not key.endswith("_token")), INIT_OPTIONS)
        refuse_misspelt("train", kwargs, INIT_OPTIONS)
        special = [END_OF_TEXT, *(str(kwargs.get(name, token)) for name, token in NAMED_TOKENS.items())]
        if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
            raise TypeError(message("vocab_size", vocab_size, "is not an integer"))
        if vocab_size < BYTES + len(special):
            raise ValueError(
                message("vocab_size", vocab_size, f"is below {BYTES} bytes + {len(special)} special tokens")
            )
        if isinstance(min_frequency, bool) or not isinstance(min_frequency, int) or min_frequency < 1:
            raise ValueError(message("min_frequency", min_frequency, "is not a positive integer"))
        backend = build_backend({}, [])
        trainer = rust_trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=special,
            initial_alphabet=rust_pre_tokenizers.ByteLevel.alphabet(),
            show_progress=show_progress,
        )
        backend.train_from_iterator(read_texts(source), trainer)
        return cls(tokenizer_object=backend, **kwargs)

    def save_vocabulary(
        self, save_directory: str | os.PathLike, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write `vocab.json` and `merges.txt` (added tokens are not part of them) and return their paths."""
        return tuple(self._tokenizer.model.save(os.fspath(save_directory), filename_prefix))

    # --- Chat ------------------------------------------------------------------------------------------------------

    def render_chat(
        self,
        conversations: Sequence[Any],
        *,
        template: str,
        batched: bool = True,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        mark_generated: bool = False,
    ) -> tuple[list[Prompt], list[list[dict[str, Any]]]]:
        """Check and render conversations: one `Prompt` and the checked messages of each.

        Raises `ValueError` or `TypeError` naming the message, the part and the value.
        """
        if continue_final_message and (add_generation_prompt or mark_generated):
            other = "add_generation_prompt" if add_generation_prompt else "return_assistant_tokens_mask"
            raise ValueError(f"continue_final_message={continue_final_message!r}: cannot go with {other}=True")
        known = template_variables(template)
        if documents is not None and "documents" not in known:
            raise ValueError(f"documents={len(documents)} items: this chat template does not show documents")
        roles = ROLES if template == CHAT_TEMPLATE else None
        variables = variables or {}
        # By convention a variable called `..._token` is a token the caller means, not something people typed.
        tokens = {key: value for key, value in variables.items() if key.endswith("_token")}
        tokens = {**self.special_tokens_map, **tokens}
        checked = [
            check_conversation(chat, name=f"conversation[{row}]" if batched else "conversation", roles=roles)
            for row, chat in enumerate(conversations)
        ]
        prompts = render_prompts(
            checked,
            template=template,
            control_tokens=self._get_control_tokens(template),
            tools=check_tools(tools),
            documents=documents,
            variables={key: value for key, value in variables.items() if key not in tokens},
            own_variables=tokens,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            mark_generated=mark_generated,
        )
        return prompts, checked

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        sanitize_control_tokens: bool | None = None,
        padding: bool | str | PaddingStrategy = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or a batch of them, and tokenise it.

        The arguments are those of Transformers, with two differences. What people typed stays text: a control token
        in a message, a tool or a template variable is encoded as ordinary characters, assistant masks included
        (`sanitize_control_tokens=False` switches this off; with `tokenize=False` a string comes back, which cannot
        carry the distinction). And a keyword that neither this method nor the template knows is a `TypeError`.

        Returns a `BatchEncoding` (with `assistant_masks` where asked for), the ids alone with `return_dict=False`, or
        text with `tokenize=False`.
        """
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask=True: needs tokenize=True and return_dict=True")
        if sanitize_control_tokens and not tokenize:
            raise ValueError("sanitize_control_tokens=True: needs tokenize=True, text cannot show what was typed")
        template = self.get_chat_template(chat_template, tools)
        refuse_unknown("apply_chat_template", kwargs, template_variables(template))
        conversations, batched = split_batch(conversation)
        prompts, _ = self.render_chat(
            conversations,
            template=template,
            batched=batched,
            tools=tools,
            documents=documents,
            variables=kwargs,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            mark_generated=return_assistant_tokens_mask,
        )
        texts = [prompt.text for prompt in prompts]
        if not tokenize:
            return texts if batched else texts[0]
        options = {"add_special_tokens": False, **(tokenizer_kwargs or {}), "return_tensors": return_tensors}
        if return_assistant_tokens_mask:
            options.update(return_offsets_mapping=True, return_tensors=None)
        encoded = self(
            texts,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            literal_spans=None if sanitize_control_tokens is False else [prompt.literals for prompt in prompts],
            **options,
        )
        if return_assistant_tokens_mask:
            rows = zip(encoded["offset_mapping"], prompts, strict=True)
            encoded["assistant_masks"] = [mask_spans(offsets, prompt.generated) for offsets, prompt in rows]
            if not (tokenizer_kwargs or {}).get("return_offsets_mapping"):
                del encoded["offset_mapping"]
            encoded.convert_to_tensors(tensor_type=return_tensors)
        if not batched and return_tensors is None:
            encoded = BatchEncoding({key: rows[0] for key, rows in encoded.items()}, encoded.encodings)
        return encoded if return_dict else encoded["input_ids"]

    # --- Encoding --------------------------------------------------------------------------------------------------

    def _encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | None = None,
        literal_spans: Sequence[Sequence[tuple[int, int]]] | None = None,
        **unknown: Any,
    ) -> BatchEncoding:
        """What `__call__`, `encode` and `tokenize` come down to. `literal_spans`: per text, the character ranges in
        which no control token is recognised (`Prompt.literals`)."""
        refuse_unknown(type(self).__name__, unknown, ENCODE_OPTIONS)
        rows, batched = text_rows(text, text_pair, is_split_into_words)
        if self.split_special_tokens if split_special_tokens is None else split_special_tokens:
            literal_spans = [[(0, len(first))] if isinstance(first, str) else [] for first, _ in rows]
        cut = None
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length is not None:
            cut = Cut(max_length, stride, TruncationStrategy(truncation_strategy), self.truncation_side)
        encodings = self._encode_rows(rows, add_special_tokens, is_split_into_words, literal_spans, cut)
        if padding_strategy != PaddingStrategy.DO_NOT_PAD:
            fixed = max_length if padding_strategy == PaddingStrategy.MAX_LENGTH else None
            self._pad_encodings(encodings, fixed, pad_to_multiple_of, padding_side or self.padding_side)
        wanted = {
            "return_token_type_ids": return_token_type_ids,
            "return_attention_mask": return_attention_mask,
            "return_overflowing_tokens": return_overflowing_tokens,
            "return_special_tokens_mask": return_special_tokens_mask,
            "return_offsets_mapping": return_offsets_mapping,
            "return_length": return_length,
        }
        columns, kept = self._columns(encodings, wanted)
        for ids in columns["input_ids"]:
            self._eventual_warn_about_too_long_sequence(ids, max_length, verbose)
        if not batched and return_tensors is None and not return_overflowing_tokens:
            return BatchEncoding({key: values[0] for key, values in columns.items()}, kept)
        if return_tensors == "pt" and _made_on_cpu():  # or the member of that name
            columns = {key: arrays(values) for key, values in columns.items()}
        return BatchEncoding(columns, kept, tensor_type=return_tensors)

    def _columns(self, encodings: list[Encoding], wanted: dict[str, Any]) -> tuple[dict[str, list], list[Encoding]]:
        """The outputs of a call, each a list over rows; a row that was cut may give several."""
        columns: dict[str, list] = {} if encodings else {"input_ids": [], "attention_mask": []}
        kept: list[Encoding] = []
        origin: list[int] = []  # the row each encoding comes from
        for row, encoding in enumerate(encodings):
            fields, pieces = self._convert_encoding(encoding=encoding, **wanted)
            for key, values in fields.items():
                columns.setdefault(key, []).extend(values)
            kept += pieces
            origin += [row] * len(pieces)
        if wanted["return_overflowing_tokens"]:
            columns["overflow_to_sample_mapping"] = origin
        return columns, kept

    def _encode_rows(
        self,
        rows: list[tuple[Any, Any]],
        add_special_tokens: bool,
        pretokenized: bool,
        literal_spans: Sequence[Sequence[tuple[int, int]]] | None,
        cut: Cut | None,
    ) -> list[Encoding]:
        """One finished encoding per row, unpadded."""
        if literal_spans is None and cut is None:
            whole = [first if second is None else (first, second) for first, second in rows]
            return self._encode_batch(whole, add_special_tokens, pretokenized)
        firsts = self._encode_batch([first for first, _ in rows], False, pretokenized)
        for row, spans in enumerate(literal_spans or []):
            if spans and not pretokenized:
                firsts[row] = self._encode_literal(rows[row][0], spans, firsts[row])
        pairs = [(row, second) for row, (_, second) in enumerate(rows) if second is not None]
        encoded = self._encode_batch([second for _, second in pairs], False, pretokenized)
        seconds = {row: detached(encoding) for (row, _), encoding in zip(pairs, encoded, strict=True)}
        added = {pair: self._tokenizer.num_special_tokens_to_add(pair) * add_special_tokens for pair in (False, True)}
        finished = []
        for row, first in enumerate(firsts):
            second = seconds.get(row)
            if cut is not None:
                cut.apply(first, second, reserved=added[second is not None])
            finished.append(self._tokenizer.post_process(first, second, add_special_tokens))
        return finished

    def _encode_batch(self, texts: list[Any], add_special_tokens: bool, pretokenized: bool) -> list[Encoding]:
        try:
            return self._tokenizer.encode_batch(
                texts, add_special_tokens=add_special_tokens, is_pretokenized=pretokenized
            )
        except (TypeError, UnicodeEncodeError) as error:
            raise text_error(texts) from error

    def _encode_literal(self, text: str, spans: Sequence[tuple[int, int]], encoding: Encoding) -> Encoding:
        """`text` with the control tokens inside `spans` read as ordinary characters. `encoding` is the text read
        without that rule; it stands where no control token touches a span."""
        tokens = self.added_tokens_encoder
        found = list(any_of(tuple(tokens)).finditer(text))
        typed = mask_spans([match.span() for match in found], spans)
        if not any(typed):
            return encoding
        real = [match for match, literal in zip(found, typed, strict=True) if not literal]
        plain = self._without_added_tokens()
        pieces: list[tuple[Encoding, int]] = []
        last = 0
        for match in real:
            pieces.append((plain.encode(text[last : match.start()]), last))
            pieces.append((self._tokenizer.encode(match.group(), add_special_tokens=False), match.start()))
            last = match.end()
        pieces.append((plain.encode(text[last:]), last))
        return joined(pieces)

    def _without_added_tokens(self) -> Tokenizer:
        """The same pipeline and vocabulary, no added tokens. The parts are shared, so making it takes microseconds."""
        plain = Tokenizer(self._tokenizer.model)
        if self._tokenizer.normalizer is not None:
            plain.normalizer = self._tokenizer.normalizer
        if self._tokenizer.pre_tokenizer is not None:
            plain.pre_tokenizer = self._tokenizer.pre_tokenizer
        return plain

    def _pad_encodings(self, encodings: list[Encoding], length: int | None, multiple: int | None, side: str) -> None:
        if side not in ("left", "right"):
            raise ValueError(message("padding_side", side, "is neither 'left' nor 'right'"))
        target = max(map(len, encodings), default=0) if length is None else length
        if multiple:
            target += -target % multiple
        for encoding in encodings:
            encoding.pad(
                target,
                direction=side,
                pad_id=self.pad_token_id,
                pad_type_id=self.pad_token_type_id,
                pad_token=self.pad_token,
            )

    # --- Decoding --------------------------------------------------------------------------------------------------

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **unknown: Any,
    ) -> str:
        """What `decode` and `batch_decode` come down to, for one row. An id behind the vocabulary is no text, as in
        Transformers: embeddings are often padded, and a model may sample one of the rows nobody trained."""
        refuse_unknown("decode", unknown, DECODE_OPTIONS)
        ids = token_ids["input_ids"] if isinstance(token_ids, Mapping) else token_ids
        ids = ids if isinstance(ids, (list, tuple)) else [ids]
        for index, each in enumerate(ids):
            if isinstance(each, bool) or not isinstance(each, int):
                raise TypeError(message(f"token_ids[{index}]", each, "is no token id"))
            if each < 0:
                raise ValueError(message(f"token_ids[{index}]", each, "is negative", "leave out labels of -100"))
        return super()._decode(ids, skip_special_tokens, clean_up_tokenization_spaces)


def _made_on_cpu() -> bool:
    """Whether tensors are made on the CPU where nobody says where: an array becomes one of the CPU."""
    import torch  # here: without tensors the tokenizer needs none

    return torch.get_default_device().type == "cpu"


def _with_named_tokens(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Constructor keywords with all named special tokens in the one place Transformers reads and saves them."""
    named: dict[str, Any] = dict(NAMED_TOKENS)
    if isinstance(kwargs.get("extra_special_tokens"), Mapping):
        named.update(kwargs.pop("extra_special_tokens"))
    named.update(kwargs.pop("model_specific_special_tokens", None) or {})
    named.update({key: kwargs.pop(key) for key in NAMED_TOKENS if kwargs.get(key) is not None})
    return {**kwargs, "model_specific_special_tokens": named}


ArlowTokenizerFast = ArlowTokenizer
