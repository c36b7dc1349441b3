"""What the a trous and CNN hybrid learns from: the quality of its fusion of pairs of crops."""

from __future__ import annotations

from ..wavelet_cnn import blend
from .pairs import quality_loss


def blend_loss(network, sources):
    """`quality_loss` + what clipping would take away."""
    fused, whole = blend(network, sources)
    clipped = (whole - fused).abs().mean()
    return quality_loss(sources, fused[:, None]) + clipped
