"""The image processor against a plain Pillow and NumPy implementation, its options, its counts and its files."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import threading
from fractions import Fraction

import media_samples as samples
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from test_patches import loop_rows, qwen_size
from tiny_processing import tiny_processor
from transformers import AutoImageProcessor

from arlow.image_processing_arlow import ArlowImageProcessor, ArlowImageProcessorKwargs, ImageOptions
from arlow.media_fetch import MediaPolicy


DEFAULT_BOUNDS = (56 * 56, 14 * 14 * 4 * 1280)


def plain(image: Image.Image, size: tuple[int, int], *, P: int = 14, M: int = 2) -> np.ndarray:
    """(patches, 3*P*P) samples 0..255 of an upright RGB image: the filter in floating point, then loops."""
    return loop_rows(samples.filtered(image, size)[None], P, 1, M)


def levels(values: np.ndarray, mean=0.5, std=0.5) -> np.ndarray:
    """The uint8 samples behind normalised values; exact, since float32 keeps 256 levels far apart."""
    return np.rint((values.astype(np.float64) * std + mean) * 255).astype(int)


@pytest.fixture
def processor() -> ArlowImageProcessor:
    return ArlowImageProcessor()


# Values


@pytest.mark.parametrize("size", [(40, 60), (300, 200), (1400, 900), (56, 84), (31, 2000)])
def test_equals_a_plain_implementation(processor, tmp_path, size):
    """Rows, grid and values of a real JPEG are those of Pillow's filter and the formulas."""
    path = samples.write(tmp_path / "photo.jpg", samples.picture(*size))
    out = processor(path, return_tensors="np")
    target = qwen_size(*size, 28, *DEFAULT_BOUNDS)
    expected = plain(Image.open(path).convert("RGB"), target)
    assert out["pixel_values"].dtype == np.float32 and out["pixel_values"].shape == expected.shape
    samples_in = levels(out["pixel_values"])
    np.testing.assert_allclose(out["pixel_values"], (samples_in / 255 - 0.5) / 0.5, rtol=0, atol=5e-7)
    samples.assert_resized(samples_in, expected)
    np.testing.assert_array_equal(out["image_grid_thw"], [[1, target[0] // 14, target[1] // 14]])


def test_float32_values_are_one_multiply_add(processor):
    """Bit for bit: `sample * float32(rescale / std) + float32(-mean / std)`, per channel."""
    image = samples.picture(56, 84)
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    out = processor(image, return_tensors="np", image_mean=mean, image_std=std)["pixel_values"]
    rows = loop_rows(np.asarray(image)[None], 14, 1, 2).reshape(-1, 3, 196).astype(np.float32)
    factor = np.array([[1 / 255 / each] for each in std], dtype=np.float32)
    shift = np.array([[-m / s] for m, s in zip(mean, std, strict=True)], dtype=np.float32)
    np.testing.assert_array_equal(out, (rows * factor + shift).reshape(out.shape))


def test_steps_can_be_left_out(processor):
    """Without rescaling and normalising rows hold the samples; without either one, the other alone."""
    image = samples.picture(56, 84)
    rows = loop_rows(np.asarray(image)[None], 14, 1, 2).astype(np.float64)
    call = lambda **options: processor(image, return_tensors="np", do_resize=False, **options)["pixel_values"]  # noqa: E731
    np.testing.assert_array_equal(call(do_rescale=False, do_normalize=False), rows)
    np.testing.assert_allclose(call(do_normalize=False), rows / 255, atol=1e-7)
    np.testing.assert_allclose(
        call(do_rescale=False, image_mean=100, image_std=[2, 2, 2]), (rows - 100) / 2, atol=1e-5
    )
    np.testing.assert_allclose(call(rescale_factor=1 / 127.5, image_mean=1, image_std=1), rows / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_every_filter(processor, resample):
    """Each of Pillow's filters is the one used, given as a member or as its number."""
    image = samples.picture(100, 150)
    expected = samples.filtered(image, (112, 140), resample)
    for value in (resample, int(resample)):
        out = processor(image, return_tensors="np", resample=value)["pixel_values"]
        samples.assert_resized(levels(out), loop_rows(expected[None], 14, 1, 2))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_smaller(processor, monkeypatch, orientation):
    """At least twice as high and wide as needed: the decoder leaves out what resizing would, upright sizes stay. Only
    if asked for: else a file, an opened picture and an array of the same picture give the same rows."""
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (load(self), decoded.append(self.size))[0])
    data = samples.oriented(samples.pixels(900, 1200), orientation, "JPEG", quality=95)
    options = {"return_tensors": "np", "max_pixels": 200_000}
    out = processor(data, **options, scale_while_decoding=True)
    assert out["image_grid_thw"].tolist() == [[1, 26, 36]]  # 364 x 504
    assert decoded[-1] in ((600, 450), (450, 600))
    whole = processor(data, **options)
    assert decoded[-1] in ((1200, 900), (900, 1200))
    picture = Image.open(io.BytesIO(data))
    upright = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    for same in (picture, upright):
        np.testing.assert_array_equal(processor(same, **options)["pixel_values"], whole["pixel_values"])
    error = levels(out["pixel_values"]) - levels(whole["pixel_values"])
    assert 0 < np.sqrt(np.mean(error**2)) < 3
    decoded.clear()
    crops = {"do_pan_and_scan": True, "pan_and_scan_min_ratio_to_activate": 1.2}
    processor(data, **options, scale_while_decoding=True, **crops)
    assert {(900, 1200), (1200, 900)} & {*decoded}  # crops are cut out of the whole


def test_a_short_large_jpeg_is_refused(processor):
    """Data that end early are noticed where the picture is decoded smaller too."""
    data = samples.encode(samples.pixels(800, 800), "JPEG", quality=95)
    for share in (0.5, 0.9):
        short = data[: int(len(data) * share)]
        for each in (short, short + b"\xff\xd9"):
            with pytest.raises(OSError, match=r"images\[0\]|images"):
                processor([each], return_tensors="np", max_pixels=100_000, scale_while_decoding=True)


def test_many_pictures_are_read_in_order(processor):
    """Threads or none, a batch is its pictures one after the other, and the first error in order is the one raised."""
    images = [samples.encode(samples.pixels(60 + 10 * i, 80, seed=i), "PNG") for i in range(12)]
    together = processor(images, return_tensors="np")
    alone = [processor(each, return_tensors="np")["pixel_values"] for each in images]
    np.testing.assert_array_equal(together["pixel_values"], np.concatenate(alone))
    images[3] = images[9] = b"no picture"
    with pytest.raises(OSError, match=r"images\[3\]"):
        processor(images, return_tensors="np")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "I;16"])
def test_one_picture_one_tensor(processor, tmp_path, mode):
    """Path, bytes, Pillow image, array and tensor of a picture give identical tensors."""
    image = samples.picture(mode=mode)
    path = samples.write(tmp_path / "a.png", image)
    expected = processor(path, return_tensors="pt")
    array = np.asarray(image)
    options = {"value_range": "0..65535"} if mode == "I;16" else {}
    for source in (str(path), path.as_uri(), path.read_bytes(), image, Image.open(path), array, torch.tensor(array)):
        out = processor([source], return_tensors="pt", **options)
        assert torch.equal(out["pixel_values"], expected["pixel_values"])
        assert torch.equal(out["image_grid_thw"], expected["image_grid_thw"])


def test_orientation_comes_before_geometry(processor):
    """The grid is that of the upright picture."""
    upright = samples.pixels(60, 240)
    out = processor(samples.oriented(upright, 6), return_tensors="np")
    np.testing.assert_array_equal(out["pixel_values"], processor(upright, return_tensors="np")["pixel_values"])
    assert out["image_grid_thw"].tolist() == [[1, 4, 18]]
    stored = Image.open(io.BytesIO(samples.oriented(upright, 6)))
    assert stored.size == (60, 240) and ImageOps.exif_transpose(stored).size == (240, 60)


# Batches


def test_a_batch_is_each_picture_alone(processor):
    """Pictures of any sizes, nested by row, are concatenated; each has exactly what it has alone."""
    images = [samples.picture(40 + 30 * i, 200 - 20 * i, seed=i) for i in range(5)]
    out = processor([images[:2], [], images[2:]], return_tensors="pt")
    alone = [processor(image, return_tensors="pt") for image in images]
    assert torch.equal(out["pixel_values"], torch.cat([each["pixel_values"] for each in alone]))
    assert torch.equal(out["image_grid_thw"], torch.cat([each["image_grid_thw"] for each in alone]))
    assert (
        out["image_grid_thw"].dtype == torch.int64 and len(out["pixel_values"]) == out["image_grid_thw"].prod(-1).sum()
    )


def test_tensor_types(processor):
    """Torch, NumPy or NumPy by default; names Transformers sends along are accepted."""
    image = samples.picture()
    extra = {"device": "cpu", "disable_grouping": True, "data_format": "channels_first"}
    assert isinstance(processor(image, return_tensors="pt", **extra)["pixel_values"], torch.Tensor)
    assert isinstance(processor(image, return_tensors="np", **extra)["pixel_values"], np.ndarray)
    assert isinstance(processor(image)["image_grid_thw"], np.ndarray)


def test_threads_share_one_processor(processor):
    """Calls with different options from many threads give what they give alone."""
    images = [samples.picture(50 + 9 * i, 90, seed=i) for i in range(4)]
    options = [
        {},
        {"max_tokens_per_image": 4},
        {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 20},
        {"patch_size": 8},
    ]
    alone = [processor(images, return_tensors="np", **each)["pixel_values"] for each in options]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(10):
            if not np.array_equal(processor(images, **options[index])["pixel_values"], alone[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i % 4,)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


# Geometry and counts


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([8, 14]),
    st.sampled_from([1, 2, 3]),
    st.one_of(st.none(), st.integers(1, 30)),
    st.booleans(),
)
def test_counts_are_what_is_made(height, width, patch_size, merge_size, tokens, crops):
    """`plan` and `get_number_of_image_patches` tell exactly what `preprocess` gives, crops and limits included."""
    if max(height, width) > 200 * min(height, width):
        return
    options = {
        "patch_size": patch_size,
        "merge_size": merge_size,
        "max_tokens_per_image": tokens,
        "do_pan_and_scan": crops,
        "pan_and_scan_min_crop_size": 50,
    }
    processor = ArlowImageProcessor()
    out = processor(samples.pixels(height, width), input_data_format="channels_last", return_tensors="np", **options)
    assert processor.get_number_of_image_patches(height, width, options) == len(out["pixel_values"])
    plan = processor.plan(height, width, **options)
    assert [[1, h // patch_size, w // patch_size] for _, h, w in plan] == out["image_grid_thw"].tolist()
    assert ("num_crops" in out) == crops and (not crops or out["num_crops"].tolist() == [len(plan) - 1])
    merged = out["image_grid_thw"].prod(-1) // merge_size**2
    assert tokens is None or (merged <= tokens).all()
    configured = ArlowImageProcessor(**options)
    assert configured.get_number_of_image_patches(height, width) == len(out["pixel_values"])


def test_pan_and_scan_crops_follow_their_picture(processor):
    """Crops are cut from the upright picture, resized by themselves, and follow it as images of their own."""
    wide, small = samples.picture(200, 700, seed=1), samples.picture(90, 90, seed=2)
    options = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 100}
    out = processor([wide, small], return_tensors="pt", **options)
    parts = [wide, *(wide.crop((left, 0, min(left + 175, 700), 200)) for left in (0, 175, 350, 525)), small]
    expected = processor(parts, return_tensors="pt")
    assert out["num_crops"].tolist() == [4, 0] and out["num_crops"].dtype == torch.int64
    assert torch.equal(out["pixel_values"], expected["pixel_values"])
    assert torch.equal(out["image_grid_thw"], expected["image_grid_thw"])
    assert processor(wide, do_pan_and_scan=False).keys() == {"pixel_values", "image_grid_thw"}


def test_token_limit_beats_the_lower_bound(processor):
    """`max_tokens_per_image` holds even where `min_pixels` asks for more."""
    assert processor.plan(1000, 1000, max_tokens_per_image=1) == [((0, 0, 1000, 1000), 28, 28)]


def test_bounds_of_the_area(processor):
    """`size` and `min_pixels` / `max_pixels` are two ways to say one thing; one bound may be given alone."""
    expected = processor.plan(2000, 1500, size={"shortest_edge": 3136, "longest_edge": 200_000})
    assert processor.plan(2000, 1500, max_pixels=200_000) == expected
    assert processor.plan(2000, 1500, size={"longest_edge": 200_000}) == expected
    assert ArlowImageProcessor(max_pixels=200_000).plan(2000, 1500) == expected
    assert ArlowImageProcessor(size={"min_pixels": 3136, "max_pixels": 200_000}).plan(2000, 1500) == expected
    assert ArlowImageProcessor(max_pixels=200_000).max_pixels == 200_000 and processor.min_pixels == 3136
    assert ArlowImageProcessor(max_pixels=200_000).size["longest_edge"] == 200_000


def test_without_resizing(processor):
    """`do_resize=False` takes fitting pictures as they are."""
    image = samples.picture(56, 112)
    out = processor(image, do_resize=False, return_tensors="np")
    assert out["image_grid_thw"].tolist() == [[1, 4, 8]]
    np.testing.assert_array_equal(levels(out["pixel_values"]), loop_rows(np.asarray(image)[None], 14, 1, 2))


# Options and files


def test_every_option_is_declared():
    """What a call understands, what is validated and what the TypedDict declares are the same names."""
    declared = set(ArlowImageProcessorKwargs.__annotations__)
    validated = set(ImageOptions.__dataclass_fields__)
    assert declared - validated == {"size", "return_tensors", "device", "data_format", "disable_grouping"}
    assert validated <= declared and ArlowImageProcessor.valid_kwargs is ArlowImageProcessorKwargs


def test_none_means_the_default(processor, tmp_path):
    """Options that are None, as Transformers sends them, change nothing, though a processor keeps its own None."""
    image = samples.picture()
    names = [name for name in ArlowImageProcessorKwargs.__annotations__ if name != "return_tensors"]
    out = processor(image, return_tensors="np", **dict.fromkeys(names))
    np.testing.assert_array_equal(out["pixel_values"], processor(image)["pixel_values"])
    given = ArlowImageProcessor(**dict.fromkeys(ArlowImageProcessorKwargs.__annotations__))
    given.save_pretrained(tmp_path)
    loaded = ArlowImageProcessor.from_pretrained(tmp_path)
    assert loaded.do_resize is None and loaded.to_dict() == given.to_dict() != processor.to_dict()
    assert (loaded.patch_size, loaded.merge_size, loaded.min_pixels) == (14, 2, processor.min_pixels)
    for each in (given, loaded):
        np.testing.assert_array_equal(each(image)["pixel_values"], processor(image)["pixel_values"])


@pytest.mark.parametrize("field", ["rescale_factor", "image_mean", "image_std", "pan_and_scan_min_ratio_to_activate"])
def test_integers_beyond_floats_are_refused(processor, field):
    """A number that is no float is a ValueError that names the field."""
    with pytest.raises(ValueError, match=f"^{field}=1000"):
        processor(samples.picture(), **{field: 10**400})


def test_attributes_may_be_changed(processor):
    """Attributes set after construction count, and are validated in the call."""
    processor.do_pan_and_scan = True
    assert "num_crops" in processor(samples.picture())
    processor.patch_size = 0
    with pytest.raises(ValueError, match="patch_size=0"):
        processor(samples.picture())


CHANGED = {
    "patch_size": 16,
    "temporal_patch_size": 3,
    "merge_size": 3,
    "size": {"shortest_edge": 4000, "longest_edge": 90_000},
    "do_resize": False,
    "resample": Image.Resampling.LANCZOS,
    "do_rescale": False,
    "rescale_factor": 0.5,
    "do_normalize": False,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": 0.25,
    "do_convert_rgb": False,
    "scale_while_decoding": True,
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 99,
    "pan_and_scan_max_num_crops": 7,
    "pan_and_scan_min_ratio_to_activate": 2,
    "max_tokens_per_image": 77,
    "token_pruning_ratio": 0.25,
    "output_dtype": "float32",  # bytes go with none of the above
    "input_data_format": "channels_first",
    "value_range": "0..255",
}


def test_samples_are_normalised_in_one_place():
    """Rows of uint8 are for the encoder to normalise: options it would not follow are errors."""
    for options in ({"do_normalize": False}, {"do_rescale": False}):
        with pytest.raises(ValueError, match=r"output_dtype='uint8'.* by the encoder, not do_rescale="):
            ArlowImageProcessor(output_dtype="uint8", **options)
    with pytest.raises(ValueError, match=r"rescale_factor=0\.5"):
        ArlowImageProcessor()(samples.picture(), output_dtype="uint8", rescale_factor=0.5)


def test_save_and_load_round_trip(tmp_path):
    """Every option survives files, copies and pickles; the policy belongs to the process and is not saved."""
    assert set(CHANGED) == set(ImageOptions.__dataclass_fields__) - {"min_pixels", "max_pixels"} | {"size"}
    changed = ArlowImageProcessor(**CHANGED)
    changed.policy = MediaPolicy(max_pixels=10)
    for made in (ArlowImageProcessor(), ArlowImageProcessor(output_dtype="uint8"), changed):
        made.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
        assert "policy" not in saved and saved["image_processor_type"] == "ArlowImageProcessor"
        loaded = ArlowImageProcessor.from_pretrained(tmp_path)
        assert loaded.policy == MediaPolicy()
        for other in (loaded, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert other._options({}) == made._options({})
            assert json.loads(other.to_json_string()) == saved
    assert copy.deepcopy(changed).policy == changed.policy
    again = ArlowImageProcessor.from_pretrained(tmp_path, patch_size=8, max_pixels=50_000)
    assert again.patch_size == 8 and again.max_pixels == 50_000 and again.merge_size == 3
    with pytest.raises(ValueError, match="patch_size=0"):
        ArlowImageProcessor.from_pretrained(tmp_path, patch_size=0)


def test_misspelt_options_at_load(tmp_path):
    """A keyword that is no option is a TypeError naming it; those that say where files are, are not."""
    ArlowImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"from_pretrained: unknown option 'do_pan_an_scan'; did you mean 'do_pan_and"):
        ArlowImageProcessor.from_pretrained(tmp_path, do_pan_an_scan=True)
    hub = {"cache_dir": None, "token": None, "revision": "main", "local_files_only": True, "trust_remote_code": True}
    hub |= {"use_fast": False, "subfolder": "", "force_download": False, "proxies": None, "_from_pipeline": "x"}
    assert ArlowImageProcessor.from_pretrained(tmp_path, patch_size=8, **hub).patch_size == 8
    loaded, unused = ArlowImageProcessor.from_pretrained(tmp_path, merge_size=1, foo=3, return_unused_kwargs=True)
    assert loaded.merge_size == 1 and unused["foo"] == 3
    auto = AutoImageProcessor.from_pretrained(tmp_path, use_fast=False, trust_remote_code=False, patch_size=8)
    assert type(auto) is ArlowImageProcessor and auto.patch_size == 8
    assert AutoImageProcessor.from_pretrained(tmp_path, num_frames=3).patch_size == 14  # of a video processor


def test_unknown_keys_of_a_file_are_reported(tmp_path, caplog, monkeypatch):
    """The file of a newer version loads: what this one does not know is named in a warning and not kept."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("arlow"), "propagate", True)
    saved = ArlowImageProcessor(patch_size=8).to_dict() | {"sharpen": 3, "policy": {"allow_urls": True}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved, default=list))
    for load in (ArlowImageProcessor, AutoImageProcessor):
        caplog.clear()
        loaded = load.from_pretrained(tmp_path)
        assert "unknown keys in the saved file are ignored: ['policy', 'sharpen']" in caplog.text
        assert loaded.patch_size == 8 and not hasattr(loaded, "sharpen") and loaded.policy == MediaPolicy()
    with pytest.raises(TypeError, match="sharpen"):
        ArlowImageProcessor(sharpen=3)


def test_numbers_of_other_libraries(processor, tmp_path):
    """NumPy's numbers and fractions are options like any other, in a call, at construction and in a file."""
    picture = samples.picture(60, 90)
    foreign = {
        "patch_size": np.int64(8),
        "size": {"shortest_edge": np.int32(1024), "longest_edge": np.uint32(9000)},
        "rescale_factor": Fraction(1, 128),
        "image_mean": np.array([0.25, 0.5, 0.75], np.float32),
        "image_std": (np.float64(0.5), Fraction(1, 4), 1),
        "resample": np.int64(2),
        "max_tokens_per_image": np.int16(20),
    }
    own = {
        "patch_size": 8,
        "size": {"shortest_edge": 1024, "longest_edge": 9000},
        "rescale_factor": 1 / 128,
        "image_mean": [0.25, 0.5, 0.75],
        "image_std": (0.5, 0.25, 1),
        "resample": 2,
        "max_tokens_per_image": 20,
    }
    expected = processor(picture, **own)["pixel_values"]
    built = ArlowImageProcessor(**foreign)
    built.save_pretrained(tmp_path)
    for output in (
        processor(picture, **foreign),
        built(picture),
        ArlowImageProcessor.from_pretrained(tmp_path)(picture),
    ):
        np.testing.assert_array_equal(output["pixel_values"], expected)
    through = tiny_processor()(images=[picture], text=["<image>"], **foreign)
    np.testing.assert_array_equal(through["pixel_values"], expected)


def test_fetching_goes_through_the_border(processor, tmp_path):
    """`fetch_images`, which Transformers calls first, opens under the policy, keeps the nesting and loses nothing."""
    path = tmp_path / "turned.png"
    path.write_bytes(samples.oriented(samples.pixels(channels=4), 8))
    array, image = samples.pixels(), samples.picture()
    fetched = processor.fetch_images([[str(path), array], [], [image]])
    assert fetched[0][1] is array and fetched[2][0] is image and fetched[1] == []
    assert isinstance(fetched[0][0], Image.Image)
    direct, through = processor([path], return_tensors="pt"), processor([fetched[0][0]], return_tensors="pt")
    assert torch.equal(direct["pixel_values"], through["pixel_values"])
    processor.policy = MediaPolicy(allow_local_files=False)
    for call in (processor.fetch_images, processor):
        with pytest.raises(ValueError, match=r"images\[0\]\[0\]"):
            call([[path]])
    with pytest.raises(TypeError, match=r"images\[1\]"):
        processor.fetch_images([image, None])


def test_nothing_is_done_before_options_are_checked(processor):
    """A bad option is reported before any picture is opened."""
    with pytest.raises(ValueError, match="merge_size"):
        processor("no/such/file.png", merge_size=0)
    with pytest.raises(TypeError, match="did you mean 'merge_size'"):
        processor("no/such/file.png", merge_sise=2)
