"""`arlow chat`: a conversation in the terminal, its cache, its commands, and what a wrong line costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from eval_samples import draw_clip, draw_picture, model_and_processor, save_checkpoint

from arlow import chat as room
from arlow import cli
from arlow.chat import Answer, Chat, command, load_part, talk
from arlow.evaluation.answers import ModelAnswerer
from arlow.evaluation.rows import Row


NEW = 6  # tokens of an answer


def make_chat(**options) -> Chat:
    model, processor = model_and_processor()
    return Chat(model, processor, **{"max_new_tokens": NEW, **options})


@pytest.fixture
def chat() -> Chat:
    return make_chat()


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder with a JPEG and an MP4."""
    folder = tmp_path_factory.mktemp("media")
    draw_picture(folder / "picture.jpg")
    draw_clip(folder / "clip.mp4")
    return folder


def lines(*texts):
    """A reader of these lines; an exception among them is raised in its place."""
    left = iter(texts)

    def read():
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    return read


# Answers


def test_turns_are_those_of_fresh_generations(chat, media):
    """Each of several turns, with text, an image and a clip, is answered as if the whole conversation were new."""
    alone = ModelAnswerer(chat.model, chat.processor, max_new_tokens=NEW)
    for kind, name in ((None, ""), ("image", "picture.jpg"), (None, ""), ("video", "clip.mp4")):
        if kind:
            chat.pending.append(load_part(kind, str(media / name)))
        answer = chat.answer("What is it?")
        (wanted,) = alone([Row("1", chat.messages[:-1], ("",), ("all",))])
        assert answer.strip() == wanted
        assert chat.messages[-1] == {"role": "assistant", "content": answer} and not chat.pending
    assert len(chat.messages) == 8


def test_the_cache_is_used_again(chat, media):
    """A later turn reads only what is new, and encodes no picture twice."""
    seen, encoded = [], []
    chat.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    chat.model.model.visual.register_forward_hook(lambda module, args, out: encoded.append(1))
    # Words of one spelling, so that the text of an answer has the tokens it was written with.
    head = chat.model.lm_head
    word = chat.processor.tokenizer.encode("quick")[0]
    head.register_forward_hook(
        lambda module, args, out: torch.zeros_like(out).index_fill_(-1, torch.tensor([word]), 1.0)
    )
    chat.pending.append(load_part("image", str(media / "picture.jpg")))
    chat.answer("What is it?")
    first = seen[0]
    del seen[:]
    chat.answer("And now?")
    assert len(encoded) == 1
    assert 1 < seen[0] < 30 < first and set(seen[1:]) == {1}


def test_other_tokens_of_the_same_text_start_afresh(chat):
    """Where an answer's text has other tokens than were generated, the cache is not used, and the answer is right."""
    chat.answer("Hello")
    chat._cached_ids[3] += 1
    answer = chat.answer("Again")
    alone = ModelAnswerer(chat.model, chat.processor, max_new_tokens=NEW)
    assert [answer.strip()] == alone([Row("1", chat.messages[:-1], ("",), ("all",))])


def test_answers_stream(chat):
    """The pieces together are the answer, and come before it is complete."""
    pieces, tokens = [], []
    word = chat.processor.tokenizer.encode(" fox")[0]
    chat.model.lm_head.register_forward_hook(
        lambda module, args, out: torch.zeros_like(out).index_fill_(-1, torch.tensor([word]), 1.0)
    )
    chat.model.lm_head.register_forward_hook(lambda module, args, out: tokens.append(1))
    counts = []
    answer = chat.answer("Hello", lambda text: (pieces.append(text), counts.append(len(tokens))))
    assert "".join(pieces) == answer and len(pieces) > 2
    assert counts[0] < len(tokens)


def test_temperature_samples():
    """With a temperature answers differ, with 0 they do not."""
    torch.manual_seed(0)
    greedy, warm = make_chat(), make_chat(temperature=5.0)
    answers = []
    for talker in (greedy, warm):
        answers.append(set())
        for _ in range(3):
            answers[-1].add(str(talker.answer("Hello")))
            talker.reset()
    assert len(answers[0]) == 1 and len(answers[1]) > 1


def test_a_conversation_that_is_too_long():
    """A conversation beyond the model's length is an error that says how to go on, and leaves it as it was."""
    chat = make_chat()
    chat.model.config.text_config.max_position_embeddings = 20
    with pytest.raises(ValueError, match=r"conversation=\d+: .* 20 .*reset"):
        chat.answer("word " * 30)
    assert not chat.messages


# Commands


def test_commands(chat, media, capsys):
    """`/image`, `/video`, `/explain`, `/reset` and `/help` do what the list says."""
    command(chat, f"/image {media / 'picture.jpg'}")
    command(chat, f'/video "{media / "clip.mp4"}"')
    command(chat, "/explain")
    shown = capsys.readouterr().out
    assert "image 0 (row 0): 320 x 240 pixels" in shown and "video 0 (row 0)" in shown
    chat.answer("What?")
    command(chat, "/explain")
    assert "What?" in capsys.readouterr().out
    command(chat, "/reset")
    assert not chat.messages and not chat.pending
    command(chat, "/help")
    assert "/reset" in capsys.readouterr().err


def test_media_are_those_of_their_time(chat, tmp_path):
    """A picture or a clip that changes or goes after it was shown does not change the conversation, which goes on."""
    picture, clip = draw_picture(tmp_path / "picture.jpg"), draw_clip(tmp_path / "clip.mp4")
    command(chat, f"/image {picture}")
    command(chat, f"/video {clip}")
    before = chat.explain()
    draw_picture(picture, color="blue").unlink()
    clip.unlink()
    assert chat.explain() == before
    assert talk(chat, lines("what?", "and now?")) == 0
    assert len(chat.messages) == 4


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/image", "needs a path"),
        ("/image none.jpg", "none.jpg"),
        ("/video none.mp4", "none.mp4"),
        ("/sing", "/help"),
        ("/explain", "nothing was said"),
    ],
)
def test_a_wrong_line_is_one_line_and_the_chat_goes_on(chat, capsys, line, reason):
    """Errors go to stderr, the next question is answered."""
    assert talk(chat, lines(line, "hello")) == 0
    shown = capsys.readouterr()
    assert reason in shown.err and len(shown.err.splitlines()) == 1 and len(shown.err) < 320
    assert len(chat.messages) == 2 and shown.out.strip() == chat.messages[1]["content"].strip()


def test_an_error_while_answering_leaves_the_conversation(chat, media, capsys, tmp_path):
    """A clip that breaks off is an error when its frames are read; the next question is answered without it."""
    clip = draw_clip(tmp_path / "clip.mp4")
    chat.pending.append({"type": "video", "video": clip.read_bytes()[:200]})
    assert talk(chat, lines("what?", "hello")) == 0
    assert "videos[0] (200 bytes): truncated" in capsys.readouterr().err
    assert [turn["content"] for turn in chat.messages[:1]] == [[{"type": "text", "text": "hello"}]]


def test_ctrl_c_stops_an_answer_and_twice_ends(chat, capsys):
    """The first Ctrl-C keeps what was written so far, the second ends; a line between them counts anew."""
    steps = []

    def interrupt(module, args, out):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    hook = chat.model.lm_head.register_forward_hook(interrupt)
    assert talk(chat, lines("hello", KeyboardInterrupt())) == 0
    hook.remove()
    assert len(chat.messages) == 2 and len(steps) == 3
    capsys.readouterr()
    assert talk(chat, lines(KeyboardInterrupt(), "on", KeyboardInterrupt(), KeyboardInterrupt(), "never")) == 0
    assert len(chat.messages) == 4 and capsys.readouterr().err.count("Ctrl-C again ends") == 2
    alone = ModelAnswerer(chat.model, chat.processor, max_new_tokens=NEW)
    assert alone([Row("1", chat.messages[:-1], ("",), ("all",))]) == [chat.messages[-1]["content"].strip()]


def test_quit_and_end_of_input(chat):
    """`/quit` and the end of the input end the chat; empty lines are nothing."""
    assert talk(chat, lines("", "/quit", "never")) == 0
    assert talk(chat, lines()) == 0
    assert not chat.messages


def test_an_answer_is_text_that_knows_whether_it_was_stopped():
    """An `Answer` is a string."""
    assert Answer("x") == "x" and Answer("x").stopped is False


# The verb


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["./nowhere"], "nowhere"),
        (["--max-new-tokens", "0", "."], "max-new-tokens=0"),
        (["--temperature", "-1", "."], "temperature=-1"),
        (["MODEL", "--image", "none.jpg"], "none.jpg"),
        (["MODEL", "--video", "none.mp4"], "none.mp4"),
    ],
)
def test_bad_input_exits_2(tmp_path, capsys, words, reason):
    """What is wrong with the command line is one line, before the model is loaded."""
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["chat", *(str(tmp_path) if word == "MODEL" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1


def test_the_bundled_checkpoint_is_the_default(monkeypatch):
    """Without MODEL the checkpoint that comes with the package is loaded."""
    bundled = pytest.importorskip("arlow.bundled", reason="the room of the bundled checkpoint")
    monkeypatch.setattr(bundled, "bundled_checkpoint", lambda: "./nowhere-bundled")
    monkeypatch.setattr(room, "run", lambda options, media: pytest.fail("it must not come to that"))
    assert cli.main(["chat"]) == 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def started(checkpoint, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "arlow.cli", "chat", str(checkpoint), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}, **pipes)


def test_a_real_process(checkpoint, media):
    """Piped: answers on stdout, notices on stderr, an error in between, the end of the input, exit code 0."""
    process = started(checkpoint, "--image", str(media / "picture.jpg"), "--max-new-tokens", "4")
    out, error = process.communicate("What is it?\n/image none.jpg\n/explain\n/reset\nhello\n", timeout=240)
    assert process.returncode == 0, error
    assert "1 row, 1 image, 0 videos" in out and "What is it?" in out
    assert "none.jpg" in error and "begun anew" in error and "Traceback" not in error
    chat = make_chat(max_new_tokens=4)
    chat.pending.append(load_part("image", str(media / "picture.jpg")))
    assert out.startswith(str(chat.answer("What is it?")))


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(checkpoint):
    """SIGINT while an answer is written stops it, a second one ends the process without a traceback."""
    process = started(checkpoint, "--max-new-tokens", "4000")
    process.stdin.write("hello\n")
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in error
