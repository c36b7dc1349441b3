"""What a reader of a fused CT-MRI slice needs, measured against the two sources alone."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

FEWEST = 50
"""Pixels that a region must have more than, for its figure to mean anything."""


def floating(*images):
    """The images as floating-point numbers: differences of whole ones, such as bytes, would wrap around."""
    return [image if image.dtype.kind == "f" else image.astype(np.float64) for image in map(np.asarray, images)]


def head_mask(*sources):
    """The head in (H, W) images, 0..255: the largest connected part over 25 in any of them, holes filled."""
    bright = ndimage.binary_opening(np.maximum.reduce(sources) > 25, iterations=2)
    parts, count = ndimage.label(ndimage.binary_fill_holes(bright))
    if count == 0:
        return np.zeros(sources[0].shape, bool)
    return parts == np.bincount(parts.reshape(-1))[1:].argmax() + 1


def _gradient(image):
    return np.stack([ndimage.sobel(image, axis) for axis in (0, 1)]) / 8


def task_measures(ct, mri, fused):
    """bone_solid, soft_corr, soft_edges and background of (H, W) images, 0..255, as a dict.

    bone_solid: share of the bone's inner pixels (CT at least 230 in the head, eroded once) that keep 80 % of the CT.
    soft_corr: Pearson correlation of fusion and MRI in soft tissue (the head eroded by 4, less the bone dilated by 3).
    soft_edges: share of the MRI's gradient energy there that the fusion has in the same direction, at most all of it.
    background: mean fused level 6 pixels and more outside the head where both sources are under 5; lower is better.
    NaN where the region has 50 pixels or fewer (no background: none at all).
    """
    ct, mri, fused = floating(ct, mri, fused)
    head = head_mask(ct, mri)
    bone = (ct >= 230) & head
    core = ndimage.binary_erosion(bone)
    soft = ndimage.binary_erosion(head, iterations=4) & ~ndimage.binary_dilation(bone, iterations=3)
    outside = ~ndimage.binary_dilation(head, iterations=6) & (np.maximum(ct, mri) < 5)
    result = dict.fromkeys(("bone_solid", "soft_corr", "soft_edges", "background"), np.nan)
    if core.sum() > FEWEST:
        result["bone_solid"] = float((fused[core] >= 0.8 * ct[core]).mean())
    if soft.sum() > FEWEST:
        constant = min(np.ptp(fused[soft]), np.ptp(mri[soft])) == 0
        result["soft_corr"] = 0.0 if constant else float(np.corrcoef(fused[soft], mri[soft])[0, 1])
        wanted, there = _gradient(mri)[:, soft], _gradient(fused)[:, soft]
        length = np.hypot(*wanted) + 1e-6
        along = np.clip((wanted * there).sum(0) / length, 0, length)
        result["soft_edges"] = float((along * length).sum() / (length**2).sum())
    if outside.any():
        result["background"] = float(fused[outside].mean())
    return result
