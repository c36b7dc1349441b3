"""Measures of gradients: activity of the fusion alone, and what it keeps of the sources' edges."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SLAB = 2**21
"""Voxels worked on at a time."""


def activity_measures(fused):
    """SF, AG and EOG as a dict, of a uint8 image or volume in all its dimensions.

    SF: spatial frequency, the root of the summed mean squares of neighbour differences along each axis (Eskicioglu
    and Fisher 1995). AG: average gradient, central differences, root mean square over the axes at a pixel. EOG:
    energy of gradient per pixel, forward differences (Huang and Jing 2007). Differences are per pixel, not per mm.
    An axis of one pixel has none.
    """
    axes = [axis for axis in range(fused.ndim) if fused.shape[axis] > 1]
    if not axes:
        return {"SF": 0.0, "AG": 0.0, "EOG": 0.0}
    squares, counts, average = np.zeros(fused.ndim), np.zeros(fused.ndim), 0.0
    thick = max(1, SLAB // fused[0].size)
    for start in range(0, len(fused), thick):
        stop = min(start + thick, len(fused))
        low, high = max(start - 1, 0), min(stop + 1, len(fused))
        part = fused[low:high].astype(np.float32)
        inside = slice(start - low, stop - low)
        steep = 0.0
        for axis in axes:
            # The first axis' difference across the slab's upper border belongs to this slab.
            step = np.diff(part[inside.start : inside.stop + 1] if axis == 0 else part[inside], axis=axis)
            squares[axis] += np.square(step).sum(dtype=np.float64)
            counts[axis] += step.size
            steep = steep + np.gradient(part, axis=axis)[inside] ** 2
        average += np.sqrt(steep / len(axes)).sum(dtype=np.float64)
    return {
        "SF": float(np.sqrt((squares[axes] / counts[axes]).sum())),
        "AG": float(average / fused.size),
        "EOG": float(squares.sum() / fused.size),
    }


def sobel_strength(image):
    """Sobel gradient magnitude (times 8), zero beyond the border."""
    return np.hypot(ndimage.sobel(image, 1, mode="constant"), ndimage.sobel(image, 0, mode="constant"))


def _polar(image):
    across, down = ndimage.sobel(image, 1, mode="constant"), ndimage.sobel(image, 0, mode="constant")
    # One sign for every vertical gradient: as the published evaluators do.
    angle = np.full(image.shape, -np.pi / 2)
    np.arctan(np.divide(down, across, out=angle, where=across != 0), out=angle, where=across != 0)
    return np.hypot(across, down), angle


def _sigmoid(value, top, slope, middle):
    return top / (1 + np.exp(-slope * (value - middle)))


def edge_measures(sources, fused):
    """Qabf and Nabf as a dict; sources and fused are (H, W) images, 0..255.

    Qabf: the sources' gradient strength and orientation that the fusion keeps, strong gradients first (Xydeas and
    Petrovic 2000; 0.9994/15/0.5 and 0.9879/22/0.8). Nabf: artefacts, the loss where the fusion's gradient is stronger
    than every source's (Petrovic and Xydeas 2005, with the weights and constants of Shreyamsha Kumar 2013). 0 where
    the sources have no gradient at all.
    """
    strength, angle = _polar(fused)
    polars = [_polar(source) for source in sources]
    artefact = np.logical_and.reduce([strength > source for source, _ in polars])
    kept = total = lost = weight_total = 0.0
    for source, direction in polars:
        larger = np.maximum(source, strength)
        ratio = np.divide(np.minimum(source, strength), larger, out=np.ones_like(larger), where=larger > 0)
        aligned = 1 - np.abs(direction - angle) / (np.pi / 2)
        quality = _sigmoid(ratio, 0.9994, 15, 0.5) * _sigmoid(aligned, 0.9879, 22, 0.8)
        kept += (quality * source).sum()
        total += source.sum()
        weight = np.where(source >= 2, source**1.5, 0.001)
        quality = _sigmoid(ratio[artefact], 0.9999, 19, 0.5) * _sigmoid(aligned[artefact], 0.9995, 22, 0.5)
        lost += ((1 - quality) * weight[artefact]).sum()
        weight_total += weight.sum()
    return {"Qabf": float(kept / total) if total > 0 else 0.0, "Nabf": float(lost / weight_total)}
