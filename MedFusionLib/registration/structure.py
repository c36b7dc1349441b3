"""Descriptors of local structure, which two modalities share where their intensities do not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Described:
    """rows: float32 (voxels, channels), voxels in the order of a (K, J, I) array; size: (i, j, k)."""

    rows: torch.Tensor
    size: tuple[int, int, int]


def self_similarity(level, distance=2.0):
    """The self-similarity context of a `Level`: 12 channels.

    How alike the neighbourhoods of two of a voxel's six neighbours are, `distance` mm away, for the 12 pairs of
    neighbours that are not opposite. Heinrich, Jenkinson, Papiez, Brady and Schnabel, "Towards realtime multimodal
    fusion for image-guided interventions using self-similarities", MICCAI 2013. Departure: a voxel's channels are less
    their mean and over their deviation, so that it counts which pairs are alike and not how sharp the contrast is.
    """
    values = level.values
    spacing = np.linalg.norm(level.affine[:3, :3], axis=0)
    steps = [max(1, round(distance / s)) for s in spacing]
    neighbours = [(2 - axis, sign * steps[axis]) for axis in range(3) for sign in (-1, 1)]
    pairs = [(a, b) for a, b in combinations(neighbours, 2) if a[0] != b[0]]
    channels = torch.empty((len(pairs), *values.shape), device=values.device)
    shifted = {place: _moved(values, *place) for place in neighbours}
    for n, (a, b) in enumerate(pairs):
        channels[n] = _box((shifted[a] - shifted[b]).square_())
    channels -= channels.amin(dim=0)
    noise = channels.mean(dim=0)
    typical = noise.mean()
    # Between a hundredth and a thousand times the typical: flat regions must not become noise, nor edges rule.
    noise.clamp_(float(typical) * 1e-2 + 1e-12, float(typical) * 1e3 + 1e-12)
    channels.div_(noise).neg_().exp_()
    channels -= channels.mean(dim=0)
    # Where all pairs are alike there is nothing to tell them apart by.
    channels.div_(channels.square().mean(dim=0).sqrt_().add_(0.02))
    return Described(channels.reshape(len(pairs), -1).T.contiguous(), tuple(int(n) for n in level.size))


def correlation(level):
    """One channel: the intensity less its local mean, over its local deviation. For two scans of one contrast."""
    values = level.values
    mean = _box(_box(values))
    spread = (_box(_box(values.square())) - mean.square()).clamp_(min=0)
    flat = (values - mean).div_((spread + 1e-2 * spread.mean() + 1e-12).sqrt_())
    return Described(flat.reshape(-1, 1).contiguous(), tuple(int(n) for n in level.size))


def channels_at(described, index, other=None):
    """Channels (N, C) at voxel index (N, 3), trilinear, with the edge's value outside.

    With other (N, C): (mean squared difference, its gradient (N, 3) by the index).
    """
    size = torch.tensor(described.size, dtype=torch.float32, device=index.device)
    inside = ((index > -0.5) & (index < size - 0.5)).all(dim=1)
    where = torch.minimum(index.clamp(min=0), size - 1)
    base = torch.minimum(where.floor(), (size - 2).clamp(min=0))
    x, y, z = ((where - base).T)[:, :, None]
    base = base.to(torch.int64)
    ni, nj, nk = described.size
    flat = (base[:, 2] * nj + base[:, 1]) * ni + base[:, 0]
    di, dj, dk = min(1, ni - 1), ni * min(1, nj - 1), ni * nj * min(1, nk - 1)
    c = [
        torch.index_select(described.rows, 0, flat + offset)
        for offset in (0, di, dj, di + dj, dk, dk + di, dk + dj, dk + dj + di)
    ]
    a = [torch.lerp(c[n], c[n + 1], x) for n in (0, 2, 4, 6)]
    b = [torch.lerp(a[0], a[1], y), torch.lerp(a[2], a[3], y)]
    values = torch.lerp(b[0], b[1], z)
    if other is None:
        return values
    # Points that leave the moving scan say nothing.
    difference = (values - other) * inside[:, None]
    scale = 2 / difference.numel()
    gx = torch.lerp(torch.lerp(c[1] - c[0], c[3] - c[2], y), torch.lerp(c[5] - c[4], c[7] - c[6], y), z)
    gy = torch.lerp(a[1] - a[0], a[3] - a[2], z)
    gradient = torch.stack([(difference * g).sum(1) for g in (gx, gy, b[1] - b[0])], dim=1) * scale
    return difference.square().mean(), gradient


def _moved(values, axis, step):
    """values[x + step] along an axis, with the edge repeated."""
    n = values.shape[axis]
    index = (torch.arange(n, device=values.device) + step).clamp_(0, n - 1)
    return torch.index_select(values, axis, index)


def _box(values):
    """The mean of 3 x 3 x 3 voxels."""
    for axis in range(3):
        values = (_moved(values, axis, -1) + values).add_(_moved(values, axis, 1)).div_(3)
    return values
