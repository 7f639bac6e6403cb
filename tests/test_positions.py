"""M-RoPE positions: against stored and live Qwen3-VL, a plain loop, and by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import Prompt, batch, image, prompt, tiny_vlm, video

from arlow.positions import get_rope_index, sequence_ids


FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"


def given_inputs(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    return {name: inputs[name] for name in names if name in inputs}


def plain_positions(row: Prompt) -> list[tuple[int, int, int]]:
    """The rule as the contract states it, token by token."""
    queues: dict[int, list] = {1: [], 2: []}
    for picture in row.media:
        t, h, w = picture.grid
        queues[picture.kind] += [(h // 2, w // 2)] * t
    positions, here, i = [], 0, 0
    while i < len(row.types):
        if row.types[i] == 0:
            positions.append((here, here, here))
            here, i = here + 1, i + 1
            continue
        rows, columns = queues[row.types[i]].pop(0)
        positions += [(here, here + y, here + x) for y in range(rows) for x in range(columns)]
        here, i = here + max(rows, columns), i + rows * columns
    return positions


sides = st.integers(1, 4).map(lambda n: 2 * n)
parts = st.one_of(
    st.integers(1, 5),
    st.builds(image, sides, sides),
    st.builds(video, st.integers(1, 3), sides, sides),
)
marked_rows = st.lists(parts, min_size=1, max_size=5).map(lambda items: prompt(*items))
loose = st.one_of(
    st.integers(1, 3),
    st.builds(lambda h, w, m: image(h, w, marked=m), sides, sides, st.booleans()),
    st.builds(lambda t, h, w, m: video(t, h, w, marked=m), st.integers(1, 3), sides, sides, st.booleans()),
)
loose_rows = st.lists(loose, min_size=1, max_size=5).map(lambda items: prompt(*items))


def cases() -> list[str]:
    path = FIXTURES / "rope_index.json"
    return sorted(json.loads(path.read_text())["cases"]) if path.is_file() else ["absent"]


@pytest.mark.parametrize("case", cases())
def test_stored_positions(case: str) -> None:
    """The positions and deltas that Qwen3-VL gave for the stored layouts."""
    if case == "absent":
        pytest.skip("the fixtures rope_index.* are not beside this checkout")
    stored = load_file(FIXTURES / "rope_index.safetensors")
    tensors = {name.split(".")[1]: value for name, value in stored.items() if name.startswith(f"{case}.")}
    positions, deltas = get_rope_index(**given_inputs(tensors))
    assert torch.equal(positions, tensors["position_ids"])
    assert torch.equal(deltas, tensors["rope_deltas"])


@pytest.fixture(scope="module")
def qwen():
    """Qwen3-VL's own computation; it reads nothing but the merge size."""
    from transformers import Qwen3VLConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    with torch.device("meta"):
        return Qwen3VLModel(
            Qwen3VLConfig(
                text_config={"num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 160, "num_attention_heads": 2},
                vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "deepstack_visual_indexes": []},
            )
        )


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(marked_rows, min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
def test_same_as_qwen(qwen, rows: list[Prompt], side: str) -> None:
    """Any layout that Qwen3-VL can read gets Qwen3-VL's positions and deltas: any mixture, padded on either side."""
    inputs = given_inputs(batch(*rows, side=side))
    wanted = qwen.get_rope_index(**inputs)
    for ours, theirs in zip(get_rope_index(**inputs), wanted, strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(loose_rows, min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
def test_same_as_a_plain_loop(rows: list[Prompt], side: str) -> None:
    """Media may also touch, with no mark between them; each still gets its own place (the loop of the contract)."""
    inputs = batch(*rows, side=side)
    positions, deltas = get_rope_index(**given_inputs(inputs))
    for i, row in enumerate(rows):
        real = inputs["attention_mask"][i].bool()
        wanted = plain_positions(row)
        assert list(map(tuple, positions[:, i, real].T.tolist())) == wanted
        assert not positions[:, i, ~real].any()
        assert deltas[i].item() == max(map(max, wanted)) + 1 - len(wanted)


def test_by_hand() -> None:
    """Two words, an image of 2 x 3 tokens, one word, a video of two groups of 2 x 1 with a mark between, one word."""
    types = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0, 2, 2, 0, 2, 2, 0]])
    positions, deltas = get_rope_index(types, types, torch.tensor([[1, 4, 6]]), torch.tensor([[2, 4, 2]]))
    assert positions[:, 0].tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 8, 9, 9, 11],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9, 10, 11],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 6, 8, 9, 9, 11],
    ]
    assert deltas.tolist() == [[12 - 15]]


@pytest.mark.parametrize("merge", [1, 3])
def test_other_merge_sizes(merge: int) -> None:
    """Sides count merged tokens, whatever the merge size."""
    types = torch.tensor([[0, *[1] * 6, 0]])
    positions, _ = get_rope_index(types, types, torch.tensor([[1, 2 * merge, 3 * merge]]), spatial_merge_size=merge)
    assert positions[1, 0].tolist() == [0, 1, 1, 1, 2, 2, 2, 4]


def test_start_and_dtype() -> None:
    """A start shifts every axis of its row, padding excepted; positions come in the dtype of the ids."""
    inputs = given_inputs(batch(prompt(2, image(4, 4), 1), prompt(3)))
    plain, _ = get_rope_index(**inputs)
    start = torch.tensor([[10], [20]])
    inputs["input_ids"] = inputs["input_ids"].int()
    moved, _ = get_rope_index(**inputs, start=start)
    real = inputs["attention_mask"].bool()
    assert moved.dtype == torch.int32
    assert torch.equal(moved[:, real], (plain + start)[:, real].int())
    assert not moved[:, ~real].any()


def test_number_of_operations_does_not_grow() -> None:
    """No loop over tokens or items on the device: a hundred images take as many tensor operations as two."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.operations += 1
            return func(*args, **(kwargs or {}))

    def count(images: int) -> int:
        inputs = given_inputs(batch(prompt(*itertools.chain.from_iterable((2, image(4, 6)) for _ in range(images)))))
        with Count() as counter:
            get_rope_index(**inputs)
        return counter.operations

    assert count(100) == count(2)


@pytest.mark.parametrize(
    ("rows", "grids", "says"),
    [
        ([[0, 1, 1, 0]], [[1, 4, 4]], ["row 0", "2 image"]),
        ([[0, 0], [1, 1]], [[1, 4, 4]], ["row 1", "2 image"]),
        ([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], [[1, 4, 4], [1, 4, 4]], ["row 1", "3 image"]),
        ([[1, 1, 1], [1, 0, 0]], [[1, 2, 4], [1, 2, 4]], ["row 0", "3 image", "make 2"]),
        ([[0, 1, 1]], None, ["row 0", "2 image"]),
        ([[0, 0]], [[1, 4, 4]], ["1 image items", "only 0"]),
        ([[1, 1]], [[1, 2, 4], [1, 2, 2]], ["2 image items", "only 1"]),
    ],
    ids=["too_few", "too_few_in_row_1", "row_1", "balance_in_total_only", "no_grid", "no_placeholder", "one_too_many"],
)
def test_counts_that_disagree(rows, grids, says: list[str]) -> None:
    """Placeholders must balance per row, and the error names the row and both counts."""
    types = torch.tensor(rows)
    with pytest.raises(ValueError) as caught:
        get_rope_index(types, types, None if grids is None else torch.tensor(grids))
    assert all(part in str(caught.value) for part in ["image_grid_thw", *says]), caught.value


def test_counts_of_videos_name_videos() -> None:
    """The same for videos: every frame group has its placeholders."""
    types = torch.tensor([[2, 2, 0]])
    with pytest.raises(ValueError, match=r"video_grid_thw.*row 0 has 2 video"):
        get_rope_index(types, types, None, torch.tensor([[2, 2, 4]]))


def test_a_video_stays_in_its_row() -> None:
    """The frame groups of one video cannot be shared between rows, even if each row holds whole groups."""
    types = torch.tensor([[2, 2, 0], [2, 2, 0]])
    with pytest.raises(ValueError, match=r"row 0 has 2 video"):
        get_rope_index(types, types, None, torch.tensor([[2, 2, 4]]))


def test_padding_is_no_placeholder() -> None:
    """A placeholder id under the mask does not count."""
    types = torch.tensor([[1, 1, 0, 1, 1, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    positions, deltas = get_rope_index(types, types, torch.tensor([[1, 2, 4]]), attention_mask=mask)
    assert positions[2, 0].tolist() == [0, 0, 0, 1, 2, 3]
    assert deltas.tolist() == [[0]]


def test_the_model_reads_its_merge_size() -> None:
    """`ArlowModel.get_rope_index` takes the merge size from its config, and whatever else an engine passes."""
    model = tiny_vlm(vision={"spatial_merge_size": 1}).model
    types = torch.tensor([[0, 1, 1, 0]])
    positions, _ = model.get_rope_index(types, types, torch.tensor([[1, 1, 2]]), second_per_grid_ts=None)
    assert positions[:, 0].tolist() == [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]


# Packed sequences


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ([0, 1, 2, 3], [0, 0, 0, 0]),
        ([0, 1, 0, 1, 2], [0, 0, 1, 1, 1]),
        ([0, 0, 0], [0, 1, 2]),
        ([7, 8, 9, 3, 4], [0, 0, 0, 1, 1]),
        ([5], [0]),
    ],
)
def test_sequence_ids_of_text(text: list[int], wanted: list[int]) -> None:
    """A text position that does not grow starts a sequence; the same through the text row of four."""
    positions = torch.tensor([text])
    four = torch.cat((positions[None], torch.randint(0, 9, (3, 1, len(text)))))
    assert sequence_ids(positions).tolist() == [wanted]
    assert sequence_ids(four).tolist() == [wanted]


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(loose_rows, min_size=1, max_size=4))
def test_sequence_ids_of_axes(rows: list[Prompt]) -> None:
    """On three axes alone, sequences with media are told apart where they restart, and never cut inside."""
    found = []
    for row in rows:
        found.append(get_rope_index(**given_inputs(batch(row)))[0])
    wanted = [i for i, row in enumerate(rows) for _ in row.ids]
    assert sequence_ids(torch.cat(found, dim=-1)).tolist() == [wanted]


@pytest.mark.parametrize(
    ("axes", "wanted"),
    [
        ([(0, 0, 0), (0, 0, 0), (1, 1, 1)], [0, 1, 1]),
        ([(5, 5, 5), (6, 6, 6), (3, 3, 3), (4, 4, 4)], [0, 0, 1, 1]),
        ([(0, 0, 0), (1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 2), (3, 3, 3)], [0, 0, 0, 0, 0, 0]),
        ([(0, 0, 0), (0, 0, 1), (2, 2, 2), (0, 0, 0), (0, 0, 1)], [0, 0, 0, 1, 1]),
    ],
    ids=["single_token", "offset", "one_image", "images_first"],
)
def test_sequence_ids_of_three_axes(axes: list[tuple], wanted: list[int]) -> None:
    """By hand: a sequence starts where time falls back or all axes are zero; an image repeats its time."""
    assert sequence_ids(torch.tensor(axes).T[:, None]).tolist() == [wanted]
