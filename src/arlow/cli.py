"""The command `arlow`. A verb per line, each a thin door to what the package does anyway.

A verb of `VERBS` is a module, imported when the verb is used, with `configure(parser)`, which declares its options,
and `check(options)`, which looks over everything it was given and returns the work to be done.

Exit codes: 0 ok, 1 the work failed (the reason on stderr), 2 the command line or what it names was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ._version import __version__
from .errors import cut, message


VERBS = {  # verb: (module, line in --help)
    "demo": ("demo", "the bundled model answers a dozen questions about sample media"),
    "train": ("training.command", "train a model: text, vision, alignment, fine-tuning"),
    "data": ("data.command", "write synthetic training data"),
    "chat": ("chat", "talk with a model about pictures and clips, in the terminal"),
    "convert": ("conversion.command", "an older or another family's checkpoint as one of today's Arlow"),
    "merge-adapter": ("training.adapters", "write a plain model from a LoRA adapter and its model"),
    "eval": ("evaluation.command", "score models: perplexity, questions about media, captions"),
    "estimate": ("estimate", "parameters, memory and compute of a config, without building it"),
}
SERVE_MODULES = ("fastapi", "openai", "pydantic", "starlette", "uvicorn")  # what `transformers serve` imports


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["serve"]:  # its options belong to Transformers: argparse must not read them
            return _serve(words[1:])
        options = _parser(words[:1]).parse_args(words)
        if "check" not in options:
            return options.run(options)
        work = _checked(options.check, options)
        return 2 if work is None else work()
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"arlow: {cut(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _checked(check: Callable, options: argparse.Namespace) -> Callable[[], int] | None:
    """The work, or `None` after saying what is wrong with the options."""
    try:
        return check(options)
    except (OSError, TypeError, ValueError) as error:
        print(f"arlow: {cut(str(error))}", file=sys.stderr)
        return None


def _parser(used: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the options of the verb in `used`; the other verbs are only listed."""
    parser = argparse.ArgumentParser(
        prog="arlow",
        description="Arlow: vision-language models beside stock Transformers.",
        epilog="example: arlow serve ./my-arlow-model --port 8000",
    )
    parser.add_argument("--version", action="version", version=f"arlow {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    verbs.add_parser(  # listed for --help only, see main()
        "serve", help="an OpenAI-compatible server (the options of `transformers serve`)", add_help=False
    )

    explain = verbs.add_parser(
        "explain",
        help="what the model will see of a conversation (no weights needed)",
        description="Show resized images, grids, tokens, positions and timestamps of a conversation.",
        epilog="example: arlow explain conversation.json --processor ./my-arlow-model --save seen.png",
    )
    explain.add_argument("conversation", type=Path, metavar="CONVERSATION.json", help="a list of chat messages")
    explain.add_argument("--processor", required=True, metavar="DIR", help="directory that holds the processor")
    explain.add_argument("--save", type=Path, metavar="PNG", help="write the picture there (default: print the text)")
    explain.set_defaults(run=_explain)

    for name, (module, line) in VERBS.items():
        verb = verbs.add_parser(name, help=line, conflict_handler="resolve")  # so that it may have its own --help
        if name in used:
            room = import_module(f".{module}", __package__)
            room.configure(verb)
            verb.set_defaults(check=room.check)
    return parser


def _serve(words: list[str]) -> int:
    """`transformers serve` with Arlow registered: that command has no plugins, so it has to start from here."""
    missing = [name for name in SERVE_MODULES if find_spec(name) is None]
    if missing and not {"-h", "--help"} & set(words):
        raise ImportError(
            message("serve", missing, "not installed", "install the extra with pip install 'arlow[serve]'")
        )
    from transformers.cli.transformers import app

    try:
        app(["serve", *words], prog_name="arlow")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _explain(options: argparse.Namespace) -> int:
    conversation = _read_conversation(options.conversation)
    from .processing_arlow import ArlowProcessor

    explanation = ArlowProcessor.from_pretrained(options.processor).explain(conversation)
    if options.save is None:
        print(explanation)
    else:
        explanation.save(options.save)
        print(f"wrote {options.save}")
    return 0


def _read_conversation(path: Path) -> list[dict]:
    try:
        conversation = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise ValueError(message("conversation", path.name, f"not a JSON file ({error})")) from error
    if not isinstance(conversation, list) or not all(isinstance(turn, dict) for turn in conversation):
        raise ValueError(message("conversation", path.name, "not a list of messages", 'expected [{"role": ...}, ...]'))
    return conversation


if __name__ == "__main__":
    sys.exit(main())
