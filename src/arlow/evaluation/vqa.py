"""Questions about pictures and clips: exact match per question type, beside what a guesser would have got.

Controls: the majority answer of each type (the best constant), the model without media, and the model with the media
of other rows of the same type. The last two are asked about rows with media only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import message
from .answers import Answered, Answerer, evaluate_models
from .scores import accuracy, final_answer, is_right, majority


ALL = "all"  # the line over all rows


def evaluate_vqa(
    models: str | Path | Sequence[str | Path],
    *,
    data: str | Path,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 32,
    answer_after: str | None = None,
    max_bad: int = 10,
    controls: bool = True,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "auto",
    answerer: Callable[[str], Answerer] | None = None,
) -> dict[str, Any]:
    """Exact-match accuracy of one or several checkpoints, overall and per question type.

    Args:
        models: directories or hub names; of several, mean and range are given too.
        data: a JSONL file of rows (see `rows.Row`), or the name of a dataset with its `split`.
        limit: rows to read; all by default.
        max_new_tokens: of an answer.
        answer_after: of a model that shows its working, what stands between working and answer; of answers and of
            right answers only what follows it the last time counts.
        max_bad: rows that may be skipped because they or their media cannot be read.
        controls: whether to ask without media and with other rows' media, too.
        seed: of the exchange of media.
        device, dtype: of the model; default: a GPU if there is one, the checkpoint's dtype.
        answerer: makes the function from rows to answers for a model's name; default: the model itself.

    Returns:
        What is written as JSON: `task`, `data`, `settings`, `versions`, `time`, `models` (per model `scores` by type,
        `answers`, `skipped`) and `summary` (per type `mean`, `min`, `max` over the models).

    Raises:
        OSError: a model or data that cannot be loaded.
        ValueError: no rows, or more than `max_bad` bad ones; an `answer_after` that is no text.
    """
    options = {name: value for name, value in locals().items() if name != "models"}
    if answer_after is not None and (not isinstance(answer_after, str) or not answer_after):
        raise ValueError(message("answer_after", answer_after, "expected some text"))
    return evaluate_models("vqa", partial(score, answer_after=answer_after), summarise, models, **options)


def score(answered: Answered, *, answer_after: str | None = None) -> dict[str, Any]:
    """Scores by type, and every answer with its mark."""
    final = partial(final_answer, after=answer_after)
    rows = [replace(row, answers=tuple(map(final, row.answers))) for row in answered.rows]
    right = [is_right(final(answer), row.answers) for row, answer in zip(rows, answered.answers, strict=True)]
    others = {
        name: {index: is_right(final(answer), rows[index].answers) for index, answer in answers.items()}
        for name, answers in answered.controls.items()
    }
    often = majority(rows)
    scores = {}
    for kind in [ALL, *sorted({kind for row in rows for kind in row.types} - {ALL})]:
        here = [index for index, row in enumerate(rows) if kind in (ALL, *row.types)]
        constant = [often[rows[index].types[0] if kind == ALL else kind] for index in here]
        marks = [is_right(answer, rows[index].answers) for answer, index in zip(constant, here, strict=True)]
        scores[kind] = {
            **accuracy([right[index] for index in here]),
            "majority": {"answer": None if kind == ALL else often[kind], **accuracy(marks)},
            **{name: accuracy([found[i] for i in here if i in found]) for name, found in others.items()},
        }
    answers = [
        {"id": row.id, "types": row.types, "answer": answer, "expected": row.answers, "right": mark}
        for row, answer, mark in zip(answered.rows, answered.answers, right, strict=True)
    ]
    return {"scores": scores, "answers": answers}


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per type: rows of the first model, and `mean`, `min`, `max` of accuracy and controls over the models."""
    summary: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kind for result in results for kind in result["scores"]):
        lines = [result["scores"][kind] for result in results if kind in result["scores"]]
        summary[kind] = {"n": lines[0]["n"], "accuracy": _spread(line["accuracy"] for line in lines)}
        for control in ("majority", "without", "shuffled"):
            if control in lines[0]:
                summary[kind][control] = _spread(line[control]["accuracy"] for line in lines)
    return summary


def _spread(values: Any) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known)} if known else None


def table(result: dict[str, Any]) -> list[list[str]]:
    """The scores as text cells, a header first; of several models the mean and the range."""
    several = len(result["models"]) > 1
    header = ["type", "rows", "accuracy", "range" if several else "95 % interval", "majority", "without", "shuffled"]
    lines = [header]
    first = result["models"][0]["scores"]
    for kind, row in result["summary"].items():
        share = row["accuracy"]
        low, high = (share["min"], share["max"]) if several else (first[kind]["low"], first[kind]["high"])
        cells = [kind, str(row["n"]), percent(share), f"{100 * low:.1f} - {100 * high:.1f}"]
        lines.append([*cells, *(percent(row.get(control)) for control in ("majority", "without", "shuffled"))])
    return lines


def percent(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else f"{100 * spread['mean']:.1f} %"
