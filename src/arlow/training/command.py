"""`arlow train STAGE CONFIG.yaml [key=value ...]`: a recipe from a file and the command line, and its run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import message
from .stages import STAGES, load_stage


STOPPED = 143  # what a shell reports for a process that SIGTERM ended
USAGE = "arlow train STAGE [CONFIG.yaml] [key=value ...]"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.usage = USAGE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    stages = "\n".join(f"  {name:<12}{line}" for name, line in STAGES.items())
    parser.description = f"Train a model, or go on with a run that was stopped.\n\nstages:\n{stages}"
    parser.epilog = (
        "The fields of a stage: arlow train STAGE --help\nexample: arlow train text recipes/text.yaml max_steps=100"
    )
    parser.add_argument("-h", "--help", action=_Help, help="this text; after a stage, the fields of its recipe")
    parser.add_argument("stage", nargs="?", metavar="STAGE", help="one of the above")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG.yaml key=value",
        help="a recipe, and fields that differ from it; values are YAML, and lora.r=8 is a field of a field",
    )


class _Help(argparse.Action):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "nargs": 0})

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        if namespace.stage not in STAGES:
            parser.print_help()
        else:
            print(stage_help(namespace.stage))
        parser.exit()


def stage_help(stage: str) -> str:
    """The fields of a stage with default and meaning, and an example."""
    from .recipe import describe

    fields = describe(load_stage(stage).Recipe)
    usage = USAGE.replace("STAGE", stage)
    example = f"example: arlow train {stage} recipes/{stage}.yaml output_dir=runs/{stage} learning_rate=3e-4"
    return f"usage: {usage}\n\nStage {stage}: {STAGES[stage]}.\n\nfields:\n{fields}\n\n{example}"


def check(options: argparse.Namespace) -> Callable[[], int]:
    """The recipe of a command line is read and checked; what comes back runs it.

    Raises:
        ImportError: what training needs is not installed.
        OSError, ValueError: the stage, the file or a field is wrong.
    """
    if options.stage is None:
        raise ValueError(message("stage", None, "not given", f"choose from {', '.join(STAGES)}"))
    module = load_stage(options.stage)
    from .recipe import parse_overrides, read_recipe

    config, words = _split(options.words)
    recipe = read_recipe(module.Recipe, config, **parse_overrides(words))
    return lambda: _run(module.train, recipe)


def _split(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    if words and "=" not in words[0]:
        return Path(words[0]), list(words[1:])
    return None, list(words)


def _run(train: Callable[[Any], Path], recipe: Any) -> int:
    from accelerate import PartialState

    from ..data.bad_samples import LIST_NAME, BadSamples, TooManyBadSamples
    from .loop import Stopped, TrainingError

    try:
        folder = train(recipe)
    except Stopped as stop:
        print(f"arlow: {stop}", file=sys.stderr)
        return STOPPED
    except TooManyBadSamples:
        raise
    except TrainingError as error:
        print(f"arlow: {error}", file=sys.stderr)
        return 1
    except (OSError, TypeError, ValueError) as error:  # found before anything was written
        print(f"arlow: {error}", file=sys.stderr)
        return 2
    if PartialState().is_main_process:
        print(f"wrote {folder}")
        for path in sorted(folder.rglob(LIST_NAME)):  # alignment has two runs
            print(f"skipped {len(BadSamples(path).listed())} unreadable samples, listed in {path}")
    return 0
