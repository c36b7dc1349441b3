"""How fusions fail, as figures: each names a fault that readers have met in published methods.

Images are (H, W) or stacks (K, H, W), 0..255. NaN where there is nothing to measure it on.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .task import FEWEST, floating, head_mask


def skull_failures(ct, mri, fused):
    """What happened to the skull, as a dict; 1, 1, 0 when nothing did.

    bone_level: fused level over the CT's in bone (CT at least 230 in the head): under 1 it is dimmed. bone_fill: the
    same in the bone's inside (eroded by 2) over its 1-pixel rim: under 1 it is hollowed into an outline.
    bone_lost: share of the bone in connected patches of 20 pixels or more that keep less than half of the CT: chunks
    that are switched off.
    """
    ct, mri, fused = floating(ct, mri, fused)
    bone = (ct >= 230) & head_mask(ct, mri)
    result = dict.fromkeys(("bone_level", "bone_fill", "bone_lost"), np.nan)
    if bone.sum() <= FEWEST:
        return result
    level = fused / np.maximum(ct, 1)
    result["bone_level"] = float(level[bone].mean())
    inside, rim = ndimage.binary_erosion(bone, iterations=2), bone & ~ndimage.binary_erosion(bone)
    if inside.sum() > FEWEST and level[rim].mean() > 0:
        result["bone_fill"] = float(level[inside].mean() / level[rim].mean())
    patches, _ = ndimage.label(bone & (level < 0.5))
    sizes = np.bincount(patches.reshape(-1))[1:]
    result["bone_lost"] = float(sizes[sizes >= 20].sum() / bone.sum())
    return result


def scalp_halo(first, second, fused):
    """Mean fused level within 6 pixels outside the head where both sources are under 5; 0 when there is no halo."""
    head = head_mask(first, second)
    ring = ndimage.binary_dilation(head, iterations=6) & ~head & (np.maximum(first, second) < 5)
    return float(fused[ring].mean()) if ring.sum() > FEWEST else np.nan


def uptake_failures(uptake, anatomy, fused):
    """What happened to PET or SPECT uptake, as a dict; 0, 1 when it is kept.

    blotches: levels by which the fusion is darker than the darker source, mean over the edges of uptake (within 3
    pixels of the border of the hottest tenth of the head). hot_contrast: the hottest 2 % of the head against the ring
    5 to 10 pixels around it, fused over uptake: under 1 a hot spot fades, 0 a lesion is lost.
    """
    uptake, anatomy, fused = floating(uptake, anatomy, fused)
    head = head_mask(uptake, anatomy)
    result = dict.fromkeys(("blotches", "hot_contrast"), np.nan)
    if head.sum() <= 20 * FEWEST:
        return result
    warm = head & (uptake >= _hottest(uptake[head], 90))
    edge = ndimage.binary_dilation(warm, iterations=3) & ~ndimage.binary_erosion(warm, iterations=3) & head
    result["blotches"] = float(np.maximum(np.minimum(uptake, anatomy) - fused, 0)[edge].mean())
    hot = head & (uptake >= _hottest(uptake[head], 98))
    around = ndimage.binary_dilation(hot, iterations=10) & ~ndimage.binary_dilation(hot, iterations=5) & head
    if hot.sum() and around.sum():
        own = uptake[hot].mean() - uptake[around].mean()
        if own > 1:
            result["hot_contrast"] = float((fused[hot].mean() - fused[around].mean()) / own)
    return result


def _hottest(values, percent):
    """The percentile, but well above the middle where most of the head is of one level."""
    middle = np.median(values)
    return max(np.percentile(values, percent), middle + 0.25 * (values.max() - middle))


def flicker(first, second, fused):
    """Mean difference between neighbouring slices of (K, H, W) stacks, fused over that of the sources.

    The sources' is the larger of theirs at each pixel: blends with steady weights give at most 1. NaN for one slice.
    """
    steps = [np.abs(np.diff(stack, axis=0)) for stack in floating(first, second, fused)]
    own = np.maximum(steps[0], steps[1]).mean() if steps[0].size else 0
    return float(steps[2].mean() / own) if own > 0 else np.nan
