"""Fields on a lattice of control points: against what splines and exponentials are by definition."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from MedFusionLib.registration.images import Image
from MedFusionLib.registration.lattice import Interpolation, Lattice, bending, bspline, evaluate, smoothed
from MedFusionLib.volume import Volume

SLOPE = np.array([[0.03, -0.02, 0.01], [0.02, 0.04, -0.03], [-0.01, 0.02, -0.05]])


@pytest.fixture(scope="module")
def image():
    """An ellipsoid off the middle of an oblique, anisotropic, left-handed grid."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec((20, -30, 10), degrees=True).as_matrix() @ np.diag([-1.5, 2.0, 3.0])
    affine[:3, 3] = 40, -30, 20
    k, j, i = np.indices((30, 44, 56))
    inside = ((i - 26) / 18) ** 2 + ((j - 25) / 9) ** 2 + ((k - 15) / 13) ** 2 < 1  # 54 x 36 x 78 mm
    return Image(Volume(100.0 * inside, affine), (3.0, 6.0), "cpu")


def index_field(lattice, function):
    """(1, 3, K, J, I): `function` of the control points' indices (i, j, k), about the middle."""
    k, j, i = np.indices(lattice.size[::-1])
    middle = (lattice.size - 1) / 2
    values = function(np.stack([i, j, k], -1) - middle)
    return torch.tensor(np.moveaxis(values, -1, 0)[None], dtype=torch.float32)


def test_the_lattice_lies_over_the_anatomy_with_a_control_point_to_spare(image):
    lattice = Lattice(image, 11.0)
    steps = np.linalg.norm(lattice.affine[:3, :3], axis=0)
    np.testing.assert_allclose(steps, 11)
    np.testing.assert_allclose(lattice.affine[:3, :3] / 11, image.volume.affine[:3, :3] / image.volume.spacing)
    low, high = image.box
    ends = np.array([low, high]) @ image.levels[-1].affine[:3, :3].T + image.levels[-1].affine[:3, 3]
    index = ends @ lattice.to_index[:3, :3].T + lattice.to_index[:3, 3]
    np.testing.assert_allclose(index.sum(axis=0), lattice.size - 1)  # the same middle
    assert (index[0] >= 1 - 1e-9).all() and (index[1] <= lattice.size - 2 + 1e-9).all()
    assert (index[0] < 1.51).all()  # and no more than it takes
    assert lattice.zeros().shape == (1, 3, *lattice.size[::-1])


def test_splines_have_the_weights_of_cubic_ones():
    weights = bspline(np.array([3.0, 3.5, 0.0, 7.0]), 8, "cpu").numpy()
    np.testing.assert_allclose(weights[0, 2:5], np.array([1, 4, 1]) / 6, atol=1e-6)
    np.testing.assert_allclose(weights[1, 2:6], np.array([1, 23, 23, 1]) / 48, atol=1e-6)
    np.testing.assert_allclose(weights[2, :2], [5 / 6, 1 / 6], atol=1e-6)  # the edge goes on
    np.testing.assert_allclose(weights[3, 6:], [1 / 6, 5 / 6], atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    field = torch.rand((1, 3, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    at = [bspline(np.arange(float(n)), n, "cpu") for n in (7, 6, 5)]
    torch.testing.assert_close(smoothed(field)[0], evaluate(field[0], at))


def test_matrices_go_along_their_own_axis():
    make = torch.Generator().manual_seed(1)
    field = torch.rand((3, 4, 5, 6), generator=make)
    i, j, k = (torch.rand((n + 3, n), generator=make) for n in (6, 5, 4))
    torch.testing.assert_close(evaluate(field, [i, j, k]), torch.einsum("ckji,zk,yj,xi->czyx", field, k, j, i))


def test_a_linear_field_is_met_at_every_point(image):
    lattice = Lattice(image, 9.0)
    inside = np.random.default_rng(2).uniform(1.5, lattice.size - 2.5, (500, 3))
    points = inside @ lattice.affine[:3, :3].T + lattice.affine[:3, 3]
    field = index_field(lattice, lambda index: index @ SLOPE.T + (1, -2, 3))
    found = Interpolation(lattice, points)(field)
    expected = (inside - (lattice.size - 1) / 2) @ SLOPE.T + (1, -2, 3)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_gradient_of_an_interpolation_is_its_transpose(image):
    lattice = Lattice(image, 20.0)
    points = image.points(50, 0)
    interpolation = Interpolation(lattice, points)
    field = torch.zeros_like(lattice.zeros(), requires_grad=True)
    weights = torch.rand((len(points), 3), generator=torch.Generator().manual_seed(3))
    (interpolation(field) * weights).sum().backward()
    one = torch.rand(field.shape, generator=torch.Generator().manual_seed(4))
    assert float((field.grad * one).sum()) == pytest.approx(float((interpolation(one) * weights).sum()), rel=1e-4)


def test_following_a_linear_velocity_is_its_matrix_exponential(image):
    lattice = Lattice(image, 6.0)
    middle = (0, slice(None), *(slice(n // 2 - 2, n // 2 + 2) for n in lattice.size[::-1]))
    rate = 5 * SLOPE
    shift = lattice.exponential(index_field(lattice, lambda index: index @ rate.T))[middle]
    expected = index_field(lattice, lambda index: index @ (expm(rate) - np.eye(3)).T)[middle]
    torch.testing.assert_close(shift, expected, atol=5e-3, rtol=0)


def test_a_finer_lattice_takes_the_velocity_over(image):
    coarse, fine = Lattice(image, 16.0), Lattice(image, 7.0)
    assert len(set(coarse.size)) == len(set(fine.size)) == 3
    velocity = torch.rand(coarse.zeros().shape, generator=torch.Generator().manual_seed(5))
    # At the same place in mm, linear between control points, and counted in steps of the finer one.
    place = np.indices(fine.size[::-1]) - (fine.size[::-1, None, None, None] - 1) / 2
    place = place * 7 / 16 + (coarse.size[::-1, None, None, None] - 1) / 2
    expected = [map_coordinates(one, place, order=1, mode="nearest") * 16 / 7 for one in smoothed(velocity)[0].numpy()]
    np.testing.assert_allclose(fine.take_over(velocity, coarse)[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("spacing", [5.0, 20.0])
def test_bending_is_that_of_the_field_in_mm_whatever_the_spacing(spacing):
    z, y, x = np.indices((7, 8, 9)) * spacing
    for values, expected in (
        (0.001 * x**2, (2 * 0.001) ** 2),
        (0.001 * y**2, (2 * 0.001) ** 2),
        (0.001 * z**2, (2 * 0.001) ** 2),
        (0.001 * x * z, 2 * 0.001**2),
        (0.001 * x * y, 2 * 0.001**2),
        (0.001 * y * z, 2 * 0.001**2),
        (0.5 * x - y + 2 * z, 0),
    ):
        field = torch.zeros((1, 3, 7, 8, 9))
        field[0, 1] = torch.from_numpy(values)
        # Second differences over 10 mm, in units of 10 mm; the mean is over three components, of which one bends.
        assert float(bending(field, spacing)) == pytest.approx(100 * expected / 3, rel=1e-3, abs=1e-9)
