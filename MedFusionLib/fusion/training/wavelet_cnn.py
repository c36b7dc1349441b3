"""What the a trous and CNN hybrid learns from: pairs of source crops, and the quality of their fusion."""

from __future__ import annotations

import numpy as np
import torch

from ..wavelet_cnn import blend
from .medfusion_losses import difference_correlation, gradient_transfer, structure

WIDTH = 96


def pair_batch(pairs, generator, size):
    """(sources,): (size, 2, 96, 96) crops, turned at random, of pairs that are not empty there."""

    def integer(end):
        return int(torch.randint(end, (), generator=generator))

    found = []
    while len(found) < size:
        images = torch.from_numpy(np.ascontiguousarray(pairs[integer(len(pairs))].images))
        top, left = (integer(n - WIDTH + 1) for n in images.shape[1:])
        crop = images[:, top : top + WIDTH, left : left + WIDTH]
        if crop.std((1, 2)).min() > 0.02:
            found.append(torch.rot90(crop, integer(4), (1, 2)))
    return (torch.stack(found),)


def blend_loss(network, sources):
    """(1 - Qabf) + (1 - SCD / 2) / 2 + (1 - mean SSIM) + what clipping would take away."""
    fused, whole = blend(network, sources)
    first, second, fused = sources[:, :1], sources[:, 1:], fused[:, None]
    quality = gradient_transfer(first, second, fused)[0].mean()
    differences = difference_correlation(first, second, fused).mean()
    likeness = sum(structure(source, fused)[0].mean() for source in (first, second)) / 2
    clipped = (whole[:, None] - fused).abs().mean()
    return (1 - quality) + (1 - differences / 2) / 2 + (1 - likeness) + clipped
