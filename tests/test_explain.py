"""`processor.explain`: it shows what the model gets, and maps boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_processing import tiny_processor
from video_samples import moving_frames, write_video

from arlow.explain import unpack_rows
from arlow.positions import get_rope_index


PROCESSOR = tiny_processor()
CROPS = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 28}


def picture(height: int, width: int) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8))


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    path = write_video(tmp_path_factory.mktemp("video") / "clip.mp4", moving_frames(20, 56, 84), rate=10)
    return user(
        {"type": "image", "image": picture(100, 300)},
        {"type": "text", "text": "<image> or "},
        {"type": "video", "path": str(path)},
        {"type": "image", "image": picture(70, 60)},
    )


@pytest.fixture(scope="module")
def report(chat):
    return PROCESSOR.explain(
        [chat, user({"type": "text", "text": "Hi"})], num_frames=4, add_generation_prompt=True, **CROPS
    )


def test_it_reports_what_processing_gives(chat, report):
    """Inputs, counts, grids, times and positions are those of the same call of the processor."""
    expected = PROCESSOR.apply_chat_template(
        [chat, user({"type": "text", "text": "Hi"})],
        num_frames=4, add_generation_prompt=True, padding=True, tokenize=True, return_dict=True, return_tensors="pt",
        **CROPS,
    )  # fmt: skip
    assert set(report.inputs) == set(expected)
    assert all(torch.equal(report.inputs[key], value) for key, value in expected.items())
    assert [(medium.kind, medium.row) for medium in report.media] == [("image", 0), ("video", 0), ("image", 0)]
    views = [view for image in report.images for view in image.views]
    assert [[1, *view.grid] for view in views] == expected["image_grid_thw"].tolist()
    assert sum(view.tokens for view in views) == (expected["mm_token_type_ids"] == 1).sum()
    video = report.videos[0]
    assert video.tokens == (expected["mm_token_type_ids"] == 2).sum()
    assert video.timestamps == [0.3, pytest.approx(1.6)] and video.frames_indices == (0, 6, 13, 19)
    assert video.original_size == (56, 84) and video.fps == 10 and video.total_frames == 20
    assert report.images[0].original_size == (100, 300)
    positions, _ = get_rope_index(
        *(
            expected[key]
            for key in ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
        )
    )
    for row, told in enumerate(report.rows):
        real = expected["attention_mask"][row].bool()
        assert told.input_ids.tolist() == expected["input_ids"][row][real].tolist()
        assert told.positions.tolist() == positions[:, row, real].tolist()


def test_the_pictures_are_those_the_encoder_gets(report):
    """Read back from the pixel values, the views are the resized pictures of plain Pillow, crops included."""
    image = report.images[0]
    assert len(image.views) == 4  # 300 x 100: itself and three crops
    for view in image.views:
        height, width = view.size
        expected = picture(100, 300).crop(view.box).resize((width, height), Image.Resampling.BICUBIC)
        assert np.abs(view.frames[0].astype(int) - np.asarray(expected)).max() <= 1
    assert report.videos[0].views[0].frames.shape == (2, 56, 84, 3)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
@settings(max_examples=20, deadline=None)
def test_unpacking_undoes_packing(groups, h, w, still):
    """Packed rows of random frames come back as the frames."""
    from arlow.patches import normalise_rows, pack_image, pack_video

    groups = 1 if still else groups
    frames = np.random.default_rng(0).integers(
        0, 256, (groups if still else 2 * groups, h * 12, w * 12, 3), dtype=np.uint8
    )
    rows = pack_image(frames[0], patch_size=6, merge_size=2) if still else pack_video(
        frames, patch_size=6, temporal_patch_size=2, merge_size=2
    )  # fmt: skip
    values = normalise_rows(rows, scale=1 / 255, mean=(0.1, 0.5, 0.9), std=(0.3, 0.5, 0.7))
    back = unpack_rows(
        values,
        (groups, 2 * h, 2 * w),
        patch_size=6,
        merge_size=2,
        scale=1 / 255,
        mean=(0.1, 0.5, 0.9),
        std=(0.3, 0.5, 0.7),
    )
    assert np.array_equal(back, frames)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_boxes_there_and_back(report, numbers, view):
    """A box of a view maps to the original and back to itself."""
    height, width = report.images[0].views[view].size
    x0, x1 = sorted(value * width for value in numbers[:2])
    y0, y1 = sorted(value * height for value in numbers[2:])
    original = report.to_original(0, (x0, y0, x1, y1), view=view)
    assert report.to_resized(0, original, view=view) == pytest.approx((x0, y0, x1, y1), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_boxes_back_and_there(report, numbers, view):
    """A box of the original within a view maps to the view and back to itself; any other is refused."""
    left, top, right, bottom = report.images[0].views[view].box
    x0, x1 = sorted(left + value * (right - left) for value in numbers[:2])
    y0, y1 = sorted(top + value * (bottom - top) for value in numbers[2:])
    resized = report.to_resized(0, (x0, y0, x1, y1), view=view)
    assert report.to_original(0, resized, view=view) == pytest.approx((x0, y0, x1, y1), abs=1e-6)
    if view:
        with pytest.raises(ValueError, match="is not within"):
            report.to_resized(0, (0, 0, 300, 100), view=view)


def test_boxes_at_the_edges(report):
    """Whole pictures map to whole pictures, crops to their part of the original, videos too."""
    whole, crop = report.images[0].views[0], report.images[0].views[2]
    assert report.to_resized(0, (0, 0, 300, 100)) == pytest.approx((0, 0, whole.size[1], whole.size[0]))
    assert report.to_original(0, (0, 0, crop.size[1], crop.size[0]), view=2) == pytest.approx(crop.box)
    assert report.to_resized(1, (30, 35, 60, 70))[2:] == pytest.approx(report.images[1].views[0].size[::-1])
    assert report.to_resized(0, (0, 0, 84, 56), kind="video") == pytest.approx((0, 0, 84, 56))


@pytest.mark.parametrize(
    ("box", "options", "error", "names"),
    [
        ((0, 0, 301, 5), {}, ValueError, r"\(0, 0, 300, 100\)"),
        ((5, 0, 1, 5), {}, ValueError, "box"),
        ((0, 0, 1), {}, ValueError, "x0, y0, x1, y1"),
        ((0, 0, float("nan"), 1), {}, ValueError, "box"),
        ((0, 0, 1, 1), {"view": 9}, IndexError, "view=9"),
        ((0, 0, 1, 1), {"kind": "picture"}, ValueError, "kind='picture'"),
    ],
)
def test_bad_boxes(report, box, options, error, names):
    """Something that is no box of the picture, or a view that is not there, is named."""
    with pytest.raises(error, match=names):
        report.to_resized(0, box, **options)
    with pytest.raises(IndexError, match="image_index=7"):
        report.to_resized(7, (0, 0, 1, 1))


def test_text_and_sheet(report, tmp_path, capsys, monkeypatch):
    """The text names sizes, tokens, times and runs; the sheet is a PNG that shows the pictures."""
    text = str(report)
    for piece in ("2 rows, 2 images, 1 video", "300 x 100 pixels", "<image>x", "<video>x6", "0.3 s, 1.6 s", "row 1"):
        assert piece in text, piece
    path = report.save(tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width == 1200 and 400 < sheet.height < 4000
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 100
    assert report._repr_png_()[:4] == b"\x89PNG"
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    report.show()
    assert capsys.readouterr().out.strip() == text


def test_typed_control_tokens_look_different_from_real_ones(report):
    """Placeholders are counted, what people typed stands behind a backslash, and the full prompt is left alone."""
    assert "\\<image> or " in report.rows[0].short_prompt and "\\" not in report.rows[0].prompt
    text = "<image><image><image> <|im_end|> é"
    row = PROCESSOR.explain(user({"type": "image", "image": picture(56, 56)}, {"type": "text", "text": text})).rows[0]
    assert row.short_prompt == (
        "<|im_start|>user\n<|vision_start|><image>x4<|vision_end|>"
        "\\<image>\\<image>\\<image> \\<|im_end|> é<|im_end|>\n"
    )


def test_loading_options_are_those_of_the_call():
    """`do_convert_rgb=False` refuses a picture with transparency here as it does in a call."""
    chat = user({"type": "image", "image": picture(56, 56).convert("RGBA")})
    for attempt in (
        lambda: PROCESSOR.apply_chat_template(chat, do_convert_rgb=False, tokenize=True, return_dict=True),
        lambda: PROCESSOR.explain(chat, do_convert_rgb=False),
    ):
        with pytest.raises(ValueError, match="mode RGBA is not RGB"):
            attempt()


def test_reports_are_compared_by_identity_and_saved_as_png(report, tmp_path):
    """`==` of reports that hold arrays gives an answer; a name of another kind of file is refused."""
    assert report == report and report != PROCESSOR.explain(user({"type": "text", "text": "Hi"}))
    assert report.images[0] != report.images[1]
    with pytest.raises(ValueError, match=r"seen\.jpg.*\.png"):
        report.save(tmp_path / "seen.jpg")
    assert not (tmp_path / "seen.jpg").exists()


def test_a_clip_without_a_rate_and_a_single_conversation():
    """A conversation by itself, a source without times, and text alone are explained too."""
    clip = PROCESSOR.explain(user({"type": "video", "video": moving_frames(14, 28, 28)}))
    assert clip.videos[0].timestamps is None and "no frame rate" in str(clip) and len(clip.rows) == 1
    assert clip.sheet().width == 1200
    assert PROCESSOR.explain(user({"type": "text", "text": "Hi"})).media == ()
    given = PROCESSOR.explain(user({"type": "image"}), images=[picture(56, 56)])
    assert given.images[0].tokens == 4
