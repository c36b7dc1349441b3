"""Baselines without training, of many scales. Tensors are (B, S, *spatial), of two or three spatial dimensions.

They blend frequency bands, not voxels, so there are no weight maps; sums of bands are kept within 0..1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

SPLINE = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def spatial(image):
    """The spatial axes of a (B, S, *spatial) tensor that have an extent."""
    return [axis for axis in range(2, image.ndim) if image.shape[axis] > 1]


def filtered(image, taps, axis, dilation=1):
    """Convolve along an axis; the border voxel goes on beyond the border."""
    size, radius = image.shape[axis], len(taps) // 2 * dilation
    index = torch.arange(-radius, size + radius, device=image.device).clamp_(0, size - 1)
    padded = image.index_select(axis, index)
    result = torch.zeros_like(image)
    for n, tap in enumerate(taps):
        result.add_(padded.narrow(axis, n * dilation, size), alpha=tap)
    return result


def smooth(image, dilation=1, taps=SPLINE):
    for axis in spatial(image):
        image = filtered(image, taps, axis, dilation)
    return image


def box(image, radius):
    """Mean of the voxels within `radius` along each axis, that are in the image."""
    for axis in spatial(image):
        size, after = image.shape[axis], math.prod(image.shape[axis + 1 :])
        lines = image.reshape(-1, 1, size, after)
        lines = F.avg_pool2d(lines, (2 * radius + 1, 1), 1, (radius, 0), count_include_pad=False)
        image = lines.view(image.shape)
    return image


def strongest(bands):
    """(B, *spatial): at each voxel the band (of dimension 1) of the largest magnitude."""
    return bands.gather(1, bands.abs().argmax(1, keepdim=True)).squeeze(1)


class Laplacian:
    """Laplacian pyramid: the strongest source in each band, the mean of what is left (Burt and Kolczynski 1993,
    with their match measure left out).

    Four levels, the 5-tap binomial filter, linear interpolation between levels. Decimation ties a voxel to the grid's
    origin, so a volume is not cut into tiles.
    """

    halo = None
    levels = 4

    def __call__(self, sources, modalities):
        shapes, bands = [], []
        for _ in range(self.levels):
            shapes.append(sources.shape)
            low = smooth(sources)
            for axis in spatial(low):
                low = low.index_select(axis, torch.arange(0, low.shape[axis], 2, device=low.device))
            bands.append(strongest(sources - self._expand(low, sources.shape)))
            sources = low
        fused = sources.mean(1)
        for shape, band in zip(reversed(shapes), reversed(bands), strict=True):
            fused = self._expand(fused.unsqueeze(1), shape).squeeze(1).add_(band)
        return fused.clamp_(0, 1), None

    @staticmethod
    def _expand(image, shape):
        for axis in range(2, image.ndim):
            if shape[axis] > 1:
                at = torch.arange(shape[axis], device=image.device)
                low, high = at // 2, ((at + 1) // 2).clamp_(max=image.shape[axis] - 1)
                image = (image.index_select(axis, low) + image.index_select(axis, high)) / 2
        return image


class Wavelet:
    """A trous wavelet: the strongest source in each detail plane, the mean of the remainder (Nunez et al. 1999).

    Undecimated, so it commutes with shifts: three planes with the cubic B-spline.
    """

    planes = 3
    halo = 2 * (2**planes - 1)

    def __call__(self, sources, modalities):
        fused = torch.zeros_like(sources[:, 0])
        for plane in range(self.planes):
            low = smooth(sources, 2**plane)
            fused += strongest(sources - low)
            sources = low
        return fused.add_(sources.mean(1)).clamp_(0, 1), None


class Guided:
    """Guided filtering: base and detail layers, each blended by its own edge-aware weights (Li, Kang and Hu 2013).

    Base: mean of 31. Weights: where a source's smoothed Laplacian is the strongest, refined by a guided filter with
    the source as guide, radius 20, regularisation 0.3 (base) and 7, 1e-6 (detail). Departure: the paper's radius of 45
    for the base would make tiles of a volume overlap by 96 voxels.
    """

    halo = 48
    base, detail = (20, 0.3), (7, 1e-6)

    def __call__(self, sources, modalities):
        saliency = torch.zeros_like(sources)
        for axis in spatial(sources):
            saliency += filtered(sources, (1, -2, 1), axis)
        taps = torch.exp(-(torch.arange(-5.0, 6.0) ** 2) / (2 * 5.0**2))
        saliency = smooth(saliency.abs_(), taps=(taps / taps.sum()).tolist())
        chosen = torch.zeros_like(sources).scatter_(1, saliency.argmax(1, keepdim=True), 1)
        low = box(sources, 15)
        fused = (self._weights(sources, chosen, *self.base) * low).sum(1)
        fused += (self._weights(sources, chosen, *self.detail) * (sources - low)).sum(1)
        return fused.clamp_(0, 1), None

    @staticmethod
    def _weights(guide, chosen, radius, regularisation):
        """The choice, filtered (He, Sun and Tang 2010); not negative, sum 1 over the sources."""
        mean, mean_chosen = box(guide, radius), box(chosen, radius)
        slope = box(guide * chosen, radius) - mean * mean_chosen
        slope /= (box(guide * guide, radius) - mean * mean).clamp_min_(0) + regularisation
        offset = mean_chosen - slope * mean
        weights = (box(slope, radius) * guide + box(offset, radius)).clamp_min_(0)
        total = weights.sum(1, keepdim=True)
        return torch.where(total > 1e-6, weights / total, torch.full_like(weights, 1 / weights.shape[1]))


_CLASSES = {"laplacian": Laplacian, "wavelet": Wavelet, "guided": Guided}


def load(method, device):
    return _CLASSES[method.name]()
