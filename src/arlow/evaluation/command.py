"""The verb `arlow eval`: options in, a table on stdout and a JSON file out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import message
from .report import check_output, format_table, write_json


TASKS = {
    "perplexity": ("evaluate_perplexity", "perplexity", "perplexity and bits per byte of texts"),
    "vqa": ("evaluate_vqa", "vqa", "exact match per question type, beside the controls"),
    "caption": ("evaluate_captions", "caption", "BLEU, chrF and CIDEr of captions, beside the controls"),
}
EXAMPLE = "arlow eval vqa ./model --data questions.jsonl --out scores.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare tasks and options."""
    parser.description = "Score one or several checkpoints (of several: mean and range)."
    parser.epilog = f"example: {EXAMPLE}"
    tasks = parser.add_subparsers(title="tasks", dest="task", required=True, metavar="TASK")
    for name, (_, _, line) in TASKS.items():
        task = tasks.add_parser(
            name,
            help=line,
            description=line.capitalize() + ".",
            epilog=f"example: {EXAMPLE.replace('vqa', name)}",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        _add_common(task)
        if name == "perplexity":
            task.add_argument("--field", default="text", help="field that holds the text")
            task.add_argument("--window", type=positive, metavar="TOKENS", help="tokens the model sees at once")
            task.add_argument("--stride", type=positive, metavar="TOKENS", help="tokens by which windows move on")
        else:
            tokens = 32 if name == "vqa" else 64
            task.add_argument("--max-new-tokens", type=positive, default=tokens, metavar="N", help="of an answer")
            if name == "vqa":
                what = "of answers with their working: what stands before the part that counts, such as ': '"
                task.add_argument("--answer-after", type=some_text, metavar="TEXT", help=what)
            task.add_argument("--seed", type=int, default=0, metavar="N", help="of the exchange of pictures")
            task.add_argument("--no-controls", dest="controls", action="store_false", help="leave the controls out")


def _add_common(task: argparse.ArgumentParser) -> None:
    task.add_argument("models", nargs="+", metavar="MODEL", help="checkpoint directories or hub names")
    task.add_argument("--data", required=True, metavar="D", help="a JSONL (or text) file, or the name of a dataset")
    task.add_argument("--split", default="test", help="of a dataset")
    task.add_argument("--limit", type=positive, metavar="N", help="rows to read; all if not given")
    task.add_argument("--out", type=Path, metavar="FILE.json", help="write the result there")
    task.add_argument("--batch-size", type=positive, default=8, metavar="N", help="rows at once")
    task.add_argument("--max-bad", type=not_negative, default=10, metavar="N", help="bad rows that may be skipped")
    task.add_argument("--device", help="cpu, cuda, ...; a GPU if there is one")
    task.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))


def some_text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected some text")
    return text


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def not_negative(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def check(options: argparse.Namespace) -> Callable[[], int]:
    """Everything that can be wrong before a model is loaded; returns the work.

    Raises:
        OSError: a missing model or file, or an output that cannot be written.
    """
    from .answers import check_checkpoint_name, check_device
    from .rows import is_file

    check_output(options.out)
    for name in options.models:
        check_checkpoint_name(name)
    is_file(options.data)
    check_device(options.device)
    if options.out is not None and Path(options.data).resolve() == options.out.resolve():
        raise ValueError(message("out", str(options.out), "is the data file"))
    return lambda: run(options)


def run(options: argparse.Namespace) -> int:
    function, module, _ = TASKS[options.task]
    given = {key: value for key, value in vars(options).items() if key not in ("task", "out", "models", "check")}
    task = import_module(f".{module}", __package__)
    result: dict[str, Any] = getattr(task, function)(options.models, **given)
    print(format_table(task.table(result)))
    for model in result["models"]:
        for row in model["skipped"]:
            print(f"skipped {row['id']}: {row['reason']}")
    if options.out is not None:
        write_json(options.out, result)
        print(f"wrote {options.out}")
    return 0
