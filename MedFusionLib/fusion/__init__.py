"""Fusion: one file per method, one registry, one driver that feeds them slices, volumes or tiles."""

from .driver import Fusion, fuse
from .leaning import lean
from .registry import methods

__all__ = ["Fusion", "fuse", "lean", "methods"]
