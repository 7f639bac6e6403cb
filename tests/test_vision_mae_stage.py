"""The stage vision-mae on real files: it learns, writes what the next stages load, resumes exactly, on two processes
too, and names what is wrong before it writes anything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_samples import picture
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from tiny_models import tiny_vlm
from video_samples import moving_frames, write_video

from arlow import ArlowImageProcessor, ArlowVideoProcessor, ArlowVLVisionModel
from arlow.patches import pack_video
from arlow.training import train
from arlow.training.loop import newest_checkpoint
from arlow.training.masked_autoencoder import MaskedAutoencoder, normalise
from arlow.training.parts import load_encoder
from arlow.training.recipe import read_recipe
from arlow.training.reconstruction_sheet import unpack_rows
from arlow.training.vision_mae import (
    Recipe,
    collate,
    make_draws,
    make_loaders,
    make_processing,
    open_sources,
)


Usage = namedtuple("Usage", "total used free")
TOWER = {
    "depth": 2, "embed_dim": 48, "hidden_size": 64, "num_heads": 2, "patch_size": 8, "deepstack_visual_indexes": [0],
    "use_progressive_patches": True, "use_deformable_attention": True, "initializer_range": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures/`: 24 PNG and JPEG files of coloured discs; `clips/`: 3 MP4 files."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "pictures").mkdir()
    (folder / "clips").mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        height, width = rng.integers(48, 96, 2).tolist()
        image = Image.new("RGB", (width, height), tuple(rng.integers(0, 256, 3).tolist()))
        x, y, r = rng.integers(0, width), rng.integers(0, height), 20
        ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 256, 3).tolist()))
        image.save(folder / "pictures" / f"{number:02}.{'png' if number % 2 else 'jpg'}")
    for number in range(3):
        write_video(folder / "clips" / f"{number}.mp4", moving_frames(12, 48, 64 + 16 * number), rate=10)
    return folder


def fields(media: Path, output: Path, **over: Any) -> dict[str, Any]:
    return {
        "output_dir": str(output), "config": TOWER, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2,
        "images": str(media / "pictures"), "min_pixels": 2304, "max_pixels": 4096, "video_frames": 4,
        "max_steps": 6, "batch_size": 4, "save_steps": 3, "log_steps": 1, "eval_samples": 4, "device": "cpu",
        "learning_rate": 3e-3, "sheet_samples": 2, **over,
    }  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(folder: Path, key: str) -> list[float]:
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


# What comes out


@pytest.fixture(scope="module")
def trained(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on pictures and clips."""
    output = tmp_path_factory.mktemp("run")
    return train("vision-mae", **fields(media, output, videos=str(media / "clips"), video_probability=0.5))


def test_every_checkpoint_is_complete(trained: Path) -> None:
    """Checkpoints and the top of output_dir hold the encoder, which loads by itself with the weights of the whole, and
    the processors, which load from where Transformers looks for them."""
    for folder in (trained / "checkpoint-3", trained / "checkpoint-6", trained):
        tower = ArlowVLVisionModel.from_pretrained(folder / "vision_encoder")
        whole = weights(folder)
        for name, tensor in tower.state_dict().items():
            assert torch.equal(tensor, whole[f"tower.{name}"]), name
        image = ArlowImageProcessor.from_pretrained(folder / "image_processor")
        video = ArlowVideoProcessor.from_pretrained(folder / "video_processor")
        assert image.patch_size == video.patch_size == 8
        assert image.size["longest_edge"] == 4096
        assert json.loads((folder / "processor_config.json").read_text())["image_processor"]["patch_size"] == 8
        assert ArlowImageProcessor.from_pretrained(folder).to_dict() == image.to_dict()
        assert ArlowVideoProcessor.from_pretrained(folder).to_dict() == video.to_dict()


def test_sheet_at_every_evaluation(trained: Path) -> None:
    """A PNG for every evaluation, with pictures and clips, and a loss in the log."""
    sheets = sorted((trained / "sheets").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-000003.png", "step-000006.png"]
    with Image.open(sheets[-1]) as sheet:
        assert sheet.format == "PNG" and sheet.width > 400 and len(sheet.getcolors(1 << 20)) > 50
    assert len(history(trained, "eval_loss")) == 2


def test_speed_counts_all_patches(trained: Path) -> None:
    """The logged speed is of all patches, hidden ones too."""
    batch = first_batches(read_recipe(Recipe, trained / "recipe.yaml"))[0]
    rows = sum(len(batch[name]) for name in ("pixel_values", "pixel_values_videos") if name in batch)
    assert rows == len(batch["visible"]) + len(batch["masked"])
    assert min(history(trained, "tokens_per_second")) > 0


def first_batches(recipe: Recipe, count: int = 4) -> list[dict[str, torch.Tensor]]:
    from arlow import ArlowVisionConfig
    from arlow.data.bad_samples import BadSamples

    loaders = make_loaders(recipe, make_processing(recipe, ArlowVisionConfig(**TOWER)))
    draws = make_draws(recipe, open_sources(recipe), loaders, BadSamples(None))
    size = recipe.batch_size
    return [collate([draws[i] for i in range(first, first + size)]) for first in range(0, count * size, size)]


def test_batches(media: Path, tmp_path: Path) -> None:
    """Batches are of pictures or of clips, the same every time, with masks and crops of their own."""
    recipe = read_recipe(
        Recipe, **fields(media, tmp_path, videos=str(media / "clips"), video_probability=0.5, max_steps=40)
    )
    once, again = first_batches(recipe, 20), first_batches(recipe, 20)
    for a, b in zip(once, again, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        assert ("grid_thw" in a) != ("video_grid_thw" in a)
        hidden = len(a["masked"]) / (len(a["visible"]) + len(a["masked"]))
        assert 0.65 < hidden < 0.85
    clips = [batch for batch in once if "video_grid_thw" in batch]
    assert 4 <= len(clips) <= 16
    assert all(batch["video_grid_thw"][:, 0].tolist() == [2] * 4 for batch in clips)


def test_it_learns(media: Path, tmp_path: Path) -> None:
    """A tiny encoder gets clearly below the loss of painting every patch with its mean."""
    over = {"max_steps": 60, "save_steps": 60, "batch_size": 8, "log_steps": 5, "flip": False, "eval_samples": 24}
    output = train("vision-mae", **fields(media, tmp_path, **over))
    losses = history(output, "loss")
    batches = first_batches(read_recipe(Recipe, output / "recipe.yaml"))
    model = MaskedAutoencoder.from_pretrained(output)
    targets = torch.cat([normalise(model.true_rows([b["pixel_values"]], b["masked"])) for b in batches])
    mean_alone = targets.square().mean().item()
    assert 0.9 < mean_alone < 1.01
    assert np.mean(losses[-3:]) < 0.75 * mean_alone < losses[0]
    assert history(output, "eval_loss")[-1] < 0.75 * mean_alone


def test_rows_are_unpacked() -> None:
    """The sheet turns rows into the frames they were made of."""
    from arlow import ArlowVisionConfig

    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3)).astype(np.uint8)
    rows = pack_video(frames, patch_size=8, temporal_patch_size=2, merge_size=2)
    config = ArlowVisionConfig.tiny(patch_size=8)
    assert np.array_equal(unpack_rows(rows, (2, 4, 6), config), frames)


# Going on


def test_resume_is_exact(media: Path, tmp_path: Path) -> None:
    """Going on from a checkpoint ends with the weights of a run never stopped, bit for bit, decoder and clips too."""
    both = {"videos": str(media / "clips"), "video_probability": 0.5}
    whole = train("vision-mae", **fields(media, tmp_path / "whole", **both))
    for file in (whole / "checkpoint-6").iterdir():
        if file.is_file():
            file.unlink()  # as after a crash while it was written
    assert newest_checkpoint(whole) == whole / "checkpoint-3"
    before = weights(whole)
    again = train("vision-mae", **fields(media, tmp_path / "whole", **both))
    assert same(before, weights(again))


def test_room_for_what_is_yet_to_be_written(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on needs room for its next checkpoint and the model at the end, encoders included; no more."""
    config = fields(media, tmp_path / "out", keep_checkpoints=1, save_steps=6)
    out = train("vision-mae", **config)

    def size(folder: Path) -> int:
        files = [*folder.rglob("*.safetensors"), *folder.rglob("optimizer.pt")]
        return sum(path.stat().st_size for path in files)

    needed = size(out)  # one checkpoint, and the end
    for share, refused in ((0.9, True), (1.1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=int(share * needed): Usage(10**12, 10**12, free))
        with pytest.raises(OSError, match="GB free") if refused else nullcontext():
            train("vision-mae", **config)


@pytest.mark.slow
def test_killed_and_resumed(media: Path, tmp_path: Path) -> None:
    """A process killed with SIGKILL in the middle, and started again, ends where one never killed does."""
    config = {**fields(media, tmp_path / "killed", max_steps=40), "save_steps": 5}
    script = "import json, sys; from arlow.training import train; train('vision-mae', **json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", script, json.dumps(config)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while newest_checkpoint(tmp_path / "killed") is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest_checkpoint(tmp_path / "killed") is not None
    resumed = train("vision-mae", **config)
    whole = train("vision-mae", **{**config, "output_dir": str(tmp_path / "whole")})
    assert same(weights(resumed), weights(whole))


def test_go_on_from_an_encoder(trained: Path, media: Path, tmp_path: Path) -> None:
    """`model` takes a run, an encoder or a vision-language model; the training begins with its weights."""
    vlm = tiny_vlm(vision={"patch_size": 8})
    vlm.save_pretrained(tmp_path / "vlm")
    expected = ArlowVLVisionModel.from_pretrained(trained / "vision_encoder").state_dict()
    for folder in (trained, trained / "checkpoint-6", trained / "vision_encoder"):
        assert same(load_encoder(folder, field="model").state_dict(), expected)
    assert same(load_encoder(tmp_path / "vlm", field="model").state_dict(), vlm.model.visual.state_dict())
    kept = fields(media, tmp_path / "on", config=None, model=str(trained), max_steps=1, learning_rate=1e-12)
    output = train("vision-mae", **kept)
    found = ArlowVLVisionModel.from_pretrained(output / "vision_encoder").state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_processor_of_a_model_is_kept(trained: Path, media: Path, tmp_path: Path) -> None:
    """An encoder goes on with the normalisation it was trained with, unless told otherwise."""
    from arlow import ArlowVisionConfig

    ArlowVLVisionModel(ArlowVisionConfig(**TOWER)).save_pretrained(tmp_path / "vision_encoder")
    ArlowImageProcessor(image_mean=(0.1, 0.2, 0.3), patch_size=8).save_pretrained(tmp_path / "image_processor")
    recipe = fields(media, tmp_path / "out", config=None, model=str(tmp_path / "vision_encoder"))
    vision = ArlowVisionConfig(**TOWER)
    kept = make_processing(read_recipe(Recipe, **recipe), vision)
    assert list(kept.image.image_mean) == list(kept.video.image_mean) == [0.1, 0.2, 0.3]
    told = make_processing(read_recipe(Recipe, **recipe, processor={"image_mean": 0.5}), vision)
    assert told.image.image_mean == 0.5


# What is wrong


def test_bad_samples(media: Path, tmp_path: Path) -> None:
    """Unreadable pictures and clips are named in a file, and skipped up to the limit."""
    for kind, good in (("pictures", "01.png"), ("clips", "0.mp4")):
        (tmp_path / kind).mkdir()
        data = (media / kind / good).read_bytes()
        (tmp_path / kind / good).write_bytes(data)
        (tmp_path / kind / f"cut-{good}").write_bytes(data[: len(data) // 3])
    picture(4, 900).save(tmp_path / "pictures" / "thin.png")
    both = {"images": str(tmp_path / "pictures"), "videos": str(tmp_path / "clips"), "video_probability": 0.5}
    output = train("vision-mae", **fields(media, tmp_path / "out", **both))
    listed = [json.loads(line)["sample"] for line in (output / "bad_samples.jsonl").read_text().splitlines()]
    assert {"cut-01.png", "cut-0.mp4"} <= set(listed) <= {"cut-01.png", "cut-0.mp4", "thin.png"}
    with pytest.raises(ValueError, match="bad_samples_limit=0"):
        train("vision-mae", **fields(media, tmp_path / "strict", bad_samples_limit=0, **both))


@pytest.mark.parametrize(
    ("over", "kind", "words"),
    [
        ({"images": "EMPTY"}, ValueError, "images.folder=.*holds no pictures"),
        ({"images": "missing"}, OSError, "images.folder='missing': no such directory"),
        ({"images": {"foldr": "a"}}, ValueError, "images.*foldr.*"),
        ({"images": None}, ValueError, "give images, videos or both"),
        ({"config": None}, ValueError, "config.*model"),
        ({"config": {"depht": 2}}, ValueError, "config: depht=2"),
        ({"config": "missing.json"}, OSError, "config='missing.json': no such file"),
        ({"config": None, "model": "missing"}, OSError, "model='missing': no such directory"),
        ({"decoder_heads": 5}, ValueError, "num_heads=5"),
        ({"mask_ratio": 1.0}, ValueError, "mask_ratio=1.0"),
        ({"min_pixels": 256}, ValueError, "min_pixels=256.*4 blocks"),
        ({"max_pixels": 1000}, ValueError, "max_pixels=1000.*min_pixels=2304"),
        ({"crop_scale": [0.5, 1.5]}, ValueError, "crop_scale"),
        ({"processor": {"patch_size": 14}}, ValueError, "processor=.*vision config"),
        ({"processor": {"image_meen": 0.5}}, ValueError, "processor: .*image_mean"),
        ({"eval_videos": "EMPTY"}, ValueError, "eval_videos is given without videos"),
        ({"mask_ration": 0.5}, ValueError, "mask_ration=0.5: unknown field; did you mean 'mask_ratio'"),
    ],
)
def test_bad_recipes_write_nothing(
    media: Path, tmp_path: Path, over: dict[str, Any], kind: type[Exception], words: str
) -> None:
    """One line that names the field, and no output directory."""
    (tmp_path / "empty").mkdir()
    over = {name: str(tmp_path / "empty") if value == "EMPTY" else value for name, value in over.items()}
    with pytest.raises(kind, match=words) as error:
        train("vision-mae", **fields(media, tmp_path / "out", **over))
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_stream_has_no_epochs(media: Path, tmp_path: Path) -> None:
    """Epochs of a stream need a length; with one they are counted in steps."""
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in sorted((media / "pictures").iterdir()):
            tar.add(path, arcname=path.name)
    shards = {"images": {"shards": str(tmp_path / "a.tar"), "shuffle_buffer": 8}, "max_steps": None, "epochs": 2}
    with pytest.raises(ValueError, match=r"epochs=2.*stream.*steps_per_epoch"):
        train("vision-mae", **fields(media, tmp_path / "out", **shards))
    assert not (tmp_path / "out").exists()
    output = train("vision-mae", **fields(media, tmp_path / "out", **shards, steps_per_epoch=2))
    assert newest_checkpoint(output) == output / "checkpoint-4"


def test_epochs(media: Path, tmp_path: Path) -> None:
    """An epoch is a pass over the pictures, or its cap."""
    output = train("vision-mae", **fields(media, tmp_path / "out", max_steps=None, epochs=0.5, eval_samples=0))
    assert newest_checkpoint(output) == output / "checkpoint-3"  # 12 pictures, 4 a step


# Many processes


SPREAD = {
    "ddp": {"trainer": {"ddp_find_unused_parameters": False}},
    "fsdp2": {"fsdp": {}},
    "zero-2": {"deepspeed": str(Path(__file__).parents[1] / "recipes" / "deepspeed" / "zero2.json")},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", SPREAD)
def test_two_processes_equal_one(way: str, media: Path, tmp_path: Path) -> None:
    """Two processes (gloo) with half the batch each take the steps of one: under DDP without a look for unused
    parameters, under FSDP2 and under ZeRO-2. The encoder they save is whole."""
    if way == "zero-2":
        pytest.importorskip("deepspeed")
    options = {"max_steps": 3, "save_steps": 3, "optimizer": "sgd", "learning_rate": 0.1}
    alone = train("vision-mae", **fields(media, tmp_path / "one", **options, batch_size=4))
    two = fields(media, tmp_path / "two", **options, **SPREAD[way], batch_size=2)
    script, log = tmp_path / "run.py", tmp_path / "log"
    script.write_text(
        "import json, sys\nfrom arlow.training import train\ntrain('vision-mae', **json.loads(sys.argv[1]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:
        done = subprocess.run(
            [*command, json.dumps(two)], env=environment, stdout=file, stderr=file, timeout=400, check=False
        )
    assert done.returncode == 0, log.read_text()[-3000:]
    assert history(tmp_path / "two", "grad_norm") == pytest.approx(history(alone, "grad_norm"), rel=1e-4)
    found = weights(tmp_path / "two")
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    for folder in (tmp_path / "two", tmp_path / "two" / "checkpoint-3"):
        tower = ArlowVLVisionModel.from_pretrained(folder / "vision_encoder").state_dict()
        assert same(tower, {name: found[f"tower.{name}"] for name in tower})
    sheets = sorted((tmp_path / "two" / "sheets").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-000003.png"]
