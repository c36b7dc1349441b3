"""Volumes to judge a registration by: where the edges lie, and whose cubes a checkerboard shows."""

import numpy as np
import pytest

from MedFusionLib import Volume
from MedFusionLib.errors import GeometryError
from MedFusionLib.registration.checks import checkerboard_volume, edge_volume


def ball(spacing, size, radius=20.0, sharpness=1.0):
    """A bright ball of `radius` mm in the middle of a grid, and every voxel's distance (mm) from the middle."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(size[::-1], spacing[::-1], strict=True)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    values = 100 / (1 + np.exp((distance - radius) / sharpness))
    return Volume(values.astype(np.float32), np.diag([*spacing, 1.0]), "MR", display_range=(0, 100)), distance


@pytest.mark.parametrize("spacing, size", [((1, 1, 1), (56, 56, 56)), ((0.8, 0.8, 3), (70, 70, 19))])
def test_edges_lie_where_the_values_change_most(spacing, size):
    volume, distance = ball(spacing, size)
    edges = edge_volume(volume)
    there = edges.array == 1
    assert set(np.unique(edges.array)) == {0, 1} and edges.same_grid(volume)
    assert np.abs(distance[there] - 20).max() < max(spacing)
    # Closed: every way from the middle to the border goes through them.
    from scipy.ndimage import label

    regions, _ = label(~there)
    assert regions[tuple(n // 2 for n in there.shape)] != regions[0, 0, 0]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [14.3, 14.7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_edge_is_in_the_voxels_nearest_to_it(axis, place, sign):
    profile = 50 + sign * 50 * np.tanh((np.arange(30) - place) / 2)
    volume = Volume(np.moveaxis(np.tile(profile, (9, 8, 1)), 2, axis), np.eye(4), "MR", display_range=(0, 100))
    edges = np.moveaxis(edge_volume(volume).array, axis, 2)
    np.testing.assert_array_equal(edges, np.broadcast_to(np.arange(30) == round(place), edges.shape))


def test_edges_do_not_depend_on_the_slabs_that_they_are_found_in(monkeypatch):
    from MedFusionLib.registration import checks

    volume, _ = ball((1, 1, 1.5), (40, 44, 37), 14)
    noisy = volume.with_array(volume.array + np.random.default_rng(0).normal(0, 5, volume.array.shape))
    found = edge_volume(noisy).array
    monkeypatch.setattr(checks, "ROWS", 5)
    np.testing.assert_array_equal(edge_volume(noisy).array, found)


def test_what_is_flat_or_thin_has_edges_all_the_same():
    step = Volume(np.tile(np.arange(30) > 14, (1, 20, 1)).astype(np.int16), np.eye(4), "MR")
    edges = edge_volume(step).array[0]
    assert edges.any(axis=0).nonzero()[0].tolist() in ([14], [15])  # alike on both sides of the step
    assert edges.any(axis=1).all()
    flat = Volume(np.full((3, 4, 5), 7.0, np.float32), np.eye(4), "MR", display_range=(0, 10))
    assert not edge_volume(flat).array.any()


def test_a_checkerboard_shows_both_scans_in_cubes_of_one_size_in_mm():
    grid = np.diag([1.0, 1.0, 2.0, 1.0])
    fixed = Volume(np.full((40, 80, 80), 1.0, np.float32), grid, "CT", display_range=(0, 1))
    moved = fixed.with_array(np.zeros((40, 80, 80), np.float32))
    board = checkerboard_volume(fixed, moved, (0, 1))
    assert board.array.dtype == np.uint8 and board.same_grid(fixed)
    for axis, count in zip(range(3), (4, 9, 9), strict=True):
        line = np.moveaxis(board.array, axis, 0)[:, 0, 0].astype(int)
        changes = np.flatnonzero(np.diff(line))
        assert (np.diff(changes) == (5 if axis == 0 else 10)).all() and len(changes) >= count - 2
    assert set(np.unique(board.array)) == {0, 255}
    assert board.array[0, 0, 0] == 255 and abs((board.array == 255).mean() - 0.5) < 0.01
    with pytest.raises(GeometryError, match="one grid"):
        checkerboard_volume(fixed, moved.with_array(moved.array, affine=np.eye(4)))
    # By default each in the range of its own.
    halves = fixed.with_array(np.full((40, 80, 80), 5.0, np.float32), display_range=(0, 10))
    assert set(np.unique(checkerboard_volume(fixed, halves).array)) == {128, 255}
