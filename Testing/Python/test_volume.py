"""The value that everything passes around: geometry it takes, and what it refuses."""

import numpy as np
import pytest

from MedFusionLib.errors import GeometryError, VolumeError
from MedFusionLib.volume import Volume, require_different, require_usable

RNG = np.random.default_rng(0)


def volume(array=None, affine=None, **more):
    array = RNG.random((3, 4, 5)) if array is None else array
    return Volume(array, np.eye(4) if affine is None else affine, **({"name": "x"} | more))


def oblique(degrees, flip=1):
    a = np.radians(degrees)
    affine = np.diag([2.0, 3.0, 4.0 * flip, 1.0])
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    affine = turn @ affine
    affine[:3, 3] = (10, 20, 30)
    return affine


def test_geometry():
    v = volume(affine=oblique(30))
    assert v.size == (5, 4, 3)
    assert v.spacing == pytest.approx((2, 3, 4))
    np.testing.assert_allclose(v.center, oblique(30)[:3, :3] @ (2, 1.5, 1) + (10, 20, 30))


def test_voxels_of_a_micrometre_are_voxels():
    assert volume(affine=np.diag([5e-4, 5e-4, 5e-4, 1])).spacing == pytest.approx((5e-4,) * 3)


def test_the_array_is_kept_and_never_copied():
    array = np.zeros((3, 4, 5), np.int16)
    assert volume(array).array is array


def test_the_matrix_is_a_copy_in_double_precision():
    affine = np.eye(4, dtype=np.float32)
    v = volume(affine=affine)
    affine[0, 3] = 5
    assert v.affine.dtype == np.float64 and np.array_equal(v.affine, np.eye(4))
    assert np.array_equal(volume(affine=affine.tolist()).affine, affine)


@pytest.mark.parametrize(
    ("array", "message"),
    (
        (np.zeros((4, 5)), r"“x” has shape \(4, 5\): a volume is \(K, J, I\)"),
        (np.zeros((2, 3, 4, 5)), "one time point or channel"),
        (np.zeros((0, 4, 5)), "has no voxels"),
        (np.zeros((3, 4, 5), complex), "holds complex128 values"),
        (np.full((3, 4, 5), "a"), "give real numbers"),
    ),
)
def test_arrays_that_are_no_volume(array, message):
    with pytest.raises(VolumeError, match=message):
        volume(array)


@pytest.mark.parametrize(
    ("affine", "message"),
    (
        (np.eye(3), "finite 4x4"),
        (np.diag([np.nan, 1, 1, 1]), "finite 4x4"),
        (np.diag([np.inf, 1, 1, 1]), "finite 4x4"),
        (np.diag([1, 1, 1, 2]), "finite 4x4"),
        (np.diag([1, 1, 0, 1]), "singular"),
    ),
)
def test_matrices_that_are_no_geometry(affine, message):
    with pytest.raises(GeometryError, match=message):
        volume(affine=affine)


def test_meaning_is_checked():
    with pytest.raises(VolumeError, match="'MRI' is not one of CT, MR, PT"):
        volume(modality="MRI")
    for window in ((5, 5), (6, 5), (0, np.inf), (5,), ("a", 5), 3):
        with pytest.raises(VolumeError, match="two numbers that rise from black to white"):
            volume(display_range=window)


def test_the_view_is_a_mask_of_the_voxels():
    seen = np.ones((3, 4, 5), bool)
    assert volume(view=seen).view is seen
    assert volume(np.zeros((3, 4, 5, 3)), view=seen).view is seen
    assert volume(view=seen).with_array(np.ones((3, 4, 5))).view is seen
    assert volume(view=seen).with_array(np.ones((2, 4, 5))).view is None
    for view in (seen[1:], seen.astype(np.uint8), True):
        with pytest.raises(VolumeError, match="give a bool for each voxel"):
            volume(view=view)


def test_rgb_and_masks_are_volumes():
    assert volume(np.zeros((3, 4, 5, 3), np.uint8)).is_vector
    assert volume(np.zeros((3, 4, 5), bool)).array.dtype == np.uint8


def test_the_same_grid_is_told_from_another():
    shifted = oblique(30)
    shifted[0, 3] += 2e-3
    turned = oblique(30.1)
    longer = oblique(30) @ np.diag([1.0002, 1, 1, 1])  # 0.0004 mm a voxel, over four of them
    assert volume(affine=oblique(30)).same_grid(volume(affine=oblique(30)))
    assert not volume(affine=oblique(30)).same_grid(volume(affine=shifted))
    assert not volume(affine=oblique(30)).same_grid(volume(affine=turned))
    assert not volume(affine=oblique(30)).same_grid(volume(affine=longer))
    assert not volume().same_grid(volume(np.zeros((3, 4, 6))))


@pytest.mark.parametrize("flip", (1, -1))
@pytest.mark.parametrize("degrees", (0, 30, -30, 45))
def test_anatomical_axes_are_three_different_ones(degrees, flip):
    v = volume(affine=oblique(degrees, flip))
    axes = [v.anatomical_axis(name) for name in ("axial", "coronal", "sagittal")]
    assert sorted(axes) == [0, 1, 2]
    assert axes[2] == 2  # i runs left to right in all of them
    if abs(degrees) < 45:
        assert axes == [0, 1, 2]
    with pytest.raises(GeometryError, match="axis 'x' is not one of"):
        v.anatomical_axis("x")


def test_unusable_values_are_named():
    nan = np.zeros((3, 4, 5))
    nan[0, 0, 0], nan[1, 1, 1] = np.nan, np.inf
    with pytest.raises(VolumeError, match="“x” has 2 NaN or infinite voxels"):
        require_usable(volume(nan))
    with pytest.raises(VolumeError, match=r"“x” is constant \(every voxel is 7\.0\)"):
        require_usable(volume(np.full((3, 4, 5), 7.0)))
    with pytest.raises(VolumeError, match="“x” is constant"):
        require_usable(volume(np.ones((1, 1, 1))))
    with pytest.raises(VolumeError, match="colour or vector"):
        require_usable(volume(RNG.random((3, 4, 5, 3))))
    require_usable(volume())


def test_the_same_volume_twice_is_noticed():
    v = volume()
    other = v.array.copy()
    other[0, 0, 0] += 1
    with pytest.raises(VolumeError, match="“x” and “copy” are the same volume"):
        require_different([v, volume(other), v.with_array(v.array.copy(), name="copy")])
    with pytest.raises(VolumeError, match="the same volume"):
        require_different([v, v])
    # Saved as another number type it is still the same scan.
    whole = volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    with pytest.raises(VolumeError, match="the same volume"):
        require_different([whole, whole.with_array(whole.array.astype(np.float32))])
    require_different([v, volume(other), v.with_array(v.array, affine=oblique(3))])
