"""Bad text, conversations, tokenizer files and processor arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from tiny_processing import tiny_processor, tiny_tokenizer
from transformers import AutoProcessor, AutoTokenizer

from arlow import ArlowConfig
from arlow.processing_arlow import ArlowProcessor
from arlow.tokenization_arlow import ArlowTokenizer

from . import BadInput


TOKENIZER = "tokenizer"
TEMPLATE = "chat template"
PROCESSOR = "processor"


def picture() -> Image.Image:
    return Image.new("RGB", (56, 56), (200, 100, 50))


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def chat(conversation: object, **options: object) -> Callable[[Path], object]:
    return lambda _: tiny_processor().apply_chat_template(conversation, tokenize=True, return_dict=True, **options)


def user(*parts: object, **more: object) -> list[dict]:
    return [{"role": "user", "content": list(parts), **more}]


def call(**arguments: object) -> Callable[[Path], object]:
    return lambda _: tiny_processor()(**arguments)


def tokenise(*arguments: object, **options: object) -> Callable[[Path], object]:
    return lambda _: tiny_tokenizer()(*arguments, **options)


def vocabulary(folder: Path, change: Callable[[dict], None] = lambda vocab: None) -> dict:
    vocab_file, merges_file = tiny_tokenizer().save_vocabulary(folder)
    vocab = json.loads(Path(vocab_file).read_text(encoding="utf-8"))
    change(vocab)
    return {"vocab": vocab, "merges_file": merges_file}


def loaded(cls: type, name: str, content: str, *, without: str = "") -> Callable[[Path], object]:
    """Loading a saved processor one file of which holds something else."""

    def attempt(folder: Path) -> object:
        tiny_processor().save_pretrained(folder)
        if without:
            (folder / without).unlink()
        written(folder / name, content)
        return cls.from_pretrained(folder)

    return attempt


def load(cls: type, **options: object) -> Callable[[Path], object]:
    def attempt(folder: Path) -> object:
        tiny_processor().save_pretrained(folder)
        return cls.from_pretrained(folder, **options)

    return attempt


def beside_another_model(folder: Path) -> object:
    tiny_tokenizer().save_pretrained(folder)
    ArlowConfig.tiny(image_token_id=17).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def explained(**options: object) -> Callable[[Path], object]:
    """The report on a wide picture with crops."""
    image = {"type": "image", "image": Image.new("RGB", (700, 200))}
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 50}
    return lambda at: tiny_processor().explain(user(image), **crops).to_resized(0, (0, 0, 700, 200), **options)


CASES = [
    # Training and files
    BadInput("empty corpus", TOKENIZER, lambda _: ArlowTokenizer.train(iter([]), 400), ValueError, "no text"),
    BadInput(
        "empty corpus file",
        TOKENIZER,
        lambda at: ArlowTokenizer.train([written(at / "a.txt", "")], 400),
        ValueError,
        "no text",
    ),
    BadInput(
        "corpus file that is missing",
        TOKENIZER,
        lambda at: ArlowTokenizer.train([at / "none.txt"], 400),
        OSError,
        "none.txt",
    ),
    BadInput(
        "list of texts taken for files",
        TOKENIZER,
        lambda _: ArlowTokenizer.train(["some text"], 400),
        OSError,
        "some text",
    ),
    BadInput(
        "corpus that is not UTF-8",
        TOKENIZER,
        lambda at: ArlowTokenizer.train([written(at / "a.txt", b"caf\xe9 ")], 400),
        ValueError,
        "a.txt",
    ),
    BadInput(
        "number in a corpus", TOKENIZER, lambda _: ArlowTokenizer.train(iter(["a", 3]), 400), TypeError, "text 1"
    ),
    BadInput(
        "vocabulary too small",
        TOKENIZER,
        lambda _: ArlowTokenizer.train(iter(["a"]), 100),
        ValueError,
        "vocab_size=100",
    ),
    BadInput(
        "vocabulary of half a token", TOKENIZER, lambda _: ArlowTokenizer.train(iter(["a"]), 300.5), TypeError, "300.5"
    ),
    BadInput(
        "min_frequency of zero",
        TOKENIZER,
        lambda _: ArlowTokenizer.train(iter(["a"]), 300, min_frequency=0),
        ValueError,
        "min_frequency=0",
    ),
    BadInput("no files at all", TOKENIZER, lambda _: ArlowTokenizer(), ValueError, "vocab=None"),
    BadInput(
        "vocabulary without merges", TOKENIZER, lambda _: ArlowTokenizer(vocab={"a": 0}), ValueError, "merges=None"
    ),
    BadInput(
        "tokenizer.json that is no tokenizer",
        TOKENIZER,
        lambda at: ArlowTokenizer(tokenizer_file=written(at / "tokenizer.json", '{"a": 1}')),
        ValueError,
        "tokenizer.json",
    ),
    BadInput(
        "truncated tokenizer.json",
        TOKENIZER,
        lambda at: ArlowTokenizer(tokenizer_file=written(at / "tokenizer.json", '{"version": "1.0", "trunc')),
        ValueError,
        "tokenizer.json",
    ),
    BadInput(
        "tokenizer.json that is missing",
        TOKENIZER,
        lambda at: ArlowTokenizer(tokenizer_file=at / "t.json"),
        OSError,
        "t.json",
    ),
    BadInput(
        "vocab.json that is no JSON",
        TOKENIZER,
        lambda at: ArlowTokenizer(vocab_file=written(at / "vocab.json", "{"), merges=[]),
        ValueError,
        "vocab.json",
    ),
    BadInput(
        "vocabulary without a byte",
        TOKENIZER,
        lambda at: ArlowTokenizer(**vocabulary(at, lambda vocab: vocab.pop("ð")), merges=[]),
        ValueError,
        "byte symbols",
    ),
    BadInput(
        "merges that do not fit",
        TOKENIZER,
        lambda at: ArlowTokenizer(**vocabulary(at), merges=[("nothing", "here")]),
        ValueError,
        "nothing",
    ),
    BadInput(
        "merge of three",
        TOKENIZER,
        lambda at: ArlowTokenizer(**vocabulary(at), merges=["a b c"]),
        ValueError,
        "merges[0]",
    ),
    BadInput(
        "tokenizer.json of nothing",
        TOKENIZER,
        loaded(AutoTokenizer, "tokenizer.json", "{}"),
        ValueError,
        "Model missing",
    ),
    BadInput(
        "tokenizer.json without its list of added tokens",
        TOKENIZER,
        loaded(
            ArlowTokenizer,
            "tokenizer.json",
            '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
            without="tokenizer_config.json",
        ),
        ValueError,
        "tokenizer.json",
    ),
    BadInput(
        "truncated tokenizer.json of a model",
        TOKENIZER,
        loaded(AutoTokenizer, "tokenizer.json", "{"),
        ValueError,
        "tokenizer.json",
    ),
    BadInput(
        "truncated tokenizer_config.json",
        TOKENIZER,
        loaded(ArlowTokenizer, "tokenizer_config.json", "{"),
        ValueError,
        "tokenizer_config.json",
    ),
    BadInput(
        "list for a tokenizer_config.json",
        TOKENIZER,
        loaded(ArlowTokenizer, "tokenizer_config.json", "[]"),
        ValueError,
        "tokenizer_config.json",
    ),
    BadInput("tokenizer of another model", TOKENIZER, beside_another_model, ValueError, "image_token_id=5"),
    BadInput(
        "misspelt argument of the constructor",
        TOKENIZER,
        lambda _: ArlowTokenizer(tokenizer_object=tiny_tokenizer().backend_tokenizer, paddin_side="left"),
        TypeError,
        "did you mean 'padding_side'",
    ),
    BadInput(
        "misspelt token of the constructor",
        TOKENIZER,
        lambda _: ArlowTokenizer(tokenizer_object=tiny_tokenizer().backend_tokenizer, imge_token="<i>"),
        TypeError,
        "did you mean 'image_token'",
    ),
    BadInput(
        "misspelt argument of loading",
        TOKENIZER,
        load(AutoTokenizer, paddin_side="left"),
        TypeError,
        "did you mean 'padding_side'",
    ),
    BadInput(
        "unknown argument of training",
        TOKENIZER,
        lambda _: ArlowTokenizer.train(iter(["abc"]), 300, foo=1),
        TypeError,
        "'foo'",
    ),
    BadInput(
        "misspelt token of training",
        TOKENIZER,
        lambda _: ArlowTokenizer.train(iter(["abc"]), 300, vidoe_token="<v>"),
        TypeError,
        "did you mean 'video_token'",
    ),
    # Text
    BadInput("number for text", TOKENIZER, tokenise(3), TypeError, "text[0]=3"),
    BadInput("number in a batch", TOKENIZER, tokenise(["a", 3]), TypeError, "text[1]=3"),
    BadInput("lone surrogate", TOKENIZER, tokenise(["a", "b\ud800"]), ValueError, "text[1]"),
    BadInput("misspelt argument", TOKENIZER, tokenise("a", pading=True), TypeError, "pading"),
    BadInput("unknown padding", TOKENIZER, tokenise("a", padding="longst"), ValueError, "longst"),
    BadInput("unknown padding side", TOKENIZER, tokenise("a", padding=True, padding_side="top"), ValueError, "top"),
    BadInput(
        "stride as long as the text",
        TOKENIZER,
        tokenise("some more text", truncation=True, max_length=3, stride=3),
        ValueError,
        "stride=3",
    ),
    BadInput("pairs that do not match", TOKENIZER, tokenise(["a", "b"], ["c"]), ValueError, "text_pair"),
    BadInput("negative id", TOKENIZER, lambda _: tiny_tokenizer().decode([8, -100]), ValueError, "token_ids[1]=-100"),
    BadInput("text for ids", TOKENIZER, lambda _: tiny_tokenizer().decode(["a"]), TypeError, "token_ids[0]='a'"),
    BadInput(
        "misspelt argument of decode",
        TOKENIZER,
        lambda _: tiny_tokenizer().decode([8], skip_specials=True),
        TypeError,
        "did you mean 'skip_special_tokens'",
    ),
    BadInput(
        "misspelt argument of batch_decode",
        TOKENIZER,
        lambda _: tiny_tokenizer().batch_decode([[8]], skip_specials=True),
        TypeError,
        "did you mean 'skip_special_tokens'",
    ),
    # Conversations
    BadInput("empty conversation", TEMPLATE, chat([]), ValueError, "no message"),
    BadInput(
        "empty row of a batch",
        TEMPLATE,
        chat([user({"type": "text", "text": "a"}), []]),
        ValueError,
        "conversation[1]",
    ),
    BadInput("text for a conversation", TEMPLATE, chat("Hello"), TypeError, "'Hello'"),
    BadInput("text for a message", TEMPLATE, chat(["Hello"]), TypeError, "'Hello'"),
    BadInput(
        "unknown role", TEMPLATE, chat([{"role": "usr", "content": "a"}]), ValueError, "conversation[0]['role']='usr'"
    ),
    BadInput("no role", TEMPLATE, chat([{"content": "a"}]), ValueError, "role"),
    BadInput("no content", TEMPLATE, chat([{"role": "user"}]), ValueError, "content"),
    BadInput(
        "misspelt key of a message", TEMPLATE, chat([{"role": "user", "contents": "a"}]), ValueError, "'contents'"
    ),
    BadInput("number for content", TEMPLATE, chat([{"role": "user", "content": 3}]), TypeError, "['content']=3"),
    BadInput("bare string among parts", TEMPLATE, chat(user("a")), TypeError, "['content'][0]='a'"),
    BadInput(
        "unknown content type", TEMPLATE, chat(user({"type": "imge", "path": "a"})), ValueError, "['type']='imge'"
    ),
    BadInput("audio", TEMPLATE, chat(user({"type": "audio", "url": "a.wav"})), ValueError, "'audio'"),
    BadInput(
        "misspelt key of a part", TEMPLATE, chat(user({"type": "image", "ulr": "a"})), ValueError, "did you mean 'url'"
    ),
    BadInput(
        "two sources of one image",
        TEMPLATE,
        chat(user({"type": "image", "url": "a", "path": "b"})),
        ValueError,
        "path",
    ),
    BadInput("text part without text", TEMPLATE, chat(user({"type": "text"})), TypeError, "['text']=None"),
    BadInput(
        "image_url without a URL",
        TEMPLATE,
        chat(user({"type": "image_url", "image_url": {}})),
        ValueError,
        "image_url",
    ),
    BadInput(
        "a user who calls tools",
        TEMPLATE,
        chat(user(tool_calls=[{"name": "f", "arguments": {}}])),
        ValueError,
        "tool_calls",
    ),
    BadInput(
        "tool call without a name",
        TEMPLATE,
        chat([{"role": "assistant", "tool_calls": [{"arguments": {}}]}]),
        ValueError,
        "tool_calls'][0]",
    ),
    BadInput(
        "number for a tool", TEMPLATE, chat(user({"type": "text", "text": "a"}), tools=[3]), TypeError, "tools[0]=3"
    ),
    BadInput(
        "function that says nothing about itself",
        TEMPLATE,
        chat(user({"type": "text", "text": "a"}), tools=[lambda x: x]),
        ValueError,
        "tools[0]",
    ),
    BadInput(
        "documents for a template without them",
        TEMPLATE,
        chat(user({"type": "text", "text": "a"}), documents=[{"text": "d"}]),
        ValueError,
        "documents",
    ),
    BadInput(
        "prompt and continuation at once",
        TEMPLATE,
        chat([{"role": "assistant", "content": "a"}], add_generation_prompt=True, continue_final_message=True),
        ValueError,
        "continue_final_message",
    ),
    BadInput(
        "template that is no Jinja",
        TEMPLATE,
        chat([{"role": "user", "content": "a"}], chat_template="{% if"),
        ValueError,
        "template",
    ),
    BadInput(
        "template that escapes what people typed",
        TEMPLATE,
        chat([{"role": "user", "content": "<image>"}], chat_template="{{ messages | tojson(ensure_ascii=true) }}"),
        ValueError,
        "escapes",
    ),
    # Placeholders and media
    BadInput("nothing at all", PROCESSOR, call(), ValueError, "text=None"),
    BadInput("empty batch", PROCESSOR, call(text=[]), ValueError, "text=[]"),
    BadInput("None among prompts", PROCESSOR, call(text=["a", None]), TypeError, "text[1]=None"),
    BadInput("placeholder without image", PROCESSOR, call(text=["a", "<image>"]), ValueError, "row 1: 1"),
    BadInput("image without placeholder", PROCESSOR, call(text="a", images=picture()), ValueError, "found 0 <image>"),
    BadInput(
        "video without placeholder",
        PROCESSOR,
        call(text="a", videos=[[picture()] * 2]),
        ValueError,
        "found 0 <video>",
    ),
    BadInput(
        "images in the wrong row",
        PROCESSOR,
        call(text=["<image>", "<image>"], images=[[picture()] * 2, []]),
        ValueError,
        "found 1 <image> and 2 images",
    ),
    BadInput(
        "more rows of images than of text",
        PROCESSOR,
        call(text="<image>", images=[[picture()], []]),
        ValueError,
        "2 rows of 1",
    ),
    BadInput(
        "conversation with an image that was forgotten",
        PROCESSOR,
        chat([user({"type": "image", "image": picture()}), user({"type": "image"})]),
        ValueError,
        "row 1: ",
    ),
    BadInput(
        "images twice",
        PROCESSOR,
        chat(user({"type": "image", "image": picture()}), images=[picture()]),
        ValueError,
        "images",
    ),
    BadInput(
        "image file that is missing", PROCESSOR, chat(user({"type": "image", "path": "no.jpg"})), OSError, "no.jpg"
    ),
    BadInput("None for an image", PROCESSOR, call(text="<image>", images=[None]), TypeError, "images[0]"),
    BadInput(
        "truncation through placeholders",
        PROCESSOR,
        call(text="<image>", images=picture(), truncation=True, max_length=3),
        ValueError,
        "row 0",
    ),
    BadInput(
        "times of a clip without a rate",
        PROCESSOR,
        chat(user({"type": "video", "video": [picture()] * 2}), timestamp_alignment=True),
        ValueError,
        "videos[0]",
    ),
    BadInput(
        "fps and num_frames at once",
        PROCESSOR,
        chat(user({"type": "video", "video": [picture()] * 2}), fps=1, num_frames=2),
        ValueError,
        "fps",
    ),
    BadInput("misspelt argument", PROCESSOR, call(text="a", retrun_tensors="pt"), TypeError, "return_tensors"),
    BadInput(
        "misspelt argument of a conversation",
        PROCESSOR,
        chat([{"role": "user", "content": "a"}], fsp=1),
        TypeError,
        "'fps'",
    ),
    BadInput(
        "misspelt nested argument",
        PROCESSOR,
        call(text="a", images_kwargs={"do_rezise": False}),
        TypeError,
        "do_resize",
    ),
    BadInput("audio", PROCESSOR, call(text="a", audio=[0.0]), TypeError, "audio"),
    BadInput(
        "misspelt argument of loading",
        PROCESSOR,
        load(AutoProcessor, do_pan_an_scan=True),
        TypeError,
        "did you mean 'do_pan_and_scan'",
    ),
    BadInput(
        "unknown argument of the answer",
        PROCESSOR,
        lambda _: tiny_processor().post_process_image_text_to_text([[8]], foo=1),
        TypeError,
        "'foo'",
    ),
    BadInput("text for a switch", PROCESSOR, call(text="a", timestamp_alignment="yes"), ValueError, "'yes'"),
    BadInput("prompt in the place of images", PROCESSOR, lambda _: tiny_processor()("hello"), OSError, "text="),
    BadInput("second text of a prompt", PROCESSOR, call(text="a", text_pair="b"), ValueError, "text_pair='b'"),
    BadInput("prompt cut into words", PROCESSOR, call(text=["a"], is_split_into_words=True), ValueError, "words"),
    BadInput("empty list of images", PROCESSOR, call(text="<image>", images=[]), ValueError, "0 images"),
    BadInput("empty lists and no text", PROCESSOR, call(images=[], videos=[[]]), ValueError, "text=None"),
    BadInput(
        "truncated processor_config.json",
        PROCESSOR,
        loaded(ArlowProcessor, "processor_config.json", "{"),
        ValueError,
        "processor_config.json",
    ),
    BadInput(
        "list for a processor_config.json",
        PROCESSOR,
        loaded(ArlowProcessor, "processor_config.json", "[]"),
        ValueError,
        "processor_config.json",
    ),
    BadInput(
        "processor with a truncated tokenizer_config.json",
        PROCESSOR,
        loaded(AutoProcessor, "tokenizer_config.json", "{"),
        ValueError,
        "tokenizer_config.json",
    ),
    BadInput(
        "rows of different length as a tensor",
        PROCESSOR,
        call(text=["a", "a b c"], return_tensors="pt"),
        ValueError,
        "padding",
    ),
    BadInput(
        "box outside the picture",
        PROCESSOR,
        lambda _: tiny_processor().explain(user({"type": "image", "image": picture()})).to_resized(0, (0, 0, 99, 9)),
        ValueError,
        "box",
    ),
    BadInput("box outside a crop", PROCESSOR, explained(view=1), ValueError, "box"),
    BadInput("box of a picture", PROCESSOR, explained(kind="picture"), ValueError, "kind='picture'"),
    BadInput(
        "sheet for a JPEG",
        PROCESSOR,
        lambda at: tiny_processor().explain(user({"type": "text", "text": "a"})).save(at / "seen.jpg"),
        ValueError,
        "seen.jpg",
    ),
]
