"""Siamese CNN: Liu, Chen, Cheng, Peng, "A medical image fusion method based on convolutional neural networks",
Information Fusion 2017 (doi:10.23919/ICIF.2017.8009769).

1. The network judges 16x16 patches of the sources; each patch's weight is averaged over
   its pixels into a weight map W (section III.B).
2. Sources go into Laplacian pyramids L, W into a Gaussian pyramid G (III.C).
3. Per level, local energies E_s = sum of L_s^2 over 3x3 and the match M = 2 sum(L_1 L_2) / (E_1 + E_2) choose:
   M >= 0.6: the mean of L_s weighted by G_s; else the L_s of greatest energy (equations 2-7).
4. The pyramid is collapsed.

Departures. The network's widths and its fully connected layer (`networks.siamese_net`), patches every fourth pixel
instead of every second, and most training patches dimmed instead of blurred (`training.recipes`). The order of the
sources does not matter: the network's answers for both orders are averaged, which
also extends it to three sources (a softmax of sums over pairs; M is the least match of all pairs). A bilateral
filter smooths W along its own steps. Uptake is smooth by nature and would give way to the MRI's texture: the brightness
of PET and SPECT adds to their share of W (`UPTAKE`; chosen on subjects trained on). Pyramids stop at `LEVELS`, not at
one pixel: deeper ones trade the brightness of whole regions. The result is clipped to the range of the sources at each
voxel, which removes the halo that chosen coarse bands leave in the air around the head. Volumes: W slice by slice along
the first axis, then pyramids and rule in 3-D.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..volume import FUNCTIONAL
from . import weights
from .networks.siamese_net import PATCH, SiameseNet, spread
from .slabs import device_of, each_volume, rows, slabs
from .weighing import brightened, within

MATCH = 0.6
"""Above this similarity of two bands they are averaged, below the stronger is taken."""

UPTAKE = 12.0
"""What white adds to the logarithm of the share of PET and SPECT."""

LEVELS = 3
"""Of the pyramids, at the most: measured best on training subjects."""

ROWS = 8
"""Slices of a volume that the finest level holds at a time, an even number."""


class Siamese:
    """The `Fuser`."""

    halo = None

    def __init__(self, network):
        self.network = network

    def __call__(self, sources, modalities):
        if sources.ndim == 5:
            return each_volume(self.fuse_volume, sources, modalities)
        fused = [within(pyramid_rule(one, self.weight_map(one, modalities)), one) for one in sources.split(1)]
        return torch.cat(fused), None

    def fuse_volume(self, read, shape, modalities, store, step):
        """A `Fuser`'s, see `registry`.

        What the coarser levels need of sources and weights is an eighth of the voxels; of the finest level only the
        fused band is held, all else is made a few slices at a time.
        """
        device, depth = device_of(self.network), shape[0]
        parts = slabs(depth, ROWS)

        def around(start, stop):
            """The slices that the finest level needs to reduce some, and the first one's number."""
            first = max(0, start - 2)
            return torch.from_numpy(read(rows(first, min(depth, stop + 2))))[None].to(device), first

        size = (1, len(modalities), *(-(-n // 2) for n in shape))
        small, small_shares = torch.empty(size, device=device), torch.empty(size, device=device)

        def reduce(images, start, stop, first, target):
            half = slice(start // 2, -(-stop // 2))
            target[:, :, half] = _reduce(images)[:, :, half.start - first // 2 : half.stop - first // 2]

        for start, stop in parts:
            sources, first = around(start, stop)
            reduce(sources, start, stop, first, small)
        finest = torch.empty((1, *shape), device=device)
        maps = {}
        for done, (start, stop) in enumerate(parts):
            step(done, len(parts))
            sources, first = around(start, stop)
            last = first + sources.shape[2]
            for k in range(first, last):
                if k not in maps:
                    maps[k] = self.weight_map(sources[:, :, k - first], modalities)
            shares = torch.stack([maps[k] for k in range(first, last)], 2)
            maps = {k: maps[k] for k in range(max(0, stop - 2), last)}
            reduce(shares, start, stop, first, small_shares)
            detail = sources - _expand(small[:, :, first // 2 : -(-last // 2) + 1], sources.shape[2:])
            finest[:, start:stop] = fuse_band(detail, shares)[:, start - first : stop - first]
        coarse = pyramid_rule(small, small_shares, levels_of(shape) - 1)[:, None]
        for start, stop in parts:
            fused = _expand(coarse[:, :, start // 2 : -(-stop // 2) + 1], (stop - start, *shape[1:]))[:, 0]
            sources = torch.from_numpy(read(rows(start, stop)))[None].to(device)
            store(rows(start, stop), within(fused + finest[:, start:stop], sources)[0].cpu().numpy(), None)

    def weight_map(self, sources, modalities):
        """(B, S, H, W) of sources (B, S, H, W), sums to 1 over S."""
        size = sources.shape[2:]
        padded = F.pad(sources, (0, max(0, PATCH - size[1]), 0, max(0, PATCH - size[0])), mode="replicate")
        shares = bilateral(spread(self.network.share(padded), padded.shape[2:]))
        shares = shares[..., : size[0], : size[1]] / shares[..., : size[0], : size[1]].sum(1, keepdim=True)
        return brightened(shares, sources, [UPTAKE if modality in FUNCTIONAL else 0 for modality in modalities])


def bilateral(maps, radius=2, reach=2.0, step=0.25):
    """Edge-keeping mean of each map (B, S, H, W): near in space (`reach`, pixels) and in value (`step`)."""
    padded = F.pad(maps, (radius,) * 4, mode="replicate")
    total, weight = torch.zeros_like(maps), torch.zeros_like(maps)
    for i in range(2 * radius + 1):
        for j in range(2 * radius + 1):
            moved = padded[..., i : i + maps.shape[2], j : j + maps.shape[3]]
            near = math.exp(-((i - radius) ** 2 + (j - radius) ** 2) / (2 * reach**2))
            share = near * torch.exp(-((moved - maps) ** 2) / (2 * step**2))
            total += share * moved
            weight += share
    return total / weight


def levels_of(shape):
    """How often images of a shape (*spatial) are halved."""
    return min(LEVELS, max(1, int(math.log2(min(shape[-2:]))) - 1))


def pyramid_rule(sources, shares, levels=None):
    """Fuse (B, S, *spatial) into (B, *spatial) by Laplacian bands, steered by shares of the same shape.

    levels: halvings, by default `levels_of` the images.
    """
    bands = []
    for _ in range(levels_of(sources.shape) if levels is None else levels):
        smaller = _reduce(sources)
        bands.append(fuse_band(sources - _expand(smaller, sources.shape[2:]), shares))
        sources, shares = smaller, _reduce(shares)
    fused = fuse_band(sources, shares)
    while bands:
        detail = bands.pop()
        fused = _expand(fused[:, None], detail.shape[1:])[:, 0] + detail
    return fused


def fuse_band(detail, shares):
    """One level (B, S, *spatial) of the pyramids by the rule of energy and match: (B, *spatial)."""
    energy = _sum3(detail * detail)
    agreement = torch.stack(
        [
            2 * _sum3(detail[:, a : a + 1] * detail[:, b : b + 1])[:, 0] / (energy[:, a] + energy[:, b] + 1e-12)
            for a in range(detail.shape[1])
            for b in range(a + 1, detail.shape[1])
        ]
    ).amin(0)
    chosen = detail.gather(1, energy.argmax(1, keepdim=True)).squeeze(1)
    return torch.where(agreement >= MATCH, (shares * detail).sum(1), chosen)


def _reduce(images):
    """Burt and Adelson's REDUCE: a 5-tap binomial along each axis, every second voxel kept (one stays one)."""
    taps = images.new_tensor([1, 4, 6, 4, 1]) / 16
    for axis in range(2, images.ndim):
        length = images.shape[axis]
        index = torch.arange(0, length, 2, device=images.device)
        images = sum(
            tap * images.index_select(axis, (index + offset).clamp(0, length - 1))
            for tap, offset in zip(taps, range(-2, 3), strict=True)
        )
    return images


def _expand(images, size):
    """Back to `size` by linear interpolation at the voxels that `_reduce` kept."""
    for axis, length in enumerate(size, 2):
        half = torch.arange(length, device=images.device) / 2
        low = half.floor().long()
        high = (low + 1).clamp_max(images.shape[axis] - 1)
        shape = [-1 if n == axis else 1 for n in range(images.ndim)]
        share = (half - low).to(images.dtype).view(shape)
        images = images.index_select(axis, low) * (1 - share) + images.index_select(axis, high) * share
    return images


def _sum3(images):
    rank = images.ndim - 2
    pool = F.avg_pool2d if rank == 2 else F.avg_pool3d
    # Padded by hand: avg_pool3d refuses volumes that are thinner than its window.
    return pool(F.pad(images, (1, 1) * rank), 3, stride=1) * 3**rank


def build(network):
    """The `Fuser` of a trained network."""
    return Siamese(network)


def load(method, device):
    return build(weights.load(method.weights, SiameseNet()).to(device))
