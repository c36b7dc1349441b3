"""How good a fusion is, by the field's standard measures. Every measure here looks at the fused image and its sources;
no reference fusion exists."""

from .evaluate import ALL, RUN, evaluate, slice_scores
from .scores import scores

__all__ = ["ALL", "RUN", "evaluate", "scores", "slice_scores"]
