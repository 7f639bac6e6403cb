"""`arlow demo`: the bundled model answers questions about the sample media in `demo_media/`, in one batch.

Flow: questions.json -> conversations -> one `generate` -> a table on the terminal, and an HTML page with the media.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .bundled import ANSWER_AFTER, bundled_checkpoint
from .errors import message


MEDIA = Path(__file__).parent / "demo_media"
MOST_WRONG = 2  # answers; more than that and the demo fails
NEW_TOKENS = 96
MIME_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".mp4": "video/mp4"}
PAGE = """<!doctype html><meta charset="utf-8"><title>arlow demo</title>
<style>body{{font-family:sans-serif;max-width:60em;margin:2em auto}} td,th{{padding:.4em .8em;text-align:left}}
img,video{{max-height:8em;margin-right:.5em;vertical-align:middle}} .wrong{{color:#b00}}</style>
<h1>arlow demo</h1><p>{summary}</p><table><tr><th>media<th>question<th>answer<th>expected</tr>
{rows}</table>
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Ask the bundled model a dozen questions about sample pictures and clips."
    parser.epilog = "example: arlow demo"
    parser.add_argument(
        "--page", type=Path, metavar="HTML", default=Path("arlow-demo.html"), help="where the page goes"
    )


def check(options: argparse.Namespace) -> Callable[[], int]:
    """Raises `OSError` where there is no bundled model, or no place for the page."""
    if not options.page.parent.is_dir():
        raise OSError(message("page", str(options.page), "its directory does not exist"))
    folder = bundled_checkpoint()
    return lambda: run(folder, options.page)


def run(folder: Path, page: Path) -> int:
    """Ask, print, write the page; 0 if nearly all answers are right, else 1."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    questions = json.loads((MEDIA / "questions.json").read_text(encoding="utf-8"))
    started = time.perf_counter()
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{folder.name}: {size:,} parameters, loaded in {time.perf_counter() - started:.1f} s\n")

    started = time.perf_counter()
    replies, tokens = ask(model, processor, [conversation(row) for row in questions])
    seconds = time.perf_counter() - started
    answers = [in_parts(reply) for reply in replies]
    right = [answer == row["answer"] for (answer, _), row in zip(answers, questions, strict=True)]
    for row, (answer, working), good in zip(questions, answers, right, strict=True):
        media = ", ".join(row["media"]) or "(no media)"
        print(f"{'ok   ' if good else 'WRONG'} {media}\n      {row['question']}")
        print(f"      answer: {answer}   expected: {row['answer']}")
        print(f"      it read: {working}\n" if working else "")
    summary = (
        f"{sum(right)} of {len(right)} right, {tokens} tokens in {seconds:.1f} s ({tokens / seconds:.0f} tokens/s)"
    )
    print(summary)
    page.write_text(PAGE.format(summary=summary, rows=rows(questions, answers, right)), encoding="utf-8")
    print(f"wrote {page}")
    return int(len(right) - sum(right) > MOST_WRONG)


def conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The question in chat format, its media first."""
    media = [
        {"type": "video" if name.endswith(".mp4") else "image", "path": str(MEDIA / name)} for name in row["media"]
    ]
    return [{"role": "user", "content": [*media, {"type": "text", "text": row["question"]}]}]


def ask(model: Any, processor: Any, conversations: list[list[dict[str, Any]]]) -> tuple[list[str], int]:
    """Answers of one mixed batch, and how many tokens they took."""
    inputs = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    output = model.generate(**inputs.to(model.device), max_new_tokens=NEW_TOKENS, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]
    pad = model.generation_config.pad_token_id
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)], int((new != pad).sum())


def in_parts(reply: str) -> tuple[str, str]:
    """The answer, and what the model says that it follows from."""
    from .evaluation.scores import final_answer

    answer = final_answer(reply, ANSWER_AFTER)
    return answer, reply.removesuffix(answer).removesuffix(ANSWER_AFTER)


def rows(questions: list[dict[str, Any]], answers: list[tuple[str, str]], right: list[bool]) -> str:
    """The rows of the page, media inside it."""
    lines = []
    for row, (answer, working), good in zip(questions, answers, right, strict=True):
        media = "".join(element(MEDIA / name) for name in row["media"])
        cells = [html.escape(text) for text in (row["question"], answer, row["answer"])]
        cells[1] += f"<br><small>{html.escape(working)}</small>"
        lines.append(f'<tr class="{"right" if good else "wrong"}"><td>{media}<td>{"<td>".join(cells)}</tr>')
    return "\n".join(lines)


def element(path: Path) -> str:
    kind = MIME_TYPES[path.suffix]
    data = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    if kind.startswith("video"):
        return f'<video src="{data}" autoplay loop muted></video>'
    return f'<img src="{data}" alt="{html.escape(path.name)}">'
