"""Whole volumes a few slices at a time: what several fusers' `fuse_volume` have in common."""

from __future__ import annotations

import torch


def slabs(depth, rows):
    """[(start, stop)]: `rows` slices each, the last one may have fewer."""
    return [(start, min(start + rows, depth)) for start in range(0, depth, rows)]


def rows(start, stop):
    """The window of (K, J, I) that holds these slices."""
    return slice(start, stop), slice(None), slice(None)


def device_of(network):
    return next(network.parameters()).device


def each_volume(fuse_volume, sources, modalities):
    """What a `Fuser` returns for volumes (B, S, K, J, I), by its `fuse_volume`."""
    fused, weights = torch.empty_like(sources[:, 0]), None
    for one, volumes in enumerate(sources.cpu().numpy()):

        def store(window, values, shares, one=one):
            nonlocal weights
            fused[(one, *window)] = torch.from_numpy(values).to(fused)
            if shares is not None:
                if weights is None:
                    weights = torch.empty_like(sources)
                weights[(one, slice(None), *window)] = torch.from_numpy(shares).to(weights)

        def read(window, volumes=volumes):
            return volumes[(slice(None), *window)]

        fuse_volume(read, sources.shape[2:], modalities, store, lambda done, count: None)
    return fused, weights
