"""What a saved model's tensors are called, for the test classes of all models."""

from __future__ import annotations

import copy
import tempfile
import unittest
from pathlib import Path
from typing import Any

from safetensors.torch import load_file


def check_saved_names(test: unittest.TestCase, tester: Any, classes: tuple[type, ...]) -> None:
    """A save writes the names of the model, but for tied ones."""
    config, _ = tester.prepare_config_and_inputs_for_common()
    for model_class in classes:
        with test.subTest(model_class.__name__), tempfile.TemporaryDirectory() as folder:
            model = model_class(copy.deepcopy(config))
            model.save_pretrained(folder)
            saved = load_file(Path(folder) / "model.safetensors").keys()
            test.assertEqual({*saved}, {*model.state_dict()} - {*model.all_tied_weights_keys})
