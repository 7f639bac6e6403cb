"""A small trained tokenizer, and a processor around it, made in the process; no test needs a file for them."""

from __future__ import annotations

import copy
import functools

from arlow.image_processing_arlow import ArlowImageProcessor
from arlow.processing_arlow import ArlowProcessor
from arlow.tokenization_arlow import ArlowTokenizer
from arlow.video_processing_arlow import ArlowVideoProcessor


CORPUS = (
    "The quick brown fox jumps over the lazy dog. Describe this image. What happens in this video?\n",
    "A system prompt, a user, an assistant and a tool: compare these two images and answer in one word.\n",
    "Zwölf große Boxkämpfer jagen Viktor quer über den Sylter Deich. Où est la gare, s'il vous plaît ?\n",
    "これは小さな文章です。 Это короткий текст. هذا نص قصير. 12 345 6.78 seconds, don't we'll I'm\r\n\tx = y[0] {}\n",
)


@functools.cache
def _trained() -> ArlowTokenizer:
    return ArlowTokenizer.train(iter(CORPUS * 3), 480)


def tiny_tokenizer() -> ArlowTokenizer:
    """A fresh tokenizer of about 480 tokens; ids 0..6 are the special tokens."""
    return copy.deepcopy(_trained())


def tiny_processor(**options: object) -> ArlowProcessor:
    """A fresh processor with the geometry and token ids of `ArlowConfig.tiny()`: images of 4 to 36 tokens, frames of 4
    to 16. `options` go to both media processors."""
    images = {"size": {"shortest_edge": 4 * 28**2, "longest_edge": 36 * 28**2}, **options}
    videos = {"size": {"shortest_edge": 4 * 28**2, "longest_edge": 16 * 28**2}, **options}
    return ArlowProcessor(ArlowImageProcessor(**images), tiny_tokenizer(), ArlowVideoProcessor(**videos))
