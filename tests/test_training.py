"""Training of the text models: losses, dropouts, accumulation and packing through the stock Trainer, checkpointing,
adapters and quantised layers."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import VOCAB, causal_lm, mixed_windows, packed, padded, text_config, token_ids
from transformers import DataCollatorWithFlattening, PreTrainedModel, Trainer, TrainingArguments

from arlow import ArlowForCausalLM, ArlowForSequenceClassification, ArlowForTokenClassification
from arlow.modeling_arlow import next_token_loss, token_loss
from arlow.text import EncoderStates


# The loss


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, items: int | None = None) -> float:
    """Mean negative log likelihood of the next token in float64, position by position."""
    terms = []
    for row, targets in zip(logits.double(), labels.tolist(), strict=True):
        for position, target in enumerate(targets[1:]):
            if target != -100:
                terms.append(math.log(row[position].exp().sum().item()) - row[position][target].item())
    return sum(terms) / (items or max(len(terms), 1))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), length=st.integers(1, 6), seed=st.integers(0, 99), items=st.none() | st.integers(1, 30)
)
def test_loss_equals_float64(batch: int, length: int, seed: int, items: int | None) -> None:
    """The loss is the mean over labels that are not -100 (or over `num_items_in_batch`), for any mix of labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, length, 7, generator=generator)
    labels = torch.randint(-3, 7, (batch, length), generator=generator)
    labels = torch.where(labels < 0, -100, labels)
    found = next_token_loss(logits, labels, num_items_in_batch=items)
    assert found.item() == pytest.approx(plain_loss(logits, labels, items), rel=1e-5, abs=1e-6)
    shifted = torch.cat((labels[:, 1:], torch.full((batch, 1), -100)), dim=1)
    assert torch.equal(next_token_loss(logits, None, shift_labels=shifted, num_items_in_batch=items), found)


def test_loss_is_float32_in_a_half_model() -> None:
    """A bfloat16 model's loss is summed in float32."""
    model = causal_lm().bfloat16()
    ids = token_ids(2, 9)
    output = model(ids, labels=ids)
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(plain_loss(output.logits.float(), ids), rel=1e-4)


@pytest.mark.parametrize("length", [1, 6])
def test_no_labels_at_all_is_zero(length: int) -> None:
    """All labels -100 (or a single token, which predicts nothing): zero loss and zero gradients, no NaN."""
    model = causal_lm().train()
    ids = token_ids(2, length)
    loss = model(ids, labels=torch.full_like(ids, -100) if length > 1 else ids).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
    assert token_loss(torch.zeros(2, 3), torch.tensor([-100, -100]), num_items_in_batch=0).item() == 0.0


def test_labels_at_minus_100_get_no_gradient() -> None:
    """Only labelled positions reach the head's gradient."""
    model = causal_lm()
    ids = token_ids(1, 6)
    labels = torch.full_like(ids, -100)
    labels[0, 3] = 11
    hidden = model.model(ids).last_hidden_state.detach()
    model(ids, labels=labels).loss.backward()
    probabilities = model.lm_head(hidden[0, 2]).softmax(-1)
    wanted = (probabilities - torch.nn.functional.one_hot(torch.tensor(11), VOCAB))[:, None] * hidden[0, 2]
    torch.testing.assert_close(model.lm_head.weight.grad, wanted, atol=1e-6, rtol=1e-4)


def test_accumulated_loss_is_the_whole_batchs() -> None:
    """Losses of parts with `num_items_in_batch` add up to the whole batch's, and so do their gradients."""
    ids, mask = padded([token_ids(n, seed=n) for n in (9, 3, 5, 2)], "right")
    labels = ids.masked_fill(mask == 0, -100)
    whole, parts = causal_lm().train(), causal_lm().train()
    loss = whole(ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    count, total = (labels[:, 1:] != -100).sum(), 0.0
    for i in range(4):
        row = slice(i, i + 1)
        part = parts(ids[row], attention_mask=mask[row], labels=labels[row], num_items_in_batch=count).loss
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


# Dropout


def dropping(field: str, rate: float) -> ArlowForCausalLM:
    return causal_lm(text_config(num_hidden_layers=1, **{field: rate}), backend="eager")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("field", ["attention_dropout", "resid_dropout", "mlp_dropout"])
def test_dropout_acts_in_training_only(field: str, backend: str) -> None:
    """In training two forwards differ; in evaluation they equal each other and the model without dropout."""
    model, plain = dropping(field, 0.5), dropping(field, 0.0)
    model.set_attn_implementation(backend)
    plain.set_attn_implementation(backend)
    ids = token_ids(2, 9)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        assert torch.equal(model(ids).logits, plain(ids).logits)
        model.train()
        plain.train()
        assert not torch.allclose(model(ids).logits, model(ids).logits)
        assert torch.equal(plain(ids).logits, plain(ids).logits)


def test_attention_dropout_drops_weights() -> None:
    """A share of the attention weights is zero, the rest is scaled up; nothing else is dropped."""
    model = dropping("attention_dropout", 0.25).train()
    ids = token_ids(4, 40)
    kept = dropping("attention_dropout", 0.0)(ids, output_attentions=True).attentions[0]
    found = model(ids, output_attentions=True).attentions[0]
    visible = kept > 0
    dropped = (found == 0) & visible
    assert (dropped.sum() / visible.sum()).item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(found[visible & ~dropped], kept[visible & ~dropped] / 0.75, atol=1e-6, rtol=1e-4)


def test_mlp_dropout_drops_inner_units() -> None:
    """A share of the units before `down_proj` is zero, the rest is scaled up."""
    model, plain = dropping("mlp_dropout", 0.25).train(), dropping("mlp_dropout", 0.0)
    seen: list[torch.Tensor] = []
    for one in (model, plain):
        one.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        one(token_ids(4, 40))
    dropped = seen[0] == 0
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(seen[0][~dropped], seen[1][~dropped] / 0.75, atol=1e-5, rtol=1e-4)


def test_resid_dropout_drops_what_joins_the_stream() -> None:
    """A share of each block's output is left out; where all blocks' are, the residual stream passes untouched."""
    model = causal_lm(text_config(num_hidden_layers=1, resid_dropout=0.5, use_cross_attention=True))
    layer = model.train().model.layers[0]
    layer.cross_attn.gate.data.fill_(1.0)
    hidden = torch.randn(4, 40, 32)
    tables = model.model.rotary_emb(hidden, torch.arange(40)[None])
    for encoder, untouched in ((None, 1 / 4), (EncoderStates(torch.randn(4, 6, 32), None), 1 / 8)):
        states = None if encoder is None else encoder.states
        update = layer(hidden, states, position_embeddings=tables, encoder=encoder) - hidden
        assert (update == 0).float().mean().item() == pytest.approx(untouched, abs=0.02)


def test_cross_attention_drops_too() -> None:
    """Attention and residual dropout act on cross-attention in training, and not in evaluation."""
    model = causal_lm(text_config(num_hidden_layers=1, use_cross_attention=True, attention_dropout=0.5))
    module, hidden = model.model.layers[0].cross_attn, torch.randn(2, 5, 32)
    module.gate.data.fill_(1.0)
    encoder = EncoderStates(torch.randn(2, 6, 32), None)
    assert torch.equal(
        module(hidden, encoder.states, encoder, keep=False), module(hidden, encoder.states, encoder, keep=False)
    )
    module.train()
    assert not torch.equal(
        module(hidden, encoder.states, encoder, keep=False), module(hidden, encoder.states, encoder, keep=False)
    )


# Checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_nothing(reentrant: bool, dropout: float) -> None:
    """Same loss and gradients with gradient checkpointing, of either kind, dropout included; also when packed."""
    config = mixed_windows(attention_dropout=dropout, resid_dropout=dropout, mlp_dropout=dropout)
    ids, positions = packed([token_ids(n, seed=n) for n in (9, 4)])
    results = []
    for checkpointing in (False, True):
        model = causal_lm(config).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_activation_checkpointing
        torch.manual_seed(7)
        loss = model(ids, position_ids=positions, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_checkpointing_recomputes() -> None:
    """With checkpointing each layer really runs a second time in the backward pass."""
    model, runs = causal_lm().train(), []
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    ids = token_ids(1, 5)
    model(ids, labels=ids).loss.backward()
    assert len(runs) == 2


# The stock Trainer


class Rows(torch.utils.data.Dataset):
    """Sixteen rows of different length."""

    def __init__(self, labels: str = "tokens") -> None:
        lengths = (9, 3, 5, 2, 7, 4, 6, 11, 3, 8, 2, 10, 5, 4, 9, 6)
        self.rows = [token_ids(length, seed=100 + i) for i, length in enumerate(lengths)]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        if self.labels == "flat":
            return {"input_ids": row.tolist()}
        return {"input_ids": row, "labels": {"tokens": row, "kinds": row % 3, "class": index % 3}[self.labels]}


def pad_rows(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids, mask = padded([row["input_ids"] for row in rows], "right")
    labels = [row["labels"] for row in rows]
    if isinstance(labels[0], int):
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": padded(labels, "right")[0].masked_fill(mask == 0, -100),
    }


def trained(
    model: PreTrainedModel, folder: Path, data: Rows, collator: Any = pad_rows, *, batch: int, parts: int, **more: Any
) -> tuple[PreTrainedModel, list[float]]:
    """The model after two epochs of plain SGD, and the losses that the Trainer logged."""
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=parts,
        num_train_epochs=2, learning_rate=0.05, lr_scheduler_type="constant", optim="sgd", logging_steps=1,
        max_grad_norm=0.0, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, remove_unused_columns=False, train_sampling_strategy="sequential", **more,
    )  # fmt: skip
    trainer = Trainer(model=model.train(), args=arguments, train_dataset=data, data_collator=collator)
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_training(one: tuple[PreTrainedModel, list[float]], other: tuple[PreTrainedModel, list[float]]) -> None:
    assert len(one[1]) > 0
    assert one[1] == pytest.approx(other[1], rel=1e-6, abs=2e-6)
    for first, second in zip(one[0].parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_accumulation_equals_one_batch(checkpointing: bool, tmp_path: Path) -> None:
    """Through the stock Trainer, batch 8 and batch 2 accumulated four times log the same losses to six digits and
    end at the same weights."""
    whole = trained(causal_lm(), tmp_path, Rows(), batch=8, parts=1)
    parts = trained(causal_lm(), tmp_path, Rows(), batch=2, parts=4, activation_checkpointing=checkpointing)
    assert len(whole[1]) == 4
    assert_same_training(whole, parts)


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("flash_arguments", [False, True])
def test_packed_training_equals_padded(windows: bool, flash_arguments: bool, tmp_path: Path) -> None:
    """Through the stock Trainer, rows packed by `DataCollatorWithFlattening` train as the same rows padded."""
    config = mixed_windows() if windows else text_config()
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=flash_arguments, return_seq_idx=flash_arguments)
    flat = trained(causal_lm(config), tmp_path, Rows("flat"), collator, batch=4, parts=2)
    rows = trained(causal_lm(config), tmp_path, Rows(), batch=4, parts=2)
    assert_same_training(flat, rows)


@pytest.mark.parametrize(
    ("head", "labels"), [(ArlowForTokenClassification, "kinds"), (ArlowForSequenceClassification, "class")]
)
def test_accumulation_with_other_heads(head: Any, labels: str, tmp_path: Path) -> None:
    """Classification heads, too, train the same whether the batch comes whole or in parts."""
    results = []
    for batch, parts in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        config = text_config(num_labels=3, pad_token_id=0)
        config.classifier_dropout = 0.0
        results.append(trained(head(config), tmp_path, Rows(labels), batch=batch, parts=parts))
    assert_same_training(*results)


def test_evaluation_and_prediction(tmp_path: Path) -> None:
    """`Trainer.evaluate` gives the model's own loss over all tokens of equal batches."""
    model = causal_lm()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=16, report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip
    found = Trainer(model=model, args=arguments, eval_dataset=Rows(), data_collator=pad_rows).evaluate()
    batch = pad_rows([Rows()[i] for i in range(16)])
    assert found["eval_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-6)


# Mixed precision


def test_autocast_trains() -> None:
    """Under bfloat16 autocast loss and gradients are finite and close to float32's; norms stay float32."""
    ids, results = token_ids(4, 9), []
    for enabled in (False, True):
        model = causal_lm(text_config(initializer_range=0.05)).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = model(ids, labels=ids).loss
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        results.append(loss.item())
    assert results[0] == pytest.approx(results[1], rel=2e-2)


# Adapters and quantised layers


@pytest.mark.parametrize("targets", [None, "all-linear", ["k_proj", "o_proj", "down_proj"]])
def test_lora_with_checkpointing(targets: Any, tmp_path: Path) -> None:
    """PEFT's LoRA trains with gradient checkpointing: adapters get gradients and learn, the base stays."""
    peft = pytest.importorskip("peft")
    model = causal_lm(text_config(use_cross_attention=True))
    base = copy.deepcopy(model.state_dict())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
    adapted.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    ids, states = token_ids(2, 7), torch.randn(2, 4, 32)
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = adapted(input_ids=ids, labels=ids, encoder_hidden_states=states).loss
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert losses[2] < losses[0]
    adapters = {name: p for name, p in adapted.named_parameters() if "lora" in name}
    assert adapters and all(p.grad is not None for n, p in adapters.items() if "cross_attn" not in n)
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(causal_lm(text_config(use_cross_attention=True)), tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, adapted.eval()(ids).logits)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, again(ids).logits, atol=1e-5, rtol=1e-4)
    kept = {name: value for name, value in base.items() if "norm" in name or "embed" in name}
    assert all(torch.equal(merged.state_dict()[name], value) for name, value in kept.items())


def test_native_adapters() -> None:
    """Transformers' own `add_adapter` works, with checkpointing."""
    peft = pytest.importorskip("peft")
    model = causal_lm()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.train().activation_checkpointing_enable({"use_reentrant": True})
    ids = token_ids(2, 7)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora" in name)


def test_quantised_linear_layers() -> None:
    """With int8 linear layers the decoder's forward and generation stay close to float32."""
    quanto = pytest.importorskip("optimum.quanto")
    model, ids = causal_lm(text_config(initializer_range=0.05)), token_ids(2, 9)
    with torch.no_grad():
        wanted = model(ids).logits
        quanto.quantize(model, weights=quanto.qint8, exclude="lm_head")
        quanto.freeze(model)
        found = model(ids).logits
    assert sum(type(module).__name__ == "QLinear" for module in model.modules()) == 14
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 12)
