"""Baselines without training, of single voxels: what every network has to beat. Multi-scale ones: `multiscale`."""

from __future__ import annotations

import torch


class Average:
    """The mean of the sources."""

    halo = 0

    def __call__(self, sources, modalities):
        weights = torch.full_like(sources, 1 / sources.shape[1])
        return sources.mean(1), weights


class Maximum:
    """The brightest source at each voxel; the first where they are equal."""

    halo = 0

    def __call__(self, sources, modalities):
        fused, index = sources.max(1)
        return fused, torch.zeros_like(sources).scatter_(1, index.unsqueeze(1), 1)


class _Shares:
    """A weighted mean with one weight per source and volume, which `prepare` finds."""

    halo = 0

    def __call__(self, sources, modalities):
        shares = self.shares.to(sources).view(1, -1, *[1] * (sources.ndim - 2))
        return (shares * sources).sum(1), shares.expand_as(sources).contiguous()

    def prepare(self, sources, modalities, step=None):
        shares = self.strengths(_covariance(sources))
        total = shares.sum()
        # Sources that never change have no contrast to share out.
        self.shares = shares / total if total > 0 else torch.full_like(shares, 1 / len(shares))


class Weighted(_Shares):
    """The mean of the sources, each weighted by its contrast: its standard deviation over the volume."""

    @staticmethod
    def strengths(covariance):
        return covariance.diagonal().sqrt()


class PrincipalComponent(_Shares):
    """The mean of the sources, weighted by their loadings on the first principal component (Naidu and Raol 2008).

    Loadings of opposite sign, of sources that are each other's negative, count by their size: a fused value stays
    between its sources.
    """

    @staticmethod
    def strengths(covariance):
        return torch.linalg.eigh(covariance).eigenvectors[:, -1].abs() if covariance.any() else covariance[0] * 0


def _covariance(sources):
    """(S, S) float64, of (S, ...) volumes, without a float64 copy of them."""
    flat = sources.reshape(len(sources), -1)
    parts = flat.split(2**20, 1)
    # Part by part: a mean in another precision copies all that it is the mean of.
    means = sum(part.double().sum(1, keepdim=True) for part in parts).cpu() / flat.shape[1]
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for part in parts:
        centred = part.double().cpu() - means
        total += centred @ centred.T
    return total / flat.shape[1]


_CLASSES = {"average": Average, "maximum": Maximum, "weighted": Weighted, "pca": PrincipalComponent}


def load(method, device):
    return _CLASSES[method.name]()
