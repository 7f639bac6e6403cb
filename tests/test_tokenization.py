"""The tokenizer: exact round trips, ways to load it, no state between calls."""

from __future__ import annotations

import json
import pickle
import random
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_processing import CORPUS, tiny_processor, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer, TokenizersBackend

from arlow import ArlowConfig
from arlow.chat_template import CHAT_TEMPLATE
from arlow.tokenization_arlow import SPECIAL_TOKENS, ArlowTokenizer, ArlowTokenizerFast


TOKENIZER = tiny_tokenizer()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SPICED = st.lists(
    st.one_of(TEXT, st.sampled_from([*SPECIAL_TOKENS, "<ima", "ge>", "\r\n", "  ", "é", "👩‍👩‍👧"])), max_size=8
)


def stock(tokenizer: ArlowTokenizer) -> TokenizersBackend:
    """Transformers' own backend around the same Rust tokenizer: the reference for a single call."""
    return TokenizersBackend(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


# --- Text and ids --------------------------------------------------------------------------------------------------


@given(SPICED.map("".join))
@settings(max_examples=150, deadline=None)
def test_round_trip_is_exact(text):
    """Decoding the ids of any text gives its NFC form, character for character, special tokens or not."""
    expected = unicodedata.normalize("NFC", text)
    assert TOKENIZER.decode(TOKENIZER(expected)["input_ids"]) == expected
    assert TOKENIZER.decode(TOKENIZER(expected, split_special_tokens=True)["input_ids"]) == expected
    if not any(token in text for token in SPECIAL_TOKENS):
        assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], skip_special_tokens=True) == expected


def test_decoding_keeps_spaces_before_punctuation():
    """`clean_up_tokenization_spaces` never alters text."""
    text = "Hello , world ! It 's  10 . 5 ?"
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"], clean_up_tokenization_spaces=True) == text
    assert TOKENIZER.batch_decode([TOKENIZER(text)["input_ids"]]) == [text]


@given(SPICED.map("".join))
@settings(max_examples=80, deadline=None)
def test_ids_offsets_and_words_are_those_of_the_rust_library(text):
    """Ids, offsets and word indices equal the Rust library's own, with special tokens recognised and without."""
    rust = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    for split in (False, True):
        rust.encode_special_tokens = split
        expected = rust.encode(text)
        ours = TOKENIZER(text, split_special_tokens=split, return_offsets_mapping=True)
        assert ours["input_ids"] == expected.ids
        assert ours["offset_mapping"] == expected.offsets
        assert ours.word_ids() == expected.word_ids


def test_literal_spans_hide_only_what_they_touch():
    """A control token inside a literal span is characters; the same token outside it stays a token."""
    text = "<image> a <image> b <image>"
    encoded = TOKENIZER([text], literal_spans=[[(10, 17)]], return_offsets_mapping=True)
    found = [
        span
        for token, span in zip(encoded["input_ids"][0], encoded["offset_mapping"][0], strict=True)
        if token == TOKENIZER.image_token_id
    ]
    assert found == [(0, 7), (20, 27)]
    assert TOKENIZER.decode(encoded["input_ids"][0]) == text
    assert encoded.char_to_token(0, 21) == len(encoded["input_ids"][0]) - 1


def test_special_tokens_have_names_and_ids():
    """Every special token of the contract has an attribute and an id, and none is split."""
    ids = [
        TOKENIZER.eos_token_id,
        TOKENIZER.im_start_token_id,
        TOKENIZER.im_end_token_id,
        TOKENIZER.vision_start_token_id,
        TOKENIZER.vision_end_token_id,
        TOKENIZER.image_token_id,
        TOKENIZER.video_token_id,
    ]
    assert TOKENIZER("".join(SPECIAL_TOKENS))["input_ids"] == ids == sorted(set(ids))
    assert (TOKENIZER.image_token, TOKENIZER.video_token) == ("<image>", "<video>")
    assert TOKENIZER.pad_token == TOKENIZER.eos_token == "<|endoftext|>"
    assert set(TOKENIZER.all_special_tokens) == set(SPECIAL_TOKENS)
    assert TOKENIZER.padding_side == "left"
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == ""


# --- Loading and saving --------------------------------------------------------------------------------------------


def test_every_way_to_load_gives_the_same_tokenizer(tmp_path):
    """`tokenizer.json`, `vocab.json` + `merges.txt`, files by name and objects all tokenise alike."""
    whole, split = tmp_path / "whole", tmp_path / "split"
    TOKENIZER.save_pretrained(whole)
    split.mkdir()
    vocab_file, merges_file = TOKENIZER.save_vocabulary(split)
    vocab = json.loads((split / "vocab.json").read_text(encoding="utf-8"))
    merges = [
        tuple(line.split(" ")) for line in (split / "merges.txt").read_text(encoding="utf-8").split("\n")[1:] if line
    ]
    loaded = [
        ArlowTokenizer.from_pretrained(whole),
        ArlowTokenizer.from_pretrained(split),
        ArlowTokenizer(vocab_file=vocab_file, merges_file=merges_file),
        ArlowTokenizer(vocab_file, merges_file),
        ArlowTokenizer(vocab=vocab_file, merges=merges_file),
        ArlowTokenizer(vocab=vocab, merges=merges),
        ArlowTokenizer(tokenizer_file=whole / "tokenizer.json"),
        ArlowTokenizer(tokenizer_object=TOKENIZER.backend_tokenizer),
        pickle.loads(pickle.dumps(TOKENIZER)),
    ]
    text = "".join(CORPUS) + "<|im_start|>user <image>"
    for tokenizer in loaded:
        assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
        assert tokenizer.image_token_id == TOKENIZER.image_token_id
        assert tokenizer.chat_template == CHAT_TEMPLATE


def test_saving_twice_writes_the_same_bytes(tmp_path):
    """Save, load, save: every file is the same."""
    TOKENIZER.save_pretrained(tmp_path / "a")
    ArlowTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_a_vocabulary_without_special_tokens_gets_them(tmp_path):
    """Special tokens missing from the files are added behind the vocabulary; renamed ones keep their attribute."""
    TOKENIZER.save_vocabulary(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    plain = {token: row for row, token in enumerate(token for token in vocab if token not in SPECIAL_TOKENS)}
    tokenizer = ArlowTokenizer(vocab=plain, merges=str(tmp_path / "merges.txt"), image_token="<pic>")
    assert tokenizer.image_token_id >= len(plain) and tokenizer("<pic>")["input_ids"] == [tokenizer.image_token_id]
    assert "<image>" not in tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path / "saved")
    assert ArlowTokenizer.from_pretrained(tmp_path / "saved").image_token == "<pic>"


def test_settings_baked_into_a_file_do_not_apply(tmp_path):
    """A `tokenizer.json` saved with truncation and padding switched on loads without them."""
    rust = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    rust.enable_truncation(2)
    rust.enable_padding(length=9)
    rust.save(str(tmp_path / "tokenizer.json"))
    assert (
        ArlowTokenizer.from_pretrained(tmp_path)("The quick fox")["input_ids"]
        == TOKENIZER("The quick fox")["input_ids"]
    )


def test_keywords_of_saved_files_and_of_other_libraries_pass(tmp_path):
    """A saved file may hold any key, and Transformers passes loading keywords of its own; both are let through."""
    TOKENIZER.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "paddin_side": "top", "made_by": "hand"}))
    loading = {
        "cache_dir": None, "force_download": False, "local_files_only": True, "token": None, "revision": "main",
        "trust_remote_code": True, "code_revision": None, "proxies": None, "subfolder": "", "use_fast": True,
        "_from_pipeline": "text-generation", "dtype": "auto", "torch_dtype": "auto", "device_map": "cpu",
        "attn_implementation": "sdpa", "quantization_config": None, "max_memory": None, "low_cpu_mem_usage": True,
        "load_in_8bit": False, "use_safetensors": True, "variant": None, "weights_only": True, "add_bos_token": False,
    }  # fmt: skip
    for auto in (ArlowTokenizer, AutoTokenizer):
        loaded = auto.from_pretrained(tmp_path, padding_side="right", boi_token="<a>", audio_token="<b>", **loading)
        assert type(loaded) is ArlowTokenizer and loaded.padding_side == "right" and loaded.boi_token == "<a>"
        assert loaded.init_kwargs["made_by"] == "hand"


def test_keywords_of_decoding_that_transformers_passes():
    """What pipelines, streamers and engines give to `decode` is accepted, in every form of ids."""
    options = {
        "skip_special_tokens": True,
        "clean_up_tokenization_spaces": True,
        "spaces_between_special_tokens": False,
        "use_source_tokenizer": False,
    }
    ids = TOKENIZER("The fox")["input_ids"]
    for form in (ids, tuple(ids), np.array(ids), torch.tensor(ids), {"input_ids": ids}):
        assert TOKENIZER.decode(form, **options) == "The fox"
    assert TOKENIZER.batch_decode(torch.tensor([ids]), **options) == ["The fox"]
    assert TOKENIZER.decode(ids[0]) == TOKENIZER.decode(np.int64(ids[0])) == "The" and TOKENIZER.decode([]) == ""


def test_a_tokenizer_beside_another_model_is_refused(tmp_path):
    """Ids that disagree with the `config.json` beside the tokenizer are an error through every door."""
    tiny_processor().save_pretrained(tmp_path)
    ArlowConfig.tiny().save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).image_token_id == ArlowConfig.tiny().image_token_id
    ArlowConfig.tiny(image_token_id=17).save_pretrained(tmp_path)
    for auto in (ArlowTokenizer, AutoTokenizer, AutoProcessor):
        with pytest.raises(ValueError, match=r"image_token_id=5: .* 17"):
            auto.from_pretrained(tmp_path)


def test_both_names_are_one_class():
    """`ArlowTokenizerFast` is `ArlowTokenizer`."""
    assert ArlowTokenizerFast is ArlowTokenizer


# --- Training ------------------------------------------------------------------------------------------------------


def test_training_from_files_equals_training_from_texts(tmp_path):
    """A file and an iterator of its lines give the same vocabulary; the size is kept, specials come first."""
    path = tmp_path / "corpus.txt"
    path.write_text("".join(CORPUS * 3), encoding="utf-8", newline="")
    with open(path, encoding="utf-8", newline="") as lines:
        from_texts = ArlowTokenizer.train(iter(list(lines)), 400)
    for source in ([path], [str(path)], path):
        assert ArlowTokenizer.train(source, 400).get_vocab() == from_texts.get_vocab()
    assert len(from_texts) == 400
    assert [from_texts.get_vocab()[token] for token in SPECIAL_TOKENS] == list(range(7))
    assert len(ArlowTokenizer.train(iter(["ab"]), 263)) == 263


# --- Calls ---------------------------------------------------------------------------------------------------------


OPTIONS = st.fixed_dictionaries(
    {
        "padding": st.sampled_from([False, True, "max_length"]),
        "truncation": st.sampled_from([False, True, "only_first"]),
        "max_length": st.integers(6, 40),
        "padding_side": st.sampled_from(["left", "right"]),
        "return_special_tokens_mask": st.booleans(),
        "return_offsets_mapping": st.booleans(),
        "return_token_type_ids": st.booleans(),
    }
)


@given(st.lists(TEXT, min_size=1, max_size=4), OPTIONS, st.sampled_from([None, 8]), st.sampled_from([0, 2]))
@settings(max_examples=80, deadline=None)
def test_a_call_equals_the_stock_backend(texts, options, multiple, stride):
    """Ids, masks and offsets equal Transformers' own backend for every mix of padding and truncation."""
    if multiple and options["truncation"]:
        options = {**options, "max_length": -(-options["max_length"] // 8) * 8}
    overflow = bool(stride and options["truncation"])
    options = {**options, "pad_to_multiple_of": multiple, "stride": stride, "return_overflowing_tokens": overflow}
    expected = stock(TOKENIZER)(texts, verbose=False, **options)
    assert TOKENIZER(texts, verbose=False, **options).data == expected.data


@pytest.mark.parametrize("strategy", [True, "only_first", "only_second"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pairs_are_cut_as_by_the_stock_backend(strategy, side):
    """Text pairs, truncated or not, equal Transformers' own backend."""
    ours, reference = tiny_tokenizer(), stock(TOKENIZER)
    ours.truncation_side = reference.truncation_side = side
    first, second = CORPUS[0] * 2, CORPUS[1] * 2
    for max_length in (7, 60, 100, 110, 1000):
        options = {"truncation": strategy, "max_length": max_length, "padding": True, "return_token_type_ids": True}
        pairs = [(first, second), (second, first[:9]), (first[:9], second)]
        for a, b in pairs:
            try:
                expected = reference([a], [b], **options)
            except Exception:
                with pytest.raises(ValueError, match="cannot reach"):
                    ours([a], [b], **options)
                continue
            got = ours([a], [b], **options)
            assert got.data == expected.data
            assert got.sequence_ids() == expected.sequence_ids()
    assert ours(first, second)["input_ids"] == reference(first, second)["input_ids"]


def test_added_beginning_and_end_tokens_count_when_cutting():
    """With `add_eos_token` the end token survives truncation, as in the stock backend."""
    ours, reference = tiny_tokenizer(), stock(TOKENIZER)
    ours.add_eos_token = reference.add_eos_token = True
    for text in ("The quick brown fox", "x"):
        assert ours(text, truncation=True, max_length=4).data == reference(text, truncation=True, max_length=4).data
    assert ours("a <image>", split_special_tokens=True)["input_ids"][-1] == ours.eos_token_id


@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_outputs_of_every_kind(tensors):
    """Lists, NumPy and torch outputs hold the same numbers."""
    encoded = TOKENIZER(["The fox", "The quick brown fox jumps"], padding=True, return_tensors=tensors)
    expected = TOKENIZER(["The fox", "The quick brown fox jumps"], padding=True)
    for key, rows in expected.items():
        assert np.array_equal(np.asarray(encoded[key]), np.asarray(rows))


def test_a_batch_of_nothing_is_empty():
    """An empty batch gives empty columns."""
    assert TOKENIZER([]).data == {"input_ids": [], "attention_mask": []}


def test_calls_from_many_threads_do_not_disturb_each_other():
    """Padding, truncation, lengths and special-token handling of one call never show in another."""
    tokenizer = tiny_tokenizer()
    texts = [text + "<image>" for text in CORPUS]
    calls = [
        {"padding": padding, "truncation": truncation, "max_length": length, "split_special_tokens": split}
        for padding in (False, True, "max_length")
        for truncation in (False, True)
        for length in (5, 11, 64)
        for split in (False, True)
    ]
    alone = [tokenizer(texts, verbose=False, **call).data for call in calls]
    jobs = [index for index in range(len(calls)) for _ in range(25)]
    random.Random(0).shuffle(jobs)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: tokenizer(texts, verbose=False, **calls[index]).data, jobs))
    assert all(result == alone[index] for index, result in zip(jobs, together, strict=True))


def test_the_stock_backend_does_disturb_calls():
    """What the test above guards against is real: a call of the stock backend leaves its settings behind."""
    reference = stock(TOKENIZER)
    reference(["a b c"], padding="max_length", max_length=9, truncation=True)
    assert reference.backend_tokenizer.padding is not None
    ours = tiny_tokenizer()
    ours(["a b c"], padding="max_length", max_length=9, truncation=True)
    assert ours.backend_tokenizer.padding is None and ours.backend_tokenizer.truncation is None


def test_ids_behind_the_vocabulary_decode_to_nothing():
    """A model with padded embeddings may sample an id that the tokenizer does not have: its text is empty."""
    ids = TOKENIZER("The fox")["input_ids"]
    assert TOKENIZER.decode([ids[0], len(TOKENIZER), *ids[1:], 10**6]) == "The fox"
