"""Questions about pictures and clips: exact match per question type, beside what a guesser would have got.

Controls: the majority answer of each type (the best constant), the model without media, and the model with the media
of other rows of the same type. The last two are asked about rows with media only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .answers import Answerer, ModelAnswerer, ask
from .report import Progress, describe_run, one_of
from .rows import Row, Skipped, read_rows
from .scores import accuracy, is_right, majority, normalise, shuffled


ALL = "all"  # the line over all rows


def evaluate_vqa(
    models: str | Path | Sequence[str | Path],
    *,
    data: str | Path,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 32,
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
        ValueError: no rows, or more than `max_bad` bad ones.
    """
    names = [str(name) for name in ([models] if isinstance(models, (str, Path)) else models)]
    skipped = Skipped(max_bad)
    rows = read_rows(data, split=split, limit=limit, skipped=skipped)
    settings = {"split": split, "limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    run = describe_run("vqa", data, {**settings, "controls": controls, "seed": seed, "dtype": dtype})
    results = []
    for name in names:
        ask_model = (
            answerer(name)
            if answerer is not None
            else ModelAnswerer.from_pretrained(name, max_new_tokens=max_new_tokens, device=device, dtype=dtype)
        )
        own = Skipped(max_bad, list(skipped.rows))
        results.append(
            {"model": name, **score(rows, ask_model, own, batch_size=batch_size, controls=controls, seed=seed)}
        )
    return run.finish(results, summary=summarise(results))


def score(
    rows: Sequence[Row],
    answerer: Answerer,
    skipped: Skipped,
    *,
    batch_size: int = 8,
    controls: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """One model's scores by type, its answers, and the rows that were skipped."""
    with Progress("vqa", len(rows)) as progress:
        given = ask(rows, answerer, batch_size=batch_size, skipped=skipped, progress=progress)
    kept = [(row, answer) for row, answer in zip(rows, given, strict=True) if answer is not None]
    one_of(kept, "rows")
    rows = [row for row, _ in kept]
    right = [is_right(answer, row.answers) for row, answer in kept]
    often = majority(rows)
    constant = [normalise(row.answers[0]) == often[row.types[0]] for row in rows]
    other: dict[str, dict[int, bool]] = {}
    if controls:
        blind = [row.with_media(None) if row.media else None for row in rows]
        for name, asked in (("without", blind), ("shuffled", shuffled(rows, seed=seed))):
            other[name] = _marks(name, rows, asked, answerer, batch_size)
    scores = {}
    for kind in [ALL, *sorted({kind for row in rows for kind in row.types} - {ALL})]:
        here = [index for index, row in enumerate(rows) if kind in (ALL, *row.types)]
        line: dict[str, Any] = accuracy([right[index] for index in here])
        if kind == ALL:
            line["majority"] = {"answer": None, **accuracy(constant)}
        else:
            marks = [is_right(often[kind], rows[index].answers) for index in here]
            line["majority"] = {"answer": often[kind], **accuracy(marks)}
        for name, marks_by_row in other.items():
            line[name] = accuracy([marks_by_row[index] for index in here if index in marks_by_row])
        scores[kind] = line
    answers = [
        {"id": row.id, "types": row.types, "answer": answer, "expected": row.answers, "right": mark}
        for (row, answer), mark in zip(kept, right, strict=True)
    ]
    return {"rows": len(rows), "skipped": skipped.rows, "scores": scores, "answers": answers}


def _marks(
    name: str, rows: Sequence[Row], asked: Sequence[Row | None], answerer: Answerer, batch_size: int
) -> dict[int, bool]:
    """Which rows the model gets right when asked otherwise, by index; rows that have no other form are left out."""
    places = [index for index, row in enumerate(asked) if row is not None]
    questions = [row for row in asked if row is not None]
    with Progress(name, len(questions)) as progress:
        answers = ask(questions, answerer, batch_size=batch_size, progress=progress)
    return {index: is_right(answer or "", rows[index].answers) for index, answer in zip(places, answers, strict=True)}


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
