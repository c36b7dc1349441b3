"""The head phantom is what it says: a plausible CT, MRI and PET, whose motion is the one that it tells."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from MedFusionLib import phantom
from MedFusionLib.volume import require_usable


@pytest.fixture(scope="module")
def head():
    return phantom.make(seed=3, spacing=2)


def at(volume, points, matrix=None):
    """Values of a volume at RAS points of the CT's space; matrix: the volume's space -> the CT's."""
    to_index = np.linalg.inv((np.eye(4) if matrix is None else matrix) @ volume.affine)
    index = np.atleast_2d(points) @ to_index[:3, :3].T + to_index[:3, 3]
    return map_coordinates(volume.array.astype(np.float32), index.T[::-1], order=1)


def test_three_scans_on_three_grids(head):
    assert [v.modality for v in (head.ct, head.mr, head.pet)] == ["CT", "MR", "PT"]
    assert (head.ct.units, head.pet.units) == ("HU", "SUV")
    assert len({v.size for v in (head.ct, head.mr, head.pet)}) == 3
    for volume in (head.ct, head.mr, head.pet):
        require_usable(volume)
        assert max(volume.spacing) > 1.3 * min(volume.spacing)


def test_tissues_have_their_numbers(head):
    # Deep white matter on both sides; bone at the vertex; air far away; the visual cortex.
    white_matter = [(-26, -20, 34), (26, -20, 34)]
    assert at(head.ct, white_matter) == pytest.approx(30, abs=15)
    assert at(head.ct, [(95, 100, 90)]) == pytest.approx(-1000, abs=40)
    line = np.c_[np.zeros(60), np.full(60, -20), np.linspace(60, 100, 60)]
    assert at(head.ct, line).max() > 700
    assert (at(head.pet, white_matter, head.truth["PT"]) < at(head.pet, [(0, -75, 8)], head.truth["PT"])).all()


def test_lesions_are_the_hottest_there_is_and_lie_where_it_says(head):
    assert len(head.lesions) == 2
    for lesion in head.lesions:
        inside = at(head.pet, [lesion.center], head.truth["PT"])[0]
        around = np.array(lesion.center) + 22 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        assert inside > 1.25 * at(head.pet, around, head.truth["PT"]).max()


def test_the_motion_is_the_truth(head):
    """The MRI's head outline, moved by the truth, is the CT's."""
    inside = head.head
    outside = np.random.default_rng(0).uniform(-1, 1, (400, 3)) * (96, 115, 40) + (0, -12, 40)
    body_ct = at(head.ct, np.r_[inside, outside]) > -500
    body_mr = at(head.mr, np.r_[inside, outside], head.truth["MR"]) > 60
    unmoved = at(head.mr, np.r_[inside, outside]) > 60
    # Bone and air spaces are dark in the MRI: the outline cannot agree everywhere.
    assert (body_ct == body_mr).mean() > 0.8
    assert (body_ct == body_mr).mean() > (body_ct == unmoved).mean() + 0.02


def test_error_measures_millimetres(head):
    truth = head.truth["MR"]
    assert head.error("MR", truth) == pytest.approx(0, abs=1e-9)
    moved = np.eye(4)
    moved[:3, 3] = (3, 0, 4)
    assert head.error("MR", moved @ truth) == pytest.approx(5)
    assert head.error("MR", np.eye(4)) > 5


def test_the_same_seed_gives_the_same_head(head):
    same, other = phantom.make(seed=3, spacing=2), phantom.make(seed=4, spacing=2)
    np.testing.assert_array_equal(same.mr.array, head.mr.array)
    np.testing.assert_array_equal(same.truth["PT"], head.truth["PT"])
    assert np.abs(other.truth["PT"] - head.truth["PT"]).max() > 0.01


def test_motion_and_noise_are_as_asked():
    still = phantom.make(seed=0, spacing=2, rotation=0, translation=0, noise=0)
    np.testing.assert_allclose(still.truth["MR"], np.eye(4), atol=1e-12)
    assert at(still.ct, [(95, 100, 90)])[0] == -1000
