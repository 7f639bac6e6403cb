"""Generation: every mode and cache gives what greedy decoding row by row gives, and leaves no trace on the model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import IMAGE, Prompt, batch, image, prompt, tiny_causal_lm, tiny_vlm, tiny_vlm_config, video
from transformers import (
    CompileConfig,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
)


NEW = 7  # tokens per row
SLIDING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 6}
ROWS = (
    prompt(5, seed=1),
    prompt(3, image(4, 6), 4, seed=2),
    prompt(2, image(4, 4, seed=5), 1, image(6, 4, seed=6), 3, seed=3),
    prompt(2, image(4, 4, seed=7), 2, video(2, 4, 4, seed=8), 3, seed=4),
)


def build(**overrides):
    model = tiny_vlm(use_gated_cross_attention=True, **overrides)
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def sliding():
    return build(text=SLIDING)


@pytest.fixture(params=["full", "sliding"])
def either(request, model, sliding):
    return model if request.param == "full" else sliding


def new_tokens(model, inputs: dict, **options) -> torch.Tensor:
    """The generated tokens (rows, NEW); greedy unless told otherwise."""
    output = model.generate(**inputs, **{"do_sample": False, "max_new_tokens": NEW, **options})
    width = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return output[:, width:]


def greedy_by_hand(model, row: Prompt) -> list[int]:
    """The definition: the whole row through `forward` for every token, no cache, no `generate`."""
    ids = list(row.ids)
    for _ in range(NEW):
        inputs = batch(Prompt(ids, row.types + [0] * (len(ids) - len(row.ids)), row.media))
        ids.append(int(model(**inputs, use_cache=False).logits[0, -1].argmax()))
    return ids[len(row.ids) :]


def one_by_one(model, rows=ROWS, **options) -> torch.Tensor:
    return torch.cat([new_tokens(model, batch(row), **options) for row in rows])


@torch.no_grad()
def test_greedy_is_the_definition(either) -> None:
    """Greedy decoding with the default cache gives what repeated whole forwards give, row by row and in a batch."""
    wanted = [greedy_by_hand(either, row) for row in ROWS]
    assert one_by_one(either).tolist() == wanted
    assert new_tokens(either, batch(*ROWS)).tolist() == wanted


def compiled_on_cpu() -> CompileConfig:
    config = CompileConfig(backend="eager", fullgraph=True, mode="default")
    config._compile_all_devices = True
    return config


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"cache_implementation": "dynamic"},
        {"prefill_chunk_size": 3},
        {"prefill_chunk_size": 64},
        {"prefill_chunk_size": 4, "cache_implementation": "static"},
        {"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False},
    ],
    ids=["no_cache", "static", "dynamic", "chunks_of_3", "chunks_of_64", "static_chunks", "plain"],
)
def test_same_tokens(either, options: dict) -> None:
    """Text, images and videos mixed and left-padded: every cache and prefill gives what each row gives alone."""
    assert torch.equal(new_tokens(either, batch(*ROWS), **options), one_by_one(either))


def test_compiled_decoding(model) -> None:
    """With a static cache the decode step compiles as one graph, and gives the same tokens."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    config = compiled_on_cpu()
    config.backend = backend
    tokens = new_tokens(model, batch(*ROWS), cache_implementation="static", compile_config=config)
    assert torch.equal(tokens, one_by_one(model))
    assert 1 <= len(graphs) <= 2  # at most one more, when the cache's length turns from a number into a symbol


def test_compiled_chunks(sliding) -> None:
    """A prefill in chunks compiles, too, sliding layers included."""
    options = {"cache_implementation": "static", "compile_config": compiled_on_cpu(), "prefill_chunk_size": 8}
    rows = (ROWS[0], prompt(6, seed=8))
    assert torch.equal(new_tokens(sliding, batch(*rows), **options), one_by_one(sliding, rows))


def test_quantised_cache(model) -> None:
    """A quantised cache runs on mixed rows; the tokens before anything is read back from it are those of greedy."""
    pytest.importorskip("optimum.quanto")
    options = {
        "cache_implementation": "quantized",
        "cache_config": {"backend": "quanto", "nbits": 4, "q_group_size": 16},
    }
    tokens = new_tokens(model, batch(*ROWS), **options)
    assert tokens.shape == (4, NEW)
    assert torch.equal(tokens[:, 0], one_by_one(model)[:, 0])
    # Four bits are close enough that a long text stays the same for a while on most rows.
    assert (tokens[:, 1] == one_by_one(model)[:, 1]).sum() >= 2


# Search and sampling


def test_beams(either) -> None:
    """Beam search on a mixed batch finds for each row what it finds on the row alone."""
    options = {"num_beams": 3, "num_return_sequences": 2}
    together = new_tokens(either, batch(*ROWS), **options)
    assert torch.equal(together, one_by_one(either, **options))
    assert not torch.equal(together[::2], one_by_one(either))  # it is no greedy search in disguise


@torch.no_grad()
def test_beams_find_the_best_pair(model) -> None:
    """With as many beams as words, two steps of beam search are exhaustive: the best of all continuations."""
    for row in ROWS[:2]:
        options = {"num_beams": 160, "max_new_tokens": 2, "length_penalty": 0.0, "eos_token_id": None}
        found = new_tokens(model, batch(row), **options)[0].tolist()
        first = model(**batch(row)).logits[0, -1].log_softmax(-1)
        repeated = [Prompt([*row.ids, word], [*row.types, 0], row.media) for word in range(160)]
        second = torch.cat([model(**batch(whole)).logits[:, -1].log_softmax(-1) for whole in repeated])
        best = (first[:, None] + second).flatten().argmax().item()
        assert found == [best // 160, best % 160]


def test_sampling(model) -> None:
    """A seed gives the same samples again; a row samples from its own distribution (top_k=1 is greedy)."""
    inputs = batch(*ROWS)

    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return new_tokens(model, inputs, do_sample=True, temperature=2.0, num_return_sequences=3)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert sample(1).shape == (12, NEW)
    greedy = new_tokens(model, inputs, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(greedy, one_by_one(model).repeat_interleave(2, dim=0))


def test_sampling_seed_of_a_row(model) -> None:
    """`num_return_sequences` with images: every sample of a row sees that row's media."""
    torch.manual_seed(0)
    output = model.generate(
        **batch(*ROWS), do_sample=True, max_new_tokens=1, num_return_sequences=4, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    logits = output.logits[0].view(4, 4, -1)
    alone = torch.stack([model(**batch(row)).logits[0, -1] for row in ROWS])
    torch.testing.assert_close(logits, alone[:, None].expand_as(logits), rtol=1e-4, atol=2e-5)


# Speculation


def count_forwards(model, run) -> int:
    calls = []
    hook = model.get_decoder().register_forward_hook(lambda *args: calls.append(1))
    run()
    hook.remove()
    return len(calls)


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_assisted(either, row: int) -> None:
    """Drafts by another model with images and videos change nothing; drafts by an equal one save forwards."""
    inputs, wanted = batch(ROWS[row]), one_by_one(either, ROWS[row : row + 1])
    assert torch.equal(new_tokens(either, inputs, assistant_model=tiny_vlm(seed=3)), wanted)
    twin = build(text=SLIDING) if either.config.text_config.use_sliding_window else build()
    twin.generation_config.num_assistant_tokens = 5
    twin.generation_config.num_assistant_tokens_schedule = "constant"
    twin.generation_config.assistant_confidence_threshold = 0.0
    forwards = count_forwards(
        either, lambda: torch.testing.assert_close(new_tokens(either, inputs, assistant_model=twin), wanted)
    )
    assert forwards <= 3


def test_a_smaller_assistant_drafts_blind(model) -> None:
    """An assistant of another width cannot use the features: it drafts from the text, and the result is the same."""
    config = tiny_vlm_config(
        text={"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}, vision={"hidden_size": 32}
    )
    small = type(model)(config).eval()
    for row in ROWS:
        wanted = one_by_one(model, [row])
        assert torch.equal(new_tokens(model, batch(row), assistant_model=small), wanted)


def test_prompt_lookup(either) -> None:
    """Prompt lookup gives greedy's tokens, also when the first step already has drafts."""
    echo = prompt(4, seed=1) + prompt(image(4, 4)) + prompt(4, seed=1)
    for row in (*ROWS, echo):
        wanted = one_by_one(either, [row])
        assert torch.equal(new_tokens(either, batch(row), prompt_lookup_num_tokens=3), wanted)


def test_assisted_text(model) -> None:
    """The causal LM is assisted by another one."""
    lm = tiny_causal_lm()
    inputs = {"input_ids": torch.tensor([prompt(9, seed=5).ids])}
    wanted = new_tokens(lm, inputs)
    assert torch.equal(new_tokens(lm, inputs, assistant_model=tiny_causal_lm(seed=4)), wanted)


# Stops


def test_stop_strings(model) -> None:
    """A stop string ends each row where its text ends with it."""
    from tiny_processing import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    wanted = one_by_one(model)
    stop = next(text for text in map(tokenizer.decode, wanted[1, 1:]) if text.isascii())
    tokens = new_tokens(model, batch(*ROWS), stop_strings=[stop], tokenizer=tokenizer, eos_token_id=1)
    for row, full in zip(tokens.tolist(), wanted.tolist(), strict=True):
        end = next((i + 1 for i in range(NEW) if stop in tokenizer.decode(full[: i + 1])), NEW)
        assert row[:end] == full[:end]
        assert not any(row[end:])  # padding


def test_end_of_sequence(model) -> None:
    """A row that has ended is padded while the others go on."""
    wanted = one_by_one(model)
    end = int(wanted[2, 1])
    tokens = new_tokens(model, batch(*ROWS), eos_token_id=end).tolist()
    for row, full in zip(tokens, wanted.tolist(), strict=True):
        length = full.index(end) + 1 if end in full else NEW
        assert row == (full[:length] + [0] * NEW)[: len(row)]


class Force(LogitsProcessor):
    """Makes the model write a given token first."""

    def __init__(self, token: int, width: int) -> None:
        self.token, self.width = token, width

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == self.width:
            scores = torch.full_like(scores, -1e9)
            scores[:, self.token] = 0
        return scores


@pytest.mark.parametrize("types", [True, False], ids=["marked", "unmarked"])
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no_cache"])
def test_a_written_placeholder_is_text(model, types: bool, cached: bool) -> None:
    """A placeholder token that the model itself writes is a word like any other, with a cache or without."""
    inputs = batch(*ROWS[:2])
    if not types:
        del inputs["mm_token_type_ids"]
    force = LogitsProcessorList([Force(IMAGE, inputs["input_ids"].shape[1])])
    tokens = new_tokens(model, inputs, logits_processor=force, use_cache=cached)
    assert tokens[:, 0].tolist() == [IMAGE, IMAGE]
    for row, written in zip(ROWS, tokens.tolist(), strict=False):
        ids = [*row.ids, IMAGE]
        for token in written[1:]:
            inputs = batch(Prompt(ids, row.types + [0] * (len(ids) - len(row.ids)), row.media))
            assert int(model(**inputs).logits[0, -1].argmax()) == token
            ids.append(token)


# Other inputs


def test_without_token_types(either) -> None:
    """Token types are read off the placeholders when they are not given."""
    inputs = batch(*ROWS)
    del inputs["mm_token_type_ids"]
    assert torch.equal(new_tokens(either, inputs), one_by_one(either))


@pytest.mark.parametrize("keep", [("mm_token_type_ids",), ("input_ids", "mm_token_type_ids"), ()])
@pytest.mark.parametrize("beams", [1, 3])
def test_embeddings(model, keep: tuple, beams: int) -> None:
    """`inputs_embeds` with pixels, with ids beside them or without, with beams or without: the same tokens."""
    inputs = batch(*ROWS)
    wanted = new_tokens(model, inputs, num_beams=beams)
    embedded = {**inputs, "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    for name in {"input_ids", "mm_token_type_ids"} - set(keep):
        del embedded[name]
    assert torch.equal(new_tokens(model, embedded, num_beams=beams), wanted)


def test_precomputed_features(model) -> None:
    """Features encoded before, with the grids for the positions, in place of pixels."""
    inputs = batch(*ROWS)
    wanted = one_by_one(model)
    features = {
        "image": model.get_image_features(inputs.pop("pixel_values"), inputs["image_grid_thw"]),
        "video": model.get_video_features(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"]),
    }
    assert torch.equal(new_tokens(model, inputs, mm_encoder_outputs=features), wanted)


def test_a_prompt_that_ends_with_an_image(model) -> None:
    """The answer starts after the image's larger side, as in a forward over everything."""
    rows = (prompt(3, image(4, 8, marked=False), seed=2), prompt(2, image(6, 2, seed=4, marked=False), seed=3))
    assert one_by_one(model, rows).tolist() == [greedy_by_hand(model, row) for row in rows]
    assert torch.equal(new_tokens(model, batch(*rows)), one_by_one(model, rows))


def test_the_encoder_runs_once(model) -> None:
    """Images and videos of a prompt are encoded once per generation, whatever the search."""
    for options in ({}, {"num_beams": 3}, {"use_cache": False}, {"prefill_chunk_size": 4}):
        rows = []
        hook = model.model.visual.register_forward_hook(lambda m, a, out, rows=rows: rows.append(len(out[0])))
        inputs = batch(*ROWS)
        new_tokens(model, inputs, **options)
        hook.remove()
        assert sum(rows) == len(inputs["pixel_values"]) + len(inputs["pixel_values_videos"]), options


@torch.no_grad()
@pytest.mark.parametrize("static", [False, True])
def test_a_loop_by_hand(either, static: bool) -> None:
    """A decode loop that gives no positions equals `generate`: the cache knows where the axes are."""
    inputs = batch(*ROWS)
    wanted = one_by_one(either)
    cache = StaticCache(config=either.config.text_config, max_cache_len=64) if static else None
    output = either(**inputs, past_key_values=cache, use_cache=True)
    mask, tokens = inputs["attention_mask"], []
    for _ in range(NEW):
        tokens.append(output.logits[:, -1].argmax(-1))
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        output = either(
            input_ids=tokens[-1][:, None], attention_mask=mask, past_key_values=output.past_key_values, use_cache=True
        )
    assert torch.equal(torch.stack(tokens, dim=1), wanted)


@torch.no_grad()
def test_a_loop_by_hand_with_three_axes(model) -> None:
    """The same when the prompt came with positions (3, B, S), which have no text row."""
    inputs = batch(*ROWS)
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    axes, _ = model.model.get_rope_index(**{name: inputs[name] for name in names})
    output = model(**inputs, position_ids=axes, use_cache=True)
    mask, tokens = inputs["attention_mask"], []
    for _ in range(NEW):
        tokens.append(output.logits[:, -1].argmax(-1))
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        output = model(input_ids=tokens[-1][:, None], attention_mask=mask, past_key_values=output.past_key_values)
    assert torch.equal(torch.stack(tokens, dim=1), one_by_one(model))


@torch.no_grad()
def test_a_loop_by_hand_after_an_image(model) -> None:
    """The same when nothing stands between the image and the answer."""
    row = prompt(3, image(4, 8, marked=False), seed=2)
    output, tokens = model(**batch(row), use_cache=True), []
    for _ in range(NEW):
        tokens.append(output.logits[:, -1:].argmax(-1))
        output = model(input_ids=tokens[-1], past_key_values=output.past_key_values)
    assert torch.cat(tokens, dim=1)[0].tolist() == greedy_by_hand(model, row)


@torch.no_grad()
def test_a_cache_that_was_reset(model) -> None:
    """A static cache used for images, reset and used again starts at position 0, by hand and in `generate`."""
    for again in (ROWS[0], ROWS[1]):
        cache = StaticCache(config=model.config.text_config, max_cache_len=64)
        model(**batch(ROWS[2]), past_key_values=cache)
        seen = []
        hook = model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["position_ids"]), with_kwargs=True
        )
        for run in (lambda: model(**batch(again), past_key_values=cache),  # noqa: B023
                    lambda: new_tokens(model, batch(again), past_key_values=cache)):  # noqa: B023  # fmt: skip
            cache.reset()
            run()
        hook.remove()
        first_steps = [positions for positions in seen if positions is not None and positions.shape[-1] > 1]
        assert len(first_steps) == (1 if again is ROWS[0] else 2)  # plain text leaves them to the decoder
        assert all(not positions[..., 0].any() for positions in first_steps)


# Continuous batching


def continuous(model, prompts: list[list[int]], *, blocks: int = 16, tokens: int = 64) -> list[list[int]]:
    options = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=blocks, page_size=16, max_batch_tokens=tokens)
    results = model.generate_batch(
        inputs=prompts, generation_config=options, continuous_batching_config=small, warmup=False
    )
    return [result.generated_tokens for _, result in sorted(results.items())]


@pytest.mark.parametrize("kind", ["causal", "sliding", "composite"])
def test_continuous_batching(kind: str) -> None:
    """`generate_batch` on text gives each prompt what `generate` gives it."""
    makers = {"causal": tiny_causal_lm, "sliding": lambda: tiny_causal_lm(**SLIDING), "composite": build}
    model = makers[kind]()
    prompts = [prompt(length, seed=length).ids for length in (5, 11, 3)]
    wanted = [new_tokens(model, {"input_ids": torch.tensor([ids])})[0].tolist() for ids in prompts]
    assert continuous(model, prompts) == wanted


@pytest.mark.parametrize("lengths", [(7,), (60, 4)])
def test_continuous_batching_of_one(lengths: tuple[int, ...]) -> None:
    """A prompt alone, or one that is left alone when it comes later: single queries read the pages, too."""
    model = tiny_causal_lm()
    prompts = [prompt(length, seed=length).ids for length in lengths]
    wanted = [new_tokens(model, {"input_ids": torch.tensor([ids])})[0].tolist() for ids in prompts]
    assert continuous(model, prompts, tokens=16) == wanted


def test_continuous_batching_of_long_prompts_in_bfloat16() -> None:
    """Prompts of hundreds of tokens in bfloat16 leave their keys and values in the pages."""
    model = tiny_causal_lm().to(torch.bfloat16)
    ids = prompt(600, seed=3).ids
    with torch.no_grad():
        found = continuous(model, [ids], blocks=64, tokens=640)[0]
        for number, token in enumerate(found):  # the most likely one after what stands before it, up to a rounding
            logits = model(input_ids=torch.tensor([ids + found[:number]])).logits[0, -1].float()
            assert logits[token] >= logits.max() - 0.05 * logits.std()


# No state


def test_threads(model) -> None:
    """Four threads with different media on one model get what each gets alone."""
    wanted = [one_by_one(model, [row]) for row in ROWS]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            results = list(pool.map(lambda row: new_tokens(model, batch(row)), ROWS))
            assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))


def state_of(model) -> dict:
    """Every attribute of every module, tensors by identity and version."""

    def describe(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return id(value), value._version
        if isinstance(value, dict):
            return {key: describe(item) for key, item in value.items()}
        return id(value) if not isinstance(value, (int, float, str, bool, type(None))) else value

    return {name: describe(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 2}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}],
    ids=["greedy", "beams", "static", "lookup"],
)
def test_no_attribute_changes(options: dict) -> None:
    """A generation leaves every attribute of every module as it was: nothing of a request stays."""
    model = build()
    inputs = batch(ROWS[3])
    new_tokens(model, batch(ROWS[0]), **options)  # the library installs its recording hooks at the first call
    before = state_of(model)
    new_tokens(model, inputs, **options)
    after = state_of(model)
    for state in (before[""], after[""]):
        state.pop("_previous_max_cache_length", None)  # the library's own note, for its compiled calls
    assert after == before


def test_recorded_outputs(model) -> None:
    """Scores, hidden states and attentions of a generation have the shapes of Transformers' own models."""
    eager = build(attn="eager")
    output = eager.generate(
        **batch(*ROWS), max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_scores=True,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    width = batch(*ROWS)["input_ids"].shape[1]
    assert [tuple(scores.shape) for scores in output.scores] == [(4, 160)] * 3
    assert [tuple(states.shape) for states in output.hidden_states[0]] == [(4, width, 64)] * 4
    assert [tuple(weights.shape) for weights in output.attentions[0]] == [(4, 4, width, width)] * 3
    assert [tuple(weights.shape) for weights in output.attentions[1]] == [(4, 4, 1, width + 1)] * 3
