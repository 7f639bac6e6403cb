"""The command line: verbs, exit codes, and messages a person can act on."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import arlow
from arlow import cli


def test_version(capsys):
    """`arlow --version` prints the one version of the package and succeeds."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == f"arlow {arlow.__version__}"


@pytest.mark.parametrize("words", [[], ["sing"], ["explain"], ["explain", "x.json"], ["demo", "--loud"]])
def test_wrong_usage_exits_2(capsys, words):
    """A wrong command line exits with 2 and says what was expected."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "usage: arlow" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["demo", "--help"], ["explain", "--help"]])
def test_help_has_an_example(capsys, words):
    """Every help page ends with an example that can be typed."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 0
    assert "example: arlow " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not a JSON file"),
        (b"\xff\xfe{", "not a JSON file"),
        (b'{"role": "user"}', "not a list"),
        (b"[1]", "list"),
    ],
)
def test_explain_names_a_bad_conversation_file(tmp_path, capsys, content, reason):
    """A file that is no conversation exits with 1 and names the file, before a processor is loaded."""
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    assert cli.main(["explain", str(path), "--processor", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert reason in error and "talk.json" in error and len(error) < 320


def test_explain_names_a_missing_file(capsys):
    """A missing conversation exits with 1 and names the path."""
    assert cli.main(["explain", "no_such_talk.json", "--processor", "nowhere"]) == 1
    assert "no_such_talk.json" in capsys.readouterr().err


def test_serve_names_its_extra(capsys, monkeypatch):
    """Without the server's packages, `arlow serve` says which extra brings them."""
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "fastapi" else object())
    assert cli.main(["serve", "some-model"]) == 1
    error = capsys.readouterr().err
    assert "fastapi" in error and "arlow[serve]" in error


def test_serve_hands_its_options_to_transformers(monkeypatch):
    """Everything after `serve` reaches the command of Transformers, and its exit code comes back."""
    from transformers.cli import transformers as command

    seen = []

    def app(words, prog_name):
        seen.append((words, prog_name))
        raise SystemExit(2)

    monkeypatch.setattr(command, "app", app)
    monkeypatch.setattr(cli, "find_spec", lambda name: object())
    assert cli.main(["serve", "some-model", "--port", "8123"]) == 2
    assert seen == [(["serve", "some-model", "--port", "8123"], "arlow")]


def test_explain_prints_and_saves(tmp_path, capsys, monkeypatch):
    """`explain` prints the explanation of the file's conversation, or saves its picture."""
    from arlow import processing_arlow

    class Explanation:
        def __init__(self, conversation):
            self.conversation = conversation

        def __str__(self):
            return f"{len(self.conversation)} message"

        def save(self, path):
            Path(path).write_bytes(b"png")

    class Processor:
        explain = staticmethod(Explanation)

        @classmethod
        def from_pretrained(cls, directory):
            assert directory == "somewhere"
            return cls()

    monkeypatch.setattr(processing_arlow, "ArlowProcessor", Processor)
    talk = tmp_path / "talk.json"
    talk.write_text(json.dumps([{"role": "user", "content": "hello"}]))
    assert cli.main(["explain", str(talk), "--processor", "somewhere"]) == 0
    assert capsys.readouterr().out == "1 message\n"
    assert cli.main(["explain", str(talk), "--processor", "somewhere", "--save", str(tmp_path / "seen.png")]) == 0
    assert (tmp_path / "seen.png").read_bytes() == b"png"


@pytest.mark.slow
def test_serve_answers_text_image_and_video(tmp_path):
    """A real server on a small model answers a text, an image and a video in the form of OpenAI's API."""
    for name in cli.SERVE_MODULES:
        pytest.importorskip(name, reason="needs the serve extra")
    from small_checkpoint import draw_clip, draw_picture, save_checkpoint

    save_checkpoint(tmp_path / "model")
    picture, clip = draw_picture(tmp_path / "picture.jpg"), draw_clip(tmp_path / "clip.mp4")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "arlow.cli", "serve", str(tmp_path / "model"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://localhost:{port}/health", seconds=120)
        for kind, mime, path in ((None, "", None), ("image", "image/jpeg", picture), ("video", "video/mp4", clip)):
            content = [{"type": "text", "text": "What is this?"}]
            if kind:
                url = f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"
                content.insert(0, {"type": f"{kind}_url", f"{kind}_url": {"url": url}})
            messages = [{"role": "user", "content": content}]
            body = json.dumps({"model": str(tmp_path / "model"), "messages": messages, "max_tokens": 4}).encode()
            request = urllib.request.Request(
                f"http://localhost:{port}/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
            answer = json.load(urllib.request.urlopen(request, timeout=120))
            assert answer["choices"][0]["message"]["role"] == "assistant"
            assert answer["usage"]["prompt_tokens"] > (50 if kind else 5)
    finally:
        server.terminate()
        server.wait(timeout=60)


def wait_for(url: str, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            assert time.monotonic() < end, f"{url} did not answer within {seconds} seconds"
            time.sleep(0.5)
