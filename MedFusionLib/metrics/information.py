"""What histograms say: entropy and mutual information, in bits, over 256 grey levels."""

from __future__ import annotations

import numpy as np

LEVELS = 256


def _bits(probabilities):
    probabilities = probabilities[probabilities > 0]
    return float(-(probabilities * np.log2(probabilities)).sum())


def entropy(image):
    """EN of an image, 0..255."""
    counts = np.histogram(image, LEVELS, (0, LEVELS))[0]
    return _bits(counts / counts.sum())


def entropies(first, second, span=((0, LEVELS), (0, LEVELS))):
    """(H(first), H(second), H(first, second))."""
    joint = np.histogram2d(first.ravel(), second.ravel(), LEVELS, span)[0]
    joint /= max(joint.sum(), 1)
    return _bits(joint.sum(1)), _bits(joint.sum(0)), _bits(joint)


def mutual(source, fused):
    """MI of two images, 0..255 (Qu et al., Electronics Letters 38, 2002)."""
    one, other, both = entropies(source, fused)
    return one + other - both


def normalised(source, fused):
    """2 MI / (H + H), 0..1: the normalisation of Hossny et al. (Electronics Letters 44, 2008)."""
    one, other, both = entropies(source, fused)
    return 2 * (one + other - both) / (one + other) if one + other else 0.0


def feature(source, fused):
    """FMI with the intensities themselves as the feature, each image stretched over all bins
    (Haghighat et al., Computers & Electrical Engineering 37, 2011)."""
    span = [(float(x.min()), float(x.max()) or 1.0) for x in (source, fused)]
    if any(low >= high for low, high in span):
        return 0.0
    one, other, both = entropies(source, fused, span)
    return 2 * (one + other - both) / (one + other)
