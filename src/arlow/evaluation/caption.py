"""Captions against references: BLEU and chrF (sacrebleu), CIDEr (pycocoevalcap).

CIDEr's usual tokenizer is a Java program; here both sides become lower-case words of letters, digits and apostrophes,
so that scores differ slightly from tables made with that program.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..extras import need
from .answers import Answered, Answerer, evaluate_models


METRICS = ("bleu", "chrf", "cider")


def evaluate_captions(
    models: str | Path | Sequence[str | Path],
    *,
    data: str | Path,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    max_bad: int = 10,
    controls: bool = True,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "auto",
    answerer: Callable[[str], Answerer] | None = None,
) -> dict[str, Any]:
    """Corpus BLEU, chrF and CIDEr of one or several checkpoints; arguments and result as of `evaluate_vqa`.

    References of a row are the assistant's turn and its `references`. Controls: the most frequent reference for every
    picture, the model without pictures, and with the pictures of other rows.

    Raises:
        ImportError: sacrebleu or pycocoevalcap is missing.
        OSError, ValueError: as `evaluate_vqa`.
    """
    options = {name: value for name, value in locals().items() if name != "models"}
    load_metrics()
    return evaluate_models("caption", score, summarise, models, **options)


def score(answered: Answered) -> dict[str, Any]:
    """Scores of the model and of each control, and every caption."""
    wanted = [row.answers for row in answered.rows]
    often = Counter(references[0] for references in wanted).most_common(1)[0][0]
    scores = {
        "model": caption_scores(answered.answers, wanted),
        "majority": caption_scores([often] * len(wanted), wanted),
    }
    for name, other in answered.controls.items():
        if other:
            scores[name] = caption_scores(list(other.values()), [wanted[index] for index in other])
    answers = [
        {"id": row.id, "answer": answer, "expected": row.answers}
        for row, answer in zip(answered.rows, answered.answers, strict=True)
    ]
    return {"scores": scores, "answers": answers}


def load_metrics() -> tuple[Any, Any]:
    """sacrebleu and the CIDEr class. Raises `ImportError` naming the extra."""
    return need("sacrebleu", "eval"), need("pycocoevalcap.cider.cider", "eval").Cider


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | int]:
    """Corpus scores: BLEU and chrF in 0..100, CIDEr (arXiv 1411.5726, the CIDEr-D of the COCO server) in 0..10.

    CIDEr weighs words by how few rows use them: of a single row it is 0.
    """
    sacrebleu, cider = load_metrics()
    columns = [list(column) for column in zip_longest(*references)]  # the n-th reference of every row, or None
    bleu = sacrebleu.corpus_bleu(list(captions), columns)
    chrf = sacrebleu.corpus_chrf(list(captions), columns)
    wanted = {index: [words(text) for text in each] for index, each in enumerate(references)}
    found = {index: [words(text)] for index, text in enumerate(captions)}
    mean, _ = cider().compute_score(wanted, found)
    return {"n": len(captions), "bleu": float(bleu.score), "chrf": float(chrf.score), "cider": float(mean)}


def words(text: str) -> str:
    """Lower-case words between single spaces."""
    return " ".join(re.findall(r"[\w']+", text.casefold()))


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per line (`model`, the controls) and metric the mean, min and max over the models."""
    summary: dict[str, dict[str, Any]] = {}
    for line in results[0]["scores"]:
        lines = [result["scores"][line] for result in results if line in result["scores"]]
        summary[line] = {"n": lines[0]["n"]}
        for metric in METRICS:
            values = [each[metric] for each in lines]
            summary[line][metric] = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
    return summary


def table(result: dict[str, Any]) -> list[list[str]]:
    """The scores as text cells, a header first."""
    several = len(result["models"]) > 1
    lines = [["captions", "rows", "BLEU", "chrF", "CIDEr"]]
    for name, row in result["summary"].items():
        cells = [f"{row[metric]['mean']:.2f}" for metric in METRICS]
        if several:
            ranges = [f" ({row[metric]['min']:.2f} - {row[metric]['max']:.2f})" for metric in METRICS]
            cells = [cell + extent for cell, extent in zip(cells, ranges, strict=True)]
        lines.append([name, str(row["n"]), *cells])
    return lines
