"""What MedFusion's own network is trained for: fusion measures that a gradient can follow.

Images are (B, 1, H, W) tensors, 0..1, where nothing else is said, and every measure answers one value per image.
They follow the published definitions closely enough to train by; the figures that people read come from
`MedFusionLib.metrics`.
"""

from __future__ import annotations

import math
from functools import wraps

import torch
import torch.nn.functional as F

C1, C2 = 0.01**2, 0.03**2
"""SSIM's constants for a data range of 1."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""MS-SSIM's, Wang et al. 2003."""


def _in_full_precision(measure):
    """Mixed precision would convolve in half precision, whose rounding is as large as the variances of soft tissue."""

    @wraps(measure)
    def measured(*images, **more):
        with torch.autocast(images[0].device.type, enabled=False):
            return measure(*(image.float() for image in images), **more)

    return measured


@_in_full_precision
def sobel(image):
    """(gradient along columns, along rows), zero beyond the border, both times 8."""
    across = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None]
    return F.conv2d(image, across, padding=1), F.conv2d(image, across.transpose(2, 3), padding=1)


def correlation(first, second):
    """Pearson's r of two (B, N) tensors."""
    first = first - first.mean(1, keepdim=True)
    second = second - second.mean(1, keepdim=True)
    power = first.square().sum(1) * second.square().sum(1)
    return (first * second).sum(1) / (power + 1e-12).sqrt()


def gradient_transfer(first, second, fused):
    """(Q^AB/F, its artefact share N^AB/F): Xydeas and Petrovic 2000; Petrovic and Xydeas 2005.

    Q: how much of the sources' gradients the fusion keeps, strong gradients first. N: the share of gradient
    loss where the fusion's gradient is stronger than both sources', thus an artefact.
    """

    def polar(image):
        across, down = sobel(image)
        steep = torch.where(across.abs() < 1e-6, torch.full_like(across, 1e-6), across)
        return (across.square() + down.square() + 1e-10).sqrt(), torch.atan(down / steep)

    strength, angle = polar(fused)
    kept = total = lost = 0.0
    polars = [polar(first), polar(second)]
    artefact = (strength > polars[0][0]) & (strength > polars[1][0])
    for source, direction in polars:
        ratio = torch.where(source > strength, strength / (source + 1e-8), source / (strength + 1e-8))
        alignment = 1 - (direction - angle).abs() / (math.pi / 2)
        quality = 0.9994 * torch.sigmoid(15 * (ratio - 0.5)) * 0.9879 * torch.sigmoid(22 * (alignment - 0.8))
        kept = kept + (quality * source).sum((1, 2, 3))
        lost = lost + (artefact * (1 - quality) * source).sum((1, 2, 3))
        total = total + source.sum((1, 2, 3))
    return kept / total, lost / total


def _gaussian(image, pad):
    taps = torch.exp(-((torch.arange(11.0, device=image.device) - 5) ** 2) / (2 * 1.5**2))
    taps = (taps / taps.sum()).to(image.dtype)
    channels = image.shape[1]
    if pad:
        image = F.pad(image, (5, 5, 5, 5), mode="reflect")
    image = F.conv2d(image, taps.view(1, 1, 1, 11).expand(channels, 1, 1, 11), groups=channels)
    return F.conv2d(image, taps.view(1, 1, 11, 1).expand(channels, 1, 11, 1), groups=channels)


@_in_full_precision
def structure(first, second, pad=True):
    """Maps (B, S, H, W) of SSIM and of its contrast-structure part (Wang et al. 2004, 11 x 11 Gaussian window).

    first: (B, S, H, W), S images that are each compared with second: (B, 1, H, W), or one for each.
    """
    one, other = first.shape[1], second.shape[1]
    mean1, square1 = _gaussian(torch.cat([first, first * first], 1), pad).split(one, 1)
    mean2, square2, product = _gaussian(torch.cat([second, second * second, first * second], 1), pad).split(
        [other, other, max(one, other)], 1
    )
    contrast = (2 * (product - mean1 * mean2) + C2) / (square1 - mean1**2 + square2 - mean2**2 + C2)
    return contrast * (2 * mean1 * mean2 + C1) / (mean1**2 + mean2**2 + C1), contrast


def multiscale_structure(first, second):
    """MS-SSIM (Wang et al. 2003), (B, S). Images, of shapes as `structure` takes them, must be at least 176 wide."""
    result = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        whole, contrast = structure(first, second, pad=False)
        value = whole if scale == len(SCALE_WEIGHTS) - 1 else contrast
        result = result * value.mean((2, 3)).clamp_min(1e-4) ** weight
        first, second = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
    return result


def difference_correlation(first, second, fused):
    """SCD, the sum of the correlations of differences (Aslantas and Bendes 2015)."""
    first, second, fused = (image.flatten(1) for image in (first, second, fused))
    return correlation(fused - second, first) + correlation(fused - first, second)


def edges_kept(source, fused, where):
    """Share of a source's gradient energy in a mask (B, 1, H, W) that the fusion has in the same direction."""
    (across, down), (fused_across, fused_down) = sobel(source), sobel(fused)
    length = (across.square() + down.square() + 1e-10).sqrt()
    along = torch.minimum(((across * fused_across + down * fused_down) / length).clamp_min(0), length)
    energy = (length * where * length).sum((1, 2, 3))
    return (along * where * length).sum((1, 2, 3)) / energy.clamp_min(1e-8)
