"""The verb `arlow chat`: a conversation with a model in the terminal, about texts, pictures and clips.

Answers go to stdout as they are written, everything else to stderr. The cache of one turn serves the next.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import message


HELP = """\
/image P    show the model a picture with your next question
/video P    show it a clip
/explain    what the model sees of this conversation
/reset      begin anew
/help       this list
/quit       end (or Ctrl-D); Ctrl-C stops an answer, twice ends"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Talk with a model. In the conversation:\n" + HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "example: arlow chat ./my-arlow-model --image photo.jpg"
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="checkpoint directory or hub name (default: the one that comes along)",
    )
    add("--image", action="append", default=[], metavar="P", help="a picture for the first question; may be repeated")
    add("--video", action="append", default=[], metavar="P", help="a clip for the first question; may be repeated")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (default: 256)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest word (default)")
    add("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights (default: auto, the checkpoint's; float32 for the one that comes along)",
    )


def check(options: argparse.Namespace) -> Callable[[], int]:
    """Everything that can be wrong before the model is loaded; returns the work.

    Raises:
        OSError: a missing model, picture or clip.
        ValueError: an impossible number.
    """
    if options.max_new_tokens < 1:
        raise ValueError(message("max-new-tokens", options.max_new_tokens, "must be positive"))
    if not 0 <= options.temperature < float("inf"):
        raise ValueError(message("temperature", options.temperature, "must not be negative"))
    if options.model is None:
        from .bundled import bundled_checkpoint

        options.model = str(bundled_checkpoint())
        options.dtype = options.dtype or "float32"  # what its card tells of; not every CPU is quick in bfloat16
    from .evaluation.answers import check_checkpoint_name, check_device

    check_checkpoint_name(options.model)
    check_device(options.device)
    media = [load_part("image", path) for path in options.image] + [load_part("video", path) for path in options.video]
    return lambda: run(options, media)


def load_part(kind: str, path: str) -> dict[str, Any]:
    """A picture or a clip as a part of a message, looked at now: a file that cannot be read is an error here, and one
    that changes later changes nothing. Raises `OSError` or `ValueError`."""
    file = Path(path).expanduser()
    if kind == "image":
        from .media import load_picture

        return {"type": "image", "image": load_picture(file).image}
    from .video_reader import open_video

    open_video(file)
    return {"type": "video", "video": file.read_bytes()}


def run(options: argparse.Namespace, media: list[dict[str, Any]]) -> int:
    """Load the model and talk until the input ends."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    from .evaluation.answers import default_device

    logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(options.model)
    model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=options.dtype or "auto")
    model.to(options.device or default_device())
    chat = Chat(model, processor, max_new_tokens=options.max_new_tokens, temperature=options.temperature)
    chat.pending += media
    note(f"{options.model}: ask away; /help lists what else you can type")
    return talk(chat, read_line)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read_line() -> str:
    """The next line of the user. Raises `EOFError` at the end."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401, it gives `input` a history
        return input("> ")
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def talk(chat: Chat, read: Callable[[], str]) -> int:
    """Questions and commands until the end of the input, `/quit`, or Ctrl-C twice. An error is one line, and the
    conversation goes on."""
    stopped = False  # by Ctrl-C, since the last line
    while True:
        try:
            line = read().strip()
            stopped = False
            if line == "/quit":
                return 0
            if line.startswith("/"):
                command(chat, line)
            elif line:
                stopped = chat.answer(line, lambda text: print(text, end="", flush=True)).stopped
                print(flush=True)
        except EOFError:
            return 0
        except KeyboardInterrupt:
            if stopped:
                return 0
            stopped = True
            note("\nCtrl-C again ends")
        except (OSError, TypeError, ValueError) as error:
            note(f"arlow: {error}")


def command(chat: Chat, line: str) -> None:
    """Run one `/command`. Raises `ValueError` for an unknown one, and what loading media raises."""
    name, _, rest = line.partition(" ")
    rest = rest.strip().strip("\"'")
    if name in ("/image", "/video"):
        if not rest:
            raise ValueError(message(name, rest, "needs a path"))
        chat.pending.append(load_part(name[1:], rest))
        note(f"{name[1:]} {rest}: goes with your next question")
    elif name == "/reset":
        chat.reset()
        note("begun anew")
    elif name == "/explain":
        print(chat.explain(), flush=True)
    elif name == "/help":
        note(HELP)
    else:
        raise ValueError(message("command", name, "unknown", "/help lists them"))


class Answer(str):
    """What the model wrote; `stopped` by the user, or not."""

    stopped = False


class Chat:
    """A conversation with a vision-language model.

    Args:
        model: an `ArlowForConditionalGeneration`.
        processor: its `ArlowProcessor`.
        max_new_tokens: of an answer.
        temperature: 0 for greedy answers.

    Attributes:
        messages: the conversation so far, in the chat format.
        pending: media that go with the next question.
    """

    def __init__(self, model: Any, processor: Any, *, max_new_tokens: int = 256, temperature: float = 0.0) -> None:
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.messages: list[dict[str, Any]] = []
        self.pending: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.messages.clear()
        self.pending.clear()
        self._forget_cache()

    def _forget_cache(self) -> None:
        self._cache: Any = None
        self._cached_ids: list[int] = []

    def explain(self) -> str:
        """What the model sees of the conversation, and of media that wait for a question. Raises `ValueError` when
        nothing was said yet."""
        waiting = [{"role": "user", "content": list(self.pending)}] if self.pending else []
        if not self.messages and not waiting:
            raise ValueError("nothing was said yet; ask something, or show a picture with /image")
        return str(self.processor.explain([*self.messages, *waiting]))

    def answer(self, text: str, on_text: Callable[[str], None] = lambda text: None) -> Answer:
        """Ask, with the pending media; `on_text` gets the answer in pieces while it is written.

        Raises:
            OSError, TypeError, ValueError: the question cannot be asked; the conversation is as before, the pending
                media are dropped.
        """
        question = {"role": "user", "content": [*self.pending, {"type": "text", "text": text}]}
        self.pending.clear()
        inputs = self.processor.apply_chat_template(
            [*self.messages, question],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        self._check_length(inputs["input_ids"].shape[1])
        answer = self._generate(inputs.to(self.model.device), on_text)
        self.messages += [question, {"role": "assistant", "content": str(answer)}]
        return answer

    def _check_length(self, tokens: int) -> None:
        most = self.model.config.text_config.max_position_embeddings
        if tokens >= most:
            problem = f"tokens are more than the {most} the model was made for"
            raise ValueError(message("conversation", tokens, problem, "/reset begins anew"))

    def _generate(self, inputs: Any, on_text: Callable[[str], None]) -> Answer:
        import torch

        from .evaluation.answers import end_tokens

        tokenizer, pieces = self.processor.tokenizer, []

        def show(text: str) -> None:
            pieces.append(text)
            on_text(text)

        streamer = make_streamer(tokenizer, show)
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        cache, stopped = self._cache_for(inputs["input_ids"][0].tolist()), False
        self._forget_cache()  # until this turn is through: an interrupted one leaves it half written
        try:
            with torch.inference_mode():
                output = self.model.generate(
                    **inputs,
                    **sampling,
                    past_key_values=cache,
                    use_cache=True,
                    streamer=streamer,
                    max_new_tokens=self.max_new_tokens,
                    eos_token_id=end_tokens(self.model, tokenizer),
                    pad_token_id=tokenizer.pad_token_id,
                )
            self._cache, self._cached_ids = cache, output[0, : cache.get_seq_length()].tolist()
        except KeyboardInterrupt:
            streamer.end()
            stopped = True
        answer = Answer("".join(pieces))
        answer.stopped = stopped
        return answer

    def _cache_for(self, ids: list[int]) -> Any:
        """The cache of the turns before, where the conversation begins with exactly its tokens; else a fresh one.
        Tokens may differ: an answer is text by now, and a text has many spellings in tokens."""
        from transformers import DynamicCache

        held = len(self._cached_ids)
        if self._cache is not None and held < len(ids) and ids[:held] == self._cached_ids:
            return self._cache
        return DynamicCache(config=self.model.config.text_config)


def make_streamer(tokenizer: Any, show: Callable[[str], None]) -> Any:
    """A streamer of Transformers that gives finished words to `show`."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text:
                show(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
