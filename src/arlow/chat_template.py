"""Conversations become prompts: checking, rendering, and keeping what people typed apart from what the template wrote.

A conversation is a list of messages `{"role": ..., "content": ...}`; content is a string or a list of parts (`text`,
`image`, `video`). `render_prompts` gives one `Prompt` per conversation: its text, and the character ranges in which a
control token was typed by a person. Whoever tokenises a prompt encodes those ranges as ordinary characters.
"""

from __future__ import annotations

import bisect
import difflib
import itertools
import json
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils import get_json_schema
from transformers.utils.chat_template_utils import _get_template_variables, render_jinja_template

from .errors import cut, message


ROLES = ("system", "user", "assistant", "tool")

# ChatML: every turn is `<|im_start|>role\n ... <|im_end|>\n`.
# - The first system turn carries the tools, if there are any; there is no system turn unless somebody asked for one.
# - An image is `<|vision_start|><image><|vision_end|>`, one placeholder that the processor repeats. A video is a bare
#   `<video>`: the processor writes its frame groups, each between vision tokens and behind its time.
# - `{% generation %}` marks what the model writes: text, tool calls and the closing token of assistant turns, but no
#   placeholders. The marks must stand at the top level (not in a macro), or their positions are wrong.
# - The last branches raise; the Python checks below come first and say more.
CHAT_TEMPLATE = r"""
{%- macro media(part) -%}
  {%- if part['type'] == 'image' -%}{{- '<|vision_start|><image><|vision_end|>' -}}
  {%- elif part['type'] == 'video' -%}{{- '<video>' -}}
  {%- else -%}{{- raise_exception('unknown content type: ' ~ part['type']) -}}
  {%- endif -%}
{%- endmacro -%}
{%- macro written(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- else -%}{{- media(part) -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro call_json(call) -%}
  {%- set function = call['function'] if 'function' in call else call -%}
  {{- '{"name": ' ~ function['name'] | tojson ~ ', "arguments": ' -}}
  {%- if function['arguments'] is string -%}{{- function['arguments'] -}}
  {%- else -%}{{- function['arguments'] | tojson -}}
  {%- endif -%}
  {{- '}' -}}
{%- endmacro -%}
{%- set system_first = messages and messages[0]['role'] == 'system' -%}
{%- if tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if system_first -%}{{- written(messages[0]['content']) ~ '\n\n' -}}{%- endif -%}
  {{- 'You may call these functions, given one JSON schema per line:\n<tools>\n' -}}
  {%- for tool in tools -%}{{- tool | tojson ~ '\n' -}}{%- endfor -%}
  {{- '</tools>\nTo call one, write\n<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>' -}}
  {{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if tools and system_first and loop.first -%}
  {%- elif message['role'] == 'assistant' -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- set content = message['content'] if 'content' in message else '' -%}
    {%- if content is string -%}
      {%- generation -%}{{- content -}}{%- endgeneration -%}
    {%- else -%}
      {%- for part in content -%}
        {%- if part['type'] == 'text' -%}
          {%- generation -%}{{- part['text'] -}}{%- endgeneration -%}
        {%- else -%}{{- media(part) -}}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {%- for call in message['tool_calls'] or [] -%}
      {%- generation -%}
        {{- ('\n' if content or not loop.first else '') ~ '<tool_call>\n' ~ call_json(call) ~ '\n</tool_call>' -}}
      {%- endgeneration -%}
    {%- endfor -%}
    {%- generation -%}{{- '<|im_end|>' -}}{%- endgeneration -%}
    {{- '\n' -}}
  {%- elif message['role'] in ['system', 'user', 'tool'] -%}
    {{- '<|im_start|>' ~ message['role'] ~ '\n' -}}{{- written(message['content']) -}}{{- '<|im_end|>\n' -}}
  {%- else -%}{{- raise_exception('unknown role: ' ~ message['role']) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""".strip()

MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id"}
SOURCE_KEYS = {kind: (kind, "url", "path", "base64") for kind in ("image", "video")}
URL_TYPES = {"image_url": "image", "video_url": "video"}  # the spelling of OpenAI's API -> ours
CONTENT_TYPES = ("text", "image", "video", *URL_TYPES)

# Rendering with assistant marks keeps its state on the compiled template, which Transformers caches and shares.
_RENDER_LOCK = threading.Lock()


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation.

    Attributes:
        text: what the template wrote, users' text included.
        literals: sorted character ranges `[start, end)` that hold no control token even where the characters spell
            one; an empty range means that no control token may reach across that point.
        generated: sorted character ranges `[start, end)` written by the assistant.
    """

    text: str
    literals: tuple[tuple[int, int], ...] = ()
    generated: tuple[tuple[int, int], ...] = ()


# --- Checking ------------------------------------------------------------------------------------------------------


def split_batch(conversation: Any) -> tuple[list[Any], bool]:
    """Conversations of a call, and whether it was a batch: a list of messages is one, a list of lists is many."""
    conversation = getattr(conversation, "messages", conversation)  # the pipelines' own record of a chat
    if not isinstance(conversation, (list, tuple)):
        raise TypeError(message("conversation", conversation, "is not a list of messages"))
    if not conversation:
        raise ValueError("conversation=[]: holds no message; pass at least one")
    if isinstance(conversation[0], Mapping):
        return [conversation], False
    return [getattr(chat, "messages", chat) for chat in conversation], True


def check_conversation(
    conversation: Any, *, name: str = "conversation", roles: Collection[str] | None = ROLES
) -> list[dict[str, Any]]:
    """A copy of the messages in one spelling: values of None dropped, `image_url` parts turned into `image` parts.

    `roles=None` (somebody else's template) leaves roles and the keys of messages to the template. Raises `ValueError`
    or `TypeError` naming the message, the part and the value.
    """
    if not isinstance(conversation, (list, tuple)):
        raise TypeError(message(name, conversation, "is not a list of messages"))
    if not conversation:
        raise ValueError(f"{name}=[]: holds no message; pass at least one")
    return [_check_message(item, f"{name}[{index}]", roles) for index, item in enumerate(conversation)]


def _check_message(item: Any, name: str, roles: Collection[str] | None) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise TypeError(message(name, item, "is not a dict with 'role' and 'content'"))
    item = {key: value for key, value in item.items() if value is not None}
    if "role" not in item:
        raise ValueError(message(name, list(item), "has no 'role'", f"use one of {', '.join(roles or ROLES)}"))
    if roles is not None:
        if item["role"] not in roles:
            raise ValueError(
                message(f"{name}['role']", item["role"], "unknown role", f"use one of {', '.join(roles)}")
            )
        _check_keys(item, MESSAGE_KEYS, name)
        if item.get("tool_calls") and item["role"] != "assistant":
            raise ValueError(message(f"{name}['tool_calls']", item["tool_calls"], "only an assistant calls tools"))
        _check_tool_calls(item.get("tool_calls", []), f"{name}['tool_calls']")
        if "content" not in item and not item.get("tool_calls"):
            raise ValueError(message(name, list(item), "has no 'content'"))
    if "content" in item:
        item["content"] = _check_content(item["content"], f"{name}['content']")
    return item


def _check_content(content: Any, name: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise TypeError(message(name, content, "is neither a string nor a list of parts"))
    return [_check_part(part, f"{name}[{index}]") for index, part in enumerate(content)]


def _check_part(part: Any, name: str) -> dict[str, Any]:
    """One content part as `{"type": "text", "text": str}` or `{"type": "image" | "video", [source key]: source}`."""
    if not isinstance(part, Mapping):
        raise TypeError(message(name, part, "is not a dict with a 'type'"))
    part = {key: value for key, value in part.items() if value is not None}
    kind = part.get("type")
    if kind not in CONTENT_TYPES:
        raise ValueError(message(f"{name}['type']", kind, "unknown content type", "use 'text', 'image' or 'video'"))
    if kind == "text":
        _check_keys(part, {"type", "text"}, name)
        if not isinstance(part.get("text"), str):
            raise TypeError(message(f"{name}['text']", part.get("text"), "is not a string"))
        return part
    if kind in URL_TYPES:
        _check_keys(part, {"type", kind}, name)
        link = part.get(kind)
        link = link.get("url") if isinstance(link, Mapping) else link
        if not isinstance(link, str):
            raise ValueError(message(f"{name}[{kind!r}]", link, "holds no 'url'"))
        return {"type": URL_TYPES[kind], "url": link}
    _check_keys(part, {"type", *SOURCE_KEYS[kind]}, name)
    sources = [key for key in SOURCE_KEYS[kind] if key in part]
    if len(sources) > 1:
        raise ValueError(message(name, sources, f"names more than one source of one {kind}", "keep one of them"))
    if isinstance(part.get("base64"), str) and not part["base64"].startswith("data:"):
        part["base64"] = "data:;base64," + part["base64"]
    return part


def _check_tool_calls(calls: Any, name: str) -> None:
    if not isinstance(calls, (list, tuple)):
        raise TypeError(message(name, calls, "is not a list of calls"))
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else call
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(message(f"{name}[{index}]", call, "has no function name"))
        if not isinstance(function.get("arguments"), (str, Mapping)):
            raise ValueError(
                message(f"{name}[{index}]['arguments']", function.get("arguments"), "is neither a dict nor JSON text")
            )


def _check_keys(item: Mapping, known: Collection[str], name: str) -> None:
    for key in item:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ValueError(message(f"{name} key", key, "is not known here", remedy))


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tools as JSON schemas; a Python function is turned into one from its type hints and docstring."""
    if tools is None:
        return None
    if not isinstance(tools, (list, tuple)):
        raise TypeError(message("tools", tools, "is not a list of functions or JSON schemas"))
    return [_check_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _check_tool(tool: Any, name: str) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        return dict(tool)
    if not callable(tool):
        raise TypeError(message(name, tool, "is neither a JSON schema nor a function"))
    try:
        return get_json_schema(tool)
    except Exception as error:  # Transformers has two exception types of its own for this
        raise ValueError(cut(f"{name}: {error}")) from error


def media_of(messages: Sequence[Mapping], kind: str) -> list[Any]:
    """Sources of the images or videos of checked messages, in order; a part without a source gives nothing."""
    keys = SOURCE_KEYS[kind]
    parts = [part for item in messages if not isinstance(item.get("content", ""), str) for part in item["content"]]
    return [part[key] for part in parts if part["type"] == kind for key in keys if key in part]


# --- Rendering -----------------------------------------------------------------------------------------------------


def template_variables(template: str) -> frozenset[str]:
    """The names a template reads. Raises `ValueError` for a text that is no template."""
    try:
        return _get_template_variables(template)
    except TemplateError as error:
        raise ValueError(cut(f"chat_template: is no Jinja template: {error}")) from error


def render_prompts(
    conversations: Sequence[list[dict[str, Any]]],
    *,
    template: str,
    control_tokens: Sequence[str],
    tools: list[dict[str, Any]] | None = None,
    documents: Sequence[Mapping] | None = None,
    variables: Mapping[str, Any] | None = None,
    own_variables: Mapping[str, str] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    mark_generated: bool = False,
) -> list[Prompt]:
    """Render checked conversations with a Jinja template.

    `variables` come from outside like the conversations; `own_variables` (the tokenizer's special tokens) do not.

    Every control token in a string that came from outside is put between two characters that occur nowhere in the
    input, the template runs, and the marks are taken out again: what stood between them is literal. The marks travel
    through any template that only moves strings about; one that escapes them is refused.
    """
    chats = [_without_sources(chat) for chat in conversations]
    outside = {"tools": tools, "documents": documents, **(variables or {})}
    mark = _Marker(tuple(control_tokens), "\n".join([template, *_strings(chats), *_strings(outside)]))
    outside = {key: mark.put(value, key) for key, value in outside.items()}
    try:
        with _RENDER_LOCK:
            texts, generated = render_jinja_template(
                conversations=[mark.put(chat, "conversation") for chat in chats],
                chat_template=template,
                return_assistant_tokens_mask=mark_generated,
                continue_final_message=continue_final_message,
                add_generation_prompt=add_generation_prompt,
                **{**(own_variables or {}), **outside},
            )
    except TemplateError as error:
        raise ValueError(cut(f"chat template: {error}")) from error
    return [mark.take(text, spans) for text, spans in zip(texts, generated or itertools.repeat(()), strict=False)]


def _without_sources(messages: Sequence[Mapping]) -> list[dict[str, Any]]:
    """The messages as the template may see them: media parts keep their type only."""
    return [
        {
            key: [part if part["type"] == "text" else {"type": part["type"]} for part in value]
            if key == "content" and not isinstance(value, str)
            else value
            for key, value in item.items()
        }
        for item in messages
    ]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


class _Marker:
    """Puts two characters around control tokens in outside text, and reads them back after rendering."""

    def __init__(self, control_tokens: tuple[str, ...], seen: str):
        unused = (chr(code) for code in itertools.chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0x10FFFE)))
        self.start, self.end = itertools.islice((c for c in unused if c not in seen and _escaped(c) not in seen), 2)
        tokens = "|".join(map(re.escape, sorted(control_tokens, key=len, reverse=True))) or "(?!)"
        self.tokens = re.compile(tokens)
        self.marked = re.compile(f"{self.start}({tokens}){self.end}|[{self.start}{self.end}]")
        # A string that ends (begins) like a control token could become one with the text that follows (precedes) it.
        self.heads = tuple({token[:cut] for token in control_tokens for cut in range(1, len(token))})
        self.tails = tuple({token[cut:] for token in control_tokens for cut in range(1, len(token))})

    def put(self, value: Any, name: str) -> Any:
        """`value` (JSON data) with marks in every string, keys included. Raises `TypeError` for other things."""
        if isinstance(value, str):
            before = self.start if value.startswith(self.tails) else ""
            after = self.end if value.endswith(self.heads) else ""
            return before + self.tokens.sub(f"{self.start}\\g<0>{self.end}", value) + after
        if isinstance(value, Mapping):
            return {self.put(key, name): self.put(item, f"{name}[{key!r}]") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.put(item, f"{name}[{index}]") for index, item in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise TypeError(message(name, value, "is not text, a number, a list or a dict"))

    def take(self, text: str, generated: Iterable[tuple[int, int]]) -> Prompt:
        """The prompt of a rendered text: marks removed, positions counted without them."""
        if _escaped(self.start) in text or _escaped(self.end) in text:
            raise ValueError(
                "chat template: it escapes the text of messages, so typed control tokens look like real ones"
            )
        kept: list[str] = []
        removed: list[int] = []  # positions of the marks
        literals: list[tuple[int, int]] = []
        last = 0
        for match in self.marked.finditer(text):
            token = match.group(1) or ""
            kept += text[last : match.start()], token
            start = match.start() - len(removed)
            literals.append((start, start + len(token)))
            removed += [match.start(), match.end() - 1] if token else [match.start()]
            last = match.end()
        kept.append(text[last:])
        spans = [
            (start - bisect.bisect_left(removed, start), end - bisect.bisect_left(removed, end))
            for start, end in generated
        ]
        return Prompt("".join(kept), tuple(literals), tuple(spans))


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1]
