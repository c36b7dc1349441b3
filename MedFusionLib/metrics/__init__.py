"""How good a fusion is: the field's measures, of images, of volumes and slice by slice. No torch."""

from .scores import NAMES, QUICK, TASK, evaluate, evaluate_slices, pair_scores, range_of_fused, slice_scores
from .tables import markdown

__all__ = [
    "NAMES",
    "QUICK",
    "TASK",
    "evaluate",
    "evaluate_slices",
    "markdown",
    "pair_scores",
    "range_of_fused",
    "slice_scores",
]
