"""torch.compile and torch.export: how many graphs there are, that none breaks, and what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import GenerationConfig, StaticCache
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

from arlow import ArlowForCausalLM, ArlowTextConfig, ArlowVisionConfig, ArlowVLVisionModel


# Sizes in patches of what is encoded together, none like another.
PICTURES = [[(1, 4, 6)], [(1, 8, 6)], [(1, 2, 10)], [(1, 4, 4), (1, 6, 4)], [(1, 4, 8), (1, 2, 4), (1, 6, 6)]]
CLIPS = [[(3, 4, 4)], [(5, 2, 6)], [(2, 4, 4), (6, 2, 2)]]
LAYERS = 4


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tower(**fields: Any) -> ArlowVLVisionModel:
    torch.manual_seed(0)
    fields = {"depth": LAYERS, "embed_dim": 32, "num_heads": 2, "hidden_size": 48, "patch_size": 4} | fields
    return ArlowVLVisionModel(ArlowVisionConfig(deepstack_visual_indexes=[1], **fields)).eval()


def media(grids: list[tuple[int, int, int]]) -> dict[str, torch.Tensor]:
    thw = torch.tensor(grids)
    rows = int(thw.prod(dim=1).sum())
    values = torch.randn(rows, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(rows))
    if thw[:, 0].max() > 1:
        return {"pixel_values_videos": values, "video_grid_thw": thw}
    return {"pixel_values": values, "grid_thw": thw}


def assert_same(ours: Any, plain: Any) -> None:
    torch.testing.assert_close(ours.last_hidden_state, plain.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.pooler_output, plain.pooler_output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.deepstack_features[0], plain.deepstack_features[0], rtol=1e-4, atol=1e-5)


def calls_of_the_block(graph: torch.fx.GraphModule) -> tuple[int, int]:
    """(calls of compiled blocks, different blocks called)."""
    regions = [node for node in graph.graph.nodes if "invoke_subgraph" in str(node.target)]
    return len(regions), len({str(node.args[0].target) for node in regions})


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plain"),
        pytest.param({"use_deformable_attention": True, "deformable_attention_window": 0.3}, id="deformable"),
        pytest.param({"temporal_window_size": 2, "use_absolute_positions": True}, id="windows"),
    ],
)
@pytest.mark.parametrize("sizes", [PICTURES, CLIPS], ids=["pictures", "clips"])
def test_the_tower_is_one_graph_for_any_sizes(fields: dict[str, Any], sizes: list) -> None:
    """No break, one graph for one item and one for several, in each one compiled block for all layers."""
    model = tower(**fields)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for grids in sizes:
            inputs = media(grids)
            assert_same(compiled(**inputs), model(**inputs))
    graphs = [graph for graph in counter.graphs if calls_of_the_block(graph)[0]]
    assert len(graphs) == 2
    assert [calls_of_the_block(graph) for graph in graphs] == [(LAYERS, 1)] * 2


def test_tiles_in_a_graph() -> None:
    """A picture so large that deformable attention goes by tiles, in a graph, too."""
    model = tower(use_deformable_attention=True)
    inputs = media([(1, 34, 40)])
    with torch.no_grad():
        assert_same(torch.compile(model, fullgraph=True, backend="eager")(**inputs), model(**inputs))


def test_the_tower_without_a_word_about_sizes() -> None:
    """`torch.compile` as it is called by default finds out by itself: one graph of fixed size more."""
    model = tower()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for grids in PICTURES:
            inputs = media(grids)
            assert_same(compiled(**inputs), model(**inputs))
    assert counter.frame_count == 3


def test_bytes_in_a_graph() -> None:
    """uint8 rows, normalised by the first product, in a graph, too."""
    model = tower()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    inputs = media(PICTURES[0])
    inputs["pixel_values"] = inputs["pixel_values"].mul(40).add(128).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        assert_same(compiled(**inputs), model(**inputs))


def test_what_takes_sizes_as_numbers_still_compiles() -> None:
    """Progressive patches read the grids: the graph breaks there, and the result is the same."""
    model = tower(use_progressive_patches=True)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for grids in PICTURES[:2]:
            inputs = media(grids)
            assert_same(compiled(**inputs), model(**inputs))


def test_some_rows_of_a_pack_still_compile() -> None:
    """So do packs of which a part is encoded, as in the evaluation of masked autoencoding."""
    model = tower()
    compiled = torch.compile(model, backend="eager")
    visible = torch.tensor([0, 1, 5, 9, 20])
    with torch.no_grad():
        inputs = media(PICTURES[0])
        ours, plain = (each(**inputs, visible=visible).last_hidden_state for each in (compiled, model))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def decoder(**fields: Any) -> ArlowForCausalLM:
    torch.manual_seed(0)
    config = ArlowTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, **fields,
    )  # fmt: skip
    return ArlowForCausalLM(config).eval()


def test_prefill_and_decoding_are_a_graph_each() -> None:
    """Prompts of any length take one graph, all steps after them another."""
    model = decoder()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    found = []
    with torch.no_grad():
        for length in (5, 9, 14):
            ids = torch.randint(64, (1, length), generator=torch.Generator().manual_seed(length))
            cache = StaticCache(config=model.config, max_cache_len=32)
            cache.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
            torch._dynamo.mark_dynamic(ids, 1)
            logits = compiled(ids, past_key_values=cache).logits
            everything = ids.clone()
            for _ in range(4):
                everything = torch.cat([everything, logits[:, -1:].argmax(-1)], dim=1)
                logits = compiled(everything[:, -1:].clone(), past_key_values=cache).logits
            torch.testing.assert_close(logits[0, -1], model(everything).logits[0, -1], rtol=1e-4, atol=1e-5)
            found.append(counter.frame_count)
    assert found == [2, 2, 2]


def test_an_exported_tower_takes_other_sizes() -> None:
    """`torch.export` of the tower, sizes and count of the pictures left open."""
    model = tower()
    some = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        model, (), media(PICTURES[3]), dynamic_shapes={"pixel_values": {0: some}, "grid_thw": {0: some}}, strict=False
    )
    with torch.no_grad():
        for grids in [*PICTURES[3:], [(1, 2, 2), (1, 2, 6), (1, 8, 4), (1, 4, 4)]]:
            inputs = media(grids)
            assert_same(exported.module()(**inputs), model(**inputs))


def test_an_exported_step_goes_through_a_text() -> None:
    """`torch.export` of the decode step with the library's static cache: token after token, the logits of one pass."""
    model = decoder()
    model.generation_config = GenerationConfig(use_cache=True, cache_implementation="static")
    step = TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=16)
    ids = torch.randint(64, (1, 8), generator=torch.Generator().manual_seed(0))
    example = {"input_ids": ids[:, :1], "cache_position": torch.tensor([0])}
    with torch.no_grad():
        exported = torch.export.export(step, (), example, strict=False).module()
        found = [exported(input_ids=ids[:, i : i + 1], cache_position=torch.tensor([i])) for i in range(ids.shape[1])]
        torch.testing.assert_close(torch.cat(found, dim=1), model(ids).logits, rtol=1e-4, atol=1e-5)
