"""For the API reference: a field's trailing comment is its documentation; `[`Name`]` in a docstring is shown as code.

Configs, policies and option lists carry unit and meaning beside each field; here they become what a reader sees.
"""

from __future__ import annotations

import io
import re
import tokenize
from typing import Any

from griffe import Attribute, Docstring, Extension, Object


BRACKETED = re.compile(r"\[(`[^`\]]+`)\](?![\[(])")


class FieldComments(Extension):
    def on_attribute(self, *, attr: Attribute, **kwargs: Any) -> None:
        if attr.docstring is None and attr.parent is not None and attr.parent.is_class:
            text = trailing_comment(attr.source)
            if text:
                attr.docstring = Docstring(text, parent=attr, lineno=attr.lineno)

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = BRACKETED.sub(r"\1", obj.docstring.value)


def trailing_comment(source: str) -> str:
    """The comment at the end of an assignment, without `#`; empty when there is none or it speaks to a tool."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source.strip() + "\n").readline))
    except (tokenize.TokenError, IndentationError):
        return ""
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    comments = [text for text in comments if not text.startswith(("fmt:", "type:", "noqa"))]
    return comments[-1] if comments else ""
