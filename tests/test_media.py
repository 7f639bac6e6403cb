"""The border for pictures: every form of one picture gives the same pixels, and nothing ambiguous or broken passes."""

from __future__ import annotations

import base64
import io
import struct
import sys
import threading
from dataclasses import replace

import media_samples as samples
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from arlow.media import Picture, check_size, flatten_images, flatten_pictures, load_picture, open_image
from arlow.media_fetch import MediaPolicy


def load(source, **options) -> np.ndarray:
    picture = load_picture(source, **options)
    pixels = picture.pixels
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert pixels.flags.c_contiguous and pixels.shape[:2] == (picture.height, picture.width)
    np.testing.assert_array_equal(np.asarray(picture.image), pixels)
    return pixels


def over_white(rgba: np.ndarray) -> np.ndarray:
    """Transparency over white, in float64."""
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


# One picture, one set of pixels


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "I;16"])
def test_every_form_gives_the_same_pixels(tmp_path, mode):
    """Path, file URL, data URI, bytes of every kind, Pillow image, array and tensor of a picture are one picture."""
    image = samples.picture(mode=mode)
    path = samples.write(tmp_path / "a picture.png", image)
    data = path.read_bytes()
    array = np.asarray(image)
    options = {"value_range": "0..65535"} if mode == "I;16" else {}
    expected = load(image)
    forms = {
        "path": path,
        "string": str(path),
        "file URL": path.as_uri(),
        "data URI": "data:image/png;base64," + base64.b64encode(data).decode(),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "array": array,
        "fortran": np.asfortranarray(array),
        "tensor": torch.from_numpy(array.copy()),
        "opened": Image.open(path),
        "opened by us": open_image(path),
        "picture": load_picture(image),
    }
    for name, form in forms.items():
        np.testing.assert_array_equal(load(form, **options), expected, err_msg=name)
    if array.ndim == 3:
        first = np.ascontiguousarray(array.transpose(2, 0, 1))
        np.testing.assert_array_equal(load(first), expected)
        np.testing.assert_array_equal(load(torch.from_numpy(first)), expected)
        np.testing.assert_array_equal(load(torch.from_numpy(first).permute(1, 2, 0)), expected)


def test_jpeg_equals_pillow(tmp_path):
    """A JPEG file gives what Pillow decodes, nothing else."""
    path = samples.write(tmp_path / "photo.jpg", quality=80)
    np.testing.assert_array_equal(load(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(orientation, format):
    """All eight EXIF orientations come out upright, from bytes and from an opened image."""
    upright = samples.pixels(24, 36)
    options = {"lossless": True} if format == "WEBP" else {}
    data = samples.oriented(upright, orientation, format, **options)
    np.testing.assert_array_equal(load(data), upright)
    np.testing.assert_array_equal(load(Image.open(io.BytesIO(data))), upright)


def test_orientation_of_a_palette_with_transparency():
    """Orientation and transparency are settled together."""
    image = samples.picture(20, 30, mode="P").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = samples.encode(image, exif=exif)
    np.testing.assert_array_equal(load(data), np.rot90(np.asarray(image.convert("RGB")), -1))


def test_transparency_lies_over_white():
    """Alpha is blended over white within rounding; fully transparent pixels are white, opaque ones untouched."""
    rgba = samples.pixels(channels=4)
    rgba[:10, :, 3], rgba[10:20, :, 3] = 0, 255
    pixels = load(rgba)
    np.testing.assert_allclose(pixels, over_white(rgba), atol=1)
    assert (pixels[:10] == 255).all()
    np.testing.assert_array_equal(pixels[10:20], rgba[10:20, :, :3])
    assert (load(rgba, background=(0, 0, 255))[:10] == (0, 0, 255)).all()


def test_transparent_palette_entries_and_colours_lie_over_white():
    """Palette transparency (one entry or a table), a transparent RGB colour and a transparent grey become white."""
    palette = samples.picture(mode="RGB").quantize(16)
    index = np.asarray(palette)
    for transparency in (3, bytes([255, 255, 255, 0])):
        data = samples.encode(palette, transparency=transparency)
        pixels = load(data)
        assert (pixels[index == 3] == 255).all()
        np.testing.assert_array_equal(pixels[index != 3], np.asarray(palette.convert("RGB"))[index != 3])
    rgb = samples.pixels()
    rgb[:5] = (10, 20, 30)
    assert (load(samples.encode(rgb, transparency=(10, 20, 30)))[:5] == 255).all()
    grey = np.full((4, 6), 7, np.uint8)
    grey[0] = 9
    assert (load(samples.encode(grey, transparency=9))[0] == 255).all()
    assert (load(samples.encode(grey, transparency=9))[1:] == 7).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa"])
def test_modes_become_rgb_as_pillow_does(mode):
    """Opaque images of any mode equal Pillow's own conversion."""
    image = samples.picture(mode="RGBA").convert(mode) if mode == "RGBa" else samples.picture(mode=mode)
    if mode == "RGBa":
        image = samples.picture().convert("RGBA").convert("RGBa")
    expected = image.convert("RGBA").convert("RGB") if mode == "RGBa" else image.convert("RGB")
    np.testing.assert_array_equal(load(image), np.asarray(expected))


def test_cmyk_jpeg_is_not_inverted():
    """Adobe's inverted CMYK JPEGs come out in their own colours."""
    image = samples.picture(mode="CMYK")
    pixels = load(samples.encode(image, "JPEG", quality=95))
    np.testing.assert_allclose(pixels, np.asarray(image.convert("RGB")), atol=30)
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 4


def test_sixteen_bits_keep_their_upper_byte():
    """16-bit grey, grey with alpha, RGB and RGBA PNGs and a 16-bit PGM are scaled to 8 bits alike, not clipped."""
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (9, 11, 4)).astype(">u2")
    opaque = deep.copy()
    opaque[..., 3] = 65535
    for colour, picked in ((0, [0]), (2, [0, 1, 2]), (4, [0, 3]), (6, [0, 1, 2, 3])):
        rows = [np.ascontiguousarray(row[:, picked]).tobytes() for row in opaque]
        expected = opaque[..., [0, 0, 0]] if colour in (0, 4) else opaque[..., :3]
        np.testing.assert_array_equal(load(samples.png(11, 9, bits=16, colour=colour, rows=rows)), expected >> 8)
    pgm = b"P5\n11 9\n65535\n" + deep[..., 0].tobytes()
    np.testing.assert_array_equal(load(pgm)[..., 0], deep[..., 0] >> 8)
    dark = b"P5\n2 1\n65535\n" + np.array([3, 250], ">u2").tobytes()
    assert load(dark).max() == 0  # the depth is the format's, not guessed from the values


def test_sixteen_bit_transparent_grey():
    """The transparent value of a 16-bit grey PNG is white, equal upper bytes are not."""
    rows = [np.array([0x1234, 0x1235], ">u2").tobytes()]
    extra = samples.chunk(b"tRNS", b"\x12\x34")
    assert load(samples.png(2, 1, bits=16, colour=0, rows=rows, extra=extra)).tolist() == [[[255] * 3, [0x12] * 3]]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(format):
    """Of a file with several frames the first is taken."""
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    options = {"lossless": True} if format == "WEBP" else {}
    data = samples.encode(first, format, save_all=True, append_images=[second], **options)
    assert (load(data) == (255, 0, 0)).all()


# Arrays


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([np.uint8, np.int64, np.float32]),
)
def test_arrays_of_any_layout(height, width, channels, first, dtype):
    """An array is read as the layout says; it is refused without one only where both ends could be channels."""
    rng = np.random.default_rng(height * 100 + width)
    array = rng.integers(0, 256, (height, width, channels))
    array[0, 0, 0] = 200  # beyond 1, so that floats are unambiguous
    expected = array[..., :3] if channels > 2 else array[..., :1].repeat(3, axis=-1)
    if channels in (2, 4):
        array[..., -1] = 255
        array[0, 0, 0] = expected[0, 0, 0]
    given_array = (np.moveaxis(array, -1, 0) if first else array).astype(dtype)
    layout = "channels_first" if first else "channels_last"
    policy = MediaPolicy(max_aspect_ratio=1000)
    np.testing.assert_array_equal(load(given_array, input_data_format=layout, policy=policy), expected)
    ends = (given_array.shape[0] <= 4, given_array.shape[2] <= 4)
    if all(ends):
        with pytest.raises(ValueError, match="input_data_format"):
            load_picture(given_array, policy=policy)
    else:
        np.testing.assert_array_equal(load(given_array, policy=policy), expected)


@pytest.mark.parametrize("shape", [(3, 20, 3), (1, 3, 3), (3, 3, 3), (4, 9, 1)])
def test_ambiguous_channels_need_a_word(shape):
    """Arrays whose first and last axis could be the channels are never guessed, and both readings can be asked for."""
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"image.*input_data_format"):
        load_picture(array)
    last = load(array, input_data_format="channels_last")
    first = load(array, input_data_format="channels_first")
    assert last.shape[:2] == shape[:2] and first.shape[:2] == shape[1:]


def test_floats_in_0_to_1_need_a_word():
    """Floats within 0..1 could be either range; with `value_range` they are rounded to the nearest of 256 levels."""
    pixels = samples.pixels()
    for dtype in (np.float16, np.float32, np.float64):
        unit = (pixels / 255).astype(dtype)
        with pytest.raises(ValueError, match=r'value_range="0\.\.1"'):
            load_picture(unit)
        np.testing.assert_array_equal(load(unit, value_range="0..1"), pixels)
        np.testing.assert_array_equal(load(pixels.astype(dtype)), pixels)
    np.testing.assert_array_equal(
        load(torch.from_numpy(pixels / 255).bfloat16(), value_range="0..1").shape, pixels.shape
    )
    assert load(np.zeros((4, 5))).max() == 0  # black in either range
    assert load(np.ones((4, 5)), value_range="0..255").max() == 1
    assert load(np.full((4, 5), 1 + 1e-7), value_range="0..1").min() == 255


@pytest.mark.parametrize("most", [1.0001, 1.005, 1.4, 3, 15.9])
def test_floats_that_overshoot_1_need_a_word(most):
    """Floats of 0..1 that resampling made larger are no 0..255, nor are a few grey levels: an error, never black."""
    unit = np.linspace(0, most, 12 * 9 * 3).reshape(12, 9, 3)
    with pytest.raises(ValueError, match=r'value_range="0\.\.1"'):
        load_picture(unit)
    with pytest.raises(ValueError, match="value_range"):
        load_picture(torch.from_numpy(unit).permute(2, 0, 1).float() - 0.1)
    assert load(unit * 16 / most).max() == 16  # by now it is 0..255
    np.testing.assert_array_equal(load(unit, value_range="0..255"), np.rint(unit))


def test_a_known_range_is_clipped_where_it_overshoots():
    """Bicubic resampling of black and white squares, worst case included, is clipped as `clip` does."""
    squares = (torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    unit = torch.nn.functional.interpolate(squares, (80, 80), mode="bicubic")[0]
    assert unit.min() < -0.3 and unit.max() > 1.3
    expected = np.rint(unit.clamp(0, 1).permute(1, 2, 0).numpy() * 255)
    np.testing.assert_array_equal(load(unit, value_range="0..1"), expected)
    np.testing.assert_array_equal(load(unit * 255, value_range="0..255"), expected)
    with pytest.raises(ValueError, match=r'value_range="0\.\.255" to clip'):
        load(unit * 255)


@pytest.mark.parametrize("shift", [-1, -0.5, -0.4, 0.6])
def test_centred_samples_are_no_overshoot(shift):
    """What a mean was taken from, or what lies far beyond the range, is refused also when the range is given."""
    unit = np.linspace(0, 1, 12 * 9 * 3).reshape(12, 9, 3)
    for samples_, value_range in ((unit + shift, "0..1"), ((unit + shift) * 255, "0..255")):
        with pytest.raises(ValueError, match="outside 0"):
            load_picture(samples_, value_range=value_range)


def test_value_ranges_of_integers():
    """Booleans and 16-bit integers are read with a word; wider integers within 0..255 are samples as they are."""
    mask = np.eye(6, dtype=bool)
    np.testing.assert_array_equal(load(mask, value_range="0..1")[..., 0], np.eye(6) * 255)
    deep = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    np.testing.assert_array_equal(load(deep, value_range="0..65535")[..., 0], deep >> 8)
    np.testing.assert_array_equal(load(deep.astype(np.float64), value_range="0..65535")[..., 0], deep >> 8)
    np.testing.assert_array_equal(
        load(np.arange(64, dtype=np.int32).reshape(8, 8))[..., 0], np.arange(64).reshape(8, 8)
    )


def test_pillow_float_and_integer_images():
    """Modes I and F obey the rules for arrays."""
    grey = samples.pixels(channels=1)
    np.testing.assert_array_equal(load(Image.fromarray(grey).convert("I"))[..., 0], grey)
    np.testing.assert_array_equal(load(Image.fromarray(grey).convert("F"))[..., 1], grey)
    unit = Image.fromarray((grey / 255).astype(np.float32))
    np.testing.assert_array_equal(load(unit, value_range="0..1")[..., 2], grey)
    with pytest.raises(ValueError, match="value_range"):
        load_picture(unit)
    with pytest.raises(ValueError, match="value_range"):
        load_picture(Image.fromarray(grey.astype(np.int32) * 100))


def test_tensors_of_every_kind():
    """Gradients, sparse and bfloat16 tensors are read; without torch imported, torch is not asked."""
    pixels = samples.pixels(8, 9)
    tensor = torch.from_numpy(pixels.copy())
    np.testing.assert_array_equal(load(tensor.float().requires_grad_()), pixels)
    np.testing.assert_array_equal(load(tensor.to_sparse()), pixels)
    np.testing.assert_array_equal(load(tensor.to(torch.bfloat16)), pixels)
    np.testing.assert_array_equal(load(tensor.to(torch.int64)), pixels)


def test_media_does_not_import_torch(fresh_python):
    """The border works in a process that has not imported torch."""
    code = """
import sys, numpy as np
before = "torch" in sys.modules
import importlib.util
from arlow.media import load_picture
print(load_picture(np.zeros((5, 6, 3), np.uint8)).pixels.shape, "torch" in sys.modules and not before)
"""
    assert fresh_python(code).split("\n")[0] == "(5, 6, 3) False"


# Lists


def test_flatten_names_every_picture():
    """One picture, a list, a list per row with empty rows and a batched array become a flat list with names."""
    image = samples.picture(5, 6)
    names = lambda images: [name for name, _ in flatten_images(images)]  # noqa: E731
    assert names(image) == ["images"]
    assert names([image, image]) == ["images[0]", "images[1]"]
    assert names([[image], [], (image, image)]) == ["images[0][0]", "images[2][0]", "images[2][1]"]
    assert names([[image], None, [image]]) == ["images[0][0]", "images[2][0]"]
    assert names(np.zeros((2, 5, 6, 3), np.uint8)) == ["images[0]", "images[1]"]
    assert names([torch.zeros(2, 3, 5, 6)]) == ["images[0][0]", "images[0][1]"]
    pictures = flatten_pictures([image, samples.encode(image)])
    assert pictures[0].source == "RGB image of 5x6 pixels" and pictures[1].source.endswith("bytes")


@pytest.mark.parametrize("images", [None, [None], [1, None], [[None]], [[[1]]], [3], {"image": 1}, [object()]])
def test_flatten_refuses_what_is_no_picture(images):
    """None, deep nesting and foreign objects are a TypeError that names the place."""
    with pytest.raises(TypeError, match="images"):
        flatten_pictures(images)


def test_flatten_refuses_nothing():
    """No picture at all is an error, not an empty tensor."""
    for images in ([], [[], []]):
        with pytest.raises(ValueError, match="images"):
            flatten_pictures(images)


# Broken and hostile files


FORMATS = {
    "JPEG": {},
    "progressive": {"format": "JPEG", "progressive": True},
    "PNG": {},
    "WEBP": {},
    "lossless": {"format": "WEBP", "lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "lzw": {"format": "TIFF", "compression": "tiff_lzw"},
    "PPM": {},
    "JPEG2000": {},
    "ICO": {"sizes": [(60, 40)]},
    "AVIF": {},
}


@pytest.fixture(params=FORMATS)
def encoded(request) -> bytes:
    options = {"format": request.param, **FORMATS[request.param]}
    return samples.encode(samples.picture(120, 180), **options)


@pytest.mark.parametrize("flag", [False, True])
def test_truncated_files_never_pass(encoded, flag, monkeypatch):
    """A file cut anywhere is an error or, where only what follows the pixels was lost, the whole picture.

    That holds also when the process has told Pillow to accept truncated files, and that setting is left as it was.
    """
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", flag)
    whole = load(encoded)
    for tenth in range(1, 20):
        cut = encoded[: len(encoded) * tenth // 20]
        try:
            pixels = load(cut, name="images[3]")
        except (OSError, ValueError) as error:
            assert "images[3]" in str(error) and len(str(error)) <= 300
        else:
            np.testing.assert_array_equal(pixels, whole)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is flag


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_cut_and_closed_is_not_grey(options, mode):
    """A JPEG that lost its data but has an end marker, which decoders fill with grey, is refused."""
    data = samples.encode(samples.picture(300, 400, mode=mode), "JPEG", **options)
    load(data)
    for tenth in (2, 4, 6, 8):
        cut = data[: len(data) * tenth // 10] + b"\xff\xd9"
        try:
            pixels = load(cut)
        except OSError:
            continue
        assert options.get("progressive") or options.get("restart_marker_rows")
        assert not (pixels[-8:, -8:] == 128).all()  # coarser perhaps, but not grey


def test_grey_jpeg_is_accepted():
    """A picture that truly ends in mid-grey is no truncated one."""
    for mode, colour in (("RGB", (128, 128, 128)), ("L", 128), ("CMYK", (127, 127, 127, 127))):
        image = Image.new(mode, (50, 40), colour)
        assert load(samples.encode(image, "JPEG")).shape == (40, 50, 3)
    mixed = samples.pixels(64, 64)
    mixed[32:] = 128
    np.testing.assert_allclose(load(samples.encode(mixed, "JPEG", quality=95))[40:], 128, atol=2)


def test_png_checksums_are_checked():
    """One flipped bit anywhere in the data of a PNG is found."""
    data = samples.encode(samples.picture())
    start = data.index(b"IDAT") + 4
    for offset in range(start, len(data) - 16, max(1, (len(data) - start) // 25)):
        broken = bytearray(data)
        broken[offset] ^= 4
        with pytest.raises(OSError, match="images"):
            load_picture(bytes(broken), name="images")


@settings(deadline=None, max_examples=80)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF", b"BM", b"II*\0"]),
)
def test_noise_never_escapes(noise, head):
    """Whatever bytes come in, either a picture or one of our errors comes out."""
    try:
        load_picture(head + noise, name="images[0]")
    except (OSError, ValueError) as error:
        assert "images[0]" in str(error) and len(str(error)) <= 300


def test_header_is_checked_before_decoding(monkeypatch):
    """A small file that declares a huge picture is refused by its header; nothing is decoded."""
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    bomb = samples.png(50_000, 50_000, bits=8, colour=2, rows=[b""])
    with pytest.raises(ValueError, match=r"images\[0\]"):
        load_picture(bomb, name="images[0]")
    wide = samples.png(9000, 10, bits=8, colour=0, rows=[b""])
    with pytest.raises(ValueError, match="aspect ratio"):
        load_picture(wide)
    with pytest.raises(ValueError, match="max_pixels=100"):
        load_picture(samples.encode(samples.picture()), policy=MediaPolicy(max_pixels=100))


@pytest.mark.parametrize("kind", ["png", "bitmap"])
def test_an_icon_is_measured_before_decoding(kind, monkeypatch):
    """The directory of an ICO says 16x16; the picture inside says what it is, and is not decoded to find out."""
    inner = samples.encode(samples.picture(120, 130), "PNG" if kind == "png" else "DIB")
    if kind == "bitmap":  # its height counts the mask
        inner = inner[:8] + struct.pack("<i", 240) + inner[12:] + bytes(120 * 20)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 24, len(inner), 22)
    icon = struct.pack("<HHH", 0, 1, 1) + entry + inner
    assert load(icon).shape == (120, 130, 3)
    monkeypatch.setattr(Image.Image, "load", lambda *_args: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"image of 120x130 pixels.*max_pixels=9999"):
        load_picture(icon, policy=MediaPolicy(max_pixels=9999))
    with pytest.raises(OSError, match=r"corrupt|damaged"):
        load_picture(icon[:60])


def test_pillow_bomb_warning_is_no_other_error(recwarn):
    """Between Pillow's warning and its error the policy decides; warnings turned into errors are wrapped too."""
    import warnings

    bomb = samples.png(10_000, 10_000, bits=8, colour=0, rows=[b""])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, OSError), match="image"):
            load_picture(bomb)


def test_formats_outside_the_policy_are_not_opened():
    """EPS (which would run a program) and formats a policy leaves out are refused."""
    data = samples.encode(samples.picture(), "GIF")
    policy = MediaPolicy(image_formats=("PNG", "JPEG"))
    with pytest.raises(OSError, match="image_formats"):
        load_picture(data, policy=policy)
    with pytest.raises(OSError, match="image_formats"):
        load_picture(samples.encode(samples.picture(), "EPS"))
    load_picture(data, policy=replace(policy, image_formats=("GIF",)))


def test_check_size():
    """Sizes at the limits pass, beyond them they are refused by name."""
    policy = MediaPolicy(max_pixels=200, max_aspect_ratio=200)
    check_size(1, 200, policy=policy)
    for size in ((0, 5), (5, 0), (1, 201), (15, 14)):
        with pytest.raises(ValueError, match="picture of"):
            check_size(*size, policy=policy, name="picture")


def test_strict_mode_is_counted_between_threads(monkeypatch):
    """Many threads decode at once while the process accepts truncated files: none lets one pass, the flag returns."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = samples.encode(samples.picture(200, 300), "JPEG")
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            load_picture(data)
            try:
                load_picture(data[: len(data) // 2])
                wrong.append("a truncated file passed")
            except OSError:
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong and ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_one_opened_image_in_many_threads(tmp_path):
    """A lazily opened image shared by threads is decoded once and gives all of them the same pixels."""
    path = samples.write(tmp_path / "a.png", samples.picture(300, 400))
    expected = load(path)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            shared, results = Image.open(path), []
            threads = [threading.Thread(target=lambda s=shared, r=results: r.append(load(s))) for _ in range(6)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            assert len(results) == 6
            for pixels in results:
                np.testing.assert_array_equal(pixels, expected)
    finally:
        sys.setswitchinterval(interval)


def test_convert_rgb_false_accepts_rgb_only():
    """`convert_rgb=False` refuses what would be converted and passes RGB."""
    load(samples.picture(), convert_rgb=False)
    load(samples.pixels(), convert_rgb=False)
    for source in (
        samples.picture(mode="L"),
        samples.encode(samples.picture(mode="RGBA")),
        samples.pixels(channels=4),
    ):
        with pytest.raises(ValueError, match="do_convert_rgb"):
            load_picture(source, convert_rgb=False)


def test_picture_says_what_it_is():
    """The record shows its size and source, not its pixels."""
    picture = load_picture(samples.pixels(5, 8))
    assert repr(picture) == "Picture(5x8, 'ndarray of shape (5, 8, 3)')"
    assert isinstance(picture, Picture) and load_picture(picture) is picture
