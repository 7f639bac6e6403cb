"""Bad pictures and bad options of the image processor."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import media_samples as samples
import numpy as np
import torch
from PIL import Image

from arlow.image_processing_arlow import ArlowImageProcessor
from arlow.media_fetch import MediaPolicy

from . import BadInput


GOOD = samples.pixels()
ROOM = "images"


def process(images: Any, policy: MediaPolicy | None = None, **options: Any) -> Callable[[Path], object]:
    """An attempt to process `images`; a callable gets the directory and makes them."""

    def attempt(folder: Path) -> object:
        processor = ArlowImageProcessor()
        if policy is not None:
            processor.policy = policy
        return processor(images(folder) if callable(images) else images, return_tensors="pt", **options)

    return attempt


def build(**options: Any) -> Callable[[Path], object]:
    """An attempt to construct the processor."""
    return lambda _folder: ArlowImageProcessor(**options)


def load(**options: Any) -> Callable[[Path], object]:
    """An attempt to load a saved processor."""

    def attempt(folder: Path) -> object:
        ArlowImageProcessor().save_pretrained(folder)
        return ArlowImageProcessor.from_pretrained(folder, **options)

    return attempt


def file(data: bytes, name: str = "broken.png") -> Callable[[Path], list]:
    """A good picture, then a file with these bytes: `images[1]`."""

    def make(folder: Path) -> list:
        (folder / name).write_bytes(data)
        return [GOOD, folder / name]

    return make


def case(name: str, attempt: Callable[[Path], object], error: Any, names: str) -> BadInput:
    return BadInput(name, ROOM, attempt, error, names)


JPEG = samples.encode(samples.picture(200, 300), "JPEG")
PNG = samples.encode(samples.picture(200, 300))
HUGE = samples.png(12_000, 9000, bits=1, colour=0, rows=[b""])
ICON = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(HUGE), 22) + HUGE
FLIPPED = bytearray(PNG)
FLIPPED[len(PNG) // 2] ^= 1
NAN = GOOD.astype(np.float32)
NAN[3, 4, 1] = np.nan

FILES = [
    case("missing file", process("no/such/file.png"), OSError, "no/such/file.png"),
    case("directory instead of a file", process(lambda folder: [folder]), OSError, "images[0]"),
    case("empty file", process(file(b"")), ValueError, "broken.png"),
    case("truncated JPEG", process(file(JPEG[: len(JPEG) // 2], "cut.jpg")), OSError, "cut.jpg"),
    case("truncated PNG", process(file(PNG[: len(PNG) // 2])), OSError, "images[1]"),
    case("JPEG cut in half, then ended", process(file(JPEG[:3000] + b"\xff\xd9", "grey.jpg")), OSError, "grey.jpg"),
    case("PNG with one flipped bit", process(file(bytes(FLIPPED))), OSError, "images[1]"),
    case("text named .png", process(file(b"<html>404 Not Found</html>")), OSError, "image_formats"),
    case("bytes that are no picture", process(b"\0" * 100), OSError, "images=100 bytes"),
    case("no bytes", process([GOOD, b""]), ValueError, "images[1]"),
    case(
        "decompression bomb", process(samples.png(60_000, 60_000, bits=1, colour=0, rows=[b""])), ValueError, "images"
    ),
    case("more pixels than the policy", process([PNG], MediaPolicy(max_pixels=1000)), ValueError, "max_pixels=1000"),
    case("more bytes than the policy", process([PNG], MediaPolicy(max_bytes=1000)), ValueError, "max_bytes=1000"),
    case("icon that says 16x16 of 9000x12000", process(ICON), ValueError, "9000x12000"),
    case("PostScript, which would run a program", process(samples.encode(GOOD, "EPS")), OSError, "image_formats"),
    case("path outside the roots", process(file(PNG), MediaPolicy(local_roots=("/srv",))), ValueError, "local_roots"),
    case(
        "local file where none may be",
        process(file(PNG), MediaPolicy(allow_local_files=False)),
        ValueError,
        "images[1]",
    ),
    case(
        "truncated picture opened by the user", process(lambda _: [samples.opened(PNG[:9000])]), OSError, "images[0]"
    ),
]

URLS = [
    case("loopback URL", process("http://127.0.0.1:1/a.png?key=1"), ValueError, "http://127.0.0.1:1/a.png'"),
    case("cloud metadata URL", process(["http://169.254.169.254/latest"]), ValueError, "images[0]"),
    case(
        "URL where none may be",
        process("https://e.org/a.png", MediaPolicy(allow_urls=False)),
        ValueError,
        "allow_urls",
    ),
    case("host not allowed", process("https://e.org/a", MediaPolicy(allowed_hosts=("f.org",))), ValueError, "e.org"),
    case("scheme ftp", process("ftp://example.org/a.png"), ValueError, "ftp"),
    case("URL with a password", process("https://me:word@example.org/a.png"), ValueError, "user name or password"),
    case("data URI that is no base64", process("data:image/png;base64,%%%"), ValueError, "images"),
    case("data URI without data", process(["data:image/png;base64,"]), ValueError, "images[0]"),
    case("base64 text as a path", process("iVBORw0KGgoAAAANSUhEUg" * 30), OSError, "data URI"),
]

ARRAYS = [
    case("channels first or last?", process([GOOD, GOOD[:3]]), ValueError, "input_data_format"),
    case("1x3x3 array", process(np.zeros((1, 3, 3), np.uint8)), ValueError, "input_data_format"),
    case("five channels", process(np.zeros((40, 60, 5), np.uint8)), ValueError, "(40, 60, 5)"),
    case("wrong input_data_format", process(GOOD, input_data_format="channels_first"), ValueError, "first axis"),
    case("unknown input_data_format", process(GOOD, input_data_format="HWC"), ValueError, "HWC"),
    case("floats in 0..1", process(GOOD / 255), ValueError, "value_range"),
    case("floats that overshoot 0..1", process((GOOD / 255 * 1.005).astype(np.float32)), ValueError, "value_range"),
    case("floats of a few levels", process(GOOD / 25.5), ValueError, "value_range"),
    case("floats centred on 0, called 0..1", process(GOOD / 255 - 0.5, value_range="0..1"), ValueError, "-0.5"),
    case(
        "floats in 0..1 that shall not be rescaled",
        process(GOOD / 255, value_range="0..1", do_rescale=False),
        ValueError,
        "do_rescale=False",
    ),
    case("float tensor in 0..1", process(torch.from_numpy(GOOD).permute(2, 0, 1) / 255), ValueError, "value_range"),
    case("NaN", process([GOOD, NAN]), ValueError, "images[1]"),
    case("infinity", process(np.full((40, 60), np.inf)), ValueError, "infinite"),
    case("negative samples", process(GOOD.astype(int) - 300), ValueError, "outside 0..255"),
    case("samples over 255", process(GOOD.astype(np.int32) * 2), ValueError, "value_range"),
    case("16-bit samples", process(GOOD.astype(np.uint16)), ValueError, "value_range"),
    case("booleans", process(GOOD > 5), ValueError, "value_range"),
    case("range that does not fit", process(GOOD.astype(float), value_range="0..1"), ValueError, "outside 0..1"),
    case("unknown value_range", process(GOOD, value_range="0-1"), ValueError, "value_range='0-1'"),
    case("complex numbers", process(GOOD.astype(complex)), TypeError, "complex128"),
    case("text in an array", process(np.array([["a", "b"]])), TypeError, "images"),
    case("empty array", process(np.zeros((0, 60, 3), np.uint8)), ValueError, "(0, 60, 3)"),
    case("one axis", process(np.zeros(60, np.uint8)), ValueError, "axes"),
    case("five axes", process(np.zeros((1, 2, 40, 60, 3), np.uint8)), ValueError, "axes"),
    case("tensor on the meta device", process(torch.zeros(3, 40, 60, device="meta")), ValueError, "meta"),
    case("empty Pillow image", process(Image.new("RGB", (0, 5))), ValueError, "5x0"),
    case(
        "Pillow float image in 0..1",
        process(Image.fromarray(np.full((9, 9), 0.5, np.float32))),
        ValueError,
        "value_range",
    ),
    case(
        "aspect ratio over 200", process([GOOD, np.zeros((5, 1001, 3), np.uint8)]), ValueError, "images[1] of 5x1001"
    ),
]

LISTS = [
    case("None", process(None), TypeError, "images"),
    case("None in a list", process([GOOD, None]), TypeError, "images[1]"),
    case("empty list", process([]), ValueError, "images"),
    case("rows without a picture", process([[], []]), ValueError, "images"),
    case("lists three deep", process([[[GOOD]]]), TypeError, "images[0][0]"),
    case("a number", process(3), TypeError, "images=3"),
    case("a dict", process([[{"url": "a.png"}]]), TypeError, "images[0][0]"),
]

OPTIONS = [
    case("misspelt option in a call", process(GOOD, do_pan_and_scann=True), TypeError, "do_pan_and_scan'"),
    case("misspelt option at construction", build(patchsize=14), TypeError, "patchsize"),
    case("misspelt option at load", load(do_pan_an_scan=True), TypeError, "do_pan_an_scan"),
    case("impossible option at load", load(patch_size=0), ValueError, "patch_size=0"),
    case("centre crop, which there is none", process(GOOD, do_center_crop=True), TypeError, "do_center_crop"),
    case("patch_size 0", build(patch_size=0), ValueError, "patch_size=0"),
    case("patch_size as text", build(patch_size="14"), ValueError, "patch_size='14'"),
    case("negative merge_size", process(GOOD, merge_size=-2), ValueError, "merge_size=-2"),
    case("temporal_patch_size True", build(temporal_patch_size=True), ValueError, "temporal_patch_size=True"),
    case("min over max pixels", build(min_pixels=10**6, max_pixels=10**5), ValueError, "'longest_edge': 100000"),
    case("min over max pixels in a call", process(GOOD, size={"longest_edge": 1000}), ValueError, "size="),
    case("less than one token", build(size={"shortest_edge": 1, "longest_edge": 783}), ValueError, "max_pixels=783"),
    case("negative pixels", build(min_pixels=-1), ValueError, "min_pixels=-1"),
    case("size as height and width", build(size={"height": 224, "width": 224}), ValueError, "size="),
    case("size as a number", process(GOOD, size=224), ValueError, "size=224"),
    case("unknown filter", build(resample=9), ValueError, "resample=9"),
    case("filter as text", process(GOOD, resample="bicubic"), ValueError, "resample='bicubic'"),
    case("std of zero", build(image_std=[0.5, 0, 0.5]), ValueError, "image_std"),
    case("mean of four channels", build(image_mean=[0.5] * 4), ValueError, "image_mean"),
    case("mean that is NaN", process(GOOD, image_mean=float("nan")), ValueError, "image_mean"),
    case("rescale_factor 0", build(rescale_factor=0), ValueError, "rescale_factor=0"),
    case("do_resize as text", process(GOOD, do_resize="no"), ValueError, "do_resize='no'"),
    case("no tokens", process(GOOD, max_tokens_per_image=0), ValueError, "max_tokens_per_image=0"),
    case("crop size 0", build(pan_and_scan_min_crop_size=0), ValueError, "pan_and_scan_min_crop_size=0"),
    case("no crops", build(pan_and_scan_max_num_crops=0), ValueError, "pan_and_scan_max_num_crops=0"),
    case("negative ratio", build(pan_and_scan_min_ratio_to_activate=-1), ValueError, "min_ratio_to_activate=-1"),
    case("size that does not fit, not resized", process([GOOD], do_resize=False), ValueError, "images[0] of 40x60"),
    case("grey where RGB is asked for", process(GOOD[..., 0], do_convert_rgb=False), ValueError, "do_convert_rgb"),
    case(
        "too many tokens, not resized",
        process(np.zeros((56, 56, 3), np.uint8), do_resize=False, max_tokens_per_image=3),
        ValueError,
        "max_tokens_per_image=3",
    ),
    case(
        "unknown tensor type",
        lambda _: ArlowImageProcessor()(GOOD, return_tensors="tf"),
        ValueError,
        "return_tensors='tf'",
    ),
    case("policy without bytes", lambda _: MediaPolicy(max_bytes=0), ValueError, "max_bytes=0"),
]

CASES = [*FILES, *URLS, *ARRAYS, *LISTS, *OPTIONS]
