"""Stands in for modules that the source distribution leaves out: the mixins there cannot be run, only inherited."""


class ExportTesterMixin:
    """Of `tests/exporters/test_export.py`, which is not distributed."""


class GenerationTesterMixin:
    """Of `tests/generation/test_utils.py`, which is not distributed; Arlow tests generation itself."""
