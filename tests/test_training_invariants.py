"""What must not matter to training does not: loss and gradient norm of the stock Trainer, step by step, are the same
however the same rows are batched, padded, packed and computed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import Prompt, batch, image, pixels, prompt, tiny_causal_lm, tiny_vlm, video
from transformers import PreTrainedModel, Trainer, TrainingArguments

from arlow import linear_loss
from arlow.modeling_arlow import next_token_loss


STEPS, ROWS = 6, 8  # optimizer steps, and rows in each
IMAGE = "vision-language"


class Run(NamedTuple):
    losses: list[float]
    norms: list[float]  # of the gradients
    weights: list[torch.Tensor]


def make_model(kind: str) -> PreTrainedModel:
    """Text: sliding and full layers. Vision-language: DeepStack with gates, deformable attention, coarse patches."""
    if kind == "text":
        return tiny_causal_lm(layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=5)
    vision = {"deepstack_visual_indexes": [0], "use_progressive_patches": True, "use_deformable_attention": True}
    return tiny_vlm(vision=vision, use_gated_cross_attention=True)


def make_rows(kind: str) -> list[Prompt]:
    """As many rows as the steps take, of different lengths: text alone, and with images and videos."""
    media = [
        (3, image(4, 8), 4), (6,), (2, video(2, 4, 4), 5), (9,), (1, image(4, 4), 2, image(8, 4, seed=3), 3), (12,),
        (4, video(3, 4, 4, seed=4), 2, image(4, 4, seed=5), 4),
    ]  # fmt: skip
    parts = media if kind == IMAGE else [(n,) for n in (9, 3, 17, 2, 7, 4, 11)]
    return [prompt(*parts[i % len(parts)], seed=i) for i in range(STEPS * ROWS)]


def labels_of(ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """A quarter of the words, every placeholder and all padding left out; and what begins a row, which nothing
    predicts."""
    labels = ids.masked_fill((ids < 16) | (ids % 4 == 0), -100)
    if mask is None:
        return labels
    first = (mask.cumsum(-1) == 1) & mask.bool()
    return labels.masked_fill(first | (mask == 0), -100)


def padded(rows: list[Prompt], *, side: str = "right") -> dict[str, Any]:
    inputs = batch(*rows, side=side)
    inputs["labels"] = labels_of(inputs["input_ids"], inputs["attention_mask"])
    return inputs


def packed(rows: list[Prompt], *, model: PreTrainedModel) -> dict[str, Any]:
    """All rows in one, with the positions each has alone: text first, then the three axes."""
    positions, labels = [], []
    for row in rows:
        alone = {**padded([row]), "image_grid_thw": None, "video_grid_thw": None, **pixels(row.media)}
        counted = torch.arange(len(row.ids))[None]
        labels.append(alone["labels"])
        if hasattr(model.model, "get_rope_index"):
            names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
            axes, _ = model.model.get_rope_index(*(alone[name] for name in names))
            counted = torch.cat((counted[None], axes))  # [4, 1, S]
        positions.append(counted)
    inputs = padded([sum(rows, Prompt([], []))])
    del inputs["attention_mask"]
    return {**inputs, "position_ids": torch.cat(positions, dim=-1), "labels": torch.cat(labels, dim=-1)}


def for_text(collate: Callable, rows: list[Prompt]) -> dict[str, Any]:
    inputs = collate(rows)
    inputs.pop("mm_token_type_ids")
    return inputs


def train(kind: str, folder: Path, *, way: str = "", rows: int = ROWS) -> Run:
    """Six steps of SGD with momentum over the same 48 rows, `rows` of them at a time."""
    model = make_model(kind).train()
    collate = functools.partial(padded, side="left" if way == "left" else "right")
    if way == "packed":
        collate = functools.partial(packed, model=model)
    elif way == "eager":
        model.set_attn_implementation("eager")
    elif way == "plain loss":
        model.loss_function = functools.partial(next_token_loss)  # any but the model's own is given all logits
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=rows, gradient_accumulation_steps=ROWS // rows,
        max_steps=STEPS, learning_rate=0.02, lr_scheduler_type="constant", optim="sgd", optim_args="momentum=0.9",
        logging_steps=1, max_grad_norm=5.0, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
        remove_unused_columns=False, train_sampling_strategy="sequential",
        activation_checkpointing=way == "checkpointed",
    )  # fmt: skip
    if kind == "text":
        collate = functools.partial(for_text, collate)
    data = make_rows(kind)[:: -1 if way == "reversed" else 1]
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = [parameter.detach() for parameter in model.parameters()]
    return Run([entry["loss"] for entry in logs], [entry["grad_norm"] for entry in logs], weights)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Eight rows at once, padded on the right, SDPA, the loss in chunks."""
    return functools.cache(lambda kind: train(kind, tmp_path_factory.mktemp("wanted")))


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Any:
    """Five tokens of the loss at a time, so that every batch takes several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_loss, "CHUNK_LOGITS", 5 * 160)
        yield


@pytest.mark.parametrize("kind", ["text", IMAGE])
@pytest.mark.parametrize(
    ("way", "rows"),
    [
        ("", 1), ("", 2), ("packed", ROWS), ("packed", 2), ("left", ROWS), ("left", 2), ("eager", ROWS),
        ("plain loss", ROWS), ("plain loss", 1), ("checkpointed", 4),
    ],
)  # fmt: skip
def test_same_training(kind: str, way: str, rows: int, wanted: Callable[[str], Run], tmp_path: Path) -> None:
    """Accumulated, packed, padded on the left, eager, checkpointed, or with the plain loss: the same losses, gradient
    norms and final weights as the baseline, to float32's rounding at every step."""
    base, found = wanted(kind), train(kind, tmp_path, way=way, rows=rows)
    assert_close(found.losses, base.losses, tolerance=1e-6)
    assert_close(found.norms, base.norms, tolerance=2e-6)
    for one, other in zip(found.weights, base.weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def assert_close(found: list[float], wanted: list[float], *, tolerance: float) -> None:
    assert len(found) == len(wanted) == STEPS
    assert found == pytest.approx(wanted, rel=tolerance)


@pytest.mark.parametrize("kind", ["text", IMAGE])
def test_what_matters_shows(kind: str, wanted: Callable[[str], Run], tmp_path: Path) -> None:
    """The comparison is no empty one: the same rows in another order give other losses and norms at every step."""
    base, found = wanted(kind), train(kind, tmp_path, way="reversed")
    for series, others in ((found.losses, base.losses), (found.norms, base.norms)):
        assert all(abs(one / other - 1) > 1e-4 for one, other in zip(series, others, strict=True))
