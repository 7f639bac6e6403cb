"""Evaluation: scores against hand-made answers and independent references, bad rows, and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from eval_samples import draw_clip, draw_picture, save_checkpoint, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_causal_lm
from tiny_processing import tiny_tokenizer

from arlow import cli
from arlow.evaluation import evaluate_captions, evaluate_vqa
from arlow.evaluation.answers import ModelAnswerer, ask
from arlow.evaluation.caption import caption_scores
from arlow.evaluation.report import check_output, format_table, write_json
from arlow.evaluation.rows import Row, Skipped, make_row, read_rows
from arlow.evaluation.scores import accuracy, final_answer, is_right, majority, normalise, shuffled, wilson


COLOURS = ("red", "blue", "green")


def question(text: str, answer: str, *media: str, kind: str = "colour", **more: object) -> dict:
    parts = [{"type": "video" if path.endswith("mp4") else "image", "path": path} for path in media]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    return {"messages": [user, {"role": "assistant", "content": answer}], "types": [kind], **more}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six pictures of three colours, a clip, a text question and a picture that is missing, in one JSONL file."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for index in range(6):
        colour = COLOURS[index % 3]
        path = draw_picture(folder / f"{index}.jpg", color=colour)
        rows.append(question("Which colour?", colour, path.name, id=f"q{index}"))
    rows.append(question("Where to?", "right", draw_clip(folder / "clip.mp4").name, kind="direction"))
    rows.append(question("1 + 1?", "2", kind="sum"))
    rows.append(question("Which colour?", "red", "missing.jpg", id="gone"))
    return write_lines(folder / "questions.jsonl", rows)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small vision-language model with random weights, saved with its processor."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def painter(path: str) -> str:
    """The colour of a picture's middle, as a person would name it: an answerer that sees."""
    from PIL import Image

    pixel = Image.open(path).convert("RGB").getpixel((160, 120))
    return {(True, False, False): "Red.", (False, False, True): "blue", (False, True, False): "green"}[
        tuple(value > 100 for value in pixel)
    ]


def seeing(rows):
    """Answers every row truly, with errors where a file cannot be read; without media it says blue."""
    answers = []
    for row in rows:
        try:
            (_, source), *_ = row.media
            answers.append("to the right" if source.endswith("mp4") else painter(source))
        except OSError as error:
            answers.append(error)
        except ValueError:
            answers.append("2" if "1 + 1" in str(row.prompt) else "blue")
    return answers


# Scores


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Red.", "red"), ("  A   red\ncircle! ", "red circle"), ("The Three", "3"), ("1,200", "1200"), ("3.5", "3.5"),
        ("-4", "-4"), ("3 - 4", "3 4"), ("white-on-dark", "white on dark"), ("don't", "don't"), ("'yes'", "yes"),
        ("a", "a"), ("The", "the"), ("\u00dcBER \uff15", "\u00fcber 5"), ("7.", "7"), ("\u22122", "-2"), ("", ""),
        ("it\u2019s", "it's"), ("Ten", "10"), ("someone", "someone"), ("...", ""),
        ("p a l m", "p a l m"), ("A 7", "7"),
    ],
)  # fmt: skip
def test_normalise(answer, wanted):
    """Answers that a person would call the same become the same."""
    assert normalise(answer) == wanted


def test_normalisation_is_that_of_the_page():
    """Every example of docs/evaluation.md is compared as the page says."""
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    examples = re.findall(r"^\| [^`|]+ \| `(.+)` \| `(.+)` \|$", page, re.MULTILINE)
    assert len(examples) == 10
    for answer, wanted in examples:
        assert normalise(answer) == wanted


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_normalise_is_stable(text):
    """Whatever the text, normalising twice changes nothing, and case and outer space never matter."""
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f" {text}\n") == once


def test_any_reference_is_right():
    """An answer is right if it matches any reference, and wrong if it only contains one."""
    assert is_right("Two!", ["2", "two of them"])
    assert not is_right("a red circle", ["red"])


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3, 7), (95, 100), (1, 1), (450, 1000)])
def test_wilson_is_that_of_scipy(right, total):
    """The interval is that of SciPy's binomial test."""
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the reference")
    wanted = stats.binomtest(right, total).proportion_ci(method="wilson")
    assert wilson(right, total) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_accuracy_of_nothing():
    """Without rows there is no accuracy, and the interval says nothing."""
    assert accuracy([]) == {"n": 0, "right": 0, "accuracy": None, "low": 0.0, "high": 1.0}


def row(identity: str, answer: str, *media: str, kind: str = "colour") -> Row:
    return make_row(identity, question("?", answer, *media, kind=kind, id=identity), None)


def test_majority_is_per_type():
    """The majority answer is counted within a type, after normalising."""
    rows = [row("1", "Red", "a.jpg"), row("2", "red.", "b.jpg"), row("3", "blue", "c.jpg"), row("4", "7", kind="sum")]
    assert majority(rows) == {"colour": "red", "sum": "7"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["p", "q", "r", "v.mp4"]), st.booleans()), max_size=14),
    st.integers(0, 3),
)
def test_shuffled_media_are_others_of_the_same_type(chosen, seed):
    """Each row gets media of another row of its type and kinds, never its own, or none at all."""
    rows = [row(str(i), "x", *([path] * (1 + twice)), kind=kind) for i, (kind, path, twice) in enumerate(chosen)]
    for before, after in zip(rows, shuffled(rows, seed=seed), strict=True):
        own = [source for _, source in before.media]
        like = [r for r in rows if r.types == before.types and [k for k, _ in r.media] == [k for k, _ in before.media]]
        others = [[source for _, source in r.media] for r in like]
        partners = [media for media in others if media != own]
        if after is None:
            assert not partners
        else:
            assert [source for _, source in after.media] in partners
            assert (
                after.answers == before.answers and after.prompt[0]["content"][-1] == before.prompt[0]["content"][-1]
            )


# Rows


def test_rows_resolve_media_beside_the_file(data, monkeypatch, tmp_path):
    """Relative paths are read beside the JSONL file, wherever the command runs."""
    monkeypatch.chdir(tmp_path)
    rows = read_rows(data, skipped=Skipped(0))
    assert rows[0].media == (("image", str(data.parent / "0.jpg")),)
    assert (rows[0].id, rows[0].types, rows[0].answers) == ("q0", ("colour",), ("red",))
    assert rows[6].id == "questions.jsonl:7"
    assert rows[6].with_media(None).media == ()


def test_absolute_and_remote_sources_stay(tmp_path):
    """Absolute paths, URLs and data URIs are left as they are."""
    for source in ("/a/b.jpg", "https://host/c.jpg", "data:image/png;base64,AA"):
        assert make_row("1", question("?", "x", source), tmp_path).media[0][1] == source


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[1]", "object"),
        ({"messages": []}, "messages=[]"),
        ({"messages": [{"role": "user", "content": "?"}]}, "assistant"),
        ({"messages": [{"role": "assistant", "content": "!"}]}, "assistant"),
        ({"messages": [{"role": "wizard", "content": "?"}, {"role": "assistant", "content": "!"}]}, "wizard"),
        (question("?", "  "), "empty"),
        ({**question("?", "x"), "types": "colour"}, "types"),
        ({**question("?", "x"), "references": [1]}, "references"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "!"}]},
            "source",
        ),
    ],
)
def test_bad_rows_are_counted_and_named(tmp_path, line, reason):
    """A row that is none is skipped by name; beyond the limit it is an error that gives the first one."""
    path = write_lines(tmp_path / "rows.jsonl", [question("?", "yes"), line, ""])
    skipped = Skipped(1)
    assert len(read_rows(path, skipped=skipped)) == 1
    assert [entry["id"] for entry in skipped.rows] == ["rows.jsonl:2"] and reason in skipped.rows[0]["reason"]
    with pytest.raises(ValueError, match=r"max_bad=0: 1 rows .* rows.jsonl:2"):
        read_rows(path, skipped=Skipped(0))


def test_rows_of_a_dataset(tmp_path, data):
    """A dataset of the `datasets` library works like a file; its `images` column fills parts without a source."""
    pytest.importorskip("datasets", reason="needs the eval extra")
    folder = tmp_path / "set"
    folder.mkdir()
    part = [{"type": "image"}, {"type": "text", "text": "Which colour?"}]
    record = {
        "messages": [
            {"role": "user", "content": part},
            {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        ],
        "images": [str(data.parent / "0.jpg")],
        "types": ["colour"],
    }
    write_lines(folder / "test.jsonl", [record, record])
    rows = read_rows(str(folder), split="test", skipped=Skipped(0))
    assert [each.media for each in rows] == [(("image", str(data.parent / "0.jpg")),)] * 2
    assert rows[0].answers == ("red",)


def test_missing_data(tmp_path):
    """A file that is missing and a dataset that cannot be loaded are one line each."""
    for name in (str(tmp_path / "none.jsonl"), "none.jsonl", "./none"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_rows(name, skipped=Skipped(0))
    pytest.importorskip("datasets", reason="needs the eval extra")
    with pytest.raises(OSError, match=r"data='surely-no/such-dataset': cannot be loaded") as error:
        read_rows("surely-no/such-dataset", skipped=Skipped(0))
    assert len(str(error.value)) < 300


# Questions about media


def test_scores_and_controls_of_an_answerer_that_sees(data):
    """Known answers give known scores: all right but the clip's; chance without pictures, and wrong with others'."""
    result = evaluate_vqa("stub", data=data, answerer=lambda name: seeing, max_bad=1)
    (model,) = result["models"]
    scores = model["scores"]
    assert model["skipped"][0]["id"] == "gone" and "missing.jpg" in model["skipped"][0]["reason"]
    assert scores["all"]["n"] == model["rows"] == 8 and scores["all"]["right"] == 7
    assert (scores["colour"]["right"], scores["direction"]["right"], scores["sum"]["right"]) == (6, 0, 1)
    assert (scores["colour"]["low"], scores["colour"]["high"]) == wilson(6, 6)
    assert scores["colour"]["majority"]["right"] == 2  # of three colours, twice each
    assert scores["all"]["majority"]["right"] == 2 + 1 + 1
    assert scores["colour"]["without"]["right"] == 2  # it says blue
    assert scores["all"]["without"]["n"] == 7  # the sum has no media to leave out
    assert scores["sum"]["without"]["accuracy"] is None and scores["direction"]["shuffled"]["n"] == 0
    # Pictures of another row: right only where that row has the same colour.
    given = [each for each in shuffled(read_rows(data, skipped=Skipped(1))[:6]) if each is not None]
    lucky = sum(is_right(painter(each.media[0][1]), each.answers) for each in given)
    assert scores["colour"]["shuffled"]["right"] == lucky < 6
    assert [answer["right"] for answer in model["answers"]].count(False) == 1


def test_only_the_answer_counts_after_its_working(tmp_path):
    """With `answer_after` the same answer is right however it was reached; the file keeps all that was said."""
    said = {"a": "star top, circle left: above", "b": "above", "c": "star top: circle left: left", "d": "above: left"}
    wanted = "star top left, circle left: above"
    rows = [{**question("Where?", wanted, kind="side"), "id": name} for name in said]
    path = write_lines(tmp_path / "rows.jsonl", rows)

    def answerer(name):
        return lambda rows: [said[row.id] for row in rows]

    (model,) = evaluate_vqa("stub", data=path, answerer=answerer, answer_after=": ")["models"]
    assert [row["right"] for row in model["answers"]] == [True, True, False, False]
    assert [row["answer"] for row in model["answers"]] == list(said.values())
    assert {row["expected"] for row in model["answers"]} == {(wanted,)}
    assert model["scores"]["side"]["majority"]["answer"] == "above"
    (model,) = evaluate_vqa("stub", data=path, answerer=answerer)["models"]
    assert not any(row["right"] for row in model["answers"])
    for wrong in ("", 5):
        with pytest.raises(ValueError, match=f"answer_after={wrong!r}"):
            evaluate_vqa("stub", data=path, answerer=answerer, answer_after=wrong)


def test_what_is_not_there_is_not_cut_off():
    """A mark at the very end leaves the whole text: else every answer would be right."""
    assert final_answer("It is red.", ".") == "It is red."
    assert final_answer("red", ": ") == final_answer("red", None) == "red"
    assert final_answer("a: b: red", ": ") == "red"
    assert final_answer("", ": ") == ""


def test_too_many_bad_media(data):
    """More unreadable media than allowed end the evaluation, with the first one's name."""
    with pytest.raises(ValueError, match=r"max_bad=0: 1 rows cannot be used; the first is gone"):
        evaluate_vqa("stub", data=data, answerer=lambda name: seeing, max_bad=0)
    with pytest.raises(ValueError, match="none is left"):
        evaluate_vqa("stub", data=data, answerer=lambda name: lambda rows: [OSError("x")] * len(rows), max_bad=99)


def test_several_models_give_mean_and_range(data):
    """Three models (seeds, say) are summarised by mean, least and most."""
    right = {"one": 6, "two": 3, "three": 0}

    def answerer(name):
        def answer(rows):
            return [each.answers[0] if int(each.id[1:]) < right[name] else "?" for each in rows]

        return answer

    result = evaluate_vqa(list(right), data=data, limit=6, controls=False, answerer=answerer)
    assert result["summary"]["colour"]["accuracy"] == {"mean": 0.5, "min": 0.0, "max": 1.0}
    assert [model["model"] for model in result["models"]] == ["one", "two", "three"]
    assert "without" not in result["summary"]["colour"]


def test_a_model_answers_each_row_as_alone(checkpoint, data):
    """In batches of mixed media, padded on the left, a model gives each row the answer it gives it alone; a row of
    bad media gets its error, and its neighbours their answers."""
    answerer = ModelAnswerer.from_pretrained(checkpoint, max_new_tokens=6)
    rows = read_rows(data, skipped=Skipped(0))
    alone = [answerer([each])[0] for each in rows]
    together = answerer(rows)
    assert isinstance(together[-1], OSError) and "missing.jpg" in str(together[-1])
    assert together[:-1] == alone[:-1] == answerer(rows[:-1])
    skipped = Skipped(1)
    assert ask(rows, answerer, batch_size=4, skipped=skipped) == [*alone[:-1], None]
    with pytest.raises(OSError, match=r"missing\.jpg"):
        ask(rows, answerer, batch_size=4)


def test_answers_end_with_the_turn(checkpoint, data):
    """Generation stops at the end of a turn though the checkpoint's generation config does not say so."""
    answerer = ModelAnswerer.from_pretrained(checkpoint, max_new_tokens=6)
    end = answerer.processor.tokenizer.im_end_token_id
    with torch.no_grad():  # every next token is the end of the turn
        answerer.model.lm_head.weight.zero_()
        answerer.model.lm_head.weight[end] = answerer.model.model.language_model.norm.weight.sign()
        hidden = answerer.model.model.language_model.norm
        hidden.weight.copy_(hidden.weight.abs())
    calls = []
    answerer.model.lm_head.register_forward_hook(lambda module, args, out: out.fill_(0)[..., end].fill_(1))
    answerer.model.lm_head.register_forward_hook(lambda module, args, out: calls.append(1))
    rows = read_rows(data, skipped=Skipped(0))
    assert answerer(rows[:2]) == ["", ""] and len(calls) == 1


# Captions


def test_captions_against_references(data, tmp_path):
    """BLEU and chrF are sacrebleu's, CIDEr is 10 for a perfect caption; the controls are worse."""
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the eval extra")
    pytest.importorskip("pycocoevalcap", reason="needs the eval extra")
    texts = ["a red ball lies on the green grass", "two dogs run along the wide beach", "a boat under a cloudy sky"]
    other = [["one red ball in the grass"], [], ["a small boat", "a boat below clouds today"]]
    rows = []
    for index, text in enumerate(texts):
        path = draw_picture(tmp_path / f"{index}.jpg", color=COLOURS[index])
        rows.append(question("Describe it.", text, path.name, kind="caption", references=other[index]))
    path = write_lines(tmp_path / "captions.jsonl", rows)

    def captioner(rows):
        return [texts[int(each.media[0][1][-5])] if each.media else "nothing at all to see" for each in rows]

    result = evaluate_captions("stub", data=path, answerer=lambda name: captioner)
    scores = result["models"][0]["scores"]
    assert scores["model"]["bleu"] == pytest.approx(100) and scores["model"]["n"] == 3
    single = caption_scores(texts, [[text] for text in texts])
    assert single["cider"] == pytest.approx(10)
    assert scores["model"]["cider"] > scores["majority"]["cider"] > scores["without"]["cider"] >= 0
    assert scores["shuffled"]["bleu"] < 50
    hypothesis = ["a red ball", "two dogs", "a boat"]
    references = [[text, *more] for text, more in zip(texts, other, strict=True)]
    wanted = sacrebleu.corpus_chrf(hypothesis, [[r[i] if i < len(r) else None for r in references] for i in range(3)])
    assert caption_scores(hypothesis, references)["chrf"] == pytest.approx(wanted.score)


# Reports and the command


def test_json_is_whole_or_not_there(tmp_path):
    """A result that cannot be written leaves nothing behind, and what was there stays."""
    path = tmp_path / "out.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be(tmp_path):
    """A directory, and a file in a directory that is missing, are refused before the work."""
    for path in (tmp_path, tmp_path / "none" / "out.json"):
        with pytest.raises(OSError, match="cannot be written"):
            check_output(path)


def test_tables_line_up():
    """Columns are as wide as their widest cell."""
    assert format_table([["a", "b"], ["long", "1"]]).splitlines() == ["a     b", "----  -", "long  1"]


def test_the_command(checkpoint, data, tmp_path, capsys):
    """`arlow eval vqa`: the table on stdout, the JSON file complete, exit code 0."""
    out = tmp_path / "scores.json"
    words = ["eval", "vqa", str(checkpoint), "--data", str(data), "--out", str(out), "--max-new-tokens", "4"]
    assert cli.main([*words, "--answer-after", ": "]) == 0
    shown = capsys.readouterr().out
    for heading in ("accuracy", "95 % interval", "majority", "without", "shuffled", "skipped gone: "):
        assert heading in shown
    result = json.loads(out.read_text())
    assert result["task"] == "vqa" and result["data"] == str(data) and result["settings"]["batch_size"] == 8
    assert result["settings"]["answer_after"] == ": "
    assert {"arlow", "torch", "transformers", "python"} <= set(result["versions"])
    assert result["models"][0]["model"] == str(checkpoint) and len(result["models"][0]["answers"]) == 8
    assert result["time"]["seconds"] > 0


@pytest.mark.parametrize("task", ["perplexity", "caption"])
def test_the_other_tasks(checkpoint, data, tmp_path, capsys, task):
    """`arlow eval` of texts and of captions prints a line per model, or per control."""
    if task == "caption":
        pytest.importorskip("pycocoevalcap", reason="needs the eval extra")
    else:
        data = write_lines(tmp_path / "texts.jsonl", [{"text": "The quick fox."}])
    words = ["eval", task, str(checkpoint), str(checkpoint), "--data", str(data), "--limit", "3"]
    assert cli.main(words + (["--max-new-tokens", "3"] if task == "caption" else [])) == 0
    shown = capsys.readouterr().out
    assert ("mean" if task == "perplexity" else "shuffled") in shown


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "./nowhere"}, "nowhere"),
        ({"model": "."}, "config.json"),
        ({"data": "none.jsonl"}, "none.jsonl"),
        ({"out": "none/out.json"}, "cannot be written"),
        ({"out": "rows.jsonl"}, "is the data file"),
    ],
)
def test_bad_input_exits_2_and_writes_nothing(checkpoint, tmp_path, monkeypatch, capsys, change, reason):
    """What is wrong with the command line is one line, before a model is loaded."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "rows.jsonl", [question("?", "x")])
    given = {"model": str(checkpoint), "data": "rows.jsonl", "out": "out.json", **change}
    assert cli.main(["eval", "vqa", given["model"], "--data", given["data"], "--out", given["out"]]) == 2
    error = capsys.readouterr().err
    assert reason in error and len(error.splitlines()) == 1 and len(error) < 320
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there(checkpoint, data, capsys, device):
    """A device that cannot be used is one line and exit code 2."""
    assert cli.main(["eval", "vqa", str(checkpoint), "--data", str(data), "--device", device]) == 2
    assert f"device='{device}'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["eval", "vqa"], ["chat"]])
def test_a_text_model_cannot_see(tmp_path, capsys, words, data):
    """A text model asked about pictures is an error of one short line."""
    tokenizer = tiny_tokenizer()
    for part in (tiny_causal_lm(vocab_size=len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path)
    assert cli.main([*words, str(tmp_path), *(["--data", str(data)] if words[0] == "eval" else [])]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("arlow: ")]
    assert len(error) == 1 and len(error[0]) < 320


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["sing"],
        ["vqa", "m"],
        ["vqa", "m", "--data", "d", "--limit", "0"],
        ["vqa", "m", "--data", "d", "--window", "9"],
        ["vqa", "m", "--data", "d", "--answer-after", ""],
    ],
)
def test_wrong_usage_exits_2(capsys, words):
    """A wrong command line exits with 2 and says what was expected."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["eval", *words])
    assert stop.value.code == 2 and "usage: arlow" in capsys.readouterr().err


def test_failure_exits_1_and_writes_nothing(checkpoint, tmp_path, monkeypatch, capsys):
    """Data without a usable row end the work with exit code 1, and nothing is written."""
    path = write_lines(tmp_path / "rows.jsonl", ["{"])
    assert cli.main(["eval", "vqa", str(checkpoint), "--data", str(path), "--out", str(tmp_path / "out.json")]) == 1
    assert "no row" in capsys.readouterr().err and not (tmp_path / "out.json").exists()


def test_help_stays_fast():
    """`arlow --help` imports neither torch nor Transformers, and lists every verb."""
    code = (
        "import sys\nfrom arlow import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(f"\n    {verb}" in done.stdout for verb in cli.VERBS)
