"""Can a registration be trusted? Measured afterwards, from the scans themselves."""

from __future__ import annotations

import math

import numpy as np

from .linear import RADIUS, Target, climb, rotation
from .result import Quality

POINTS = 6000
NEAR = 12.0
"""mm that a pose is moved by to see whether the similarity falls."""

LEAST_SHARPNESS = 1.08
LEAST_GAIN = 0.004
LEAST_OVERLAP = 0.25
WORST_CONSISTENCY = 2.5
MIRROR_MARGIN = 1.02
"""Limits of the verdict, from `Testing/Benchmarks/registration_trust.py`."""


def judge(fixed, moving, matrix, displacement, seed, check=None):
    """`Quality` of a map.

    fixed, moving: `Image`s, the one with the smaller field of view first. matrix: from the first to the second.
    displacement: of the whole map, as in `Registration`, or None.
    """
    center = fixed.center_of_mass
    level = min(1, len(fixed.levels) - 1)
    target = Target(fixed, moving, level, POINTS, center, seed + 101)
    before, _ = target.value(np.eye(4))
    after, _ = target.value(matrix)
    overlap = _overlap(fixed, moving, matrix, seed)
    sharpness = _sharpness(target, matrix, after)
    consistency = _inverse_consistency(fixed, moving, matrix, center, level, seed, check)
    mirrored = _mirrored(target, matrix, after, check)
    jacobian, folded = (float(np.linalg.det(matrix[:3, :3])),) * 2, 0
    if displacement is not None:
        jacobian, folded = jacobian_range(displacement)
    values = {
        "gain": after - 1,
        "overlap": overlap,
        "sharpness": sharpness,
        "consistency": consistency,
        "mirrored": mirrored,
        "jacobian": jacobian,
        "folded": folded,
    }
    verdict, reason = conclude(values)
    return Quality(
        verdict, reason, before if before else math.nan, after if after else math.nan, overlap, consistency,
        sharpness, jacobian, folded,
    )  # fmt: skip


def conclude(values):
    """(verdict, reason) of measured `values`."""
    if values["overlap"] <= 0.02 or values["gain"] <= 0:
        return "failed", "The two scans do not overlap: check that they are of the same body part."
    if values["gain"] < LEAST_GAIN or values["sharpness"] < 1:
        return "failed", "Nothing in one scan answers to anything in the other: is it the same body part?"
    if values["consistency"] > 3 * WORST_CONSISTENCY:
        return "failed", (
            f"Registering the other way round ends {values['consistency']:.0f} mm away: the alignment is not reliable."
        )
    if values["folded"]:
        return "failed", f"The deformation folds over itself in {values['folded']} voxels."
    if values["sharpness"] < LEAST_SHARPNESS:
        return "check", "The alignment is vague: moving the scan a little hardly changes how well it fits."
    if values["consistency"] > WORST_CONSISTENCY:
        return "check", f"Registering the other way round ends {values['consistency']:.1f} mm away."
    if values["overlap"] < LEAST_OVERLAP:
        return "check", f"Only {100 * values['overlap']:.0f} % of the smaller scan lies inside the other."
    if values["mirrored"] > MIRROR_MARGIN:
        return "check", "A mirror image fits better: compare left and right of the two scans."
    if values["jacobian"][0] < 0.2 or values["jacobian"][1] > 5:
        return "check", "The deformation squeezes or stretches some tissue more than five-fold."
    return "good", "The scans agree well, both ways round."


def jacobian_range(displacement):
    """((least, greatest) Jacobian determinant, voxels where it is not positive) of x + displacement(x)."""
    field = displacement.array
    to_index = np.linalg.inv(displacement.affine)[:3, :3]
    low, high, folded = math.inf, -math.inf, 0
    for k in range(0, len(field), 32):
        first = max(0, k - 1)
        slab = field[first : k + 33]
        if min(slab.shape[:3]) < 2:
            continue
        # by_index[..., r, a]: how displacement r changes along index axis a = i, j, k.
        by_index = np.stack([np.stack(np.gradient(slab[..., r])[::-1], -1) for r in range(3)], -2)
        by_space = by_index @ to_index.astype(np.float32) + np.eye(3, dtype=np.float32)
        determinant = np.linalg.det(by_space)[k - first : k - first + 32]
        low, high = min(low, float(determinant.min())), max(high, float(determinant.max()))
        folded += int((determinant <= 0).sum())
    return (low, high), folded


def _overlap(fixed, moving, matrix, seed):
    """The greater share of one scan's anatomy that lies inside the other's field of view."""
    shares = []
    for one, other, to_other in ((fixed, moving, matrix), (moving, fixed, np.linalg.inv(matrix))):
        points = _anatomy_points(one, 2000, seed)
        grid = other.levels[-1]
        index = (grid.to_index @ to_other @ np.c_[points, np.ones(len(points))].T)[:3].T
        shares.append(((index > -0.5) & (index < grid.size - 0.5)).all(axis=1).mean())
    return float(max(shares))


def _anatomy_points(image, count, seed):
    """RAS mm (N, 3): voxel centres of the anatomy."""
    k, j, i = np.nonzero(image.anatomy.cpu().numpy())
    chosen = np.random.default_rng(seed).integers(0, len(k), count)
    affine = image.levels[-1].affine
    return np.stack([i, j, k], axis=1)[chosen] @ affine[:3, :3].T + affine[:3, 3]


def _sharpness(target, matrix, after):
    """How many times as high the similarity is here as at the best place `NEAR` mm away along one of the motions."""
    if after <= 1:
        return 0.0
    nearby = []
    for axis in range(6):
        for sign in (-1, 1):
            step = np.eye(4)
            vector = sign * NEAR * np.eye(3)[axis % 3]
            if axis < 3:
                step[:3, 3] = vector
            else:
                step[:3, :3] = rotation(1.5 * vector / RADIUS)
                step[:3, 3] = target.center - step[:3, :3] @ target.center
            nmi, _ = target.value(matrix @ step)
            nearby.append(nmi if nmi else 1.0)
    nearby = np.array(nearby)
    return float((after - 1) / max(1e-6, nearby.max() - 1))


def _inverse_consistency(fixed, moving, matrix, center, level, seed, check):
    """mm between the inverse and what registering fixed to moving from there finds, mean over the anatomy."""
    inverse = np.linalg.inv(matrix)
    there = matrix[:3, :3] @ center + matrix[:3, 3]
    target = Target(moving, fixed, level, POINTS, there, seed + 202)
    back, _, _ = climb(target, "rigid", inverse, 2.0, 0.1, 15, check=check)
    points = _anatomy_points(fixed, 300, seed)
    points = np.c_[points, np.ones(len(points))]
    return float(np.linalg.norm((points @ (back @ matrix - np.eye(4)).T)[:, :3], axis=1).mean())


def _mirrored(target, matrix, after, check):
    """How much better (over 1) than this result its mirror image about the middle fits."""
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = 2 * target.center[0]
    if after <= 1:
        return 0.0
    _, nmi, _ = climb(target, "rigid", matrix @ mirror, 2.0, 0.5, 12, check=check)
    return (nmi - 1) / (after - 1)
