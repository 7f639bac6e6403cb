"""Processors of the peer, Qwen3-VL in Transformers, with the tokenizer and the geometry of Arlow's beside them.

Qwen3-VL's own image and video processors need torchvision. In their place stand the Pillow-backed image processor of
Qwen2-VL, which does the same work, and for videos what the upstream class does, frame by frame with that processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast
from transformers.image_processing_base import BatchFeature
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import VideoMetadata, load_video

from arlow import ArlowImageProcessor, ArlowProcessor, ArlowTokenizer, ArlowVideoProcessor


PEER = "Qwen3-VL"
NORMAL = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGES = {"shortest_edge": 56 * 56, "longest_edge": 14 * 14 * 4 * 1280}  # pixels of a picture: 4 to 1280 tokens
FRAMES = {"shortest_edge": 56 * 56, "longest_edge": 448 * 448}  # pixels of a frame: 4 to 256 tokens per frame group
# Qwen3-VL's published template for messages of text and media; placeholders as Arlow's tokenizer spells them.
CHAT_TEMPLATE = r"""
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                {{- '<|vision_start|><image><|vision_end|>' }}
            {%- elif content.type == 'video' or 'video' in content %}
                {{- '<video>' }}
            {%- elif 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""".strip()


def corpus() -> str:
    """English prose: the pages of these docs, without tags and control tokens."""
    pages = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
    words = " ".join(page.read_text(encoding="utf-8") for page in pages if page.stem != "performance").split()
    return " ".join(word for word in words if "<" not in word and ">" not in word)


def processors(*, images: dict[str, int] = IMAGES, videos: dict[str, int] = FRAMES) -> tuple[Any, Any]:
    """Arlow's processor and the peer's, of one vocabulary and one geometry."""
    tokenizer = ArlowTokenizer.train(iter([corpus()]), 4096)
    arlow = ArlowProcessor(ArlowImageProcessor(size=images), tokenizer, ArlowVideoProcessor(size=videos))
    return arlow, peer_processor(peer_tokenizer(tokenizer), images=images, videos=videos)


def peer_tokenizer(tokenizer: ArlowTokenizer) -> PreTrainedTokenizerFast:
    """A plain tokenizer of Transformers with the same vocabulary."""
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        extra_special_tokens={name: getattr(tokenizer, name) for name in names},
        padding_side="left",
    )


def peer_processor(tokenizer: Any, *, images: dict[str, int], videos: dict[str, int]) -> Any:
    """Qwen3-VL's processor around a tokenizer."""
    image_processor = Qwen2VLImageProcessorPil(size=images, **NORMAL)
    return PeerProcessor(image_processor, tokenizer, PeerVideoProcessor(size=videos), chat_template=CHAT_TEMPLATE)


class PeerProcessor(Qwen3VLProcessor):
    """Qwen3-VL's processor, which here takes a video processor without torchvision."""

    @classmethod
    def _get_arguments_from_pretrained(cls, folder: Path, processor_dict: Any = None, **kwargs: Any) -> list[Any]:
        """As the mixin's, whose way to a video processor asks for torchvision."""
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", folder)
        video_processor = PeerVideoProcessor(size=processor_dict["video_processor"]["size"])
        return [Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, video_processor]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return VideoProcessorMixin
        return super().check_argument_for_proper_class(argument_name, argument)


class PeerVideoProcessor(VideoProcessorMixin):
    """Files to rows: `load_video` of Transformers with PyAV, Qwen3-VL's sampling, then each frame as a picture."""

    patch_size = 14
    temporal_patch_size = 2
    merge_size = 2

    def __init__(self, *, size: dict[str, int]) -> None:
        super().__init__()
        self.frames = Qwen2VLImageProcessorPil(size=size, **NORMAL)

    def to_dict(self) -> dict[str, Any]:
        return {"video_processor_type": type(self).__name__, "size": dict(self.frames.size)}

    def preprocess(
        self,
        videos: Any,
        *,
        fps: float | None = 2,
        num_frames: int | None = None,
        return_metadata: bool = False,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        def sample(metadata: VideoMetadata, **options: Any) -> np.ndarray:
            total, count = metadata.total_num_frames, num_frames
            if count is None:
                count = min(max(int(total / metadata.fps * fps), 4), 768, total)
            return np.linspace(0, total - 1, count).round().astype(int)

        read = [load_video(path, backend="pyav", sample_indices_fn=sample) for path in _flat(videos)]
        packed = [self._pack(frames) for frames, _ in read]
        data = {
            "pixel_values_videos": np.concatenate([rows for rows, _ in packed]),
            "video_grid_thw": np.array([grid for _, grid in packed], dtype=np.int64),
        }
        features = BatchFeature(data, tensor_type=return_tensors)
        if return_metadata:
            features["video_metadata"] = [metadata for _, metadata in read]
        return features

    def _pack(self, frames: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
        """(F, H, W, 3) uint8 as rows of patches, two frames in each, and their grid."""
        made, own = [], self.frames
        for frame in frames:
            image = own.resize(
                frame.transpose(2, 0, 1), own.size, own.resample, factor=self.patch_size * self.merge_size
            )
            made.append(own.normalize(own.rescale(image, own.rescale_factor), own.image_mean, own.image_std))
        made += made[-1:] * (len(made) % 2)
        clip = np.stack(made)  # [F, 3, H, W]
        P, M, T = self.patch_size, self.merge_size, self.temporal_patch_size
        t, h, w = len(clip) // T, clip.shape[2] // P, clip.shape[3] // P
        blocks = clip.reshape(t, T, 3, h // M, M, P, w // M, M, P).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return blocks.reshape(t * h * w, -1), (t, h, w)


def _flat(videos: Any) -> list[str]:
    """One path, a list, or a list per row."""
    if isinstance(videos, str):
        return [videos]
    return [path for each in videos for path in _flat(each)] if isinstance(videos, Sequence) else []
