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

FEATURES = 6
"""Local features per source and level, see `MedFusionNet.features`."""

CHUNK = 2**13
"""Voxels that go through the layers at a time on a CPU, so that what lies between stays in the processor's cache."""


def shrink(image):
    """Means of 2 x 2 (x 2) blocks. image: (B, C, *spatial), even sizes."""
    for axis in range(2, image.ndim):
        first, second = image.unflatten(axis, (-1, 2)).unbind(axis + 1)
        image = first + second
    return image.mul_(0.5 ** (image.ndim - 2))


def smooth(image):
    """Means of the 3 x 3 (x 3) voxels around each voxel; the border repeats beyond the image."""
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        total = image.clone()
        total.narrow(axis, 1, n - 1).add_(image.narrow(axis, 0, n - 1))
        total.narrow(axis, 0, n - 1).add_(image.narrow(axis, 1, n - 1))
        total.narrow(axis, 0, 1).add_(image.narrow(axis, 0, 1))
        total.narrow(axis, n - 1, 1).add_(image.narrow(axis, n - 1, 1))
        image = total
    return image.mul_(1 / 3 ** (image.ndim - 2))


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


def gradients(image):
    """Central differences per voxel step, one tensor for each spatial axis; zero on the border of their axis."""
    found = []
    for axis in range(2, image.ndim):
        n = image.shape[axis]
        step = torch.zeros_like(image)
        if n > 2:
            inner = step.narrow(axis, 1, n - 2)
            torch.sub(image.narrow(axis, 2, n - 2), image.narrow(axis, 0, n - 2), out=inner).mul_(0.5)
        found.append(step)
    return found


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

    def of(self, modalities):
        """The layer for sources of these modalities ((S,) indices into `MODALITIES`).

        A function of (B, S * inputs, N) voxels that returns (B, S * outputs, N).
        """
        matrix, offset = self._matrix(len(modalities)), self._offset(modalities)[:, None]
        return lambda voxels: torch.baddbmm(offset, matrix.expand(len(voxels), -1, -1), voxels)


class MedFusionNet(nn.Module):
    """Band weights from coarse to fine.

    width: hidden features per source; fine_width: those at full resolution, where they cost most.
    levels: halvings of the pyramid. Sizes must be multiples of 2**levels: see `fuse`.
    """

    def __init__(self, width=24, fine_width=12, levels=4):
        super().__init__()
        self.levels = levels
        widths = [fine_width] + [width] * levels
        self.enter = nn.ModuleList(Pointwise(FEATURES, n) for n in widths)
        self.descend = nn.ModuleList(Pointwise(width, n, by_modality=False) for n in widths[:-1])
        self.mix = nn.ModuleList(Pointwise(n, n) for n in widths)
        self.leave = Pointwise(fine_width, BANDS, gain=0.3)

    def gather(self, images, level, texture):
        """What a level adds to its image: (the next coarser image, the detail between the two, the texture).

        images: the `pyramid`. texture: detail gathered from finer levels, at this level's size; None at level 0.
        """
        image = images[level]
        coarser = grow(images[level + 1]) if level < self.levels else smooth(image)
        detail = (image - coarser).abs_()
        texture = smooth(detail) if texture is None else smooth(detail).mul_(0.5).add_(texture, alpha=0.7)
        return coarser, detail, texture

    def features(self, image, gathered):
        """(B, S * FEATURES, voxels) of a level: the image, the next coarser one, the detail between them, the slope,
        the texture, and how far the slope runs along those of the other sources (their mean dot product over the
        sum of the lengths).
        """
        coarser, detail, texture = gathered
        sources = image.shape[1]
        square = torch.zeros_like(image)
        along = torch.zeros_like(image)
        for step in gradients(image):
            square.addcmul_(step, step)
            along.addcmul_(step, (step.sum(1, keepdim=True) - step))
        slope = square.add_(1e-8).sqrt()
        rest = slope.sum(1, keepdim=True) - slope
        along /= torch.add(slope * (sources - 1), rest).add_(0.01 * (sources - 1))
        local = torch.stack([image / 4, coarser / 4, detail, slope, texture, along], 2)
        return local.mul_(4).flatten(3).flatten(1, 2)

    def refine(self, level, image, gathered, hidden, modalities):
        """Hidden features of a level above 0: of its image, what was gathered, and those of the next coarser level."""
        given = [self.features(image, gathered)]
        if hidden is not None:
            given.append(self._descended(level, hidden, modalities))
        layers = self._layers(level, modalities)
        return _in_chunks(lambda *voxels: _hidden(layers, *voxels), given).unflatten(2, image.shape[2:])

    def band_weights(self, image, gathered, hidden, modalities):
        """(B, S, BANDS, *spatial), summing to 1 over the sources, from what level 0 has and the hidden of level 1."""
        given = self.features(image, gathered), self._descended(0, hidden, modalities)
        bands = self._bands(self._layers(0, modalities), self.leave.of(modalities), *given)
        return bands.unflatten(3, image.shape[2:])

    def weights(self, image, gathered, base, hidden, modalities):
        """`settle`d weights per voxel, (B, S, *spatial): what `band_weights`, `blend` and `settle` give in turn.

        base: of the `blend`, (B, S, *spatial).
        """
        layers, leave = self._layers(0, modalities), self.leave.of(modalities)

        def weigh(local, descended, image, low, base):
            bands = self._bands(layers, leave, local, descended)
            return settle(image, blend(image, low, base, bands), bands[:, :, -1])

        given = self.features(image, gathered), self._descended(0, hidden, modalities)
        flat = [part.flatten(2) for part in (image, gathered[0], base)]
        return _in_chunks(weigh, [*given, *flat]).unflatten(2, image.shape[2:])

    def _layers(self, level, modalities):
        return self.enter[level].of(modalities), self.mix[level].of(modalities)

    def _descended(self, level, hidden, modalities):
        less = self.descend[level].of(modalities)(hidden.flatten(2))
        return grow(less.unflatten(2, hidden.shape[2:])).flatten(2)

    def _bands(self, layers, leave, local, descended):
        hidden = _hidden(layers, local, descended)
        return leave(hidden).unflatten(1, (-1, BANDS)).softmax(1)

    def collect(self, images):
        """What `gather` finds at every level of a `pyramid` of levels + 1 images."""
        gathered = []
        for level in range(self.levels + 1):
            gathered.append(self.gather(images, level, shrink(gathered[-1][2]) if level else None))
        return gathered

    def descend_to(self, last, images, gathered, hidden, modalities):
        """Hidden features of level `last`, from those of the level above the coarsest in `images`, None at the top."""
        for level in range(len(images) - 1, last - 1, -1):
            hidden = self.refine(level, images[level], gathered[level], hidden, modalities)
        return hidden

    def forward(self, sources, modalities):
        """(band weights (B, S, BANDS, *spatial), which sum to 1 over the sources; their blend (B, *spatial)).

        sources: (B, S, *spatial), 0..1. modalities: (S,) indices into `MODALITIES`. The blend may leave the range
        of the sources: see `settle`.
        """
        images = pyramid(sources, self.levels)
        gathered = self.collect(images)
        hidden = self.descend_to(1, images, gathered, None, modalities)
        bands = self.band_weights(sources, gathered[0], hidden, modalities)
        return bands, blend(sources, gathered[0][0], grow(gathered[1][0]), bands)


def _hidden(layers, local, descended=None):
    enter, mix = layers
    here = enter(local)
    if descended is not None:
        here += descended
    return mix(here.relu_()).relu_()


def _in_chunks(work, given):
    """work(*given), some voxels (last axis) at a time where that is faster: on a CPU, with no gradient to follow."""
    if given[0].device.type != "cpu" or torch.is_grad_enabled():
        return work(*given)
    return torch.cat([work(*some) for some in zip(*(part.split(CHUNK, -1) for part in given), strict=True)], -1)


def blend(sources, low, base, band_weights):
    """The sum of the weighted bands, (B, *spatial): may leave the range of the sources, see `settle`.

    sources, and the same from a pyramid's next two levels, grown to their size: (B, S, *spatial) each.
    """
    fine, coarse, rest = band_weights.unbind(2)
    return (fine * (sources - low)).addcmul_(coarse, low - base).addcmul_(rest, base).sum(1)


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
    images = pyramid(padded, network.levels)
    gathered = network.collect(images)
    hidden = network.descend_to(1, images, gathered, None, modalities)
    weights = network.weights(padded, gathered[0], grow(gathered[1][0]), hidden, modalities)
    return weights[(..., *(slice(0, length) for length in size))]
