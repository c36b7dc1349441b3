"""Fusion by the weight maps of a network that sees the sources and their modalities, slice by slice."""

from __future__ import annotations

import torch

from .networks.pairwise import kinds_of


def within(fused, sources):
    """Fused (B, *spatial), clipped to the range of sources (B, S, *spatial) at each voxel; differentiable."""
    return torch.minimum(torch.maximum(fused, sources.amin(1)), sources.amax(1))


def weighted(sources, shares):
    """(B, *spatial): the mean of sources (B, S, *spatial) by shares that sum to 1; differentiable."""
    # Rounding alone can leave the range.
    return within((shares * sources).sum(1), sources)


def slice_by_slice(weigh, sources):
    """(fused, shares) of slices (B, S, H, W) by weigh(one slice) -> shares: all at once they would need more memory."""
    fused, shares = torch.empty_like(sources[:, 0]), torch.empty_like(sources)
    for n, one in enumerate(sources.split(1)):
        shares[n] = weigh(one)[0]
        fused[n] = weighted(one, shares[n : n + 1])[0]
    return fused, shares


class WeighingFuser:
    """The `Fuser` of a network(sources, kinds) -> shares. Its weight maps are exact."""

    halo = None

    def __init__(self, network):
        self.network = network

    def __call__(self, sources, modalities):
        kinds = torch.tensor([kinds_of(modalities)], device=sources.device)
        return slice_by_slice(lambda one: self.network(one, kinds), sources)


def build(network):
    """The `Fuser` of a trained network."""
    return WeighingFuser(network)
