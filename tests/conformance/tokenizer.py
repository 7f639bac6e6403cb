"""The tokenizer under Transformers' mixins."""

from __future__ import annotations

import shutil
import tempfile
import unittest
from typing import Any

from tests.test_tokenization_common import TokenizerTesterMixin
from tests.test_tokenizers_backend_mixin import TokenizersBackendTesterMixin
from tiny_processing import tiny_tokenizer
from tokenizers import Tokenizer

from arlow import ArlowConfig, ArlowTokenizer


class LocalTokenizer:
    """The mixins load a checkpoint by name: here it is a directory, made for each test class."""

    tokenizer_class = ArlowTokenizer
    from_pretrained_id: Any = None
    folder: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.mkdtemp()
        tiny_tokenizer().save_pretrained(cls.folder)
        ArlowConfig.tiny().save_pretrained(cls.folder)
        cls.from_pretrained_id = cls.folder
        super().setUpClass()

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        shutil.rmtree(cls.folder, ignore_errors=True)


class TokenizerTest(LocalTokenizer, TokenizerTesterMixin, unittest.TestCase):
    test_seq2seq = False  # it has no target mode
    integration_expected_decoded_text = TokenizerTesterMixin.integration_test_input_string

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        # What the mixin compares with: the saved file read by the `tokenizers` library alone.
        expected = Tokenizer.from_file(f"{cls.folder}/tokenizer.json").encode(cls.integration_test_input_string)
        cls.integration_expected_tokens, cls.integration_expected_token_ids = expected.tokens, expected.ids


class TokenizerBackendTest(LocalTokenizer, TokenizersBackendTesterMixin, unittest.TestCase):
    pass
