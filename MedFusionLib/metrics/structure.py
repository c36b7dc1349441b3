"""Measures of local windows: structural similarity, the universal quality index's family, visual fidelity."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.metrics import structural_similarity

from .gradients import sobel_strength

WINDOW = 11
"""Pixels of SSIM's Gaussian window (sigma 1.5)."""

SCALE_WEIGHTS = np.array((0.0448, 0.2856, 0.3001, 0.2363, 0.1333))
"""MS-SSIM's, finest scale first."""


def ssim_map(first, second):
    """SSIM at every pixel (Wang, Bovik, Sheikh and Simoncelli 2004), values 0..255, mirrored at the border."""
    return structural_similarity(
        first, second, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )[1]


def similarity_measures(sources, fused):
    """SSIM and head-SSIM of (H, W) images, 0..255, means over the sources, as a dict.

    SSIM: mean of the map where the window lies inside the image. head-SSIM: inside the head only (where a source is
    over 10, holes filled): the black around it, alike in every image, would raise the mean. NaN for images under 11
    pixels and without a head.
    """
    if min(fused.shape) < WINDOW:
        return {"SSIM": np.nan, "head-SSIM": np.nan}
    maps = [ssim_map(source, fused) for source in sources]
    head = ndimage.binary_fill_holes(np.maximum.reduce(sources) > 10)
    whole, inside = slice(5, -5), head.any()
    return {
        "SSIM": float(np.mean([one[whole, whole].mean() for one in maps])),
        "head-SSIM": float(np.mean([one[head].mean() for one in maps])) if inside else np.nan,
    }


def ssim_slab(sources, fused, low, high):
    """Sum over slices low..high of SSIM with a three-dimensional window, means over the sources, and the count.

    sources and fused: uint8 (K, J, I), at least 11 along each axis; the window lies inside the volume.
    """
    low, high = max(low, 5), min(high, len(fused) - 5)
    if low >= high:
        return 0.0, 0
    part = slice(low - 5, high + 5)
    fused = fused[part].astype(np.float32)
    total = 0.0
    for source in sources:
        inside = ssim_map(source[part].astype(np.float32), fused)[5:-5, 5:-5, 5:-5]
        total += inside.sum(dtype=np.float64)
    return total / len(sources), inside.size


def _gaussian(image, taps):
    """Separable window, where it lies inside the image."""
    edge = len(taps) // 2
    smooth = ndimage.correlate1d(ndimage.correlate1d(image, taps, 0), taps, 1)
    return smooth[edge:-edge, edge:-edge]


def _taps(width, sigma):
    at = np.arange(width) - width // 2
    taps = np.exp(-(at**2) / (2 * sigma**2))
    return taps / taps.sum()


def _half(image):
    """Means of 2 x 2 blocks."""
    rows, columns = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    image = image[:rows, :columns]
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def _multiscale(first, second, scales):
    taps = _taps(WINDOW, 1.5)
    weights = SCALE_WEIGHTS[:scales] / SCALE_WEIGHTS[:scales].sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result = 1.0
    for scale, weight in enumerate(weights):
        mean1, mean2 = _gaussian(first, taps), _gaussian(second, taps)
        variances = _gaussian(first * first, taps) - mean1**2 + _gaussian(second * second, taps) - mean2**2
        value = (2 * (_gaussian(first * second, taps) - mean1 * mean2) + c2) / (variances + c2)
        if scale == scales - 1:
            value = value * (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
        result *= max(0.0, value.mean()) ** weight
        first, second = _half(first), _half(second)
    return result


def multiscale_measures(sources, fused):
    """MS-SSIM (Wang, Simoncelli and Bovik 2003) of (H, W) images, 0..255, mean over the sources, as a dict.

    The window lies inside the image, a scale of negative mean counts as 0. Images under 176 pixels have fewer than
    the five scales, with their weights scaled to a sum of 1: such values compare with each other only.
    NaN under 11 pixels.
    """
    scales = sum(min(fused.shape) // 2**scale >= WINDOW for scale in range(len(SCALE_WEIGHTS)))
    if not scales:
        return {"MS-SSIM": np.nan}
    return {"MS-SSIM": float(np.mean([_multiscale(source, fused, scales) for source in sources]))}


def _universal(first, second):
    """Maps of the universal quality index (Wang and Bovik 2002) in 8 x 8 windows, and of the first's variance."""
    mean1, mean2, square1, square2, product = (
        ndimage.uniform_filter(image, 8) for image in (first, second, first * first, second * second, first * second)
    )
    variance = np.maximum(square1 - mean1**2, 0)
    power = mean1**2 + mean2**2
    bottom = (variance + np.maximum(square2 - mean2**2, 0)) * power
    # Two flat windows differ in brightness only; two black ones not at all.
    quality = np.divide(2 * mean1 * mean2, power, out=np.ones_like(power), where=power > 1e-9)
    np.divide(4 * (product - mean1 * mean2) * mean1 * mean2, bottom, out=quality, where=bottom > 1e-8)
    return quality, variance


def _salient(sources, fused):
    """(mean index, its mean over windows weighted by local variance, the same with salient windows first)."""
    maps, variances = zip(*(_universal(source, fused) for source in sources), strict=True)
    salience = sum(variances)
    even = 1 / len(sources)
    local = sum(
        np.divide(variance, salience, out=np.full_like(salience, even), where=salience > 0) * quality
        for variance, quality in zip(variances, maps, strict=True)
    )
    strongest = np.maximum.reduce(variances)
    total = strongest.sum()
    return (
        float(np.mean(maps)),
        float(local.mean()),
        float((local * strongest).sum() / total) if total > 0 else float(local.mean()),
    )


def quality_measures(sources, fused):
    """Q0, QS, QW and QE of (H, W) images, 0..255, as a dict (Piella and Heijmans 2003, window 8 x 8).

    Q0: universal quality index, mean over the sources. QS: local mean of the indices, weighted by the sources'
    variance. QW: the same, salient windows first. QE: QW times the QW of the Sobel gradient magnitudes.
    """
    plain, local, weighted = _salient(sources, fused)
    edges = _salient([sobel_strength(source) for source in sources], sobel_strength(fused))[2]
    return {"Q0": plain, "QS": local, "QW": weighted, "QE": weighted * edges}


def _fidelity(reference, image):
    kept = there = 0.0
    for scale in range(4):
        width = 2 ** (4 - scale) + 1
        taps = _taps(width, width / 5)
        if scale:
            reference, image = _gaussian(reference, taps)[::2, ::2], _gaussian(image, taps)[::2, ::2]
        mean1, mean2 = _gaussian(reference, taps), _gaussian(image, taps)
        variance1 = np.maximum(_gaussian(reference**2, taps) - mean1**2, 0)
        variance2 = np.maximum(_gaussian(image**2, taps) - mean2**2, 0)
        gain = (_gaussian(reference * image, taps) - mean1 * mean2) / (variance1 + 1e-10)
        gain[(variance1 < 1e-10) | (variance2 < 1e-10) | (gain < 0)] = 0
        noise = variance2 - gain**2 * variance1
        noise[variance2 < 1e-10] = 0
        variance1[variance1 < 1e-10] = 0
        kept += np.log1p(gain**2 * variance1 / (np.maximum(noise, 1e-10) + 2)).sum()
        there += np.log1p(variance1 / 2).sum()
    return kept / there if there > 0 else 0.0


def fidelity_measures(sources, fused):
    """VIF (Sheikh and Bovik 2006, pixel domain, four scales) of (H, W) images, 0..255, summed, as a dict.

    NaN for images under 41 pixels, which have no fourth scale.
    """
    if min(fused.shape) < 41:
        return {"VIF": np.nan}
    return {"VIF": float(sum(_fidelity(source, fused) for source in sources))}
