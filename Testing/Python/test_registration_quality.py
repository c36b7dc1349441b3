"""The verdict on a registration: right ones pass, wrong ones do not."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from MedFusionLib import phantom
from MedFusionLib.registration import register
from MedFusionLib.registration.driver import LEVELS
from MedFusionLib.registration.quality import conclude, jacobian_range, judge
from MedFusionLib.registration.result import Grid, Registration
from MedFusionLib.volume import Volume


@pytest.fixture(scope="module")
def head():
    pytest.importorskip("nilearn", reason="the phantom needs nilearn: pip install .[test]")
    return phantom.make(seed=5, spacing=2)


@pytest.fixture(scope="module")
def judged(head):
    """judge(step, displacement): the verdict on the true CT -> MRI map after a `step` in the CT's space."""
    import torch

    from MedFusionLib.registration.images import Image

    # As `register` does: threads that wait for each other cost far more than they give.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    images = [Image(v, LEVELS, "cpu") for v in (head.ct, head.mr)]
    truth = np.linalg.inv(head.truth["MR"])

    def judged(step, displacement=None):
        return judge(*images, truth @ step, displacement, 0)

    yield judged
    torch.set_num_threads(before)


def step(shift=(0, 0, 0), turn=(0, 0, 0), center=(0, -12, 3)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix()
    matrix[:3, 3] = np.array(center) - matrix[:3, :3] @ np.array(center) + shift
    return matrix


MEASURED = {
    "overlap": 0.9, "gain": 0.2, "sharpness": 3.0, "consistency": 0.3, "folded": 0, "unsupported": 0.0, "mirrored": 0.9,
    "jacobian": (0.8, 1.2), "extent": np.inf, "astray": 0.0, "placed": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("measure", "values"),
    (
        ("overlap", ((0.26, "good"), (0.24, "check"), (0.03, "check"), (0.02, "failed"))),
        ("gain", ((0.005, "good"), (0.003, "failed"), (0.0, "failed"))),
        ("sharpness", ((1.09, "good"), (1.07, "check"), (1.01, "check"), (0.99, "failed"))),
        ("consistency", ((2.4, "good"), (2.6, "check"), (7.4, "check"), (7.6, "failed"))),
        ("folded", ((1, "failed"),)),
        ("unsupported", ((4.0, "good"), (4.1, "check"), (8.0, "check"), (8.2, "failed"))),
        ("mirrored", ((1.02, "good"), (1.04, "check"))),
        ("astray", ((4.4, "good"), (4.6, "check"), (300.0, "check"), (np.nan, "check"))),
        ("jacobian", (((0.21, 4.9), "good"), ((0.19, 1.2), "check"), ((0.8, 5.1), "check"))),
    ),
)
def test_the_verdict_by_each_measure_alone(measure, values):
    assert conclude(MEASURED)[0] == "good"
    for value, verdict in values:
        assert conclude(MEASURED | {measure: value})[0] == verdict, value


@pytest.mark.parametrize(("liters", "least"), [(np.inf, 1.08), (1.3, 1.08), (0.65, 1.18), (0.13, 1.26)])
def test_a_small_field_of_view_has_to_be_the_sharper(liters, least):
    for sharpness, verdict in ((least + 0.01, "good"), (least - 0.01, "check")):
        assert conclude(MEASURED | {"extent": 1e6 * liters, "sharpness": sharpness})[0] == verdict


def test_a_field_of_view_is_small_beside_a_larger_one(head):
    from MedFusionLib.registration.images import Image
    from MedFusionLib.registration.quality import measure

    ct, mr = Image(head.ct, LEVELS, "cpu"), Image(head.mr, LEVELS, "cpu")
    cut = Image(head.ct.with_array(head.ct.array[20:30, 40:90, 40:90]), LEVELS, "cpu")  # 90 x 90 x 40 mm
    assert measure(ct, mr, np.eye(4), None, 0)["extent"] == np.inf
    assert measure(cut, mr, np.eye(4), None, 0)["extent"] == cut.extent < 90 * 90 * 40


def test_what_the_whole_scans_bear_out_may_be_vague_in_a_small_region():
    vague = {"gain": 0.001, "sharpness": 0.9, "consistency": 9.0}
    assert conclude(MEASURED | vague)[0] == "failed"
    assert conclude(MEASURED | vague | {"placed": True})[0] == "good"
    assert conclude(MEASURED | vague | {"placed": True, "gain": 0.0})[0] == "failed"


def test_the_worst_of_several_measures_is_the_verdict():
    worse = MEASURED | {"sharpness": 1.05, "consistency": 20.0}
    assert conclude(worse) == (
        "failed",
        "Registering the other way round ends 20 mm away: the alignment is not reliable.",
    )
    assert conclude(MEASURED | {"sharpness": 1.05, "folded": 3})[0] == "failed"
    assert conclude(MEASURED | {"mirrored": 2.0, "unsupported": 20.0})[0] == "failed"


@pytest.mark.parametrize("depth", [7, 8, 9, 17])
def test_the_jacobian_is_that_of_the_map_in_every_slice(depth):
    """On an oblique left-handed grid."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec((10, 20, 30), degrees=True).as_matrix() @ np.diag([-1.5, 2.0, 3.0])
    k, _, i = np.indices((depth, 6, 5))
    rates = np.random.default_rng(0).uniform(-0.2, 0.4, depth)
    rates[depth // 2] = -1.5  # folds there
    # Each slice is stretched along i in its own plane: the determinant is 1 + its rate.
    shift = (rates[k] * i)[..., None] * affine[:3, 0]
    ends, folded = jacobian_range(Volume(shift, affine))
    assert ends == pytest.approx((1 + rates.min(), 1 + rates.max()), abs=1e-4)
    assert folded == 6 * 5
    turned = Volume(np.ascontiguousarray(shift.transpose(1, 0, 2, 3)), affine[:, [0, 2, 1, 3]])
    assert jacobian_range(turned) == (pytest.approx(ends, abs=1e-4), folded)


@pytest.mark.parametrize("place", [6, 7, 8, 9])
def test_the_jacobian_across_the_slabs_that_it_is_measured_in(place):
    """Of one slice that is moved towards the next one, near the first slab's end."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    shift = np.zeros((17, 4, 5, 3))
    shift[place, ..., 2] = 0.5 * 3
    assert jacobian_range(Volume(shift, affine)) == (pytest.approx((0.75, 1.25)), 0)


def test_the_truth_is_good(judged):
    quality = judged(np.eye(4))
    assert quality.verdict == "good", quality
    assert quality.inverse_consistency < 1 and quality.sharpness > 1.2


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("amount", [-16, -7, 7, 16])
def test_near_misses_are_not_good(judged, axis, amount):
    vector = amount * np.eye(3)[axis]
    for wrong in (step(shift=vector), step(turn=1.3 * vector)):
        quality = judged(wrong)
        assert quality.verdict != "good", quality
        assert quality.reason


@pytest.fixture(scope="module")
def straight(head):
    """The true map as a displacement on the CT's grid, (K, J, I, 3), and the places of its voxels."""
    k, j, i = np.indices(head.ct.array.shape)
    places = np.stack([i, j, k], -1) @ head.ct.affine[:3, :3].T + head.ct.affine[:3, 3]
    truth = np.linalg.inv(head.truth["MR"])
    return places @ (truth[:3, :3] - np.eye(3)).T + truth[:3, 3], places


@pytest.mark.parametrize(
    ("height", "good"), [((0, 0, 0), True), ((12, 0, 0), False), ((0, -15, 0), False), ((0, 5, 8), False)]
)
def test_a_false_bump_is_not_good(head, judged, straight, height, good):
    field, places = straight
    distance = np.linalg.norm(places - (-25.0, -15.0, 20.0), axis=-1)
    wrong = field + np.exp(-((distance / 25) ** 2) / 2)[..., None] * np.array(height, float)
    quality = judged(np.eye(4), head.ct.with_array(wrong.astype(np.float32)))
    assert (quality.verdict == "good") == good, quality
    assert quality.folded == 0 and (quality.unsupported > 4) != good


def test_the_similarity_of_a_deformation_is_that_of_a_matrix_that_does_the_same(head, judged, straight):
    linear = judged(np.eye(4))
    bent = judged(np.eye(4), head.ct.with_array(straight[0].astype(np.float32)))
    assert bent.similarity_before == pytest.approx(linear.similarity_before, abs=1e-4)
    assert bent.similarity_after == pytest.approx(linear.similarity_after, abs=1e-3)


def test_a_folded_deformation_failed(head, judged, straight):
    field, places = straight
    inside = np.linalg.norm(places - (0, -12, 10), axis=-1) < 30
    folded = field - 2.5 * (places - (0, -12, 10)) * inside[..., None]
    quality = judged(np.eye(4), head.ct.with_array(folded.astype(np.float32)))
    assert quality.verdict == "failed" and quality.folded > 0 and "folds" in quality.reason


def one_sided(volume, to_head):
    """The scan with a mass on the patient's left: what patients have and the phantom lacks."""
    k, j, i = np.indices(volume.array.shape)
    places = np.stack([i, j, k, np.ones_like(i)], -1) @ (to_head @ volume.affine).T
    array = volume.array.astype(np.float32)
    for center, radius in (((-36, 12, 22), 32), ((-36, -60, 12), 30)):
        inside = np.linalg.norm(places[..., :3] - center, axis=-1) < radius
        array[inside] = np.percentile(array, 99)
    return volume.with_array(array)


def test_a_mirrored_scan_is_found_out(head):
    ct, mr = one_sided(head.ct, np.eye(4)), one_sided(head.mr, head.truth["MR"])
    right = register(ct, mr)
    assert right.quality.verdict == "good" and right.quality.mirrored < 0.98, right.quality
    flipped = np.flip(mr.array, mr.anatomical_axis("sagittal"))
    wrong = register(ct, mr.with_array(np.ascontiguousarray(flipped)))
    assert wrong.quality.verdict == "check" and "mirror" in wrong.quality.reason, wrong.quality


def test_a_slab_of_the_head_can_be_good(head):
    ct = head.ct
    first, count = int(0.5 * ct.size[2]), round(40 / ct.spacing[2])
    affine = ct.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    slab = ct.with_array(np.ascontiguousarray(ct.array[first : first + count]), affine=affine)
    assert register(head.mr, slab).quality.verdict == "good"


@pytest.mark.parametrize("spoil", ["noise", "elsewhere", "limb"])
def test_nothing_in_common_is_not_good(head, spoil):
    rng = np.random.default_rng(0)
    moving, options = head.mr, {}
    if spoil == "noise":
        moving = moving.with_array(rng.normal(size=moving.array.shape).astype(np.float32))
    elif spoil == "elsewhere":
        options = {"initial": step(shift=(700, 0, 0))}
    else:
        y, x = np.indices(moving.array.shape[1:]) - np.array(moving.array.shape[1:])[:, None, None] / 2
        leg = 300.0 * (np.hypot(x, y) < 30) + 500 * (np.hypot(x - 5, y) < 8)
        leg = np.broadcast_to(leg, moving.array.shape) + rng.normal(0, 10, moving.array.shape)
        moving = moving.with_array(leg.astype(np.float32))
    quality = register(head.ct, moving, **options).quality
    assert quality.verdict != "good" and quality.reason


@pytest.mark.parametrize("modality", ["MR", "PT"])
def test_what_does_not_deform_is_left_alone(head, modality):
    """Two modalities on unlike grids that only a rigid motion lies between: descriptors alone bend them by 1.6 mm."""
    moving = {"MR": head.mr, "PT": head.pet}[modality]
    found = register(head.ct, moving, model="deformable")
    straight = np.c_[head.head, np.ones(len(head.head))] @ np.linalg.inv(found.matrix).T
    there = found.to_moving(head.head)
    assert np.linalg.norm(there - straight[:, :3], axis=1).mean() < 0.9
    truth = np.c_[head.head, np.ones(len(head.head))] @ np.linalg.inv(head.truth[modality]).T
    assert np.linalg.norm(there - truth[:, :3], axis=1).mean() < 1.2
    assert found.quality.verdict == "good", found.quality


def test_what_deforms_in_one_place_is_followed_there(head):
    """A bump of 9 mm between a CT and an MRI: the rest of the head is left alone."""
    k, j, i = np.indices(head.mr.array.shape)
    places = np.stack([i, j, k], -1) @ head.mr.affine[:3, :3].T + head.mr.affine[:3, 3]
    to_head = head.truth["MR"]
    of_head = places @ to_head[:3, :3].T + to_head[:3, 3]
    bump = np.exp(-(((of_head - (0, -20, 10)) / 25) ** 2).sum(-1) / 2)[..., None] * (0, 9, 0)
    # How the MRI's voxels are found from where they lie: the truth is its inverse, by iteration.
    back = Registration("deformable", np.eye(4), head.mr.with_array(bump.astype(np.float32)), Grid.of(head.mr))
    found = register(head.ct, back.resample(head.mr), model="deformable")
    points = np.c_[head.head, np.ones(len(head.head))]
    straight = (points @ np.linalg.inv(to_head).T)[:, :3]
    there = straight
    for _ in range(15):
        there = straight - (back.to_moving(there) - there)
    moved = np.linalg.norm(there - straight, axis=1)
    error = np.linalg.norm(found.to_moving(head.head) - there, axis=1)
    linear = np.linalg.norm((points @ np.linalg.inv(found.matrix).T)[:, :3] - there, axis=1)
    assert error[moved > 5].mean() < 0.7 * linear[moved > 5].mean()
    # Descriptors alone: 1.9 mm.
    assert error[moved < 1].mean() < 1.0
