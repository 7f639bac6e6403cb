"""The heads over the decoder: what they compute, how they load from and into one another, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text_samples import VOCAB, causal_lm, mixed_windows, padded, text_config, token_ids
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from arlow import (
    ArlowConfig,
    ArlowForCausalLM,
    ArlowForConditionalGeneration,
    ArlowForQuestionAnswering,
    ArlowForSequenceClassification,
    ArlowForTokenClassification,
    ArlowTextModel,
)
from arlow.configuration_arlow import ArlowGPTConfig


HEADS = {
    AutoModelForSequenceClassification: ArlowForSequenceClassification,
    AutoModelForTokenClassification: ArlowForTokenClassification,
    AutoModelForQuestionAnswering: ArlowForQuestionAnswering,
}
LENGTHS = (9, 4, 7)


def head(kind: Any, **overrides: Any) -> Any:
    torch.manual_seed(0)
    return kind(text_config(num_labels=3, pad_token_id=0, **overrides)).eval()


def outputs_of(output: Any) -> torch.Tensor:
    return output.start_logits if hasattr(output, "start_logits") else output.logits


@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
def test_save_and_load_through_the_auto_class(auto: Any, tmp_path: Path) -> None:
    """Each head builds from a config, saves, and loads through its Auto class with the same result."""
    config = text_config(num_labels=3, pad_token_id=0)
    model = auto.from_config(config).eval()
    assert type(model) is HEADS[auto]
    model.save_pretrained(tmp_path)
    again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is HEADS[auto] and again.config.num_labels == 3
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(outputs_of(again(token_ids(2, 6))), outputs_of(model(token_ids(2, 6))))


@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
@pytest.mark.parametrize("source", ["causal LM", "base", "arlowgpt"])
def test_bases_load_into_heads(auto: Any, source: str, tmp_path: Path) -> None:
    """A causal LM, bare decoder or arlowgpt checkpoint loads into each head: only the head's own weights are new."""
    model = causal_lm(mixed_windows(pad_token_id=0))
    if source == "arlowgpt":
        fields = {**model.config.to_dict(), "cross_attention": False}
        fields.pop("model_type")
        model.config = model.model.config = ArlowGPTConfig(**fields)
    (model.model if source == "base" else model).save_pretrained(tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    assert type(loaded) is HEADS[auto]
    assert {name.split(".")[0] for name in report["missing_keys"]} <= {"score", "qa_outputs"}
    assert set(report["unexpected_keys"]) <= {"lm_head.weight"}
    for name, value in model.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name


@pytest.mark.parametrize("auto", HEADS, ids=lambda auto: auto.__name__)
def test_heads_load_back_into_bases(auto: Any, tmp_path: Path) -> None:
    """The decoder inside a saved head loads as bare decoder and as causal LM."""
    model = head(HEADS[auto])
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is ArlowTextModel
    ids = token_ids(2, 6)
    wanted = model.model(ids).last_hidden_state
    assert torch.equal(base(ids).last_hidden_state, wanted)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path).model(ids).last_hidden_state, wanted)


def test_text_half_of_a_composite_checkpoint(tmp_path: Path) -> None:
    """From a vision-language checkpoint the causal LM and the bare decoder load their half, and save plain names."""
    torch.manual_seed(0)
    both = ArlowForConditionalGeneration(ArlowConfig.tiny(use_gated_cross_attention=True)).eval()
    both.save_pretrained(tmp_path / "both")
    text, report = AutoModelForCausalLM.from_pretrained(tmp_path / "both", output_loading_info=True)
    assert type(text) is ArlowForCausalLM
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.randint(10, 500, (2, 6))
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(text(ids).logits, both(ids).logits, **close)
    text.save_pretrained(tmp_path / "text")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "text")(ids).logits, text(ids).logits)
    base = ArlowTextModel.from_pretrained(tmp_path / "both")
    torch.testing.assert_close(base(ids).last_hidden_state, text.model(ids).last_hidden_state, **close)


# Sequence classification


@pytest.mark.parametrize("side", ["left", "right"])
def test_sequence_head_reads_the_last_real_token(side: str) -> None:
    """A padded batch gets what each row gets alone: the head on the last real token."""
    model = head(ArlowForSequenceClassification)
    rows = [token_ids(n, seed=n) for n in LENGTHS]
    ids, mask = padded(rows, side)
    found = model(ids, attention_mask=mask).logits
    for number, row in enumerate(rows):
        hidden = model.model(row[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(found[number], model.score(hidden), atol=1e-5, rtol=1e-4)


def test_sequence_losses() -> None:
    """One class per row, several at once, and regression have the loss of their problem type."""
    ids = token_ids(3, 5)
    model = head(ArlowForSequenceClassification)
    labels = torch.tensor([0, 2, 1])
    output = model(ids, labels=labels)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    model = head(ArlowForSequenceClassification)
    several = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])
    output = model(ids, labels=several)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, several)
    torch.testing.assert_close(output.loss, wanted)
    model = ArlowForSequenceClassification(text_config(num_labels=1, pad_token_id=0)).eval()
    values = torch.tensor([0.5, -1.0, 2.0])
    output = model(ids, labels=values)
    torch.testing.assert_close(output.loss, (output.logits[:, 0] - values).square().mean())


def test_a_batch_without_padding_token_is_refused() -> None:
    """Without `pad_token_id` the last real token is unknown: a batch is an error, a single row is not."""
    model = ArlowForSequenceClassification(text_config(num_labels=3)).eval()
    assert model(token_ids(1, 5)).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="padding token"):
        model(token_ids(2, 5))


@pytest.mark.parametrize(
    ("kind", "outside"), [*[(kind, -100) for kind in HEADS.values()], (ArlowForQuestionAnswering, 99)]
)
def test_nothing_to_learn(kind: Any, outside: int) -> None:
    """Nothing but labels that are left out gives every head a zero loss, and gradients that are zero."""
    model, out = head(kind).train(), torch.tensor([outside, outside])
    labels = {"start_positions": out, "end_positions": out} if kind is ArlowForQuestionAnswering else {"labels": out}
    if kind is ArlowForTokenClassification:
        labels = {"labels": out[:, None].expand(2, 6)}
    loss = model(token_ids(2, 6), **labels).loss
    loss.backward()
    assert loss.item() == 0.0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_rows_left_out_of_the_loss() -> None:
    """A row of class -100, or with a position behind its end, counts for nothing: the loss is that of the others."""
    ids = token_ids(2, 6)
    model = head(ArlowForSequenceClassification)
    found = model(ids, labels=torch.tensor([-100, 2])).loss
    torch.testing.assert_close(found, model(ids[1:], labels=torch.tensor([2])).loss)
    model = head(ArlowForQuestionAnswering)
    found = model(ids, start_positions=torch.tensor([9, 2]), end_positions=torch.tensor([9, 4])).loss
    wanted = model(ids[1:], start_positions=torch.tensor([2]), end_positions=torch.tensor([4])).loss
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", HEADS.values(), ids=lambda kind: kind.__name__)
def test_heads_as_tuples(kind: Any) -> None:
    """`return_dict=False` gives the same values in the same order."""
    model, ids = head(kind), token_ids(2, 6)
    found, wanted = model(ids, return_dict=False), model(ids)
    assert isinstance(found, tuple) and len(found) == len(wanted.to_tuple())
    assert torch.equal(found[0], wanted[0])


# Token classification


def test_token_head() -> None:
    """The head on every token; the loss is the mean over labels that are not -100, and comes first in a tuple."""
    model = head(ArlowForTokenClassification)
    ids = token_ids(2, 6)
    labels = token_ids(2, 6, seed=3) % 3
    labels[0, :4] = -100
    output = model(ids, labels=labels)
    assert output.logits.shape == (2, 6, 3)
    torch.testing.assert_close(output.logits, model.score(model.model(ids).last_hidden_state))
    wanted = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, wanted)
    loss, logits = model(ids, labels=labels, return_dict=False)[:2]
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    recorded = model(ids, labels=labels, output_hidden_states=True)
    assert len(recorded.hidden_states) == 3 and list(recorded)[:2] == ["loss", "logits"]


@pytest.mark.parametrize(
    ("labels", "says"), [(torch.zeros(2, 5).long(), "labels"), (torch.full((2, 6), 3), "labels[0, 0]=3")]
)
def test_token_labels_that_do_not_fit(labels: torch.Tensor, says: str) -> None:
    """Token labels of another shape or beyond the classes are ValueErrors."""
    with pytest.raises(ValueError) as caught:
        head(ArlowForTokenClassification)(token_ids(2, 6), labels=labels)
    assert says in str(caught.value)


# Question answering


def test_question_answering() -> None:
    """Start and end logits per token, and the mean of both cross-entropies."""
    model = head(ArlowForQuestionAnswering)
    ids, start, end = token_ids(2, 6), torch.tensor([1, 0]), torch.tensor([4, 5])
    output = model(ids, start_positions=start, end_positions=end)
    both = model.qa_outputs(model.model(ids).last_hidden_state)
    torch.testing.assert_close(torch.stack((output.start_logits, output.end_logits), dim=-1), both)
    entropy = torch.nn.functional.cross_entropy
    wanted = (entropy(output.start_logits, start) + entropy(output.end_logits, end)) / 2
    torch.testing.assert_close(output.loss, wanted)
    assert model.get_input_embeddings() is model.model.embed_tokens


# All of them


@pytest.mark.parametrize("kind", HEADS.values(), ids=lambda kind: kind.__name__)
def test_heads_take_what_the_decoder_takes(kind: Any) -> None:
    """Embeddings for ids, packed positions, recording, other backends, checkpointing, resized vocabularies."""
    model, ids = head(kind), token_ids(1, 6)
    with torch.no_grad():  # a graph from before the resize would keep the old shape of the embedding
        wanted = outputs_of(model(ids))
        assert torch.equal(outputs_of(model(inputs_embeds=model.get_input_embeddings()(ids))), wanted)
        assert len(model(ids, output_hidden_states=True).hidden_states) == 3
        model.set_attn_implementation("eager")
        output = model(ids, output_attentions=True)
    assert len(output.attentions) == 2
    torch.testing.assert_close(outputs_of(output), wanted, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        again = model(torch.cat((ids, ids), 1), position_ids=torch.arange(6).repeat(2)[None])
    if kind is not ArlowForSequenceClassification:
        torch.testing.assert_close(outputs_of(again)[:, 6:], wanted, atol=1e-5, rtol=1e-4)
    model.resize_token_embeddings(VOCAB + 1)
    with torch.no_grad():
        assert outputs_of(model(torch.tensor([[VOCAB, 3]]))).isfinite().all()
    model.train().activation_checkpointing_enable({"use_reentrant": True})
    outputs_of(model(ids)).sum().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()


def test_heads_use_cross_attention() -> None:
    """Heads pass encoder states on to the decoder."""
    model = head(ArlowForTokenClassification, use_cross_attention=True)
    for layer in model.model.layers:
        layer.cross_attn.gate.data.fill_(1.0)
    ids = token_ids(2, 6)
    one = model(ids, encoder_hidden_states=torch.randn(2, 3, 32)).logits
    assert not torch.allclose(one, model(ids).logits, atol=1e-4)


def test_parallel_plans_reach_the_models() -> None:
    """Tensor- and pipeline-parallel plans of config and class are set on causal LM and decoder."""
    model = causal_lm()
    assert model._tp_plan["lm_head"] == "colwise_gather_output"
    assert model.tp_plan["model.layers.*.self_attn.q_proj"] == "colwise"
    assert model.tp_plan["model.layers.*.mlp.down_proj"] == "rowwise"
    assert set(model.model._pp_plan) == {"embed_tokens", "layers", "norm"} and "lm_head" in model._pp_plan
    assert model.model.base_model_prefix == "model" and model.base_model is model.model
    assert model.get_decoder() is model.model
