"""The chunked loss against plain cross-entropy: values, gradients, precisions, memory, and what stands around it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import VOCAB, causal_lm, padded, text_config, token_ids
from tiny_models import batch, image, prompt, tiny_vlm
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from arlow import ArlowForCausalLM
from arlow import linear_loss as room
from arlow.linear_loss import LanguageHead, checkpointed_loss, linear_loss, summed_loss


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Summed loss and its gradients, in float64 over all logits."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = cross_entropy((hidden @ weight.T).flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def sample(tokens: int, width: int, words: int, *, seed: int = 0, kept: float = 0.7) -> tuple[torch.Tensor, ...]:
    """Hidden states (tokens, width), weight (words, width) and labels (tokens,), some of them -100."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(words, width, generator=generator) / width**0.5
    labels = torch.randint(words, (tokens,), generator=generator)
    return hidden, weight, labels.masked_fill(torch.rand(tokens, generator=generator) >= kept, -100)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of two tensors, relative to the second."""
    wanted = wanted.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def learned(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Loss and gradients of `linear_loss`."""
    hidden, weight = hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    loss = linear_loss(hidden, weight, labels)
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 40), width=st.integers(1, 16), words=st.integers(1, 50), chunk=st.integers(1, 45),
    kept=st.sampled_from((0.0, 0.1, 0.7, 1.0)), seed=st.integers(0, 999),
)  # fmt: skip
def test_equals_float64(tokens: int, width: int, words: int, chunk: int, kept: float, seed: int) -> None:
    """Loss and both gradients equal float64 cross-entropy to 1e-6 for any sizes, chunks and label masks."""
    hidden, weight, labels = sample(tokens, width, words, seed=seed, kept=kept)
    wanted = plain(hidden, weight, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK_LOGITS", chunk * words)
        found = learned(hidden, weight, labels)
    if words == 1 or not (labels != -100).any():  # a certain answer, or no answer
        assert all(not value.any() for value in found)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32 and one.shape == other.shape
        # Gradients are differences from one: what cancels leaves float32's last digits.
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-6 * max(1.0, float(other.abs().max())))


def test_large_vocabulary_equals_float64() -> None:
    """Over 20,000 words in several chunks, float32 stays within 1e-6 of float64, relative to the whole gradient."""
    hidden, weight, labels = sample(300, 64, 20_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK_LOGITS", 40 * 20_000)
        found = learned(hidden, weight, labels)
    for one, other in zip(found, plain(hidden, weight, labels), strict=True):
        assert distance(one, other) < 1e-6


def test_float64_stays_float64() -> None:
    """A float64 model's loss and gradients are computed in float64."""
    hidden, weight, labels = (x.double() if x.is_floating_point() else x for x in sample(20, 8, 30))
    for one, other in zip(learned(hidden, weight, labels), plain(hidden, weight, labels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(dtype: torch.dtype, autocast: bool) -> None:
    """In half precision, as weights or under autocast, the error is that of rounding, not of chunks: as small with
    twelve of them as the plain loss's in one piece."""
    hidden, weight, labels = sample(192, 48, 1000)
    hidden, weight = hidden.to(dtype).float(), weight.to(dtype).float()  # both sides start from the same numbers
    wanted = plain(hidden, weight, labels)
    if not autocast:
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=dtype, enabled=autocast):
        patch.setattr(room, "CHUNK_LOGITS", 16 * 1000)
        loss, grad_hidden, grad_weight = learned(hidden, weight, labels)
        ours = loss, grad_hidden, grad_weight
        hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        theirs = cross_entropy((hidden @ weight.T).float(), labels, ignore_index=-100, reduction="sum")
    theirs = theirs.detach(), *torch.autograd.grad(theirs, (hidden, weight))
    assert loss.dtype == torch.float32 and grad_weight.dtype == weight.dtype and grad_hidden.dtype == hidden.dtype
    step = torch.finfo(dtype).eps
    for one, other, target in zip(ours, theirs, wanted, strict=True):
        assert distance(one, target) < max(1.5 * distance(other, target), 0.1 * step)
        assert distance(one, target) < step


def test_labels_left_out_never_reach_the_head() -> None:
    """Rows of label -100 take no part: NaN states there change nothing, and get a zero gradient."""
    hidden, weight, labels = sample(30, 8, 20)
    wanted = learned(hidden, weight, labels)
    hidden[labels == -100] = float("nan")
    for one, other in zip(learned(hidden, weight, labels), wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("frozen", ["states", "weight", "both", "no_grad"])
def test_only_wanted_gradients_are_made(frozen: str) -> None:
    """A frozen side gets no gradient and costs none; without any the loss alone is computed."""
    hidden, weight, labels = sample(30, 8, 20)
    wanted = plain(hidden, weight, labels)
    hidden.requires_grad_(frozen in ("weight", "no_grad"))
    weight.requires_grad_(frozen in ("states", "no_grad"))
    with torch.set_grad_enabled(frozen != "no_grad"):
        loss = linear_loss(hidden, weight, labels)
    assert loss.item() == pytest.approx(wanted[0].item(), rel=1e-6)
    assert loss.requires_grad == (frozen in ("states", "weight"))
    if loss.requires_grad:
        (3 * loss).backward()
        found, other = (hidden, wanted[1]) if frozen == "weight" else (weight, wanted[2])
        assert distance(found.grad, 3 * other) < 1e-6


def test_second_backward_is_refused() -> None:
    """The gradients serve one backward pass: a second one, and second derivatives, say so."""
    hidden, weight, labels = sample(30, 8, 20)
    hidden.requires_grad_()
    for keep in (True, False):
        loss = linear_loss(hidden, weight, labels)
        loss.backward(retain_graph=keep)
        with pytest.raises(RuntimeError, match="call the model again" if keep else "second time|again"):
            loss.backward()
    with pytest.raises(RuntimeError, match="skip_logits=False"):
        torch.autograd.grad(linear_loss(hidden, weight, labels), hidden, create_graph=True)


def test_meta_tensors() -> None:
    """On the meta device the loss has a shape and no cost, for counting memory without weights."""
    hidden, weight, labels = (x.to("meta") for x in sample(30, 8, 20))
    loss = linear_loss(hidden.requires_grad_(), weight.requires_grad_(), labels)
    loss.backward()
    assert loss.shape == () and weight.grad.shape == weight.shape and hidden.grad.shape == hidden.shape


# In the models


def batch_of_rows() -> dict[str, torch.Tensor]:
    ids, mask = padded([token_ids(n, seed=n) for n in (9, 3, 5)], "right")
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def step(model: nn.Module, inputs: dict[str, Any], **more: Any) -> list[torch.Tensor]:
    """The loss, and every gradient that there is."""
    output = model(**inputs, **more)
    output.loss.backward()
    return [output.loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_same(found: list[torch.Tensor], wanted: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("given", ["labels", "shift_labels", "num_items_in_batch"])
def test_training_equals_the_plain_loss(tied: bool, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training the loss comes without logits and equals, gradients too, that of a model asked for its logits."""
    monkeypatch.setattr(room, "CHUNK_LOGITS", 3 * VOCAB)
    model, inputs = causal_lm(text_config(tie_word_embeddings=tied)).train(), batch_of_rows()
    if given == "shift_labels":
        inputs["shift_labels"] = inputs["labels"].roll(-2, 1)
    elif given == "num_items_in_batch":
        inputs["num_items_in_batch"] = torch.tensor(40)
    other = copy.deepcopy(model)
    assert model(**inputs).logits is None and other(**inputs, skip_logits=False).logits is not None
    assert_same(step(model, inputs), step(other, inputs, skip_logits=False))


def test_vision_language_training_equals_the_plain_loss() -> None:
    """The vision-language model, too."""
    inputs = batch(prompt(4, image(4, 8), 5), prompt(6))
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] < 16, -100)
    model = tiny_vlm().train()
    other = copy.deepcopy(model)
    assert_same(step(model, inputs), step(other, inputs, skip_logits=False))


def test_when_there_are_logits() -> None:
    """Logits come in evaluation, without labels, when asked for, and for a user's own loss; else they do not."""
    model, inputs = causal_lm(), batch_of_rows()
    seen = model(**inputs)
    quiet = model(**inputs, skip_logits=True)
    assert seen.logits.shape == (3, 9, VOCAB) and quiet.logits is None
    torch.testing.assert_close(quiet.loss, seen.loss)
    assert model(**inputs, skip_logits=True, return_dict=False)[0].shape == ()
    model.train()
    assert model(**inputs).logits is None
    assert model(inputs["input_ids"]).logits is not None
    assert model(inputs["input_ids"], skip_logits=True).logits is not None  # nothing else would be left
    model.loss_function = lambda logits, labels, **_: logits.sum()
    output = model(**inputs)
    assert torch.equal(output.loss, output.logits.sum())


class Doubled(nn.Module):
    """A head that someone put in the place of ours."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.drop = base, nn.Dropout(0.0)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * self.base(self.drop(states))


@pytest.mark.parametrize("change", ["replaced", "resized", "peft", "split"])
def test_other_heads(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced head, PEFT's around ours, or one split over devices is called with states alone, chunk by chunk; a
    resized one is ours again. Loss and gradients are those of the plain loss."""
    monkeypatch.setattr(room, "CHUNK_TOKENS", 4)
    model, inputs = causal_lm().train(), batch_of_rows()
    if change == "replaced":
        model.set_output_embeddings(Doubled(model.lm_head))
    elif change == "resized":
        model.resize_token_embeddings(VOCAB + 3)
        assert type(model.lm_head) is LanguageHead
    elif change == "split":
        model._tp_size = 2
    else:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
        assert type(model.base_model.model.lm_head) is not LanguageHead
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
    other = copy.deepcopy(model)
    calls: list[int] = []
    head = (model.base_model.model if change == "peft" else model).lm_head
    head.register_forward_hook(lambda _, args, __: calls.append(len(args)))
    assert_same(step(model, inputs), step(other, inputs, skip_logits=False))
    assert set(calls) == ({2} if change == "resized" else {1}) and (len(calls) > 2) == (change != "resized")
    nothing = {**inputs, "labels": torch.full_like(inputs["labels"], -100)}
    model.zero_grad(set_to_none=False)
    assert not any(value.any() for value in step(model, nothing))


def test_weights_quantised_in_place() -> None:
    """A weight that is no plain tensor goes through its own linear layer."""

    class Marked(torch.Tensor):
        pass

    head = LanguageHead(8, 20, bias=False)
    hidden, weight, labels = sample(30, 8, 20)
    head.weight = nn.Parameter(weight.as_subclass(Marked))
    torch.testing.assert_close(
        head(hidden, labels).as_subclass(torch.Tensor), plain(hidden, weight, labels)[0].float()
    )


def test_gradients_under_a_loss_scale() -> None:
    """fp16 autocast with a GradScaler: unscaled gradients equal float32's to rounding."""
    inputs, found = batch_of_rows(), []
    for enabled in (False, True):
        model = causal_lm(text_config(initializer_range=0.05)).train()
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
            loss = model(**inputs).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert distance(other, one) < 1e-2


def test_checkpointed_head_equals_the_fused_one() -> None:
    """Both ways give the same loss and gradients."""
    hidden, weight, labels = sample(30, 8, 20)
    wanted = learned(hidden, weight, labels)
    head = nn.Linear(8, 20, bias=False)
    head.weight.data, hidden = weight, hidden.requires_grad_()
    loss = checkpointed_loss(head, hidden, labels)
    loss.backward()
    assert_same([loss.detach(), hidden.grad, head.weight.grad], list(wanted))


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 20), chunk=st.integers(1, 25), seed=st.integers(0, 99))
def test_summed_loss_in_chunks(tokens: int, chunk: int, seed: int) -> None:
    """The loss of logits that are there does not depend on the chunks."""
    hidden, weight, labels = sample(tokens, 4, 9, seed=seed)
    logits = hidden @ weight.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK_LOGITS", 9 * chunk)
        found = summed_loss(logits.bfloat16(), labels)
    assert found.dtype == torch.float32
    wanted = cross_entropy(logits.bfloat16().double(), labels, ignore_index=-100, reduction="sum")
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.slow
def test_compiled_training_has_no_graph_break() -> None:
    """torch.compile takes the whole training forward as one graph, with the same loss and gradients."""
    model, inputs = causal_lm().train(), batch_of_rows()
    other = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(step(compiled, inputs), step(other, inputs))


# The stock Trainer's ways to a loss


def trainer(model: ArlowForCausalLM, folder: Any, **more: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=2, max_steps=2, optim="sgd",
        learning_rate=0.1, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1,
        **{name: more.pop(name) for name in ("label_smoothing_factor", "bf16") if name in more},
    )  # fmt: skip
    rows = [{"input_ids": token_ids(6, seed=i), "labels": token_ids(6, seed=i)} for i in range(4)]
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, **more)


@pytest.mark.parametrize("way", ["plain", "bf16", "label smoothing", "own loss", "metrics"])
def test_trainer_ways(way: str, tmp_path: Any) -> None:
    """Label smoothing, a loss function of the user's own and metrics over predictions get the logits they need."""
    seen: list[Any] = []

    def own_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        seen.append(outputs.logits.shape)
        return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions.shape)
        return {"words": float(prediction.predictions.shape[-1])}

    more: dict[str, Any] = {
        "label smoothing": {"label_smoothing_factor": 0.1},
        "bf16": {"bf16": True},
        "own loss": {"compute_loss_func": own_loss},
        "metrics": {"compute_metrics": metrics},
    }.get(way, {})
    found = trainer(causal_lm(), tmp_path, **more)
    assert found.train().training_loss > 0
    result = found.evaluate()
    assert result["eval_loss"] > 0
    assert bool(seen) == (way in ("own loss", "metrics"))
    assert way != "metrics" or result["eval_words"] == VOCAB


# Memory


MEASURE = """
import json, resource, torch
from arlow.linear_loss import LanguageHead, checkpointed_loss
torch.manual_seed(0)
words, tokens, width = 131072, 2048, 16
head = LanguageHead(width, words, bias=False)
states = torch.randn(tokens, width, requires_grad=True)
labels = torch.randint(words, (tokens,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if WAY == "fused":
    head(states, labels).backward()
else:
    checkpointed_loss(head, states, labels).backward()
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
learns = bool(head.weight.grad.any())
print(json.dumps({"grown": (after - before) * 1024, "logits": 4 * words * tokens, "learns": learns}))
"""


@pytest.mark.parametrize("way", ["fused", "through the module"])
def test_memory(way: str, fresh_python: Callable[..., str]) -> None:
    """2048 tokens over 131,072 words: the whole step takes less than half of what all float32 logits would."""
    found = json.loads(fresh_python(f"WAY = {way!r}\n" + MEASURE))
    assert found["learns"] and found["logits"] == 2**30
    assert found["grown"] < found["logits"] / 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    """On a GPU, with Liger's kernel or ours, the gradients are float64's to rounding."""
    hidden, weight, labels = (x.cuda() for x in sample(300, 64, 20_000))
    wanted = plain(hidden.to(dtype), weight.to(dtype), labels)
    for one, other in zip(learned(hidden.to(dtype), weight.to(dtype), labels), wanted, strict=True):
        assert distance(one, other) < 2 * max(torch.finfo(dtype).eps, 1e-6)
