"""What the a trous and CNN hybrid learns from: the quality of its fusion of pairs of crops."""

from __future__ import annotations

from ..wavelet_cnn import blend
from .pairs import quality_loss, target_loss


def blend_loss(network, sources, targets=None):
    """`quality_loss`, or `target_loss` where there are targets, + what clipping would take away."""
    fused, whole = blend(network, sources)
    clipped = (whole - fused).abs().mean()
    if targets is not None:
        return target_loss(targets, fused[:, None]) + clipped
    return quality_loss(sources, fused[:, None]) + clipped
