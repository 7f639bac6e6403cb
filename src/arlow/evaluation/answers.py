"""Answers: a checkpoint and rows in, one greedy answer per row out.

An answerer is any function from rows to answers, so that scores can be tested without a model. Where a row cannot be
asked, its answer is the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..errors import cut, message
from .report import Progress, Run, check_any
from .rows import Row, Skipped, read_rows
from .scores import shuffled


Answerer = Callable[[Sequence[Row]], Sequence[str | Exception]]


class ModelAnswerer:
    """A vision-language model that answers in batches: greedy, padded on the left."""

    def __init__(self, model: Any, processor: Any, *, max_new_tokens: int = 32) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, max_new_tokens: int = 32, device: str | None = None, dtype: str = "auto"
    ) -> ModelAnswerer:
        """Load a checkpoint directory or hub name. Raises `OSError` or `ValueError` as the Auto classes do."""
        processor = AutoProcessor.from_pretrained(path)
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).to(device or default_device())
        return cls(model, processor, max_new_tokens=max_new_tokens)

    def __call__(self, rows: Sequence[Row]) -> list[str | Exception]:
        """One answer per row; for a row whose media cannot be read, the error."""
        try:
            inputs = self._inputs(rows)
        except (OSError, TypeError, ValueError) as error:
            # One bad row must not cost its neighbours: each is asked alone.
            return [error] if len(rows) == 1 else [self([row])[0] for row in rows]
        with torch.inference_mode():
            output = self.model.generate(
                **inputs.to(self.model.device),
                do_sample=False,
                max_new_tokens=self.max_new_tokens,
                eos_token_id=end_tokens(self.model, self.processor.tokenizer),
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
        new = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def _inputs(self, rows: Sequence[Row]) -> Any:
        return self.processor.apply_chat_template(
            [row.prompt for row in rows],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Where an answer ends: what the checkpoint says, and the end of a turn."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return list(dict.fromkeys([*ends, tokenizer.im_end_token_id, tokenizer.eos_token_id]))


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_checkpoint_name(path: str | Path) -> None:
    """Refuse a model that is no directory and no hub name. Raises `OSError`."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise OSError(message("model", str(path), "holds no config.json"))
    elif folder.is_absolute() or str(path).startswith((".", "~")) or len(folder.parts) > 2 or folder.exists():
        raise OSError(message("model", str(path), "no such directory"))


def check_device(device: str | None) -> None:
    """Refuse a device that is not there. Raises `ValueError`."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # what torch raises, by device
        raise ValueError(cut(message("device", device, f"cannot be used ({error})"))) from error


@dataclass(frozen=True)
class Answered:
    """What a model said: to every row that could be asked, and to the same rows under each control."""

    rows: list[Row]
    answers: list[str]
    controls: dict[str, dict[int, str]]  # by name: answers by the index of their row


def evaluate_models(
    task: str,
    score: Callable[[Answered], dict[str, Any]],
    summarise: Callable[[list[dict[str, Any]]], dict[str, Any]],
    models: str | Path | Sequence[str | Path],
    *,
    data: str | Path,
    answerer: Callable[[str], Answerer] | None,
    max_bad: int,
    device: str | None,
    **settings: Any,
) -> dict[str, Any]:
    """What the tasks that ask models share: read rows once, ask every model, score, summarise."""
    names = [str(name) for name in ([models] if isinstance(models, (str, Path)) else models)]
    run = Run(task, str(data), settings)
    bad = Skipped(max_bad)
    rows = read_rows(data, split=settings["split"], limit=settings["limit"], skipped=bad)
    loading = {"max_new_tokens": settings["max_new_tokens"], "device": device, "dtype": settings["dtype"]}
    asking = {key: settings[key] for key in ("batch_size", "controls", "seed")}
    results = []
    for name in names:
        model = ModelAnswerer.from_pretrained(name, **loading) if answerer is None else answerer(name)
        skipped = Skipped(max_bad, list(bad.rows))
        answered = ask_all(rows, model, skipped, **asking)
        results.append({"model": name, "rows": len(answered.rows), "skipped": skipped.rows, **score(answered)})
    return run.finish(results, summary=summarise(results))


def ask_all(
    rows: Sequence[Row], answerer: Answerer, skipped: Skipped, *, batch_size: int, controls: bool, seed: int
) -> Answered:
    """Ask every row; with `controls` also without its media (`without`) and with another row's (`shuffled`)."""
    with Progress("answers", len(rows)) as progress:
        given = ask(rows, answerer, batch_size=batch_size, skipped=skipped, progress=progress)
    kept = [(row, answer) for row, answer in zip(rows, given, strict=True) if answer is not None]
    check_any(kept, "rows")
    rows, found = [row for row, _ in kept], {}
    if controls:
        blind = [row.with_media(None) if row.media else None for row in rows]
        for name, asked in (("without", blind), ("shuffled", shuffled(rows, seed=seed))):
            questions = {index: row for index, row in enumerate(asked) if row is not None}
            with Progress(name, len(questions)) as progress:
                other = ask(list(questions.values()), answerer, batch_size=batch_size, progress=progress)
            found[name] = {index: answer or "" for index, answer in zip(questions, other, strict=True)}
    return Answered(rows, [answer for _, answer in kept], found)


def ask(
    rows: Sequence[Row],
    answerer: Answerer,
    *,
    batch_size: int,
    skipped: Skipped | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> list[str | None]:
    """The answer of every row, asked in batches; `None` for a row that was skipped.

    Without `skipped` the first row that cannot be asked is an error.
    """
    answers: list[str | None] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for row, answer in zip(batch, answerer(batch), strict=True):
            if isinstance(answer, Exception):
                if skipped is None:
                    raise answer
                skipped.add(row.id, answer)
                answers.append(None)
            else:
                answers.append(answer)
        progress(len(batch))
    return answers
