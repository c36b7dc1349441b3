"""Registration over the grids and places that scanners give: every truth is known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from MedFusionLib import phantom
from MedFusionLib.registration import Grid, Registration, register

MIDDLE = np.array([0.0, -12.0, 3.0])


@pytest.fixture(scope="module")
def head():
    pytest.importorskip("nilearn", reason="the phantom needs nilearn: pip install .[test]")
    return phantom.make(seed=4, spacing=2)


def motion(angles, shift=(0, 0, 0)):
    """4x4 that turns about the head's middle by (x, y, z) degrees, then shifts by mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = MIDDLE - matrix[:3, :3] @ MIDDLE + shift
    return matrix


def on_grid(volume, spacing, axes=None, extent=(220, 250, 220)):
    """`volume` on a grid about its own middle. axes: 3x3, columns are the directions of (i, j, k)."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if axes is None else axes) * np.asarray(spacing, float)
    size = tuple(max(4, round(e / s)) for e, s in zip(extent, spacing, strict=True))
    affine[:3, 3] = volume.center - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return Registration("none", np.eye(4), None, Grid(size, affine)).resample(volume)


def error(head, fixed, moving, away, **options):
    """(mm, mean over the head, between a registration of `moving` put `away` and the truth, the result)."""
    lying = moving.with_array(moving.array, affine=away @ moving.affine)
    found = register(fixed, lying, **options)
    truth = head.truth["MR"] @ np.linalg.inv(away)
    points = np.c_[head.head, np.ones(len(head.head))] @ np.linalg.inv(truth).T
    return np.linalg.norm((points @ (found.matrix - truth).T)[:, :3], axis=1).mean(), found


@pytest.mark.parametrize("angles", [(60, 0, 0), (0, 60, 0), (0, 0, 60), (0, 0, -60), (35, 35, -35)])
def test_turned_up_to_60_degrees(head, angles):
    mm, found = error(head, head.ct, head.mr, motion(angles) @ head.truth["MR"])
    assert mm < 1.0 and found.quality.verdict != "failed"


@pytest.mark.parametrize("shift", [(80, 0, 0), (0, -80, 0), (0, 0, 80), (46, 46, -46)])
def test_shifted_by_80_mm(head, shift):
    mm, found = error(head, head.ct, head.mr, motion((0, 0, 0), shift) @ head.truth["MR"])
    assert mm < 1.0 and found.quality.verdict != "failed"


@pytest.mark.parametrize(
    ("spacing", "extent", "limit"),
    [
        # Part of the head: errors are measured all over it.
        ((0.5, 0.5, 2), (130, 150, 100), 2.0),
        ((0.5, 0.5, 6), (200, 230, 150), 1.5),
        ((6, 6, 6), (220, 250, 220), 1.5),
        ((3, 1, 5), (220, 250, 220), 1.0),
    ],
)
def test_voxels_from_half_a_millimetre_to_six(head, spacing, extent, limit):
    moving = on_grid(head.mr, spacing, extent=extent)
    assert error(head, head.ct, moving, motion((8, -5, 10), (9, -7, 12)))[0] < limit


def test_fixed_of_six_millimetres(head):
    fixed = on_grid(head.ct, (6, 6, 6))
    assert error(head, fixed, head.mr, motion((8, -5, 10), (9, -7, 12)))[0] < 1.5


@pytest.mark.parametrize("model", ["rigid", "affine"])
def test_a_small_field_of_view_near_where_the_scanners_say(head, model):
    """80 mm of the middle of the head, of little contrast: many a place far away looks as good to a few points."""
    fixed = on_grid(head.ct, (1, 1, 1), extent=(80, 80, 80))
    mm, found = error(head, fixed, head.mr, motion((7, -6, 8), (8, -9, 7)) @ head.truth["MR"], model=model)
    assert mm < 4.0 and found.quality.verdict != "failed"


@pytest.mark.parametrize("turned", [(30, 0, 0), (20, -35, 15), (0, 45, 45)])
def test_oblique_grids(head, turned):
    axes = Rotation.from_euler("xyz", turned, degrees=True).as_matrix()
    moving = on_grid(head.mr, (1.5, 2, 4), axes)
    assert error(head, head.ct, moving, motion((-6, 9, 4), (5, 8, -10)))[0] < 1.0


def test_all_at_once(head):
    """Left-handed, oblique, anisotropic, inverted, shaded, turned and far away."""
    axes = Rotation.from_euler("xyz", (15, -20, 10), degrees=True).as_matrix() @ np.diag([1.0, -1, 1])
    moving = on_grid(head.mr, (1.5, 2, 4), axes[:, [2, 0, 1]])
    assert np.linalg.det(moving.affine) < 0
    shade = np.exp(0.25 * np.linspace(-1, 1, moving.array.shape[1], dtype=np.float32))[:, None]
    moving = moving.with_array((1000 - moving.array.astype(np.float32)) * shade)
    assert error(head, head.ct, moving, motion((25, -20, 30), (30, -45, 25)))[0] < 1.5


def test_affine_of_unlike_grids(head):
    stretch = motion((5, 8, -6), (6, -5, 7)) @ np.diag([1.07, 0.95, 1.04, 1])
    moving = on_grid(head.mr, (1.5, 1.5, 4), Rotation.from_euler("x", 20, degrees=True).as_matrix())
    assert error(head, head.ct, moving, stretch, model="affine")[0] < 1.5


def cut(volume, low, high):
    """Slices low to high, shares of the whole, of `volume`."""
    n = volume.array.shape[0]
    first, last = round(low * n), round(high * n)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * first
    return volume.with_array(np.ascontiguousarray(volume.array[first:last]), affine=affine)


def test_the_last_steps_do_not_change_which_points_are_compared(head):
    """Or a field of view would draw the scan into itself, or out of it."""
    from MedFusionLib.registration.images import Image
    from MedFusionLib.registration.linear import Target

    fixed, moving = (Image(v, (1.5, 3, 6), "cpu") for v in (head.ct, cut(head.mr, 0.2, 0.8)))
    matrix = np.linalg.inv(head.truth["MR"])
    step = np.eye(4)
    step[:3, 3] = (0.5, -1.0, 1.5)
    settled = Target(fixed, moving, 0, 20_000, fixed.center_of_mass, 0, near=matrix)
    free = Target(fixed, moving, 0, 20_000, fixed.center_of_mass, 0)
    assert settled.value(matrix)[1] == settled.value(step @ matrix)[1] > 0.2
    assert free.value(matrix)[1] != free.value(step @ matrix)[1]


def test_the_way_back_counts_by_what_lies_inside(head):
    from MedFusionLib.registration import search
    from MedFusionLib.registration.images import Image

    whole, part = head.ct, cut(head.mr, 0.2, 0.8)
    how = {"seed": 0, "check": None}
    stages, _ = search._stages("rigid", 3, 10**6)
    truth = np.linalg.inv(head.truth["MR"])

    def apart(one, other):
        points = np.c_[head.head, np.ones(len(head.head))]
        return np.linalg.norm((points @ (one - other).T)[:, :3], axis=1).mean()

    # Either way round, the points of the part lie inside the whole, and most of the whole's outside the part.
    for fixed, moving, start in ((whole, part, truth), (part, whole, np.linalg.inv(truth))):
        images = [Image(v, (1.5, 3, 6), "cpu") for v in (fixed, moving)]
        there = search.refine(*images, "rigid", start, images[0].center_of_mass, stages[-1:], **how)
        back = search.refine(*images[::-1], "rigid", np.linalg.inv(there), images[1].center_of_mass, stages[-1:], **how)
        found = search._both_ways(*images, "rigid", there, stages[-1:], how)
        of_part, of_whole = (np.linalg.inv(back), there) if fixed is whole else (there, np.linalg.inv(back))
        assert apart(found, of_part) < 0.25 * apart(found, of_whole)
