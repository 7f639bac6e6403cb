"""The border for videos, with real files: every time, turn and frame is compared with what was written."""

from __future__ import annotations

import base64
import dataclasses
import io
import threading
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from video_samples import (
    damage,
    gif,
    moving_frames,
    number_of,
    numbered_frames,
    truncate,
    write_sound,
    write_video,
)

import arlow.video_container as video_container
from arlow.media_fetch import MediaPolicy
from arlow.video_reader import Frames, flatten_videos, open_video


CONTAINERS = {
    "h264.mp4": {},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "fast.mp4": {"container_options": {"movflags": "faststart"}},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "h264.mkv": {},
    "live.mkv": {"container_options": {"live": "1"}},  # of unknown length
    "vp9.webm": {"codec": "libvpx-vp9"},
    "h264.avi": {},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.ts": {"format": "mpegts"},
    "h264.flv": {},
}


def decode_plainly(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(frames (N, H, W, 3), seconds (N,)) of a file by PyAV alone, as decoded and without turning."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        times = np.array([frame.pts * frame.time_base for frame in decoded], dtype=np.float64)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in decoded]), times - times[0]


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name: str, tmp_path: Path) -> None:
    """Every container and codec, with B-frames, tells its frames, their true times, and gives the right pictures."""
    path = write_video(tmp_path / name, numbered_frames(20), **CONTAINERS[name])
    video = open_video(path)
    assert (video.facts.total_frames, video.facts.height, video.facts.width) == (20, 32, 48)
    assert video.facts.timestamps == pytest.approx(np.arange(20) / 10, abs=1e-3)
    assert (video.facts.fps, video.facts.duration) == (pytest.approx(10, abs=0.01), pytest.approx(2.0, abs=1e-3))
    assert [number_of(frame) for frame in video.frames(range(20))] == list(range(20))
    assert [number_of(frame) for frame in video.frames([3, 3, 8, 19])] == [3, 3, 8, 19]


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "mpeg4.avi"])
def test_pixels_equal_plain_decoding(name: str, tmp_path: Path) -> None:
    """Frames are exactly those of a plain PyAV loop, from a path, a string, a file URL, bytes and a data URI."""
    path = write_video(tmp_path / name, moving_frames(9), **CONTAINERS[name])
    expected, _ = decode_plainly(path)
    uri = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (path, str(path), path.as_uri(), path.read_bytes(), bytearray(path.read_bytes()), uri):
        frames = list(open_video(source).frames(range(9)))
        assert all(frame.dtype == np.uint8 and frame.flags.c_contiguous for frame in frames)
        assert np.array_equal(np.stack(frames), expected)


def test_variable_rate_is_read_from_timestamps(tmp_path: Path) -> None:
    """Times that grow quadratically, starting late, come back exactly, the first one as 0."""
    times = [0.5 + 0.01 * k * k for k in range(15)]
    path = write_video(tmp_path / "varying.mp4", numbered_frames(15), times=times)
    video = open_video(path)
    assert video.facts.timestamps == pytest.approx([0.01 * k * k for k in range(15)], abs=1e-9)
    assert video.facts.timestamps == pytest.approx(decode_plainly(path)[1], abs=1e-12)
    assert [number_of(frame) for frame in video.frames([2, 14])] == [2, 14]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270, -90])
@pytest.mark.parametrize("flip", [False, True])
def test_rotation_metadata(rotation: int, flip: bool, tmp_path: Path) -> None:
    """The display matrix turns frames counter-clockwise by the rotation written, then mirrors them."""
    path = write_video(tmp_path / "turned.mp4", moving_frames(3), rotation=rotation, flip=flip)
    plain, _ = decode_plainly(path)
    expected = np.rot90(plain, rotation // 90 % 4, axes=(1, 2))
    expected = expected[:, :, ::-1] if flip else expected
    video = open_video(path)
    assert (video.facts.height, video.facts.width) == expected.shape[1:3]
    frames = np.stack(list(video.frames(range(3))))
    assert np.array_equal(frames, expected)


def test_the_sign_of_a_rotation_is_ffmpegs(tmp_path: Path) -> None:
    """PyAV reports the rotation we apply: `frame.rotation` counter-clockwise, as libavutil/display.h defines it."""
    path = write_video(tmp_path / "turned.mp4", moving_frames(1), rotation=90)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 90
        turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    assert np.array_equal(next(open_video(path).frames([0])), turned)


def test_only_frames_asked_for_become_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 frames two are converted, and the file is not read behind the last of them."""
    path = write_video(tmp_path / "long.mp4", numbered_frames(30))
    converted = []
    original = video_container._upright_rgb

    def counting(frame: av.VideoFrame, *, policy: MediaPolicy) -> np.ndarray:
        converted.append(frame.pts)
        return original(frame, policy=policy)

    video = open_video(path)
    monkeypatch.setattr(video_container, "_upright_rgb", counting)
    assert [number_of(frame) for frame in video.frames([4, 9])] == [4, 9]
    assert len(converted) == 2


def test_edit_list_drops_the_frames_before_the_cut(tmp_path: Path) -> None:
    """A clip cut by an edit list begins at the cut: what players skip is neither counted nor decoded."""
    path = write_video(tmp_path / "whole.mp4", numbered_frames(20))
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # type, version and flags, count; then duration, media time, rate
    scale = int.from_bytes(data[data.index(b"mdhd") + 16 :][:4], "big")
    start = int.from_bytes(data[entry + 4 : entry + 8], "big") + scale // 10 * 5
    data[entry + 4 : entry + 8] = start.to_bytes(4, "big")
    video = open_video(bytes(data))
    assert [number_of(frame) for frame in video.frames(range(video.facts.total_frames))] == list(range(5, 20))
    assert video.facts.timestamps == pytest.approx(np.arange(15) / 10)


def test_animated_gif_shows_transparency_over_white(tmp_path: Path) -> None:
    """A GIF is a video with alpha; what is transparent becomes white, as in pictures."""
    frames = []
    for shade in (10, 200):
        frame = Image.new("RGBA", (16, 12), (0, 0, 0, 0))
        frame.paste((shade, 0, 0, 255), (0, 0, 8, 12))
        frames.append(frame)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 300], disposal=2)
    video = open_video(tmp_path / "a.gif")
    assert video.facts.timestamps == pytest.approx([0.0, 0.1])
    first, second = video.frames([0, 1])
    assert first[0, 0].tolist() == [10, 0, 0] and first[0, 15].tolist() == [255, 255, 255]
    assert second[0, 0].tolist() == [200, 0, 0] and second[0, 15].tolist() == [255, 255, 255]


def test_motion_is_the_mean_change_of_small_grey_frames(tmp_path: Path) -> None:
    """Against the luma PyAV decodes, stretched to 0..255 and averaged over whole cells: within a rounding a cell."""
    path = write_video(tmp_path / "clip.mp4", moving_frames(8, 96, 128), rotation=90)
    with av.open(str(path)) as container:
        luma = np.stack([frame.to_ndarray()[:96] for frame in container.decode(video=0)])  # yuv420p: Y, then U and V
    small = ((luma - 16.0) * 255 / 219).clip(0, 255).reshape(8, 32, 3, 32, 4).mean(axis=(2, 4))
    expected = [0.0, *np.abs(np.diff(small, axis=0)).mean(axis=(1, 2))]
    motion = open_video(path).motion()
    assert motion == pytest.approx(expected, abs=0.1) and max(expected) > 1.5
    assert np.array_equal(open_video(path).motion(), motion)
    stills = moving_frames(4, 64, 96)
    grey = np.stack(
        [np.asarray(Image.fromarray(each).convert("L")).reshape(32, 2, 32, 3).mean((1, 3)) for each in stills]
    )
    expected = [0.0, *np.abs(np.diff(np.rint(grey), axis=0)).mean(axis=(1, 2))]
    assert open_video(stills).motion() == pytest.approx(expected, abs=0.05)


def test_motion_makes_no_full_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Motion is measured on what the decoder's frames shrink to; none becomes RGB."""
    video = open_video(write_video(tmp_path / "clip.mp4", moving_frames(8)))
    monkeypatch.setattr(video_container, "_upright_rgb", lambda *_, **__: pytest.fail("converted"))
    assert len(video.motion()) == 8


def test_memory_sources_are_one_video(tmp_path: Path) -> None:
    """Arrays in either layout, tensors, Pillow images, encoded stills and a JPEG list give the same frames."""
    clip = moving_frames(4)
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path, frame in zip(paths, clip, strict=True):
        Image.fromarray(frame).save(path)
    sources = [
        clip,
        clip.transpose(0, 3, 1, 2),
        torch.from_numpy(clip),
        torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255,
        list(clip),
        [Image.fromarray(frame) for frame in clip],
        [str(path) for path in paths],
        paths,
        [path.read_bytes() for path in paths],
        [clip[0], Image.fromarray(clip[1]), paths[2], paths[3].read_bytes()],
    ]
    for source in sources:
        video = open_video(source, fps=4, value_range="0..1" if getattr(source, "dtype", 0) == torch.float32 else None)
        assert np.array_equal(np.stack(list(video.frames(range(4)))), clip)
        assert video.facts.timestamps.tolist() == [0.0, 0.25, 0.5, 0.75]
        assert (video.facts.fps, video.facts.duration) == (4.0, 1.0)


def test_jpeg_list(tmp_path: Path) -> None:
    """`data:video/jpeg;base64,a,b` is a list of JPEGs, decoded as Pillow decodes them."""
    files = []
    for frame in moving_frames(3):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    uri = "data:video/jpeg;base64," + ",".join(base64.b64encode(file).decode() for file in files)
    video = open_video(uri)
    expected = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    assert np.array_equal(np.stack(list(video.frames(range(3)))), np.stack(expected))
    assert video.facts.timestamps is None and video.facts.fps is None


def test_jpeg_list_is_counted_before_decoding() -> None:
    """A thousand frames that would not even decode are refused by their number alone."""
    uri = "data:video/jpeg;base64," + ",".join(["!!!!"] * 1000)
    with pytest.raises(ValueError, match="1000 frames are more than the policy's max_frames=10"):
        open_video(uri, policy=MediaPolicy(max_frames=10))


def test_metadata_tells_the_rate() -> None:
    """A rate comes from `fps` or metadata, and the frames of a clip already sampled keep their own times."""
    clip = moving_frames(3)
    assert open_video(clip).facts.timestamps is None
    assert open_video(clip, metadata={"fps": 30}).facts.timestamps == pytest.approx([0, 1 / 30, 2 / 30])
    sampled = open_video(clip, metadata={"fps": 10, "total_num_frames": 90, "frames_indices": [0, 30, 80]})
    assert sampled.facts.timestamps.tolist() == [0.0, 3.0, 8.0]


def test_dark_floats_take_their_range_from_the_clip() -> None:
    """A clip of floats in 0..255 may hold a nearly black frame; alone that frame would be ambiguous."""
    clip = np.full((2, 8, 8, 3), 0.5, dtype=np.float32)
    clip[1] = 200.0
    assert next(open_video(clip).frames([0])).max() == 0
    for most in (0.5, 1.0001, 1.4, 15.9):  # also a range of 0..1 that overshoots
        with pytest.raises(ValueError, match="value_range"):
            open_video(clip[:1] * 2 * most)
    clip[1] = 300.0
    with pytest.raises(ValueError, match=r"video\[1\].*to clip them"):
        list(open_video(clip).frames([0, 1]))
    assert next(open_video(clip, value_range="0..255").frames([1])).min() == 255


@pytest.mark.parametrize("name", ["h264.mp4", "fast.mp4", "fragmented.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_files(name: str, keep: float, tmp_path: Path) -> None:
    """A file that ends early is an `OSError` that names it, never a shorter video."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), dtype=np.uint8)
    path = truncate(write_video(tmp_path / name, noise, **CONTAINERS[name]), keep=keep)
    with pytest.raises(OSError, match=name):
        video = open_video(path)
        list(video.frames(range(video.facts.total_frames)))


@pytest.mark.parametrize("options", [{}, {"comment": b"some words"}, {"interlace": 0, "loop": 3}, {"disposal": 2}])
def test_a_gif_that_ends_early(options: dict) -> None:
    """A whole GIF is read, with bytes behind it too; cut anywhere, it is an error and no made-up frame."""
    data = gif(moving_frames(10, 96, 128), **options)
    assert open_video(data).facts.total_frames == open_video(data + b"behind").facts.total_frames == 10
    for keep in {*range(14, len(data), 97), len(data) - 2, len(data) - 1}:
        with pytest.raises(OSError, match=r"the last block of the GIF is missing or unfinished"):
            open_video(data[:keep])


def test_transport_streams_and_flv_that_end_early(tmp_path: Path) -> None:
    """Both are refused if they end in a packet or a tag, from bytes and from a file; between two nobody can tell."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), dtype=np.uint8)
    for name, words in (("h264.ts", "bytes into a packet of 188"), ("h264.flv", "last tag of the FLV")):
        path = write_video(tmp_path / name, noise, **CONTAINERS[name])
        data = path.read_bytes()
        assert open_video(data).facts.total_frames == 24
        for keep in range(len(data) // 3, len(data) - 188, 1001):
            if name == "h264.ts" and keep % 188 == 0:
                continue
            path.write_bytes(data[:keep])
            for source in (path, data[:keep]):
                with pytest.raises(OSError, match=words):
                    open_video(source)
    data = write_video(tmp_path / "again.ts", noise, format="mpegts").read_bytes()
    stamped = b"".join(b"\0\0\0\1" + data[at : at + 188] for at in range(0, len(data), 188))  # Blu-ray's packets
    assert open_video(stamped).facts.total_frames == 24
    with pytest.raises(OSError, match="100 bytes into a packet of 192"):
        open_video(stamped[:-92])


@pytest.mark.parametrize("name", ["h264.mp4", "fragmented.mp4", "h264.mkv", "mpeg4.avi", "h264.ts"])
def test_damaged_data(name: str, tmp_path: Path) -> None:
    """Noise in the middle is an `OSError` when a frame behind it is asked for, and no matter before it."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), dtype=np.uint8)
    path = damage(write_video(tmp_path / name, noise, **CONTAINERS[name]), length=400)
    with pytest.raises(OSError, match=name):
        video = open_video(path)
        if name != "h264.ts":  # each of its packets has a counter: damage shows before anything is decoded
            assert len(list(video.frames([0, 1]))) == 2
        list(video.frames(range(video.facts.total_frames)))


def test_bytes_behind_the_video_are_no_damage(tmp_path: Path) -> None:
    """Some programs append their own data to an MP4; its frames are all there, so it is not truncated."""
    data = write_video(tmp_path / "clip.mp4", moving_frames(4)).read_bytes()
    for behind in (b"\0" * 20, b"junk behind the video", b"\0\0\0\x08free"):
        assert open_video(data + behind).facts.total_frames == 4


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_error_or_a_video(data: st.DataObject, tmp_path_factory) -> None:
    """Whatever bytes of a file are changed or cut off, there are frames, or an `OSError` or `ValueError` by name."""
    folder = tmp_path_factory.getbasetemp()
    name = data.draw(st.sampled_from(["h264.mp4", "h264.mkv", "mpeg4.avi", "h264.ts", "h264.flv", "vp9.webm"]))
    path = folder / f"whole-{name}"
    if not path.exists():
        write_video(path, moving_frames(6, 32, 48), **CONTAINERS[name])
    changed = bytearray(path.read_bytes())
    places = st.one_of(st.integers(0, len(changed) - 1), st.integers(0, 400))
    for at, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)):
        changed[min(at, len(changed) - 1)] = value
    keep = data.draw(st.sampled_from([len(changed)] * 4 + [len(changed) // 2]))
    try:
        video = open_video(bytes(changed[:keep]))
        frames = list(video.frames(range(min(video.facts.total_frames, 20))))
        assert all(frame.shape == (video.facts.height, video.facts.width, 3) for frame in frames)
    except (OSError, ValueError) as error:
        assert not isinstance(error, av.error.FFmpegError)
        assert str(error).startswith("video") and len(str(error)) <= 300


def test_hidden_frames_of_vp8_are_not_counted() -> None:
    """VP8 stores frames that are never shown; bit 4 of the first byte tells (RFC 6386, 9.1)."""
    vp8, other = (SimpleNamespace(codec_context=SimpleNamespace(name=name)) for name in ("vp8", "h264"))
    assert video_container._is_shown(b"\x10\x02\x00", vp8) and not video_container._is_shown(b"\x01\x02\x00", vp8)
    assert video_container._is_shown(b"\x00", other)


def test_other_formats_and_references_are_refused(tmp_path: Path) -> None:
    """A playlist, a concat script and a still picture are not opened, whatever they are called."""
    secret = write_video(tmp_path / "secret.mp4", moving_frames(2))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile '{secret}'\n".encode()
    still = io.BytesIO()
    Image.new("RGB", (8, 8)).save(still, "PNG")
    for data in (playlist, concat, still.getvalue(), b"hello" * 99):
        (tmp_path / "innocent.mp4").write_bytes(data)
        for source in (data, tmp_path / "innocent.mp4"):
            with pytest.raises(OSError, match="not a readable video of an allowed format"):
                open_video(source)
    with pytest.raises(OSError, match="allowed format"):
        open_video(secret, policy=MediaPolicy(video_formats=("avi",)))


def test_limits_are_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels, seconds and bytes over the policy's limits are refused from headers; no frame is decoded for it."""
    path = write_video(tmp_path / "clip.mp4", moving_frames(20))
    monkeypatch.setattr(video_container, "_upright_rgb", lambda *_, **__: pytest.fail("decoded"))
    for policy, source, named in [
        (MediaPolicy(max_pixels=100), path, "max_pixels=100"),
        (MediaPolicy(max_seconds=1.5), path, "max_seconds=1.5"),
        (MediaPolicy(max_bytes=100), path.read_bytes(), "max_bytes=100"),
        (MediaPolicy(max_frames=3), moving_frames(4), "max_frames=3"),
        (MediaPolicy(max_frames=3), [tmp_path / "absent.jpg"] * 4, "max_frames=3"),
        (MediaPolicy(local_roots=(tmp_path / "other",)), path, "local_roots"),
    ]:
        with pytest.raises(ValueError, match=named):
            open_video(source, policy=policy)


def test_more_frames_than_the_policy_keeps(tmp_path: Path) -> None:
    """A long file may be opened; asking for more frames than `max_frames` may not."""
    video = open_video(write_video(tmp_path / "clip.mp4", moving_frames(9)), policy=MediaPolicy(max_frames=4))
    assert len(list(video.frames([0, 2, 4, 8]))) == 4
    with pytest.raises(ValueError, match="max_frames=4"):
        video.frames(range(5))


@pytest.mark.parametrize(
    ("source", "options", "error", "named"),
    [
        (moving_frames(0), {}, ValueError, "without frames"),
        ([], {}, ValueError, "without frames"),
        (np.zeros((2, 3, 8, 3), np.uint8), {}, ValueError, "input_data_format"),
        (np.zeros((2, 9, 8, 7), np.uint8), {}, ValueError, "input_data_format"),
        (np.zeros((2, 0, 8, 3), np.uint8), {}, ValueError, "empty"),
        (np.zeros((8, 8), np.uint8), {}, ValueError, "4 axes"),
        (np.full((2, 8, 8, 3), np.nan), {}, ValueError, r"video\[0\].*NaN"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], {}, ValueError, "different sizes"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], {}, ValueError, "different sizes"),
        (moving_frames(2), {"fps": 0}, ValueError, "fps=0"),
        (moving_frames(2), {"fps": float("nan")}, ValueError, "fps=nan"),
        (moving_frames(2), {"metadata": {"fps": 2, "total_num_frames": 9}}, ValueError, "frames_indices"),
        (moving_frames(2), {"metadata": {"fps": 2, "frames_indices": [3]}}, ValueError, "frames_indices"),
        (3, {}, TypeError, "not a video"),
        (None, {}, TypeError, "not a video"),
        ("/nowhere/at/all.mp4", {}, FileNotFoundError, "all.mp4"),
    ],
)
def test_bad_sources(source: object, options: dict, error: type[Exception], named: str) -> None:
    """What is no video, or an ambiguous one, is an error naming the place and, where there is one, the argument."""
    with pytest.raises(error, match=named):
        open_video(source, **options)


def test_mixed_sizes_of_encoded_stills(tmp_path: Path) -> None:
    """Stills are read one by one; one of another size is refused when its turn comes."""
    for index, width in enumerate((8, 8, 9)):
        Image.new("RGB", (width, 8)).save(tmp_path / f"{index}.png")
    video = open_video([tmp_path / f"{index}.png" for index in range(3)])
    with pytest.raises(ValueError, match=r"video\[2\].*8x9.*8x8"):
        list(video.frames(range(3)))


def test_audio_and_empty_files(tmp_path: Path) -> None:
    """A song, a container without frames and an empty file are `ValueError`s that say so."""
    with pytest.raises(ValueError, match="no video stream"):
        open_video(write_sound(tmp_path / "song.mp4"))
    with pytest.raises(ValueError, match=r"no video stream|without frames"):
        open_video(write_video(tmp_path / "none.mp4", numbered_frames(0)))
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="no data"):
        open_video(tmp_path / "empty.mp4")


@pytest.mark.parametrize("indices", [[-1], [5], [2, 1], [], [[0]]])
def test_bad_indices(indices: list) -> None:
    """Indices out of range, falling or missing are refused at once, not when the frames are read."""
    with pytest.raises(ValueError, match="indices"):
        open_video(moving_frames(5)).frames(indices)


def test_threads_share_a_source(tmp_path: Path) -> None:
    """Four threads reading one source get what one alone gets."""
    video = open_video(write_video(tmp_path / "clip.mp4", moving_frames(12)))
    expected = np.stack(list(video.frames(range(12))))
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(np.stack(list(video.frames(range(12)))))) for _ in "1234"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(np.array_equal(each, expected) for each in results)


@settings(max_examples=12, deadline=None)
@given(
    rate=st.sampled_from([1, 10, 25, Fraction(30000, 1001), 60]),
    count=st.integers(1, 18),
    data=st.data(),
)
def test_any_choice_of_frames(rate: int | Fraction, count: int, data: st.DataObject, tmp_path_factory) -> None:
    """Any rising choice of frames of any constant-rate clip gives those frames, at index / rate seconds."""
    path = write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", numbered_frames(count), rate=rate)
    video = open_video(path)
    assert video.facts.timestamps == pytest.approx(np.arange(count) / float(rate), abs=1e-4)
    wanted = sorted(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    assert [number_of(frame) for frame in video.frames(wanted)] == wanted


def test_flatten_videos() -> None:
    """What is one video and what is a batch, in the nestings that people and chat templates use."""
    clip, frame, picture = moving_frames(2), moving_frames(1)[0], Image.new("RGB", (8, 8))
    path, still = "a.mp4", "https://host/0.jpg?size=9"
    cases = [
        (path, [path]),
        ([path, b"bytes"], [path, b"bytes"]),
        ([[path], [path, Path("b.webm")], []], [path, path, Path("b.webm")]),
        (clip, 1),
        (np.stack([clip, clip]), 2),
        ([clip, path], 2),
        ([picture, picture], [Frames((picture, picture))]),
        ([frame, frame], 1),
        (picture, [Frames((picture,))]),
        ([[picture, picture], [picture]], [Frames((picture, picture)), Frames((picture,))]),
        ([still, still], [Frames((still, still))]),
        ([[still, still], path], [Frames((still, still)), path]),
        ([[["https://host/1", "https://host/2"]]], [Frames(("https://host/1", "https://host/2"))]),
        (["https://host/1", "https://host/2"], ["https://host/1", "https://host/2"]),
        ([[clip, path, [picture]]], 3),
        ([], []),
    ]
    for videos, expected in cases:
        flat = flatten_videos(videos)
        assert len(flat) == (expected if isinstance(expected, int) else len(expected))
        if not isinstance(expected, int):
            assert flat == expected
        again = flatten_videos(flat)
        assert len(again) == len(flat) and all(a is b for a, b in zip(again, flat, strict=True))
    with pytest.raises(ValueError, match="list of its own"):
        flatten_videos([picture, path])
    with pytest.raises(TypeError, match=r"videos\[1\]"):
        flatten_videos([path, None])


def test_policy_is_a_copy(tmp_path: Path) -> None:
    """A raised limit admits what the default refuses."""
    path = write_video(tmp_path / "thin.mp4", np.zeros((2, 16, 3600, 3), np.uint8))
    with pytest.raises(ValueError, match="aspect ratio"):
        open_video(path)
    policy = dataclasses.replace(MediaPolicy(), max_aspect_ratio=300.0)
    assert open_video(path, policy=policy).facts.width == 3600


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "libx264", {"g": "40"}),
        ("clip.mkv", "libx264", {"g": "40", "x264-params": "open-gop=1"}),
        ("clip.mp4", "libx264", {"g": "60", "x264-params": "intra-refresh=1"}),
        ("clip.ts", "libx264", {"g": "40"}),
        ("clip.webm", "libvpx-vp9", {"g": "40", "deadline": "realtime", "cpu-used": "8"}),
        ("clip.avi", "mpeg4", {"g": "12"}),
    ],
    ids=["closed", "open", "refresh", "stream", "vp9", "avi"],
)
def test_sparse_frames_are_those_of_reading_all(tmp_path: Path, name: str, codec: str, options: dict) -> None:
    """Jumping to key frames and leaving frames out changes no pixel, wherever the wanted ones lie."""
    path = write_video(tmp_path / name, moving_frames(300, 64, 96), codec=codec, codec_options=options)
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    source = open_video(path)
    assert source.facts.total_frames == len(expected)
    for wanted in ([7], [250], [0, 299], [3, 41, 42, 120, 199, 201], [*range(0, 300, 25)], [130, 131, 290]):
        for index, frame in zip(wanted, source.frames(wanted), strict=True):
            np.testing.assert_array_equal(frame, expected[index], err_msg=f"{wanted} at {index}")


def test_sparse_frames_are_reached_by_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 frames two are wanted: most packets are never read."""
    path = write_video(tmp_path / "clip.mp4", moving_frames(600, 64, 96), codec_options={"g": "30"})
    source, read = open_video(path), []
    packets = video_container._packets
    monkeypatch.setattr(
        video_container, "_packets", lambda *args, **kwargs: (read.append(p) or p for p in packets(*args, **kwargs))
    )
    assert len(list(source.frames([5, 595]))) == 2
    assert len(read) < 150
