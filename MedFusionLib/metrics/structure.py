"""What windows say: structural similarity, universal quality, visual information, correlation of differences."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""MS-SSIM's, Wang et al. 2003."""

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _taps(length, sigma):
    taps = np.exp(-((np.arange(length) - length // 2) ** 2) / (2 * sigma**2))
    return taps / taps.sum()


def _blur(image, taps, crop):
    blurred = ndimage.correlate1d(ndimage.correlate1d(image, taps, 0, mode="reflect"), taps, 1, mode="reflect")
    edge = len(taps) // 2
    return blurred[edge:-edge, edge:-edge] if crop else blurred


def ssim_maps(source, fused, crop):
    """(SSIM, its contrast-structure part) per pixel: 11 x 11 Gaussian window, sigma 1.5, data range 255
    (Wang et al., IEEE Trans. Image Processing 13, 2004). crop: only where the window lies inside the image."""
    taps = _taps(11, 1.5)
    mean1, mean2 = _blur(source, taps, crop), _blur(fused, taps, crop)
    power1 = _blur(source * source, taps, crop) - mean1**2
    power2 = _blur(fused * fused, taps, crop) - mean2**2
    contrast = (2 * (_blur(source * fused, taps, crop) - mean1 * mean2) + C2) / (power1 + power2 + C2)
    return contrast * (2 * mean1 * mean2 + C1) / (mean1**2 + mean2**2 + C1), contrast


def ms_ssim(source, fused):
    """MS-SSIM (Wang et al., Asilomar 2003); NaN for an image of fewer than 176 pixels a side."""
    if min(fused.shape) < 176:
        return np.nan
    value = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        whole, contrast = ssim_maps(source, fused, crop=True)
        last = scale == len(SCALE_WEIGHTS) - 1
        value *= max(float((whole if last else contrast).mean()), 0.0) ** weight
        source, fused = _halved(source), _halved(fused)
    return value


def _halved(image):
    rows, columns = (n // 2 for n in image.shape)
    return image[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean((1, 3))


def _universal(first, second):
    """(universal quality index per pixel, variance of the first), 8 x 8 window (Wang and Bovik 2002)."""

    def mean(image):
        return ndimage.uniform_filter(image, 8)

    mean1, mean2 = mean(first), mean(second)
    power1 = np.maximum(mean(first * first) - mean1**2, 0)
    power2 = np.maximum(mean(second * second) - mean2**2, 0)
    covariance = mean(first * second) - mean1 * mean2
    spread, level = power1 + power2, mean1**2 + mean2**2
    quality = np.ones_like(spread)
    flat = (spread <= 1e-9) & (level > 1e-9)
    quality[flat] = (2 * mean1 * mean2)[flat] / level[flat]
    there = spread * level > 1e-9
    quality[there] = (4 * covariance * mean1 * mean2)[there] / (spread * level)[there]
    return quality, power1


def piella(sources, fused):
    """(Q0, QS, QW) of Piella and Heijmans (ICIP 2003): mean universal quality; the same with each window leaning to
    the source of higher variance; and with windows of high variance counting more."""
    qualities, powers = zip(*(_universal(source, fused) for source in sources), strict=True)
    total = sum(powers)
    share = [np.divide(p, total, out=np.full_like(total, 1 / len(sources)), where=total > 0) for p in powers]
    local = sum(s * q for s, q in zip(share, qualities, strict=True))
    salience = np.max(powers, axis=0)
    weighted = float((salience * local).sum() / salience.sum()) if salience.any() else float(local.mean())
    return float(np.mean(qualities)), float(local.mean()), weighted


def piella_edges(sources, fused):
    """QE: QW of the images times QW of their Sobel edges."""

    def edge(image):
        return np.hypot(*(ndimage.sobel(image, axis, mode="constant") for axis in (0, 1)))

    return piella(sources, fused)[2] * piella([edge(source) for source in sources], edge(fused))[2]


def vif(source, fused):
    """VIFp, pixel domain (Sheikh and Bovik, IEEE Trans. Image Processing 15, 2006); NaN under 41 pixels a side."""
    if min(fused.shape) < 41:
        return np.nan
    seen = there = 0.0
    for scale in range(1, 5):
        length = 2 ** (5 - scale) + 1
        taps = _taps(length, length / 5)
        if scale > 1:
            source, fused = (_blur(image, taps, True)[::2, ::2] for image in (source, fused))
        mean1, mean2 = _blur(source, taps, True), _blur(fused, taps, True)
        power1 = np.maximum(_blur(source * source, taps, True) - mean1**2, 0)
        power2 = np.maximum(_blur(fused * fused, taps, True) - mean2**2, 0)
        covariance = _blur(source * fused, taps, True) - mean1 * mean2
        gain = covariance / (power1 + 1e-10)
        noise = power2 - gain * covariance
        blank = power1 < 1e-10
        gain[blank], noise[blank], power1[blank] = 0, power2[blank], 0
        gone = power2 < 1e-10
        gain[gone], noise[gone] = 0, 0
        inverted = gain < 0
        noise[inverted], gain[inverted] = power2[inverted], 0
        noise = np.maximum(noise, 1e-10)
        seen += np.log10(1 + gain**2 * power1 / (noise + 2)).sum()
        there += np.log10(1 + power1 / 2).sum()
    return float(seen / there) if there else 0.0


def correlation(first, second):
    """Pearson's r; 0 where one is constant."""
    first, second = first.ravel() - first.mean(), second.ravel() - second.mean()
    power = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / power) if power else 0.0


def scd(sources, fused):
    """SCD, the sum of the correlations of differences (Aslantas and Bendes, AEU 69, 2015).

    With three sources, what is taken from the fusion is the mean of the other two.
    """
    total = 0.0
    for n, source in enumerate(sources):
        others = np.mean([other for m, other in enumerate(sources) if m != n], axis=0)
        total += correlation(fused - others, source)
    return total
