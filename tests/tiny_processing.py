"""A small trained tokenizer, and a processor around it, made in the process; no test needs a file for them."""

from __future__ import annotations

import copy
import functools

from arlow.tokenization_arlow import ArlowTokenizer


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
