"""The course of a registration: prepare, start, refine, judge."""

from __future__ import annotations

import numpy as np
from scipy.linalg import expm, logm

from .images import COUNTED, Image, mapped
from .linear import RADIUS, Stage, refine
from .quality import FARTHEST_ASTRAY, is_part, judge
from .result import Grid, Registration
from .starts import multi_start

POINTS = (60_000, 24_000, 5_000)
"""Sampled on the finest level, the next, and all coarser ones."""

RIGID_POINTS = 120_000
"""On the finest level, or a third of the smaller grid's voxels, and no fewer than above: a good part of what is left of
a rigid error comes of the sampling, of an affine one hardly any."""

FARTHEST = 6.0
"""mm between what both find: more is for the verdict to tell."""

SMALL = 1e6
"""mm^3 that the masks leave to compare: less is alike at many a wrong place, so that the whole scans say where it lies.
Spheres of 30 mm radius were lost in 12 of 18 heads, of 60 mm in 2."""

TOLERANCES = (0.03, 0.05, 0.3)
"""mm."""

VOXELS_PER_POINT = 20
"""A last stage takes a point for so many voxels of the smaller finest grid: full-size scans allow more than noise and
the grid of a small one do."""

MOST_POINTS = 240_000
LAST_TOLERANCE = 0.004
"""mm: of that stage."""


def search(fixed, moving, model, device, seed, initial, fixed_mask, moving_mask, similarity, levels, report):
    """`register` after its checks, on a torch.device. report(fraction, message) and report.check() raise Cancelled."""
    report(0.0, "Preparing the scans")
    fixed_image = Image(fixed, levels, device, fixed_mask)
    report.check()
    moving_image = Image(moving, levels, device, moving_mask)
    report(0.2, "Searching for a start")
    voxels = min(image.levels[0].values.numel() for image in (fixed_image, moving_image))
    stages, last = _stages(model, len(levels), voxels)
    how = {"seed": seed, "check": report.check, "normalised": similarity != "mi"}
    # A matrix that was given says where a region lies.
    lost = isinstance(initial, str) and _compared(fixed_image, moving_image) < SMALL
    placed = _by_whole_scans(fixed_image, moving_image, model, initial, stages, how) if lost else None
    start = placed
    if placed is None:
        start = _start(fixed_image, moving_image, initial, model != "rigid", seed, report.check)
    report(0.4, "Registering")
    # An affine map goes on from the level before the finest: finer a rigid one need not be.
    whole = {"rigid": stages + last, "affine": stages[: max(1, len(stages) - 1)]}.get(model, stages)
    matrix = _linear(fixed_image, moving_image, "rigid", start, whole, how)
    if model != "rigid":
        report(0.5, "Scaling and shearing")
        matrix = _linear(fixed_image, moving_image, "affine", matrix, stages[-2:] + last, how)
    matrix = _both_ways(fixed_image, moving_image, model, matrix, stages[-1:] + last, how)
    astray = _astray(fixed_image, moving_image, matrix, placed) if lost else None
    judged = fixed_image, moving_image
    if astray and astray > FARTHEST_ASTRAY:
        matrix, judged = placed, [image.without_mask() for image in judged]
    displacement = None
    if model == "deformable":
        from .deformable import deform

        displacement = deform(fixed_image, moving_image, matrix, similarity, report)
    report(0.9, "Judging")
    quality = judge(*_small_first(*judged, matrix), displacement, seed, report.check, astray)
    return Registration(model, np.linalg.inv(matrix), displacement, Grid.of(fixed), quality)


def _stages(model, levels, voxels):
    """(a stage per level, coarse to fine; as a list of one or none, the one that full-size scans get beyond those).

    voxels: of the smaller finest grid.
    """
    finest = max(POINTS[0], min(RIGID_POINTS, voxels // 3)) if model == "rigid" else POINTS[0]
    points = (finest, *POINTS[1:])
    stages = [Stage(n, points[min(n, 2)], TOLERANCES[min(n, 2)], 40) for n in range(levels - 1, -1, -1)]
    count = min(MOST_POINTS, voxels // VOXELS_PER_POINT)
    return stages, [Stage(0, count, LAST_TOLERANCE, 40)] if count > 1.5 * finest else []


def _compared(fixed, moving):
    """mm^3 that the masks leave to compare; without any, no end."""
    return min((image.compared for image in (fixed, moving) if image.mask), default=np.inf)


def _by_whole_scans(fixed, moving, model, initial, stages, how):
    """Where the scans without their masks lie, fixed -> moving, or None where they do not say for sure or take the
    region out of view."""
    _small_first(fixed, moving, np.eye(4))[0].points(COUNTED, 0)  # too small a mask is refused before the long search
    whole = fixed.without_mask(), moving.without_mask()
    matrix = _start(*whole, initial, model != "rigid", how["seed"], how["check"])
    coarser = stages[:-1] or stages
    matrix = _linear(*whole, "rigid", matrix, coarser, how)
    if model != "rigid":
        matrix = _linear(*whole, "affine", matrix, coarser[-1:], how)
    if judge(*_small_first(*whole, matrix), None, how["seed"], how["check"]).verdict != "good":
        return None
    return matrix if len(_region(fixed, moving, matrix)) else None


def _region(fixed, moving, matrix):
    """RAS mm (N, 3) of points of the fixed scan that are compared under `matrix`."""
    one, other, matrix = _small_first(fixed, moving, matrix)
    points = one.points(COUNTED, 0)
    there = mapped(matrix, points)
    compared = other.levels[0].holds(there)
    if other.mask:
        compared &= other.mask.holds(there)
    return (points if one is fixed else there)[compared]


def _astray(fixed, moving, matrix, placed):
    """mm, mean over the region, between where `matrix` and the whole scans have it; NaN where those do not say."""
    if placed is None:
        return np.nan
    points = _region(fixed, moving, placed)
    return float(np.linalg.norm(mapped(matrix, points) - mapped(placed, points), axis=1).mean())


def _linear(fixed, moving, model, matrix, stages, how):
    """`matrix`, fixed -> moving, refined. how: further arguments of `refine`."""
    one, other, matrix = _small_first(fixed, moving, matrix)
    matrix = refine(one, other, model, matrix, one.center_of_mass, stages, **how)
    return matrix if one is fixed else np.linalg.inv(matrix)


def _both_ways(fixed, moving, model, matrix, stages, how):
    """Between `matrix` and what points of the other scan find: the errors of interpolation differ.

    The more of its points lie outside the other field of view, the worse an answer is, and the less it counts.
    """
    one, other, matrix_one = _small_first(fixed, moving, matrix)
    if is_part(one, other):
        return matrix  # the points of a much larger one would mostly fall outside
    model = "rigid" if model == "rigid" else "affine"
    back = refine(other, one, model, np.linalg.inv(matrix_one), other.center_of_mass, stages, **how)
    around = matrix_one @ back
    gap = around - np.eye(4)
    at_center = np.linalg.norm(gap @ np.append(other.center_of_mass, 1))
    if at_center + RADIUS * np.linalg.norm(gap[:3, :3], 2) > FARTHEST:
        return matrix
    if one.mask or other.mask:
        share = 0.5  # what a mask leaves out of the comparison counts both ways, and not as outside
    else:
        there, here = _outside(one, other, matrix_one) ** 2, _outside(other, one, back) ** 2
        share = there / (there + here)
    between = expm(-share * logm(around).real) @ matrix_one
    return between if one is fixed else np.linalg.inv(between)


def _outside(one, other, matrix):
    """Share of the points spread over `one` that `matrix` takes out of `other`'s field of view, and never none."""
    points = one.points(COUNTED, 0)
    return (1 + (~other.levels[-1].holds(mapped(matrix, points))).sum()) / len(points)


def _small_first(fixed, moving, matrix):
    """The scan to take points from, the other one, and the matrix from the one to the other.

    Points of the smaller field of view, or mask, can all find their counterparts; of a larger one most would fall
    outside, and the few that do not agree by chance at many a wrong place.
    """
    if moving.compared < 0.7 * fixed.compared:
        return moving, fixed, np.linalg.inv(matrix)
    return fixed, moving, matrix


def _start(fixed, moving, initial, stretched, seed, check):
    """Fixed -> moving."""
    if not isinstance(initial, str):
        return np.linalg.inv(np.asarray(initial, dtype=np.float64))
    if initial == "auto":
        one, other, _ = _small_first(fixed, moving, np.eye(4))
        matrix = multi_start(one, other, one.center_of_mass, seed, is_part(one, other), check, stretched)
        return matrix if one is fixed else np.linalg.inv(matrix)
    shift = {
        "identity": np.zeros(3),
        "geometry": moving.volume.center - fixed.volume.center,
        "moments": moving.center_of_mass - fixed.center_of_mass,
    }[initial]
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix
