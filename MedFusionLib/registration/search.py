"""The course of a registration: prepare, start, refine, judge."""

from __future__ import annotations

import numpy as np

from .. import device as devices
from .images import Image
from .linear import Stage, refine
from .quality import judge
from .result import Grid, Registration
from .starts import multi_start

POINTS = (60_000, 24_000, 5_000)
"""Sampled on the finest level, the next, and all coarser ones."""

TOLERANCES = (0.01, 0.05, 0.3)
"""mm."""


def search(fixed, moving, model, device, seed, initial, fixed_mask, moving_mask, similarity, levels, report):
    """`register` after its checks. report(fraction, message) and report.check() raise Cancelled."""
    device = devices.choose(device)
    report(0.0, "Preparing the scans")
    fixed_image = Image(fixed, levels, device, fixed_mask)
    report.check()
    moving_image = Image(moving, levels, device, moving_mask)
    center = fixed_image.center_of_mass
    report(0.2, "Searching for a start")
    start = _start(fixed_image, moving_image, center, initial, seed, report.check)
    report(0.4, "Registering")
    stages = [Stage(n, POINTS[min(n, 2)], TOLERANCES[min(n, 2)], 40) for n in range(len(levels) - 1, -1, -1)]
    matrix, _ = refine(fixed_image, moving_image, "rigid", start, center, stages, seed, report.check)
    if model != "rigid":
        report(0.6, "Scaling and shearing")
        matrix, _ = refine(fixed_image, moving_image, "affine", matrix, center, stages[-2:], seed, report.check)
    displacement = None
    if model == "deformable":
        from .deformable import deform

        displacement = deform(fixed_image, moving_image, matrix, similarity, report)
    report(0.9, "Judging")
    quality = judge(fixed_image, moving_image, matrix, displacement, center, seed, report.check)
    return Registration(model, np.linalg.inv(matrix), displacement, Grid.of(fixed), quality)


def _start(fixed, moving, center, initial, seed, check):
    """Fixed -> moving."""
    if not isinstance(initial, str):
        return np.linalg.inv(np.asarray(initial, dtype=np.float64))
    if initial == "auto":
        return multi_start(fixed, moving, center, seed, check=check)
    shift = {
        "identity": np.zeros(3),
        "geometry": moving.volume.center - fixed.volume.center,
        "moments": moving.center_of_mass - fixed.center_of_mass,
    }[initial]
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix
