"""Can a registration be trusted? Measured afterwards, from the scans themselves."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from .images import mapped, sample
from .information import fixed_bins, similarity
from .linear import RADIUS, Target, climb, rotation
from .result import Grid, Quality, Registration

POINTS = 6000
LOCAL_POINTS = 40_000
LOCAL_BINS = 32
SLAB = 8
"""Slices of a displacement whose Jacobian is held at once."""

FARTHEST_ASTRAY = 12.0
"""mm: no part moves so far by itself. A region that ends farther from where the whole scans have it is left there."""

NEAR = 12.0
"""mm that a pose is moved by to see whether the similarity falls."""

PART = 6.0
"""mm: cells of what counts as a part of the anatomy; with its neighbours, about 2 cm."""

LEAST_BETTER = 0.02
"""Natural units of mutual information: a part that gains less does not fit better."""

LEAST_SHARPNESS = 1.08
LEAST_OF_NONE = 0.2
WHOLE = 1.3e6
LEAST_GAIN = 0.004
LEAST_OVERLAP = 0.25
WORST_CONSISTENCY = 2.5
MIRROR_MARGIN = 1.03
MOST_UNSUPPORTED = 4.05
MOST_ASTRAY = 4.5
"""Limits of the verdict, from `Testing/Benchmarks/registration_trust.py`. The less a small field of view shows, the
likelier a wrong place fits as well: its sharpness has to be higher, by up to `LEAST_OF_NONE` under `WHOLE` mm^3."""

LEAST_ALIKE = 0.5
"""Share of the larger scan's anatomy under which the other one shows but a part of it."""


def judge(fixed, moving, matrix, displacement, seed, check=None, astray=None):
    """`Quality` of a map.

    fixed, moving: `Image`s, the one with the smaller field of view first. matrix: from the first to the second.
    displacement: of the whole map, as in `Registration`, or None. astray: as in `Quality`.
    """
    values = measure(fixed, moving, matrix, displacement, seed, check, astray)
    verdict, reason = conclude(values)
    return Quality(
        verdict, reason, values["before"] or math.nan, values["after"] or math.nan, values["overlap"],
        max(values["consistency"], values["back"]), values["sharpness"], values["jacobian"], values["folded"],
        values["mirrored"], values["unsupported"], values["astray"],
    )  # fmt: skip


def measure(fixed, moving, matrix, displacement, seed, check=None, astray=None):
    """What `conclude` judges by, of `judge`'s arguments: {name: value}."""
    center = fixed.center_of_mass
    level = min(1, len(fixed.levels) - 1)
    target = Target(fixed, moving, level, POINTS, center, seed + 101)
    before, _ = target.value(np.eye(4))
    after, _ = target.value(matrix)
    values = {
        "before": before,
        "after": after,
        "gain": after - 1,
        "overlap": _overlap(fixed, moving, matrix, seed),
        "sharpness": _sharpness(target, matrix, after),
        "consistency": _inverse_consistency(fixed, moving, matrix, center, level, seed, check),
        # A small region lies on one side: of the whole scans the same was asked before.
        "mirrored": _mirrored(fixed, target, matrix, check) if after > 1 and astray is None else 0.0,
        "extent": min(fixed.extent, moving.extent) if is_part(fixed, moving) else math.inf,
        "astray": 0.0 if astray is None else astray,
        "placed": astray is not None and astray <= MOST_ASTRAY,
        "jacobian": (float(np.linalg.det(matrix[:3, :3])),) * 2,
        "folded": 0,
        "unsupported": 0.0,
        "back": 0.0,
    }
    if displacement is not None:
        values["jacobian"], values["folded"] = jacobian_range(displacement, check)
        if not displacement.same_grid(fixed.volume):
            fixed, moving, matrix = moving, fixed, np.linalg.inv(matrix)
        points = fixed.points(POINTS, seed + 101)
        # Both of the same points: of others, those of the anatomy alone, it is another figure.
        values["before"], values["after"] = (
            _similarity(fixed, moving, level, points, places) for places in (points, _bent(displacement, points))
        )
        unsupported = _unsupported(fixed, moving, matrix, displacement, level, seed)
        missed = _way_back(fixed, moving, matrix, displacement, seed, check)
        values["back"] = float(missed.mean())
        # Either alone is high for many a right one: where no contrast shows a motion, or the way back is a vague one.
        values["unsupported"] = math.sqrt(unsupported * missed[-1 - len(missed) // 50])
    return values


def conclude(values):
    """(verdict, reason) of measured `values`."""
    if values["overlap"] <= 0.02 or values["gain"] <= 0:
        return "failed", "The two scans do not overlap: check that they are of the same body part."
    alone = not values["placed"]  # what the whole scans bear out may be vague in a small region
    if alone and (values["gain"] < LEAST_GAIN or values["sharpness"] < 1):
        return "failed", "Nothing in one scan answers to anything in the other: is it the same body part?"
    if alone and values["consistency"] > 3 * WORST_CONSISTENCY:
        return "failed", (
            f"Registering the other way round ends {values['consistency']:.0f} mm away: the alignment is not reliable."
        )
    if values["folded"]:
        return "failed", f"The deformation folds over itself in {values['folded']} voxels."
    if values["unsupported"] > 2 * MOST_UNSUPPORTED:
        return "failed", (
            f"The deformation moves parts by about {values['unsupported']:.0f} mm without making them fit better, and"
            " they do not find back: use an affine or rigid registration."
        )
    least = LEAST_SHARPNESS + LEAST_OF_NONE * max(0.0, 1 - values["extent"] / WHOLE)
    if alone and values["sharpness"] < least:
        return "check", "The alignment is vague: moving the scan a little hardly changes how well it fits."
    if alone and values["consistency"] > WORST_CONSISTENCY:
        return "check", f"Registering the other way round ends {values['consistency']:.1f} mm away."
    if values["unsupported"] > MOST_UNSUPPORTED:
        return "check", (
            f"The deformation moves parts by about {values['unsupported']:.0f} mm without making them fit better, and"
            " they do not find back: compare them before and after."
        )
    if values["overlap"] < LEAST_OVERLAP:
        return "check", f"Only {100 * values['overlap']:.0f} % of the smaller scan lies inside the other."
    if math.isnan(values["astray"]):
        return "check", (
            "The region is small, and the whole scans do not say for sure where it lies: compare it before and after."
        )
    if values["astray"] > MOST_ASTRAY:
        kept = ", where it was left" if values["astray"] > FARTHEST_ASTRAY else ""
        return "check", (
            f"The region alone lies best {values['astray']:.0f} mm from where the whole scans have it{kept}: compare"
            " before and after, or give a larger region."
        )
    if values["mirrored"] > MIRROR_MARGIN:
        return "check", "A mirror image fits better: compare left and right of the two scans."
    if values["jacobian"][0] < 0.2 or values["jacobian"][1] > 5:
        return "check", "The deformation squeezes or stretches some tissue more than five-fold."
    return "good", "The scans agree well, both ways round."


def jacobian_range(displacement, check=None):
    """((least, greatest) Jacobian determinant, voxels where it is not positive) of x + displacement(x)."""
    field = displacement.array
    low, high, folded = math.inf, -math.inf, 0
    steps = torch.tensor(displacement.affine[:3, :3].T, dtype=torch.float32)
    volume = float(np.linalg.det(displacement.affine[:3, :3]))
    for k in range(0, len(field), SLAB):
        if check:
            check()
        first = max(0, k - 1)
        slab = torch.from_numpy(np.ascontiguousarray(np.moveaxis(field[first : k + SLAB + 1], -1, 0)))
        # How the place changes along each index axis i, j, k: in mm, each (3, k, j, i).
        i, j, k_axis = (
            torch.gradient(slab, dim=axis)[0].add_(step[:, None, None, None])
            for axis, step in zip((3, 2, 1), steps, strict=True)
        )
        across = torch.linalg.cross(j, k_axis, dim=0)
        determinant = (i * across).sum(0)[k - first : k - first + SLAB] / volume
        low, high = min(low, float(determinant.min())), max(high, float(determinant.max()))
        folded += int((determinant <= 0).sum())
    return (low, high), folded


def _overlap(fixed, moving, matrix, seed):
    """The greater share of one scan's anatomy that lies inside the other's field of view."""
    shares = []
    for one, other, to_other in ((fixed, moving, matrix), (moving, fixed, np.linalg.inv(matrix))):
        points = _anatomy_points(one, 2000, seed)
        shares.append(other.levels[-1].holds(mapped(to_other, points)).mean())
    return float(max(shares))


def is_part(one, other):
    """Whether one of two `Image`s shows but a part of what the other one does."""
    return min(one.extent, other.extent) < LEAST_ALIKE * max(one.extent, other.extent)


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


def _way_back(fixed, moving, matrix, displacement, seed, check):
    """mm that points of the anatomy miss themselves by on a deformation and a way back found without it, sorted."""
    from .deformable import way_back

    points = _anatomy_points(fixed, POINTS, seed)
    there = _bent(displacement, points)
    seen = moving.levels[-1].holds(there)
    if not seen.any():
        return np.zeros(1)
    back = way_back(fixed, moving, matrix, check or (lambda: None))
    return np.sort(np.linalg.norm(back(there[seen]) - points[seen], axis=1))


def _mirrored(fixed, target, matrix, check):
    """How many times as high the similarity (less 1) is of the scans' mirror image as of this result.

    The plane of symmetry is where the first scan is most like its own mirror image. Both poses climb the same way:
    then only left and right make the difference. Averages of many heads are within 3 %, one person's far from it.
    """
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = 2 * target.center[0]
    itself = Target(fixed, fixed, len(fixed.levels) - 1, 2500, target.center, 5)
    mirror, _, _ = climb(itself, "rigid", mirror, 4.0, 0.3, 25, check=check)
    _, straight, _ = climb(target, "rigid", matrix, 1.0, 0.2, 30, check=check)
    _, turned, _ = climb(target, "rigid", matrix @ mirror, 1.0, 0.2, 30, check=check)
    return (turned - 1) / max(1e-6, straight - 1)


def _unsupported(fixed, moving, matrix, displacement, level, seed):
    """mm by which a deformation moves parts of the anatomy from where `matrix` alone has them without making them fit
    better. Of the parts, a hundredth are moved further than that.

    fixed, moving, matrix: in the displacement's sense. A part fits better where its points' share of the mutual
    information is higher: the logarithm of how much more often their pairs of values meet than by chance.
    """
    grid, other = fixed.levels[level], moving.levels[level]
    points = _inside_anatomy(fixed, fixed.points(LOCAL_POINTS, seed + 303))
    straight = mapped(matrix, points)
    bent = _bent(displacement, points)
    (one, inside), (there, inside_there), (before, inside_before) = (
        _values(*which) for which in ((grid, points), (other, bent), (other, straight))
    )
    inside = (inside & inside_there & inside_before).cpu().numpy()
    if inside.sum() < 64:
        return 0.0
    row, column, old = ((v.cpu().numpy() * (LOCAL_BINS - 0.001)).astype(int) for v in (one, there, before))
    joint = np.zeros((LOCAL_BINS, LOCAL_BINS))
    np.add.at(joint, (row[inside], column[inside]), 1.0)
    joint = gaussian_filter(joint, 1.0, mode="nearest")
    joint = (joint + 1e-6 * joint.sum()) / joint.sum()
    share = np.log(joint / joint.sum(0) / joint.sum(1)[:, None]).clip(-3, 3)

    cell = np.floor((points - points.min(axis=0)) / PART).astype(int)
    shape = cell.max(axis=0) + 1
    cell = np.ravel_multi_index(cell.T, shape)

    def around(weights):
        counts = np.bincount(cell, np.where(inside, weights, 0), minlength=shape.prod()).reshape(shape)
        return gaussian_filter(counts, 4 / 3, mode="constant")

    count = around(np.ones(len(points)))
    known = count > 0.5 * np.percentile(count, 95)
    if not known.any():
        return 0.0
    better = (around(share[row, column] - share[row, old]) / count.clip(1e-3))[known]
    moved = (around(np.linalg.norm(bent - straight, axis=1)) / count.clip(1e-3))[known]
    moved = np.sort(np.where(better < LEAST_BETTER, moved, 0.0))
    return float(moved[-1 - len(moved) // 100])


def _similarity(fixed, moving, level, points, places):
    """NMI of the fixed scan at RAS points (N, 3) and the moving one at their places."""
    one, inside = _values(fixed.levels[level], points)
    other, inside_other = _values(moving.levels[level], places)
    inside &= inside_other
    if moving.mask is not None:
        inside &= torch.from_numpy(moving.mask.holds(places)).to(inside.device)
    return similarity(fixed_bins(one), other, inside)[0]


def _values(level, points):
    """(values, bool whether they lie in the field of view) of a `Level` at RAS points (N, 3), tensors (N,)."""
    points = torch.tensor(points.T, dtype=torch.float32, device=level.values.device)
    return sample(level, level.to_index[:3], points)[:2]


def _bent(displacement, points):
    """Where a whole map's displacement takes RAS points (N, 3)."""
    return Registration("deformable", np.eye(4), displacement, Grid.of(displacement)).to_moving(points)


def _inside_anatomy(image, points):
    """Those of RAS points (N, 3) that lie in the anatomy."""
    found = points[image.levels[-1].nearest(image.anatomy, points) > 0]
    return found if len(found) else points
