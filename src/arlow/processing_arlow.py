"""Conversations with media become every input of the model's `forward`.

The way of a call: check the arguments, let the image and video processors make patches and grids, write as many
placeholders into the text as there will be features, tokenise, and mark which tokens are images and videos.

Sizes: B rows, S tokens of a row.
"""

# No `from __future__ import annotations`: Transformers reads the TypedDict's annotations at run time.

import bisect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from transformers.image_processing_base import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, TextKwargs
from transformers.video_processing_utils import VideoProcessorMixin

from .chat_template import Prompt, media_of, split_batch, template_variables
from .errors import cut, message, refuse_misspelt, refuse_unknown
from .image_processing_arlow import ArlowImageProcessorKwargs
from .media import fill_rows, flatten_images
from .media_fetch import MediaPolicy
from .token_rows import mask_spans
from .tokenization_arlow import INIT_OPTIONS, LOADING_OPTIONS
from .tokenizer_files import SAVED_FILES, config_beside, damaged_files_named
from .video_processing_arlow import ArlowVideoProcessorKwargs
from .video_reader import flatten_videos, one_video


KINDS = ("image", "video")
TEXT, IMAGE, VIDEO = 0, 1, 2  # values of mm_token_type_ids


class ArlowProcessorKwargs(ProcessingKwargs, total=False):
    """Keywords of a call beside those of the tokenizer, the image processor and the video processor."""

    text_kwargs: TextKwargs
    images_kwargs: ArlowImageProcessorKwargs
    videos_kwargs: ArlowVideoProcessorKwargs
    timestamp_alignment: bool | None  # write the time of each frame group before it; None: where it is known


MEDIA_OPTIONS = frozenset(ArlowImageProcessorKwargs.__annotations__) | frozenset(
    ArlowVideoProcessorKwargs.__annotations__
)
NO_PROMPTS = ("text_pair", "text_pair_target", "is_split_into_words")  # the tokenizer's; a prompt is one string
PROCESSOR_FILES = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json"),
    *(*SAVED_FILES, "config.json"),
)


@dataclass(frozen=True)
class Expanded:
    """A prompt whose placeholders have been repeated."""

    prompt: Prompt
    counts: dict[str, int]  # placeholders of each kind
    offsets: list[dict[str, Any]]  # what was replaced where, as Transformers reports it


class ArlowProcessor(ProcessorMixin):
    """One object for text, images and videos: `processor(...)` for prompts, `processor.apply_chat_template(...)` for
    conversations, `processor.explain(...)` to see what the model will see.

    Keywords of the tokenizer (`padding`, ...), the image processor (`do_pan_and_scan`, ...) and the video processor
    (`fps`, ...) are given directly, or as `text_kwargs`, `images_kwargs`, `videos_kwargs`; any other is a `TypeError`.
    An instance keeps no state between calls and may be used from many threads.

    Args:
        image_processor: an `ArlowImageProcessor`.
        tokenizer: an `ArlowTokenizer`.
        video_processor: an `ArlowVideoProcessor` of the same geometry.
        chat_template: a Jinja template; the tokenizer's when missing.
    """

    valid_processor_kwargs = ArlowProcessorKwargs
    return_mm_token_type_ids = True
    timestamp_alignment = None

    def __init__(self, image_processor=None, tokenizer=None, video_processor=None, chat_template=None):
        for name, part in (
            ("image_processor", image_processor),
            ("tokenizer", tokenizer),
            ("video_processor", video_processor),
        ):
            if part is None:
                raise ValueError(
                    f"{name}=None: ArlowProcessor needs an image processor, a tokenizer, a video processor"
                )
        for name in ("patch_size", "merge_size"):
            if (ours := getattr(image_processor, name)) != (theirs := getattr(video_processor, name)):
                raise ValueError(message(name, ours, f"of the image processor is not the video processor's {theirs}"))
        if chat_template is None:
            chat_template = tokenizer.chat_template
        super().__init__(image_processor, tokenizer, video_processor, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved processor; `kwargs` may hold options of its parts. Where a model's `config.json` lies beside
        it, their special tokens must agree, and its `token_pruning_ratio` is taken; calls with `output_dtype="uint8"`
        then need its `image_mean` and `image_std`, by which the encoder normalises.

        Raises:
            OSError: files are missing or cannot be read.
            TypeError: a keyword that is almost one of the known ones.
            ValueError: a file is damaged, or the tokenizer gives a special token another id than the config.
        """
        known = (*cls.get_attributes(), *LOADING_OPTIONS, *INIT_OPTIONS, *MEDIA_OPTIONS, *TextKwargs.__annotations__)
        refuse_misspelt(cls.__name__, kwargs, known)
        with damaged_files_named(pretrained_model_name_or_path, PROCESSOR_FILES, kwargs):
            processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        vision = config_beside(pretrained_model_name_or_path, kwargs).get("vision_config")
        if isinstance(vision, dict) and "token_pruning_ratio" in vision and "token_pruning_ratio" not in kwargs:
            processor.image_processor.token_pruning_ratio = vision["token_pruning_ratio"]
        if isinstance(vision, dict) and vision.get("model_type") == "arlow_vision":
            processor.image_processor.encoder = processor.video_processor.encoder = vision
        return processor

    @classmethod
    def _load_tokenizer_from_pretrained(cls, sub_processor_type: str, *args: Any, **kwargs: Any) -> Any:
        """As the base class, which would save options of the media processors with the tokenizer."""
        kwargs = {key: value for key, value in kwargs.items() if key not in MEDIA_OPTIONS}
        return super()._load_tokenizer_from_pretrained(sub_processor_type, *args, **kwargs)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """As the base class, which cannot check a video processor without torchvision."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(message("video_processor", argument, "is no video processor"))
        return VideoProcessorMixin

    # --- Properties --------------------------------------------------------------------------------------------

    @property
    def image_token(self) -> str:
        return self.tokenizer.image_token

    @property
    def image_token_id(self) -> int:
        return self.tokenizer.image_token_id

    @property
    def video_token(self) -> str:
        return self.tokenizer.video_token

    @property
    def video_token_id(self) -> int:
        return self.tokenizer.video_token_id

    @property
    def model_input_names(self) -> list[str]:
        """Every key a call may return, in the names of the model's `forward`."""
        parts = (self.tokenizer, self.image_processor, self.video_processor)
        return [*(name for part in parts for name in part.model_input_names), "mm_token_type_ids"]

    @property
    def policy(self) -> MediaPolicy:
        """What may be fetched and decoded; setting it sets it for images and videos. Never saved."""
        return self.image_processor.policy

    @policy.setter
    def policy(self, policy: MediaPolicy) -> None:
        if not isinstance(policy, MediaPolicy):
            raise TypeError(message("policy", policy, "is no MediaPolicy"))
        self.image_processor.policy = policy
        self.video_processor.policy = policy

    # --- Prompts -----------------------------------------------------------------------------------------------

    def __call__(self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any) -> BatchFeature:
        """Prompts and media as model inputs.

        Args:
            images: one picture, a flat list in the order of the placeholders, or a list per row (empty or None for a
                row without); see `media.load_picture` for what a picture may be.
            text: one prompt or a list (B rows) with one `<image>` or `<video>` per item. A prompt is taken literally:
                control tokens in it are control tokens. What people typed belongs into `apply_chat_template`.
            videos: likewise; see `video_reader.open_video`.
            **kwargs: see the class. `timestamp_alignment=True` demands the time of every frame group, False leaves
                times out, and None (default) writes them where the source has a frame rate.
                `return_mm_token_type_ids` (default True), `return_metadata` and `return_text_replacement_offsets` as
                in Transformers.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` (B, S) int64: 0 text, 1 image, 2 video;
            `pixel_values` and `image_grid_thw` with images, `pixel_values_videos` and `video_grid_thw` with videos.

        Raises:
            TypeError: an unknown keyword, text that is no text, media that are no media.
            ValueError: placeholders and media that do not match (names the row), truncation through placeholders,
                impossible options, refused media.
            OSError: media that cannot be read.
        """
        if text is None and no_media(images) and no_media(videos):
            raise ValueError("text=None: needs text, images or videos")
        prompts = None if text is None else _prompts(text)
        try:
            return self._process(prompts, images, videos, kwargs)
        except OSError as error:
            if prompts is None and isinstance(images, (str, list, tuple)) and any(isinstance(x, str) for x in images):
                raise type(error)(cut(f"{error}; a prompt is passed as text=")) from error
            raise

    def _process(
        self,
        prompts: list[Prompt] | None,
        images: Any,
        videos: Any,
        kwargs: Mapping[str, Any],
        *,
        mark_generated: bool = False,
    ) -> BatchFeature:
        options = self._options(kwargs)
        text_options = options["text_kwargs"]
        items = {"image": _Media("image", images), "video": _Media("video", videos)}
        if prompts is not None:
            self._check_balance(prompts, items)
        wants_metadata = options["videos_kwargs"].pop("return_metadata", False)
        media: dict[str, Any] = {}
        replacements: dict[str, list[str]] = {"image": [], "video": []}
        if items["image"].total:
            media.update(self.image_processor(items["image"].given, **options["images_kwargs"]))
            replacements["image"] = [
                self.replace_image_token(media, index, **options["images_kwargs"])
                for index in range(items["image"].total)
            ]
            media.pop("num_crops", None)
        if items["video"].total:
            found = self.video_processor(items["video"].flat, **options["videos_kwargs"], return_metadata=True)
            replacements["video"] = [
                self.replace_video_token(found, index, timestamp_alignment=options.get("timestamp_alignment"))
                for index in range(items["video"].total)
            ]
            media.update(found)
            if not wants_metadata:
                media.pop("video_metadata")
        data: dict[str, Any] = {}
        if prompts is not None:
            expanded = list(self._expand(prompts, {kind: iter(texts) for kind, texts in replacements.items()}))
            data = self._tokenise(expanded, text_options, mark_generated)
            if options["return_text_replacement_offsets"]:
                data["text_replacement_offsets"] = [each.offsets for each in expanded]
            if options["return_mm_token_type_ids"]:
                data["mm_token_type_ids"] = self.create_mm_token_type_ids(data["input_ids"])
        return BatchFeature(
            {**data, **media},
            tensor_type=text_options.get("return_tensors"),
            skip_tensor_conversion=self.skip_tensor_conversion,
        )

    def _options(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords by their receiver. Raises `TypeError` for an unknown one, `ValueError` for a wrong type."""
        refuse_unknown(type(self).__name__, kwargs, self._keywords())
        for kind, known in self._receivers().items():
            if not isinstance(kwargs.get(kind, {}), Mapping):
                raise TypeError(message(kind, kwargs[kind], "is not a dict"))
            refuse_unknown(kind, kwargs.get(kind, {}), known)
        try:
            options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        except StrictDataclassError as error:  # not a ValueError in huggingface_hub
            raise ValueError(cut(str(error))) from error
        for name in ("return_mm_token_type_ids", "return_text_replacement_offsets"):
            options["text_kwargs"].pop(name, None)
        for name in NO_PROMPTS:
            if value := options["text_kwargs"].get(name):
                problem = "the processor takes one string per prompt"
                raise ValueError(message(name, value, problem, "join them, or call processor.tokenizer"))
        return options

    def _receivers(self) -> dict[str, frozenset[str]]:
        return {
            "text_kwargs": frozenset(TextKwargs.__annotations__),
            "images_kwargs": frozenset(self.image_processor.valid_kwargs.__annotations__),
            "videos_kwargs": frozenset(self.video_processor.valid_kwargs.__annotations__),
        }

    def _keywords(self) -> frozenset[str]:
        own = frozenset(ArlowProcessorKwargs.__annotations__) | {"common_kwargs"}
        return own.union(*self._receivers().values()) - {"audio_kwargs"}

    # --- Placeholders ------------------------------------------------------------------------------------------

    def _placeholders(self, prompt: Prompt) -> Iterator[tuple[str, re.Match]]:
        """The placeholders of a prompt that are not typed text, as (kind, match)."""
        kinds = {self.image_token: "image", self.video_token: "video"}
        found = list(re.finditer("|".join(map(re.escape, kinds)), prompt.text))
        typed = mask_spans([match.span() for match in found], prompt.literals)
        for match, literal in zip(found, typed, strict=True):
            if not literal:
                yield kinds[match.group()], match

    def _check_balance(self, prompts: list[Prompt], items: Mapping[str, "_Media"]) -> None:
        """Raise `ValueError` naming the row unless every row has as many placeholders as media of each kind."""
        found = [[kind for kind, _ in self._placeholders(prompt)] for prompt in prompts]
        for kind, media in items.items():
            wanted = [row.count(kind) for row in found]
            media.check(wanted, token=self.image_token if kind == "image" else self.video_token)

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **kwargs: Any) -> str:
        """What stands for image `image_idx` of a call: a placeholder per merged token, its crops behind it as images
        of their own. `kwargs`: the options of the call."""
        crops = image_inputs.get("num_crops")
        first, count = image_idx, 1
        if crops is not None:
            first, count = image_idx + int(sum(crops[:image_idx])), 1 + int(crops[image_idx])
        options = self.image_processor._options(kwargs)
        grids = image_inputs["image_grid_thw"][first : first + count].tolist()
        separator = self.tokenizer.vision_end_token + self.tokenizer.vision_start_token
        return separator.join(self.image_token * (t * options.tokens(h, w)) for t, h, w in grids)

    def replace_video_token(
        self,
        video_inputs: Mapping[str, Any],
        video_idx: int,
        *,
        timestamp_alignment: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """What stands for video `video_idx` of a call: its frame groups, each a vision span behind its time.

        Raises `ValueError` with `timestamp_alignment=True` for a video of unknown times.
        """
        merge = kwargs.get("merge_size") or self.video_processor.merge_size
        groups, h, w = video_inputs["video_grid_thw"][video_idx].tolist()
        times = video_inputs["video_metadata"][video_idx].group_timestamps
        if times is None and timestamp_alignment:
            raise ValueError(
                f"videos[{video_idx}]: has no frame rate, so timestamp_alignment=True cannot be met; "
                "pass video_metadata={'fps': ...}, or do_sample_frames=False with fps"
            )
        span = self.tokenizer.vision_start_token + self.video_token * (h * w // merge**2)
        span += self.tokenizer.vision_end_token
        if times is None or timestamp_alignment is False:
            return span * groups
        return "".join(f"<{time:.1f} seconds>{span}" for time in times)

    def _expand(self, prompts: list[Prompt], replacements: Mapping[str, Iterator[str]]) -> Iterator[Expanded]:
        """The prompts with each placeholder replaced by the next text of its kind."""
        for prompt in prompts:
            pieces: list[str] = []
            offsets: list[dict[str, Any]] = []
            ends, gains = [], [0]  # where placeholders ended, and how much longer the text is from there on
            counts = dict.fromkeys(KINDS, 0)
            last = 0
            for kind, match in self._placeholders(prompt):
                new = next(replacements[kind])
                start, end = match.span()
                pieces += prompt.text[last:start], new
                at = start + gains[-1]
                offsets.append(
                    {
                        "type": kind,
                        "span": (start, end),
                        "new_span": (at, at + len(new)),
                        "text": match.group(),
                        "replacement": new,
                    }
                )
                counts[kind] += new.count(match.group())
                ends.append(end)
                gains.append(at + len(new) - end)
                last = end
            text = "".join([*pieces, prompt.text[last:]])

            def moved(spans: tuple, ends: list[int] = ends, gains: list[int] = gains) -> tuple:
                return tuple(tuple(at + gains[bisect.bisect_right(ends, at)] for at in span) for span in spans)

            yield Expanded(Prompt(text, moved(prompt.literals), moved(prompt.generated)), counts, offsets)

    def _tokenise(self, expanded: list[Expanded], options: dict[str, Any], mark_generated: bool) -> dict[str, Any]:
        wants_offsets = options.get("return_offsets_mapping")
        if mark_generated:
            options = {**options, "return_offsets_mapping": True}
        prompts = [each.prompt for each in expanded]
        encoded = dict(
            self.tokenizer(
                [prompt.text for prompt in prompts],
                literal_spans=[prompt.literals for prompt in prompts],
                **options,
            )
        )
        self._check_whole(encoded["input_ids"], expanded, options)
        if mark_generated:
            rows = zip(encoded["offset_mapping"], prompts, strict=True)
            encoded["assistant_masks"] = [mask_spans(offsets, prompt.generated) for offsets, prompt in rows]
            if not wants_offsets:
                del encoded["offset_mapping"]
        return encoded

    def _check_whole(self, rows: Any, expanded: list[Expanded], options: Mapping[str, Any]) -> None:
        """Raise `ValueError` if truncation took placeholders away: their features would have nowhere to go."""
        if not options.get("truncation") and options.get("max_length") is None:
            return
        if len(rows) != len(expanded):
            raise ValueError("return_overflowing_tokens=True: rows with images or videos cannot be split")
        for row, (ids, each) in enumerate(zip(rows, expanded, strict=True)):
            for kind, token in (("image", self.image_token_id), ("video", self.video_token_id)):
                left = int((np.asarray(ids) == token).sum())
                if left != each.counts[kind]:
                    problem = f"truncation cuts through the {kind} placeholders of row {row}"
                    remedy = f"{left} of {each.counts[kind]} would be left; raise max_length or shrink the media"
                    raise ValueError(message("max_length", options.get("max_length"), problem, remedy))

    # --- Conversations -----------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "auto",
        return_dict: bool = False,
        load_audio_from_video: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        sanitize_control_tokens: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Render one conversation or a batch; with `tokenize=True` also load its media and make the model's inputs.

        The arguments are those of Transformers. Keywords of `__call__` (`fps`, `padding`, ...) may be given directly
        or in `processor_kwargs`; the template's variables directly. Any other keyword is a `TypeError`.

        What people typed stays text: a control token in a message, a tool or a variable is encoded as ordinary
        characters, assistant masks included. `sanitize_control_tokens=False` switches that off. With `tokenize=False`
        a string comes back, which cannot carry the distinction: tokenising it reads typed control tokens as real ones.

        Returns a `BatchFeature` with `return_dict=True` (with `assistant_masks` where asked for), else the ids; text
        with `tokenize=False`.
        """
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask=True: needs tokenize=True and return_dict=True")
        if sanitize_control_tokens and not tokenize:
            raise ValueError("sanitize_control_tokens=True: needs tokenize=True, text cannot show what was typed")
        if load_audio_from_video:
            raise ValueError("load_audio_from_video=True: Arlow does not hear")
        template = self._resolve_chat_template(chat_template)
        options, variables = self._split_keywords(template, processor_kwargs or {}, kwargs)
        conversations, batched = split_batch(conversation)
        prompts, checked = self.tokenizer.render_chat(
            conversations,
            template=template,
            batched=batched,
            tools=tools,
            documents=documents,
            variables=variables,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            mark_generated=return_assistant_tokens_mask,
        )
        if not tokenize:
            texts = [prompt.text for prompt in prompts]
            return texts if batched else texts[0]
        if sanitize_control_tokens is False:
            prompts = [Prompt(prompt.text, (), prompt.generated) for prompt in prompts]
        images, videos = self._media(checked, options)
        if return_tensors != "auto":
            options["return_tensors"] = return_tensors
        out = self._process(prompts, images, videos, options, mark_generated=return_assistant_tokens_mask)
        return out if return_dict else out["input_ids"]

    def _split_keywords(
        self, template: str, processor_kwargs: Mapping[str, Any], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords of `apply_chat_template` as those of `__call__` and the variables of the template."""
        if not isinstance(processor_kwargs, Mapping):
            raise TypeError(message("processor_kwargs", processor_kwargs, "is not a dict"))
        variables = {key: value for key, value in kwargs.items() if key in template_variables(template)}
        options = {**processor_kwargs, **{key: value for key, value in kwargs.items() if key not in variables}}
        known = self._keywords() | {"images", "videos"}
        refuse_unknown("apply_chat_template", options, known)
        return options, variables

    def _media(self, conversations: list[list[dict]], options: dict[str, Any]) -> tuple[Any, Any]:
        """The media of checked conversations, a list per row; `images=` and `videos=` fill parts without a source."""
        found = []
        for kind, keyword in (("image", "images"), ("video", "videos")):
            given = options.pop(keyword, None)
            rows = [media_of(chat, kind) for chat in conversations]
            if not no_media(given) and any(rows):
                raise ValueError(message(keyword, given, f"the conversation names its {keyword} already"))
            if kind == "video":
                rows = [[one_video(source) for source in row] for row in rows]
            found.append(rows if any(rows) else given)
        return found[0], found[1]

    def explain(self, conversation: Any, **kwargs: Any) -> Any:
        """What the model will see of a conversation, without weights: an `explain.Report`.

        `kwargs` are those of `apply_chat_template`: `add_generation_prompt`, `tools`, `fps`, `do_pan_and_scan`, ...
        """
        from .explain import explain  # it draws pictures, which nothing else here needs

        return explain(self, conversation, **kwargs)

    # --- Counting and decoding ---------------------------------------------------------------------------------

    def _get_num_multimodal_tokens(
        self,
        image_sizes: Sequence[Sequence[int]] | None = None,
        video_sizes: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> MultiModalData:
        """How many placeholders and patches media will take, from their sizes; serving engines ask this.

        Args:
            image_sizes: (height, width) in pixels of each image.
            video_sizes: (frames, height, width) of each video, frames after sampling.
            **kwargs: as in a call.
        """
        options = self._options(kwargs)
        data: dict[str, list[int]] = {}
        if image_sizes is not None:
            own, images = options["images_kwargs"], self.image_processor
            data["num_image_patches"] = [images.get_number_of_image_patches(*size, own) for size in image_sizes]
            data["num_image_tokens"] = [images.get_number_of_image_tokens(*size, own) for size in image_sizes]
        if video_sizes is not None:
            own = options["videos_kwargs"]
            merge = own.get("merge_size") or self.video_processor.merge_size
            counts = [self.video_processor.get_num_of_video_patches(*size, own) for size in video_sizes]
            data["num_video_tokens"] = [count // merge**2 for count in counts]
        return MultiModalData(**data)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Generated ids (B, S) as texts."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


class _Media:
    """The images or videos of a call: how many there are, and in which rows if the caller said so."""

    def __init__(self, kind: str, given: Any):
        self.kind = kind
        self.given = given = fill_rows(given)
        self.flat: list[Any] = []
        self.rows: list[int] | None = None
        if no_media(given):
            return
        flatten = flatten_images if kind == "image" else flatten_videos
        self.flat = flatten(given)
        if isinstance(given, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in given):
            rows = [len(flatten(row)) if len(row) else 0 for row in given]
            if all(count >= len(row) for count, row in zip(rows, given, strict=True)):  # else a list is one video
                self.rows = rows

    @property
    def total(self) -> int:
        return len(self.flat)

    def check(self, wanted: list[int], *, token: str) -> None:
        """Raise `ValueError` unless the media fit `wanted`, the number of placeholders of each row."""
        rule = f"{token} tokens in the prompts should be the same as the number of {self.kind}s"
        if self.rows is not None and len(self.rows) != len(wanted):
            raise ValueError(f"{rule} in each row; there are {self.kind}s for {len(self.rows)} rows of {len(wanted)}")
        if self.rows is not None:
            for row, (placeholders, media) in enumerate(zip(wanted, self.rows, strict=True)):
                if placeholders != media:
                    raise ValueError(f"row {row}: {rule}; found {placeholders} {token} and {media} {self.kind}s")
        elif sum(wanted) != self.total:
            where = ", ".join(f"row {row}: {count}" for row, count in enumerate(wanted[:8]))
            where += ", ..." if len(wanted) > 8 else ""
            found = f"found {sum(wanted)} {token} ({where}) and {self.total} {self.kind}s"
            raise ValueError(f"{rule}; {found}")


def no_media(given: Any) -> bool:
    """Whether `images` or `videos` of a call hold nothing: None, an empty list, or a list of empty rows."""
    given = fill_rows(given)
    if isinstance(given, (list, tuple)):
        return all(isinstance(row, (list, tuple)) and not row for row in given)
    return given is None


def _prompts(text: Any) -> list[Prompt]:
    rows = [text] if isinstance(text, str) else text
    if not isinstance(rows, (list, tuple)):
        raise TypeError(message("text", text, "is neither a string nor a list of strings"))
    if not rows:
        raise ValueError("text=[]: holds no prompt")
    for row, each in enumerate(rows):
        if not isinstance(each, str):
            raise TypeError(message(f"text[{row}]", each, "is not a string"))
    return [Prompt(each) for each in rows]
