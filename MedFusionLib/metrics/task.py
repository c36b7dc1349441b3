"""What a reader of a fused CT-MRI slice needs: solid bone, true soft tissue, a black background."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

BONE = 230.0
"""Of 255: CT that is bone."""

LEAST = 50
"""Pixels under which a region says nothing."""


def head(sources):
    """The largest connected body of anything brighter than 25 of 255, holes filled."""
    there = ndimage.binary_opening(np.max(sources, axis=0) > 25, iterations=2)
    labels, count = ndimage.label(ndimage.binary_fill_holes(there))
    if not count:
        return labels > 0
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def ct_mri(ct, mri, fused):
    """dict of figures for (H, W) images, 0..255; NaN where a region is too small.

    bone_solid: share of eroded CT bone where the fusion keeps at least 80 % of the CT.
    soft_corr: correlation with the MRI in soft tissue. soft_edges: share of the MRI's gradient energy there that
    the fusion has in the same direction. background: mean fused value where there is no anatomy.
    """
    inside = head((ct, mri))
    bone = (ct >= BONE) & inside
    core = ndimage.binary_erosion(bone)
    soft = ndimage.binary_erosion(inside, iterations=4) & ~ndimage.binary_dilation(bone, iterations=3)
    outside = ~ndimage.binary_dilation(inside, iterations=6) & (np.maximum(ct, mri) < 5)
    figures = dict.fromkeys(("bone_solid", "soft_corr", "soft_edges", "background"), np.nan)
    if core.sum() > LEAST:
        figures["bone_solid"] = float((fused[core] >= 0.8 * ct[core]).mean())
    if soft.sum() > LEAST:
        if mri[soft].std() > 0 and fused[soft].std() > 0:
            figures["soft_corr"] = float(np.corrcoef(fused[soft], mri[soft])[0, 1])
        figures["soft_edges"] = _edges_kept(mri, fused, soft)
    if outside.any():
        figures["background"] = float(fused[outside].mean())
    return figures


def _edges_kept(source, fused, where):
    def gradient(image):
        return np.stack([ndimage.sobel(image, axis) for axis in (0, 1)]) / 8

    here, there = gradient(source), gradient(fused)
    length = np.sqrt((here**2).sum(0)) + 1e-6
    along = np.clip((here * there).sum(0) / length, 0, length)
    return float((along * length)[where].sum() / (length**2)[where].sum())
