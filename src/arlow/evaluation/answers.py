"""Answers: a checkpoint and rows in, one greedy answer per row out.

An answerer is any function from rows to answers, so that scores can be tested without a model. Where a row cannot be
asked, its answer is the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..errors import message
from .rows import Row, Skipped


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
