"""Fusion by the weight maps of a network that sees the sources and their modalities, slice by slice."""

from __future__ import annotations

import torch

from .networks.pairwise import kinds_of


def weighted(sources, shares):
    """(B, *spatial): the mean of sources (B, S, *spatial) by shares that sum to 1; differentiable."""
    fused = (shares * sources).sum(1)
    # Rounding alone can leave the range.
    return torch.minimum(torch.maximum(fused, sources.amin(1)), sources.amax(1))


class WeighingFuser:
    """The `Fuser` of a network(sources, kinds) -> shares. Its weight maps are exact."""

    halo = None

    def __init__(self, network):
        self.network = network

    def __call__(self, sources, modalities):
        kinds = torch.tensor([kinds_of(modalities)], device=sources.device)
        fused, shares = torch.empty_like(sources[:, 0]), torch.empty_like(sources)
        # One slice at a time bounds the memory of the activations.
        for n, one in enumerate(sources.split(1)):
            shares[n] = self.network(one, kinds)[0]
            fused[n] = weighted(one, shares[n : n + 1])[0]
        return fused, shares


def build(network):
    """The `Fuser` of a trained network."""
    return WeighingFuser(network)
