"""Checkpoints on disk turned into Arlow's: those of earlier Arlow generations, and text models of other families."""

from .convert import convert


__all__ = ["convert"]
