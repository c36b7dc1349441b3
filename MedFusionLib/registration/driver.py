"""`register`: the way into registration."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

from .. import device as devices
from ..errors import Cancelled, MethodError, VolumeError
from ..volume import require_usable, require_volume
from .result import Grid, Registration

MODELS = ("none", "rigid", "affine", "deformable")
INITIAL = ("auto", "identity", "geometry", "moments")
SIMILARITIES = ("auto", "nmi", "mi", "mind", "ncc")
LEVELS = (1.5, 3.0, 6.0)
"""mm: voxels of the pyramid."""

LEAST = 4
"""Voxels along each axis."""


def register(
    fixed,
    moving,
    model="rigid",
    device="auto",
    seed=0,
    initial="auto",
    fixed_mask=None,
    moving_mask=None,
    similarity="auto",
    levels=LEVELS,
    progress=None,
    cancelled=None,
):
    """Find where `moving` lies in `fixed`'s space.

    fixed, moving: scalar Volumes of at least 4 voxels along each axis, any orientation, spacing or field of view.
    model: "none" (as the scanners placed them), "rigid", "affine" or "deformable" (diffeomorphic, after affine).
    device: "auto", "cpu", "cuda", "mps". seed: of the sampling: same volumes, seed and device, same result.
    initial: "auto" (many starting poses), "identity", "geometry" (middle on middle), "moments" (centre of mass on
        centre of mass), or a 4x4 RAS mm matrix, moving -> fixed, near the truth.
    fixed_mask, moving_mask: Volumes, on any grid; only where they are not 0 is compared. Unless `initial` is a
        matrix, a region of less than a litre is looked for where the whole scans have it, and stays there if it alone
        ends too far away.
    similarity: "auto" (rigid and affine: normalised mutual information; deformable: descriptors that survive any change
        of contrast), "nmi" and "mind" (the same by name), "mi" (rigid and affine by plain mutual information, which
        partial overlap misleads), "ncc" (deformable by local correlation, for two scans of one contrast).
    levels: mm of the grids, finest first; "auto" choices fit heads and bodies.
    progress(fraction, message), cancelled(): see `pipeline.run`.

    Returns a `Registration` whose `quality` says whether to trust it.
    Raises VolumeError for volumes that cannot be registered, MethodError for unknown options, Cancelled.
    """
    _check(fixed, moving, model, seed, initial, similarity, levels, fixed_mask, moving_mask)
    report = _Reporter(progress, cancelled)
    if model == "none":
        report(1.0, "Left in place")
        return Registration("none", np.eye(4), None, Grid.of(fixed))
    from .search import search

    chosen = devices.choose(device)
    with _one_thread():
        registration = devices.run_on(
            chosen,
            lambda device: search(
                fixed, moving, model, device, seed, initial, fixed_mask, moving_mask, similarity, levels, report
            ),
        )
    report(1.0, "Registered")
    return registration


class _Reporter:
    """Says how far it is and stops where the user asks."""

    def __init__(self, progress, cancelled):
        self._progress, self._cancelled = progress, cancelled

    def __call__(self, fraction, message):
        self.check()
        if self._progress:
            self._progress(fraction, message)

    def check(self):
        if self._cancelled and self._cancelled():
            raise Cancelled()


@contextmanager
def _one_thread():
    """Sampling scattered points gains nothing from a second thread, and threads that wait for each other beside a busy
    Slicer cost ten times the work itself."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(fixed, moving, model, seed, initial, similarity, levels, fixed_mask, moving_mask):
    if model not in MODELS:
        raise MethodError(f"registration model {model!r} is not one of {', '.join(MODELS)}.")
    if similarity not in SIMILARITIES:
        raise MethodError(f"similarity {similarity!r} is not one of {', '.join(SIMILARITIES)}.")
    if isinstance(initial, str):
        if initial not in INITIAL:
            raise MethodError(f"initial {initial!r} is not one of {', '.join(INITIAL)}, or a 4x4 matrix.")
    else:
        _check_matrix(initial, model)
    if not (
        isinstance(levels, (tuple, list))
        and levels
        and all(0 < s < np.inf for s in levels)
        and list(levels) == sorted(levels)
    ):
        raise MethodError(f"levels {levels!r} must be millimetres from fine to coarse, such as (1.5, 3, 6).")
    if seed < 0:
        raise MethodError(f"the seed is {seed}: choose 0 or more.")
    if model == "none":
        for volume in (fixed, moving):
            require_volume(volume)
        return
    for volume in (fixed, moving):
        require_usable(volume)
        if min(volume.size) < LEAST:
            size = " x ".join(str(n) for n in volume.size)
            raise VolumeError(
                f"{volume.title} has {size} voxels: registration needs at least {LEAST} slices and {LEAST} voxels along"
                " each axis. Give the whole stack, or choose registration “none”."
            )
    for name, mask in (("fixed_mask", fixed_mask), ("moving_mask", moving_mask)):
        if mask is None:
            continue
        require_volume(mask)
        if mask.is_vector:
            raise VolumeError(f"{name} is a colour or vector volume: give a label map or a scalar volume.")
        if not np.any(mask.array):
            raise VolumeError(f"{name} is empty: draw a region in it, or leave it out.")


def _check_matrix(initial, model):
    try:
        matrix = np.asarray(initial, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if (
        matrix.shape != (4, 4)
        or not np.isfinite(matrix).all()
        or not np.allclose(matrix[3], (0, 0, 0, 1))
        or abs(np.linalg.det(matrix)) < 1e-9
    ):
        raise MethodError("initial must be a finite, invertible 4x4 matrix, moving -> fixed, RAS mm, last row 0 0 0 1.")
    if np.linalg.det(matrix[:3, :3]) < 0:
        raise MethodError("initial mirrors the moving scan, which no motion turns back: leave the mirror out.")
    if model == "rigid" and not np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-3):
        raise MethodError("initial scales or shears, as no rigid motion does: choose affine or give a rigid matrix.")
