"""MedFusion's own network: blending weights of two or more sources, for any image rank.

The network sees each source as a pyramid of local features and answers, coarse to fine, how much of each
source each of three frequency bands takes at each voxel. Space enters through fixed, symmetric operators
(2x mean pooling, linear upsampling, central differences, 3-wide means) that exist in any dimension; everything
learned is pointwise. So one set of weights serves slices and volumes, and mirrored input gives mirrored output.

The multi-band blend follows Burt and Adelson (1983, doi:10.1109/TCOM.1983.1095851); weights that are shared
by all sources, with the others entering as a mean, follow Zaheer et al., "Deep Sets" (arXiv:1703.06114).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ...volume import MODALITIES

BANDS = 3
"""Finest detail, coarser detail, base."""

FEATURES = 5
"""Local features per source and level, see `level_features`."""


def shrink(image):
    """Means of 2 x 2 (x 2) blocks. image: (B, C, *spatial), even sizes."""
    return (F.avg_pool2d if image.ndim == 4 else F.avg_pool3d)(image, 2)


def smooth(image):
    """Means of the 3 x 3 (x 3) voxels around each voxel; the border repeats beyond the image."""
    rank = image.ndim - 2
    padded = F.pad(image, (1, 1) * rank, mode="replicate")
    return (F.avg_pool2d if rank == 2 else F.avg_pool3d)(padded, 3, stride=1)


def grow(image):
    """Linear upsampling to twice the spatial size, as `F.interpolate` with align_corners=False does.

    Without a gradient to follow it goes axis by axis, which is 3 (slices) to 9 (volumes) times faster on a CPU.
    """
    if image.requires_grad:
        return F.interpolate(
            image, scale_factor=2, mode="bilinear" if image.ndim == 4 else "trilinear", align_corners=False
        )
    for axis in range(image.ndim - 1, 1, -1):
        n = image.shape[axis]
        larger = image.new_empty([*image.shape[:axis], n, 2, *image.shape[axis + 1 :]])
        even, odd = larger.unbind(axis + 1)
        before, after = image.narrow(axis, 0, n - 1), image.narrow(axis, 1, n - 1)
        torch.lerp(after, before, 0.25, out=even.narrow(axis, 1, n - 1))
        torch.lerp(before, after, 0.25, out=odd.narrow(axis, 0, n - 1))
        even.select(axis, 0).copy_(image.select(axis, 0))
        odd.select(axis, n - 1).copy_(image.select(axis, n - 1))
        image = larger.flatten(axis, axis + 1)
    return image


def slope(image):
    """Length of the central-difference gradient per voxel step, along the border that of the inner axes."""
    total = torch.zeros_like(image)
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        if n > 2:
            step = image.narrow(axis, 2, n - 2) - image.narrow(axis, 0, n - 2)
            total.narrow(axis, 1, n - 2).addcmul_(step, step)
    return (total + 4e-8).sqrt() / 2


def pyramid(image, levels):
    """[image, half size, ...]: levels + 1 images, each the block means of the one before."""
    images = [image]
    for _ in range(levels):
        images.append(shrink(images[-1]))
    return images


class Pointwise(nn.Module):
    """A pointwise linear layer over S sources that treats all alike.

    Each source's output is `own` of its input, plus `others` of the mean input of the other sources, plus a
    bias of its modality and the mean bias of the other modalities. Channels are (source, feature), flattened.
    """

    def __init__(self, inputs, outputs, by_modality=True, gain=1.0):
        super().__init__()
        self.own = nn.Parameter(torch.randn(outputs, inputs) * gain * (1 / inputs) ** 0.5)
        self.others = nn.Parameter(torch.randn(outputs, inputs) * gain * (0.5 / inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.modality = nn.Parameter(torch.randn(len(MODALITIES), 2, outputs) * 0.1) if by_modality else None

    def _matrix(self, sources):
        one = torch.eye(sources, device=self.own.device)
        rest = (1 - one) / (sources - 1)
        blocks = one[:, None, :, None] * self.own[:, None] + rest[:, None, :, None] * self.others[:, None]
        return blocks.reshape(sources * self.own.shape[0], -1)

    def _offset(self, modalities):
        offset = self.bias.expand(len(modalities), -1)
        if self.modality is not None:
            own, others = self.modality[modalities].unbind(1)
            offset = offset + own + (others.sum(0) - others) / (len(modalities) - 1)
        return offset.flatten()

    def forward(self, image, modalities):
        """image: (B, S * inputs, *spatial); modalities: (S,) indices into `MODALITIES`."""
        matrix = self._matrix(len(modalities))
        apply = F.conv2d if image.ndim == 4 else F.conv3d
        return apply(image, matrix.view(*matrix.shape, *(1,) * (image.ndim - 2)), self._offset(modalities))


class MedFusionNet(nn.Module):
    """Band weights from coarse to fine.

    width: hidden features per source; fine_width: those at full resolution, where they cost most.
    levels: halvings of the pyramid. Sizes must be multiples of 2**levels: see `fuse`.
    """

    def __init__(self, width=16, fine_width=8, levels=4):
        super().__init__()
        self.levels = levels
        widths = [fine_width] + [width] * levels
        self.enter = nn.ModuleList(Pointwise(FEATURES, n) for n in widths)
        self.descend = nn.ModuleList(Pointwise(width, n, by_modality=False) for n in widths[:-1])
        self.mix = nn.ModuleList(Pointwise(n, n) for n in widths[1:])
        self.leave = Pointwise(fine_width, BANDS, gain=0.3)

    def gather(self, images, level, texture):
        """What a level adds to its image: (the next coarser image, the detail between the two, the texture).

        images: the `pyramid`. texture: detail gathered from finer levels, at this level's size; None at level 0.
        """
        image = images[level]
        coarser = grow(images[level + 1]) if level < self.levels else smooth(image)
        detail = (image - coarser).abs()
        texture = smooth(detail) if texture is None else 0.7 * texture + 0.5 * smooth(detail)
        return coarser, detail, texture

    def refine(self, level, image, gathered, hidden, modalities):
        """Hidden features of a level, from its image, what was gathered, and those of the next coarser level."""
        coarser, detail, texture = gathered
        local = torch.stack([image, coarser, 4 * detail, 4 * slope(image), 4 * texture], 2).flatten(1, 2)
        here = self.enter[level](local, modalities)
        if hidden is not None:
            here = here + grow(self.descend[level](hidden, modalities))
        here = torch.relu_(here)
        return torch.relu_(self.mix[level - 1](here, modalities)) if level else here

    def band_weights(self, hidden, modalities):
        """(B, S, BANDS, *spatial), summing to 1 over the sources, from the hidden features of level 0."""
        return self.leave(hidden, modalities).unflatten(1, (len(modalities), BANDS)).softmax(1)

    def forward(self, sources, modalities):
        """Band weights (B, S, BANDS, *spatial), which sum to 1 over the sources.

        sources: (B, S, *spatial), 0..1. modalities: (S,) indices into `MODALITIES`.
        """
        images = pyramid(sources, self.levels)
        gathered = []
        for level in range(self.levels + 1):
            gathered.append(self.gather(images, level, shrink(gathered[-1][2]) if level else None))
        hidden = None
        for level in range(self.levels, -1, -1):
            hidden = self.refine(level, images[level], gathered[level], hidden, modalities)
        return self.band_weights(hidden, modalities)


def blend(sources, band_weights):
    """The sum of the weighted bands, (B, *spatial): may leave the range of the sources, see `settle`."""
    first, second = pyramid(sources, 2)[1:]
    low = grow(first)
    base = grow(grow(second))
    fine, coarse, rest = band_weights.unbind(2)
    return (fine * (sources - low) + coarse * (low - base) + rest * base).sum(1)


def settle(sources, wanted, weights):
    """Convex weights per voxel whose blend comes as near to `wanted` as the sources' range allows.

    sources, weights: (B, S, *spatial), the weights sum to 1 and are where the answer starts from; wanted:
    (B, *spatial). Returns weights like those given: moved towards the brightest or the darkest source just as
    far as it takes, so that sum(weights * sources) = wanted clipped to the sources' range at that voxel.
    """
    reached = (weights * sources).sum(1)
    high, low = sources.amax(1), sources.amin(1)
    upward = wanted > reached
    goal = torch.where(upward, high, low)
    share = ((wanted - reached) / (goal - reached + torch.where(upward, 1e-6, -1e-6))).clamp(0, 1).unsqueeze(1)
    there = sources == goal.unsqueeze(1)
    # Of sources that are equal the first one takes all.
    taken = there[:, 0]
    for n in range(1, sources.shape[1]):
        there[:, n] &= ~taken
        taken = taken | there[:, n]
    return torch.lerp(weights, there.to(weights.dtype), share)


def fuse(network, sources, modalities):
    """Per-voxel weights (B, S, *spatial) that sum to 1, for sources of any size.

    sources: (B, S, *spatial), 0..1. modalities: (S,) indices into `MODALITIES`.
    """
    size = sources.shape[2:]
    step = 2**network.levels
    pad = [n for length in reversed(size) for n in (0, -length % step)]
    padded = F.pad(sources, pad, mode="replicate") if any(pad) else sources
    bands = network(padded, modalities)
    inner = (..., *(slice(0, length) for length in size))
    wanted = blend(padded, bands)[inner]
    return settle(sources, wanted, bands[:, :, -1][inner])
