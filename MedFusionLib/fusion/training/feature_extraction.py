"""What the feature extraction networks learn from: the quality of their fusion, and what a reader looks for."""

from __future__ import annotations

from ..weighing import weighted
from .pairs import COMPLEMENT, quality_loss, reading_loss


def feature_loss(network, sources, kinds):
    """`quality_loss` + `reading_loss`."""
    fused = weighted(sources, network(sources, kinds))[:, None]
    return quality_loss(sources, fused, COMPLEMENT) + reading_loss(sources, kinds, fused)
