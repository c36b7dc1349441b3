"""What the feature extraction networks learn from: the quality of their fusion, and what a reader looks for."""

from __future__ import annotations

from ..weighing import weighted
from .pairs import COMPLEMENT, quality_loss, reading_loss, target_loss


def feature_loss(network, sources, kinds, targets=None):
    """`quality_loss` + `reading_loss`, or `target_loss` where there are targets."""
    fused = weighted(sources, network(sources, kinds))[:, None]
    if targets is not None:
        return target_loss(targets, fused)
    return quality_loss(sources, fused, COMPLEMENT) + reading_loss(sources, kinds, fused)
