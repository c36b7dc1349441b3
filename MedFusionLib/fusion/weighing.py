"""Fusion by the weight maps of a network that sees the sources and their modalities.

Volumes go slice after slice along their axial axis, each with what its neighbours show (`networks.through`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .networks.pairwise import kinds_of
from .slabs import device_of, each_volume, rows

KNEE = 0.3
"""Brightness (0..1 of the display range) above which a pixel counts as content of its own in `brightened`."""


def within(fused, sources):
    """Fused (B, *spatial), clipped to the range of sources (B, S, *spatial) at each voxel; differentiable."""
    return torch.minimum(torch.maximum(fused, sources.amin(1)), sources.amax(1))


def weighted(sources, shares):
    """(B, *spatial): the mean of sources (B, S, *spatial) by shares that sum to 1; differentiable."""
    # Rounding alone can leave the range.
    return within((shares * sources).sum(1), sources)


def brightened(shares, sources, strengths):
    """Shares (B, S, H, W), which sum to 1 over S, moved towards what is bright in sources of the same shape.

    strengths: S numbers, what white adds to the logarithm of a source's share; at `KNEE` and below it is nothing.
    """
    mean = F.avg_pool2d(sources, 3, 1, 1, count_include_pad=False)
    bright = (mean - KNEE).clamp_min(0) / (1 - KNEE)
    added = sources.new_tensor(strengths)[:, None, None] * bright
    return (shares.clamp_min(1e-6).log() + added).softmax(1)


def slice_by_slice(weigh, sources):
    """(fused, shares) of slices (B, S, H, W) by weigh(one slice) -> shares: all at once they would need more memory."""
    fused, shares = torch.empty_like(sources[:, 0]), torch.empty_like(sources)
    for n, one in enumerate(sources.split(1)):
        shares[n] = weigh(one)[0]
        fused[n] = weighted(one, shares[n : n + 1])[0]
    return fused, shares


class WeighingFuser:
    """The `Fuser` of a `ThroughNet`. Its weight maps are exact."""

    halo = None
    along = "axial"

    def __init__(self, network):
        self.network = network

    def __call__(self, sources, modalities):
        if sources.ndim == 5:
            return each_volume(self.fuse_volume, sources, modalities)
        kinds = torch.tensor([kinds_of(modalities)], device=sources.device)
        return slice_by_slice(lambda one: self.network(one, kinds), sources)

    def fuse_volume(self, read, shape, modalities, store, step):
        """A `Fuser`'s, see `registry`."""
        device = device_of(self.network)
        kinds = torch.tensor([kinds_of(modalities)], device=device)

        def encoded(k):
            source = torch.from_numpy(read(rows(k, k + 1))).to(device).transpose(0, 1)
            return source, self.network.encode(source, kinds)

        source, here = encoded(0)
        before = here
        for k in range(shape[0]):
            step(k, shape[0])
            following, after = encoded(k + 1) if k + 1 < shape[0] else (None, here)
            features = self.network.across(before, here, after)
            # What the next slice does not need is let go before the largest part of the work.
            before, here = here, after
            shares = self.network.weigh(features, kinds, shape[1:])
            store(rows(k, k + 1), weighted(source, shares).cpu().numpy(), shares.transpose(0, 1).cpu().numpy())
            source = following


def build(network):
    """The `Fuser` of a trained network."""
    return WeighingFuser(network)
