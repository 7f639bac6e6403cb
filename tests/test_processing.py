"""The processor: layouts, batches, counts, masks, typed text, threads, files."""

from __future__ import annotations

import base64
import copy
import inspect
import io
import json
import logging
import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_processing import tiny_processor
from transformers import AutoProcessor
from video_samples import moving_frames, write_video

from arlow import ArlowConfig
from arlow.media_fetch import MediaPolicy
from arlow.tokenization_arlow import SPECIAL_TOKENS


PROCESSOR = tiny_processor()
TOKENIZER = PROCESSOR.tokenizer
SPECIAL_IDS = set(TOKENIZER.all_special_ids)
START, END = "<|vision_start|>", "<|vision_end|>"
TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


def picture(height: int = 56, width: int = 84, seed: int = 0) -> Image.Image:
    samples = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(samples)


def user(*parts) -> list[dict]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def image(*size: int, seed: int = 0) -> dict:
    return {"type": "image", "image": picture(*size, seed=seed)}


def video(frames: int = 4, height: int = 56, width: int = 56) -> dict:
    return {"type": "video", "video": moving_frames(frames, height, width)}


def words(ids, mask=None) -> str:
    ids = torch.as_tensor(ids)
    return TOKENIZER.decode(ids if mask is None else ids[torch.as_tensor(mask).bool()])


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", moving_frames(20, 56, 84), rate=10)


# --- Layout ---------------------------------------------------------------------------------------------------------


def test_an_image_takes_one_placeholder_per_merged_token():
    """The prompt is the template's with h*w/4 `<image>`; types and grids agree."""
    out = PROCESSOR.apply_chat_template(user(image(56, 84), "What?"), add_generation_prompt=True, **TENSORS)
    expected = f"<|im_start|>user\n{START}{'<image>' * 6}{END}What?<|im_end|>\n<|im_start|>assistant\n"
    assert words(out["input_ids"][0]) == expected
    assert out["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert out["pixel_values"].shape == (24, 3 * 14 * 14)
    assert torch.equal(out["mm_token_type_ids"] == 1, out["input_ids"] == TOKENIZER.image_token_id)
    assert set(out) == {"input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw"}


def test_a_video_takes_a_timed_span_per_frame_group(mp4):
    """Each frame group is a vision span behind its true time; frames 0, 6, 13, 19 at 10 per second."""
    out = PROCESSOR.apply_chat_template(user({"type": "video", "path": str(mp4)}), num_frames=4, **TENSORS)
    span = f"{START}{'<video>' * 6}{END}"
    assert words(out["input_ids"][0]) == f"<|im_start|>user\n<0.3 seconds>{span}<1.6 seconds>{span}<|im_end|>\n"
    assert out["video_grid_thw"].tolist() == [[2, 4, 6]]
    assert out["pixel_values_videos"].shape == (48, 3 * 2 * 14 * 14)
    assert torch.equal(out["mm_token_type_ids"] == 2, out["input_ids"] == TOKENIZER.video_token_id)
    without = PROCESSOR.apply_chat_template(
        user({"type": "video", "path": str(mp4)}), num_frames=4, timestamp_alignment=False, **TENSORS
    )
    assert words(without["input_ids"][0]) == f"<|im_start|>user\n{span * 2}<|im_end|>\n"


def test_a_clip_without_a_frame_rate_has_no_times_unless_they_are_demanded():
    """No rate is assumed: times are left out, `timestamp_alignment=True` is an error, metadata give them."""
    clip = user(video(4))
    assert "seconds" not in words(PROCESSOR.apply_chat_template(clip, **TENSORS)["input_ids"][0])
    with pytest.raises(ValueError, match=r"videos\[0\].*no frame rate"):
        PROCESSOR.apply_chat_template(clip, timestamp_alignment=True, **TENSORS)
    timed = PROCESSOR.apply_chat_template(clip, video_metadata=[{"fps": 2.0}], timestamp_alignment=True, **TENSORS)
    assert re.findall(r"<[\d.]+ seconds>", words(timed["input_ids"][0])) == ["<0.2 seconds>", "<1.2 seconds>"]


def test_crops_follow_their_image_as_images_of_their_own():
    """Pan-and-scan: the original's tokens, then a span per crop; grids and rows agree, nothing else comes out."""
    options = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 28}
    out = PROCESSOR.apply_chat_template(user(image(56, 224), "a", image(56, 56)), **options, **TENSORS)
    grids = out["image_grid_thw"].prod(-1) // 4
    assert len(grids) == 6  # 1 + 4 crops, 1
    spans = [START + "<image>" * count + END for count in grids.tolist()]
    assert words(out["input_ids"][0]) == f"<|im_start|>user\n{''.join(spans[:5])}a{spans[5]}<|im_end|>\n"
    assert len(out["pixel_values"]) == out["image_grid_thw"].prod(-1).sum()
    assert "num_crops" not in out


def test_outputs_are_arguments_of_the_model(mp4):
    """Every key is in `model_input_names` and is a parameter of the model's `forward`; extras come when asked for."""
    from arlow.modeling_arlow import ArlowForConditionalGeneration

    chat = user(image(), {"type": "video", "path": str(mp4)}, "x")
    out = PROCESSOR.apply_chat_template(chat, **TENSORS)
    assert set(out) == set(PROCESSOR.model_input_names)
    assert set(out) <= set(inspect.signature(ArlowForConditionalGeneration.forward).parameters)
    extra = PROCESSOR.apply_chat_template(chat, return_metadata=True, return_offsets_mapping=True, **TENSORS)
    assert set(extra) - set(out) == {"video_metadata", "offset_mapping"}
    assert set(PROCESSOR.apply_chat_template(chat, return_mm_token_type_ids=False, **TENSORS)) == set(out) - {
        "mm_token_type_ids"
    }


# --- Batches --------------------------------------------------------------------------------------------------------


ITEMS = st.one_of(
    st.tuples(st.just("image"), st.integers(20, 120), st.integers(20, 120)),
    st.tuples(st.just("video"), st.integers(1, 5), st.sampled_from([28, 60])),
    st.tuples(st.just("text"), st.sampled_from(["Hi", "<image>", " <video> ", "<|im_end|>"]), st.just(0)),
)


def row_of(items) -> list[dict]:
    made = {"image": lambda a, b: image(a, b), "video": lambda a, b: video(a, b, b), "text": lambda a, b: a}
    return user(*(made[kind](a, b) for kind, a, b in items))


@given(st.lists(st.lists(ITEMS, max_size=4), min_size=1, max_size=3), st.sampled_from(["left", "right"]))
@settings(max_examples=25, deadline=None)
def test_a_row_of_a_batch_is_what_it_is_alone(rows, side):
    """Text only, one image, many images, videos: every row of a padded batch equals the row by itself."""
    chats = [row_of(items) for items in rows]
    batch = PROCESSOR.apply_chat_template(chats, padding=True, padding_side=side, **TENSORS)
    alone = [PROCESSOR.apply_chat_template(chat, **TENSORS) for chat in chats]
    for row, single in enumerate(alone):
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == single["input_ids"][0].tolist()
        assert batch["mm_token_type_ids"][row][real].tolist() == single["mm_token_type_ids"][0].tolist()
        assert (batch["input_ids"][row][~real] == TOKENIZER.pad_token_id).all()
        assert real.tolist() == sorted(real.tolist(), reverse=side == "right")
    for key in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        expected = [single[key] for single in alone if key in single]
        assert (key in batch) == bool(expected)
        if expected:
            assert torch.equal(batch[key], torch.cat(expected))
    images = sum(kind == "image" for items in rows for kind, *_ in items)
    assert len(batch.get("image_grid_thw", ())) == images


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_every_return_type_holds_the_same_numbers(tensors):
    """Lists, NumPy and torch; without `return_tensors` ids are lists and pixels arrays."""
    arguments = {"text": ["<image> a", "b"], "images": picture(), "padding": True}
    expected, out = PROCESSOR(**arguments, return_tensors="np"), PROCESSOR(**arguments, return_tensors=tensors)
    kinds = {None: list, "np": np.ndarray, "pt": torch.Tensor}
    for key, value in expected.items():
        assert np.array_equal(np.asarray(out[key]), value)
        media = "pixel" in key or "grid" in key
        wanted = np.ndarray if tensors is None and media else kinds[tensors]
        assert isinstance(out[key], wanted), key


@pytest.mark.parametrize("nested", [True, False])
def test_media_flat_or_by_row(nested):
    """Images and videos as a flat list or a list per row give the same inputs."""
    text = ["<image><image><video>", "b", "<video> <image>"]
    images, clips = [picture(seed=k) for k in range(3)], [moving_frames(4, 56, 56), moving_frames(2, 56, 84)]
    by_row = {"images": [images[:2], [], images[2:]], "videos": [clips[:1], [], clips[1:]]}
    arguments = by_row if nested else {"images": images, "videos": clips}
    out = PROCESSOR(text=text, **arguments, padding=True, return_tensors="pt")
    assert torch.equal(out["pixel_values"], PROCESSOR(images=images, return_tensors="pt")["pixel_values"])
    assert out["video_grid_thw"].tolist() == [[2, 4, 4], [1, 4, 6]]
    assert (out["input_ids"] == TOKENIZER.image_token_id).sum(-1).tolist() == [12, 0, 6]


@pytest.mark.parametrize("nothing", [None, [], (), [[], []], [None, []]])
def test_no_media_in_any_spelling(nothing):
    """Empty lists and rows of nothing are no media; beside a conversation's own they change nothing."""
    expected = PROCESSOR(text=["a", "b"])
    assert PROCESSOR(text=["a", "b"], images=nothing, videos=nothing) == expected
    with pytest.raises(ValueError, match=r"found 1 <image> .* and 0 images"):
        PROCESSOR(text=["a", "<image>"], images=nothing)
    with pytest.raises(ValueError, match="text=None"):
        PROCESSOR(images=nothing)
    chat = user(image())
    own = PROCESSOR.apply_chat_template(chat, images=nothing, **TENSORS)
    assert torch.equal(own["pixel_values"], PROCESSOR.apply_chat_template(chat, **TENSORS)["pixel_values"])
    assert len(PROCESSOR.explain(chat, images=nothing).images) == 1


def test_none_is_a_row_without_images():
    """`None` in a list per row is an empty row."""
    rows = {"text": ["<image>", "b", "<image>"], "padding": True, "return_tensors": "pt"}
    expected = PROCESSOR(images=[[picture()], [], [picture(seed=1)]], **rows)
    out = PROCESSOR(images=[[picture()], None, [picture(seed=1)]], **rows)
    assert set(out) == set(expected) and all(torch.equal(out[key], expected[key]) for key in out)


def test_lists_of_frames_are_one_video():
    """Frames as Pillow images: one list is one video, also in a conversation and as a flat list of videos."""
    frames = [Image.fromarray(frame) for frame in moving_frames(4, 56, 56)]
    expected = PROCESSOR(text="<video>", videos=moving_frames(4, 56, 56), return_tensors="pt")
    for videos, count in ((frames, 1), ([frames], 1), ([frames, frames], 2)):
        out = PROCESSOR(text="<video>" * count, videos=videos, return_tensors="pt")
        assert torch.equal(out["pixel_values_videos"], expected["pixel_values_videos"].repeat(count, 1))
    chat = PROCESSOR.apply_chat_template(user({"type": "video", "video": frames}), **TENSORS)
    assert torch.equal(chat["pixel_values_videos"], expected["pixel_values_videos"])


def test_every_source_of_one_picture(tmp_path):
    """Path, base64, data URI, OpenAI's spelling, array and Pillow image of one PNG give identical pixels."""
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    encoded = base64.b64encode(stream.getvalue()).decode()
    uri = f"data:image/png;base64,{encoded}"
    parts = [
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image", "path": tmp_path / "a.png"},
        {"type": "image", "url": str(tmp_path / "a.png")},
        {"type": "image", "url": uri},
        {"type": "image", "base64": uri},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image", "image": np.asarray(picture())},
        {"type": "image", "image": torch.from_numpy(np.array(picture()))},
        {"type": "image", "image": stream.getvalue()},
        {"type": "image"},
    ]
    expected = PROCESSOR(images=picture(), return_tensors="pt")["pixel_values"]
    for part in parts:
        more = {"images": [picture()]} if len(part) == 1 else {}
        out = PROCESSOR.apply_chat_template(user(part), **more, **TENSORS)
        assert torch.equal(out["pixel_values"], expected), list(part)


def test_conversations_are_left_as_they_were():
    """Nothing that is passed in is changed."""
    chat = user(image(), {"type": "image_url", "image_url": {"url": "x"}}, "a")
    before = copy.deepcopy(chat)
    PROCESSOR.apply_chat_template(chat, add_generation_prompt=True)
    assert chat == before


# --- Counting -------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(10, 200), st.integers(10, 200)), max_size=3),
    st.lists(st.tuples(st.integers(1, 7), st.integers(20, 90), st.integers(20, 90)), max_size=2),
    st.booleans(),
    st.sampled_from([None, 5]),
)
@settings(max_examples=25, deadline=None)
def test_counts_from_sizes_are_the_counts_of_processing(images, clips, crops, limit):
    """`_get_num_multimodal_tokens` equals the placeholders and rows that processing gives, crops included."""
    options = {"do_pan_and_scan": crops, "pan_and_scan_min_crop_size": 30, "max_tokens_per_image": limit}
    told = PROCESSOR._get_num_multimodal_tokens(image_sizes=images, video_sizes=clips, **options)
    for size, tokens, patches in zip(images, told.num_image_tokens, told.num_image_patches, strict=True):
        out = PROCESSOR(text="<image>", images=picture(*size), **options, return_tensors="pt")
        assert (out["input_ids"] == TOKENIZER.image_token_id).sum() == tokens
        assert len(out["pixel_values"]) == patches
    for (frames, height, width), tokens in zip(clips, told.num_video_tokens, strict=True):
        clip = moving_frames(frames, height, width)
        out = PROCESSOR(text="<video>", videos=clip, do_sample_frames=False, return_tensors="pt")
        assert (out["input_ids"] == TOKENIZER.video_token_id).sum() == tokens


def test_replacement_offsets_rebuild_the_prompt():
    """`return_text_replacement_offsets` says what stands where, and a replacement tokenises alone as in its place."""
    text = ["a <image> b <image>", "<video>c"]
    media = {"images": [picture(), picture(84, 84)], "videos": [moving_frames(4, 56, 56)]}
    out = PROCESSOR(text=text, **media, return_text_replacement_offsets=True)
    for prompt, ids, replaced in zip(text, out["input_ids"], out["text_replacement_offsets"], strict=True):
        whole = TOKENIZER.decode(ids)
        for item in replaced:
            assert prompt[slice(*item["span"])] == item["text"] == f"<{item['type']}>"
            assert whole[slice(*item["new_span"])] == item["replacement"]
            alone = TOKENIZER(item["replacement"])["input_ids"]
            assert max(set(alone), key=alone.count) == PROCESSOR.tokenizer.convert_tokens_to_ids(item["text"])
            assert any(ids[at : at + len(alone)] == alone for at in range(len(ids)))


# --- Typed text -----------------------------------------------------------------------------------------------------

TYPED = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "<|im_start|>system\n", "<ima", "ge>", "<vid", "eo>", "hello ", "\n"]),
    max_size=6,
).map("".join)


@given(TYPED, TYPED, TYPED, st.booleans())
@settings(max_examples=60, deadline=None)
def test_typed_text_is_text_beside_real_images(before, after, answer, masked):
    """Typed placeholders and turns neither become tokens nor take an image's place."""
    chat = [*user(before, image(), after), {"role": "assistant", "content": answer}]
    out = PROCESSOR.apply_chat_template(chat, return_assistant_tokens_mask=masked, **TENSORS)
    ids = out["input_ids"][0]
    expected = ["<|im_start|>", START, *["<image>"] * 6, END, "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert [TOKENIZER.decode(token) for token in ids if int(token) in SPECIAL_IDS] == expected
    turn = f"<|im_start|>user\n{before}{START}{'<image>' * 6}{END}{after}<|im_end|>\n"
    assert words(ids) == f"{turn}<|im_start|>assistant\n{answer}<|im_end|>\n"
    assert torch.equal(out["mm_token_type_ids"][0] == 1, ids == TOKENIZER.image_token_id)


def test_typed_text_alone_needs_no_media():
    """`<image>` and `<video>` typed in every role, with no media at all, are tokenised as characters."""
    chat = [
        {"role": role, "content": "<image><video><|im_start|>system"}
        for role in ("system", "user", "assistant", "tool")
    ]
    ids = PROCESSOR.apply_chat_template(chat, **TENSORS)["input_ids"][0]
    special = {"<|im_start|>", "<|im_end|>"}
    assert {TOKENIZER.decode(token) for token in ids if int(token) in SPECIAL_IDS} == special
    with pytest.raises(ValueError, match=r"row 0: 4"):
        PROCESSOR.apply_chat_template(chat, sanitize_control_tokens=False, **TENSORS)


# --- Training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_assistant_masks_fit_expanded_images_and_padding(mp4, side, tensors):
    """The masked tokens decode to what the assistant wrote, whatever was expanded before and wherever padding is."""
    clip = {"type": "video", "path": str(mp4)}
    first = [
        *user(image(), "<image> one", image(84, 84)),
        {"role": "assistant", "content": "A cat. <|im_end|>"},
        *user("and", clip),
        {"role": "assistant", "content": [{"type": "text", "text": "Dog "}, image(), {"type": "text", "text": "é!"}]},
    ]
    second = [*user("Hi"), {"role": "assistant", "content": "Hello"}]
    out = PROCESSOR.apply_chat_template(
        [first, second],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors=tensors,
        padding=True,
        padding_side=side,
        num_frames=4,
    )
    assert words(out["input_ids"][0], out["assistant_masks"][0]) == "A cat. <|im_end|><|im_end|>Dog é!<|im_end|>"
    assert words(out["input_ids"][1], out["assistant_masks"][1]) == "Hello<|im_end|>"
    assert type(out["assistant_masks"]) is type(out["input_ids"])
    assert "offset_mapping" not in out


# --- Arguments ------------------------------------------------------------------------------------------------------


def test_keywords_reach_their_receiver_directly_and_nested(mp4, caplog):
    """`fps`, `padding` and others work directly, in `processor_kwargs` and in the dicts, without a warning."""
    chat = user({"type": "video", "path": str(mp4)})
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        outs = [
            PROCESSOR.apply_chat_template(chat, fps=1, min_frames=2, padding=True, **TENSORS),
            PROCESSOR.apply_chat_template(chat, processor_kwargs={"fps": 1, "min_frames": 2}, **TENSORS),
            PROCESSOR.apply_chat_template(chat, videos_kwargs={"fps": 1, "min_frames": 2}, **TENSORS),
        ]
    assert not caplog.records
    assert all(out["video_grid_thw"].tolist() == [[1, 4, 6]] for out in outs)
    assert all(torch.equal(out["input_ids"], outs[0]["input_ids"]) for out in outs)


def test_template_variables_pass_through():
    """A keyword that the template names is its variable, whatever else it could mean; `..._token` names a token."""
    token = "{{ image_token }}{{ name }}"
    out = PROCESSOR.apply_chat_template(
        user("a"), chat_template=token, image_token="<image>", name="<image>", images=picture(), **TENSORS
    )
    assert out["input_ids"][0].tolist().count(TOKENIZER.image_token_id) == 6
    template = "{{ fps }} {{ messages[0]['content'] }}"
    assert PROCESSOR.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, fps="x") == "x a"


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda: PROCESSOR(text="a", pading=True), TypeError, "pading.*did you mean 'padding'"),
        (lambda: PROCESSOR(text="a", images_kwargs={"do_rezise": 1}), TypeError, "do_rezise"),
        (lambda: PROCESSOR(text="a", videos_kwargs=3), TypeError, "videos_kwargs=3"),
        (lambda: PROCESSOR(text="a", padding=3), ValueError, "3"),
        (lambda: PROCESSOR.apply_chat_template(user("a"), fsp=1), TypeError, "fsp.*did you mean 'fps'"),
        (lambda: PROCESSOR.apply_chat_template(user("a"), processor_kwargs={"fsp": 1}), TypeError, "fsp"),
        (lambda: PROCESSOR.apply_chat_template(user("a"), processor_kwargs=3), TypeError, "processor_kwargs=3"),
        (lambda: PROCESSOR.apply_chat_template(user("a"), load_audio_from_video=True), ValueError, "load_audio"),
        (lambda: PROCESSOR(text=3), TypeError, "text=3"),
        (lambda: PROCESSOR(text=["a", None]), TypeError, r"text\[1\]=None"),
        (lambda: PROCESSOR(text=[]), ValueError, r"text=\[\]"),
        (lambda: PROCESSOR(), ValueError, "needs text"),
        (lambda: PROCESSOR(text="<image>"), ValueError, "found 1 <image> .*0 images"),
        (lambda: PROCESSOR(text="a", images=picture()), ValueError, "found 0 <image> .*1 images"),
        (lambda: PROCESSOR(text="<video>", videos=[[]]), ValueError, "found 1 <video> .*0 videos"),
        (
            lambda: PROCESSOR(text=["<image>"] * 2, images=[[picture()] * 2, []]),
            ValueError,
            "row 0: .*found 1 <image> and 2 images",
        ),
        (lambda: PROCESSOR(text=["<image>"] * 2, images=[[picture()] * 2]), ValueError, "images for 1 rows of 2"),
        (lambda: PROCESSOR(text=["a", "<image>"], images=[picture()] * 2), ValueError, "row 0: 0, row 1: 1.*2 images"),
        (
            lambda: PROCESSOR.apply_chat_template([user(image()), user({"type": "image"}, image())], **TENSORS),
            ValueError,
            "row 1: .*found 2 <image> and 1 images",
        ),
        (
            lambda: PROCESSOR.apply_chat_template(user(image()), images=[picture()], **TENSORS),
            ValueError,
            "names its images already",
        ),
        (
            lambda: PROCESSOR(text=["a", "<image>"], images=picture(), truncation=True, max_length=4),
            ValueError,
            "row 1; 4 of 6",
        ),
        (
            lambda: PROCESSOR.apply_chat_template(user("a"), tokenize=True, return_assistant_tokens_mask=True),
            ValueError,
            "return_dict",
        ),
        (lambda: PROCESSOR.apply_chat_template(user("a"), sanitize_control_tokens=True), ValueError, "tokenize=True"),
        (lambda: setattr(tiny_processor(), "policy", 3), TypeError, "policy=3"),
    ],
)
def test_bad_arguments_name_the_place(call, error, names):
    """Each mistake is an error of the right type that names the row, the argument or both counts."""
    with pytest.raises(error, match=names) as caught:
        call()
    assert len(str(caught.value)) <= 300


def test_truncating_text_is_allowed_where_placeholders_survive():
    """Truncation that spares the placeholders works, also beside images."""
    out = PROCESSOR(text="<image> a long text that goes on", images=picture(), truncation=True, max_length=9)
    assert len(out["input_ids"][0]) == 9 and out["input_ids"][0].count(TOKENIZER.image_token_id) == 6


def test_the_parts_must_fit_together():
    """A missing part, a wrong part or another geometry is refused at construction."""
    from arlow.processing_arlow import ArlowProcessor
    from arlow.video_processing_arlow import ArlowVideoProcessor

    with pytest.raises(ValueError, match="video_processor=None"):
        ArlowProcessor(PROCESSOR.image_processor, TOKENIZER)
    with pytest.raises(TypeError, match="video_processor"):
        ArlowProcessor(PROCESSOR.image_processor, TOKENIZER, PROCESSOR.image_processor)
    with pytest.raises(ValueError, match="patch_size=14"):
        ArlowProcessor(PROCESSOR.image_processor, TOKENIZER, ArlowVideoProcessor(patch_size=16))


def test_one_policy_for_images_and_videos(mp4):
    """Setting the policy binds both media processors, and only this processor."""
    processor = tiny_processor()
    processor.policy = MediaPolicy(max_pixels=100)
    assert processor.policy is processor.image_processor.policy is processor.video_processor.policy
    with pytest.raises(ValueError, match="max_pixels"):
        processor(images=picture())
    with pytest.raises(ValueError, match="max_pixels"):
        processor(videos=str(mp4))
    assert PROCESSOR(images=picture())["image_grid_thw"].tolist() == [[1, 4, 6]]


def test_decoding():
    """`post_process_image_text_to_text`, `decode` and `batch_decode` give texts."""
    ids = torch.tensor([TOKENIZER("A cat.<|im_end|>")["input_ids"]])
    assert PROCESSOR.post_process_image_text_to_text(ids) == ["A cat."]
    assert PROCESSOR.post_process_image_text_to_text(ids[0], skip_special_tokens=False) == ["A cat.<|im_end|>"]
    assert PROCESSOR.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True) == ["A cat."]


def test_without_tokenising_a_text_comes_back():
    """`tokenize=False`, the default, gives the prompt with one placeholder per item, for one or many conversations."""
    prompt = f"<|im_start|>user\n{START}<image>{END}a<|im_end|>\n"
    assert PROCESSOR.apply_chat_template(user(image(), "a")) == prompt
    assert PROCESSOR.apply_chat_template([user(image(), "a")] * 2) == [prompt] * 2
    ids = PROCESSOR.apply_chat_template(user("a"), tokenize=True)
    assert ids == [TOKENIZER("<|im_start|>user\na<|im_end|>\n")["input_ids"]]


# --- Sharing and files ----------------------------------------------------------------------------------------------


def test_threads_get_what_they_would_get_alone(mp4):
    """One processor used from many threads, with every mix of media, padding and masks, gives what it gives alone."""
    processor = tiny_processor()
    chats = [
        user("Hi"),
        user(image(), "<image>"),
        user({"type": "video", "path": str(mp4)}),
        user(image(84, 84), image()),
    ]
    calls = [
        (
            [chats[a], chats[b]],
            {"padding": True, "padding_side": side, "return_assistant_tokens_mask": masked, "num_frames": 4},
        )
        for a in range(4)
        for b in range(4)
        for side, masked in (("left", True), ("right", False))
    ]

    def call(job):
        return processor.apply_chat_template(job[0], **job[1], **TENSORS)

    alone = [call(job) for job in calls]
    order = list(range(len(calls))) * 2
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(6) as pool:
        for index, out in zip(order, pool.map(lambda at: call(calls[at]), order), strict=True):
            assert set(out) == set(alone[index])
            assert all(torch.equal(out[key], value) for key, value in alone[index].items())


def test_files_load_in_a_fresh_process(tmp_path, fresh_python):
    """Saved once, `AutoProcessor` and the Auto classes of its three parts load it from one directory, and it works."""
    processor = tiny_processor(patch_size=16)
    processor.save_pretrained(tmp_path)
    code = """
    import arlow, sys
    from transformers import AutoProcessor, AutoTokenizer, AutoImageProcessor
    folder = sys.argv[1] if len(sys.argv) > 1 else FOLDER
    processor = AutoProcessor.from_pretrained(folder)
    parts = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    print(type(processor).__name__, *(type(part).__name__ for part in parts), type(processor.video_processor).__name__)
    print(processor.image_processor.patch_size, processor.video_processor.patch_size, processor.video_processor.size)
    ids = processor.apply_chat_template([{"role": "user", "content": "Hi <image>"}], tokenize=True)
    print(ids)
    """.replace("FOLDER", repr(str(tmp_path)))
    lines = fresh_python(inspect.cleandoc(code)).splitlines()
    assert lines[0] == "ArlowProcessor ArlowTokenizer ArlowImageProcessor ArlowVideoProcessor"
    assert lines[1].startswith("16 16") and str(16 * 28**2) in lines[1]
    assert lines[2] == str(processor.apply_chat_template([{"role": "user", "content": "Hi <image>"}], tokenize=True))


def test_options_given_at_loading_reach_their_part_only(tmp_path):
    """Options of the media processors given to `from_pretrained` take effect and are not saved with the tokenizer."""
    tiny_processor().save_pretrained(tmp_path / "a")
    options = {"do_pan_and_scan": True, "max_tokens_per_video": 7, "padding_side": "right", "dtype": "auto"}
    loaded = AutoProcessor.from_pretrained(tmp_path / "a", **options)
    assert loaded.image_processor.do_pan_and_scan and loaded.video_processor.max_tokens_per_video == 7
    assert loaded.tokenizer.padding_side == "right"
    loaded.save_pretrained(tmp_path / "b")
    saved = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"do_pan_and_scan", "max_tokens_per_video"} & saved.keys()


def test_ids_that_disagree_with_the_config_are_refused(tmp_path):
    """A processor loaded beside the config of another model is an error that names the token and both ids."""
    processor = tiny_processor()
    processor.save_pretrained(tmp_path)
    config = ArlowConfig.tiny()
    config.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(tmp_path)
    config.image_token_id, config.vision_start_token_id = config.vision_start_token_id, config.image_token_id
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"image_token_id=5: .*config\.json beside it says 3"):
        AutoProcessor.from_pretrained(tmp_path)
