"""Registration of volumes whose true place is known."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from MedFusionLib import device as devices
from MedFusionLib import phantom
from MedFusionLib.errors import Cancelled, FileError, GeometryError, MethodError, VolumeError
from MedFusionLib.registration import Grid, Registration, register, search
from MedFusionLib.registration.images import mapped
from MedFusionLib.registration.result import HEADER, read_matrix
from MedFusionLib.volume import LPS, Volume


@pytest.fixture(scope="module")
def head():
    pytest.importorskip("nilearn", reason="the phantom needs nilearn: pip install .[test]")
    return phantom.make(seed=3, spacing=2)


def moved(volume, matrix):
    """The same voxels, lying elsewhere: registering to where it was must find `matrix`'s inverse."""
    return volume.with_array(volume.array, affine=matrix @ volume.affine)


def turn(degrees, axis, shift=(0, 0, 0), center=(0, -12, 3)):
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    matrix[:3, 3] = center - matrix[:3, :3] @ np.array(center) + shift
    return matrix


def distance(head, matrix, truth):
    """mm, mean over the head."""
    points = np.c_[head.head, np.ones(len(head.head))]
    return np.linalg.norm((points @ (matrix - truth).T)[:, :3], axis=1).mean()


@pytest.mark.parametrize(("modality", "limit"), [("MR", 1.0), ("PT", 2.0)])
def test_rigid_finds_the_truth(head, modality, limit):
    registration = register(head.ct, head.mr if modality == "MR" else head.pet)
    assert head.error(modality, registration.matrix) < limit
    assert registration.quality.verdict == "good", registration.quality


@pytest.mark.parametrize(
    ("degrees", "axis", "shift"),
    [(60, "x", (0, 0, 0)), (-60, "z", (0, 0, 0)), (0, "x", (80, 0, 0)), (25, "y", (-40, 60, 30))],
)
def test_far_away(head, degrees, axis, shift):
    away = turn(degrees, axis, shift)
    registration = register(head.ct, moved(head.mr, away))
    assert distance(head, registration.matrix @ away, head.truth["MR"]) < 1.5


def test_plain_mutual_information_finds_the_truth_too(head):
    registration = register(head.ct, head.mr, similarity="mi")
    assert head.error("MR", registration.matrix) < 1.0
    assert not np.array_equal(registration.matrix, register(head.ct, head.mr).matrix), "as if nothing had been said"
    assert np.array_equal(register(head.ct, head.mr, similarity="nmi").matrix, register(head.ct, head.mr).matrix)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_gradient_of_mutual_information_is_its_slope(normalised):
    import torch

    from MedFusionLib.registration.information import fixed_bins, similarity

    draw = torch.Generator().manual_seed(0)
    fixed = torch.rand(4000, generator=draw)
    # In the middle of the fine bins, where the counts change by a whole voxel for a step to the next bin.
    moving = (torch.floor((0.7 * fixed + 0.3 * torch.rand(4000, generator=draw)) * 200) + 28.5) / 256
    inside = torch.ones(4000, dtype=torch.bool)
    rows = fixed_bins(fixed)
    _, share, slope = similarity(rows, moving, inside, True, normalised)
    assert share == 1
    step = 1 / 256
    for which in (moving < 0.4, (moving > 0.4) & (moving < 0.6), moving > 0.6):
        ahead, behind = (
            similarity(rows, moving + sign * step * which, inside, False, normalised)[0] for sign in (1, -1)
        )
        assert float(slope[which].sum()) == pytest.approx((ahead - behind) / (2 * step), rel=0.1)
    alone = similarity(rows, torch.rand(4000, generator=draw), inside, False, normalised)[0]
    assert 1 <= alone < 1.15, "1 where nothing is shared, but for chance"


def test_the_range_of_a_large_scan_is_not_that_of_one_column():
    import torch

    from MedFusionLib.registration.images import _range

    values = torch.zeros(100, 1000, 400)  # 200 times the sample: every 200th voxel is in one of two columns
    values[..., 100:300] = torch.linspace(1, 50, 200)
    values[..., [0, 200]] = 3
    low, high = _range(values, False)
    assert low == 0 and 49 < high <= 50


def test_a_given_start_is_enough(head):
    near = turn(4, "z", (3, -4, 2)) @ head.truth["MR"]
    registration = register(head.ct, head.mr, initial=near)
    assert head.error("MR", registration.matrix) < 1.0


@pytest.mark.parametrize("initial", ["identity", "geometry", "moments"])
def test_other_starts(head, initial):
    small = turn(5, "x", (6, 5, -8))
    registration = register(head.ct, moved(head.ct.with_array(-head.ct.array), small), initial=initial)
    assert distance(head, registration.matrix @ small, np.eye(4)) < 0.5


def test_inverted_and_shaded(head):
    mr = head.mr.array.astype(np.float32)
    k = np.linspace(-1, 1, mr.shape[0])[:, None, None]
    i = np.linspace(-1, 1, mr.shape[2])[None, None]
    strange = head.mr.with_array((1000 - mr) * np.exp(0.2 * k - 0.15 * i).astype(np.float32))
    registration = register(head.ct, strange)
    assert head.error("MR", registration.matrix) < 1.5


@pytest.mark.parametrize(("modality", "fill", "reach"), [("MR", -32768, 1), ("PT", -1000, 1), ("PT", -1000, 1.35)])
def test_what_is_filled_in_around_a_scan_is_not_compared(head, modality, fill, reach):
    """From there to the brightest value the anatomy is a small part, and fell into a few bins: 41 and 69 mm off, and
    no less where it is four voxels in a thousand, in the corners."""
    moving = head.mr if modality == "MR" else head.pet
    _, j, i = np.indices(moving.array.shape)
    _, y, x = ((n - 1) / 2 for n in moving.array.shape)
    outside = np.hypot((j - y) / y, (i - x) / x) > reach
    padded = moving.with_array(np.where(outside, fill, moving.array).astype(np.float32))
    registration = register(head.ct, padded)
    assert head.error(modality, registration.matrix) < 1
    assert registration.quality.verdict == "good"


@pytest.mark.parametrize(("fill", "low"), [(-1000, -1000), (-3024, -1200), (-32768, -1200)])
def test_air_of_one_value_is_compared_and_padding_of_a_ct_is_not(head, fill, low):
    ct = head.ct.with_array(np.where(head.ct.array < -600, fill, head.ct.array).astype(np.float32))
    assert search.Image(ct, (1.5,), torch.device("cpu")).low == low


def test_a_slab_against_a_head(head):
    # 40 mm of the MRI's head, cut axially: the MRI's slices are sagittal, superior is its j axis.
    mr = head.mr
    step = mr.spacing[1]
    first, count = int(110 / step), int(40 / step)
    affine = mr.affine.copy()
    affine[:3, 3] += first * affine[:3, 1]
    slab = mr.with_array(np.ascontiguousarray(mr.array[:, first : first + count]), affine=affine)
    registration = register(head.ct, slab)
    inside = (np.linalg.inv(head.truth["MR"]) @ np.c_[head.head, np.ones(len(head.head))].T)[:3].T
    index = (inside - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    points = np.c_[
        inside[(np.abs(index[:, 1] - count / 2) < count / 2)],
        np.ones((np.abs(index[:, 1] - count / 2) < count / 2).sum()),
    ]
    assert np.linalg.norm((points @ (registration.matrix - head.truth["MR"]).T)[:, :3], axis=1).mean() < 2.0


def test_a_head_against_a_body(head):
    pet = head.pet
    body = np.random.default_rng(0).gamma(2.0, 0.4, (pet.array.shape[0] + 120, *pet.array.shape[1:])).astype(np.float32)
    y, x = np.indices(pet.array.shape[1:])
    middle = (np.array(pet.array.shape[1:]) - 1) / 2
    body *= (((y - middle[0]) / 22) ** 2 + ((x - middle[1]) / 33) ** 2 < 1)[None]
    body[120:] = pet.array
    affine = pet.affine.copy()
    affine[:3, 3] -= 120 * affine[:3, 2]
    registration = register(head.ct, pet.with_array(body, affine=affine))
    assert head.error("PT", registration.matrix) < 3.0


@pytest.mark.parametrize("flip", [(1, 0, 0), (0, 1, 1)])
def test_left_handed_and_reordered_grids(head, flip):
    array, affine = head.mr.array, head.mr.affine.copy()
    for axis, flipped in enumerate(flip):
        if flipped:
            array = np.flip(array, 2 - axis)
            affine[:3, 3] += affine[:3, axis] * (head.mr.size[axis] - 1)
            affine[:3, axis] *= -1
    array, affine = array.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]
    registration = register(head.ct, head.mr.with_array(array, affine=affine))
    assert head.error("MR", registration.matrix) < 1.0


@pytest.mark.parametrize("factors", [(1, 1, 3), (2, 2, 2)])
def test_thick_and_coarse_voxels(head, factors):
    i, j, k = factors
    coarse = head.mr.array[::k, ::j, ::i]
    registration = register(head.ct, head.mr.with_array(coarse, affine=head.mr.affine @ np.diag([i, j, k, 1.0])))
    assert head.error("MR", registration.matrix) < 2.0


def test_affine(head):
    stretch = np.eye(4)
    stretch[:3, :3] = [[1.08, 0.05, 0], [0, 0.94, -0.03], [0, 0, 1.05]]
    stretch = turn(8, "z", (5, -6, 4)) @ stretch
    registration = register(head.ct, moved(head.ct.with_array(-head.ct.array), stretch), model="affine")
    assert registration.model == "affine"
    assert distance(head, registration.matrix @ stretch, np.eye(4)) < 0.7


@pytest.mark.data
def test_a_stretched_scan_is_not_taken_for_one_turned_far():
    """Of the rigid starts, one 70 mm off fits this SPECT best; of what affine searches make of them, the right one."""
    script = Path(__file__).resolve().parents[3] / "shared" / "measure" / "regbench.py"
    if not script.exists():
        pytest.skip("needs ../shared/measure/regbench.py")
    code = runpy.run_path(str(script))
    case = code["make_case"]("SPECT-T1", 105, dof="affine")
    fixed, moving = (
        Volume(np.ascontiguousarray(case[part].transpose(2, 1, 0)), case[f"{part}_affine"], modality)
        for part, modality in (("fixed", "MR"), ("moving", "NM"))
    )
    registration = register(fixed, moving, model="affine")
    truth = case["T"] @ code["consensus_offset"]("SPECT-T1")
    corners = np.array([[x, y, z, 1] for x in (-70, 70) for y in (-100, 70) for z in (-60, 80)])
    off = np.linalg.norm((corners @ (np.linalg.inv(registration.matrix) - truth).T)[:, :3], axis=1)
    assert off.mean() < 10, "the templates themselves differ by some mm at the corners"
    assert registration.quality.verdict == "good"


def test_masks_choose_what_is_compared(head):
    """Half of the moving scan shows something that has moved otherwise; the mask leaves it out."""
    away = turn(6, "z", (4, 3, -5))
    ct = head.ct
    other = ct.array.copy()
    other[: len(other) // 2] = np.roll(other[: len(other) // 2], 10, axis=2)
    keep = np.zeros(ct.array.shape, np.uint8)
    keep[len(keep) // 2 :] = 1
    mask = Volume(keep, away @ ct.affine)
    registration = register(ct, Volume(other, away @ ct.affine, "CT", "HU"), moving_mask=mask)
    upper = head.head[(head.head @ np.linalg.inv(ct.affine)[2, :3] + np.linalg.inv(ct.affine)[2, 3]) > len(keep) / 2]
    points = np.c_[upper, np.ones(len(upper))]
    assert np.linalg.norm((points @ (registration.matrix @ away - np.eye(4)).T)[:, :3], axis=1).mean() < 1.0


def ball(volume, center, radius):
    """A mask on a volume's grid: the voxels within `radius` mm of `center`, RAS mm."""
    index = np.indices(volume.array.shape)[::-1].reshape(3, -1)
    away = np.linalg.norm((volume.affine[:3, :3] @ index).T + volume.affine[:3, 3] - center, axis=1)
    return volume.with_array((away < radius).astype(np.uint8).reshape(volume.array.shape))


@pytest.mark.parametrize(
    ("modality", "center", "radius", "left"),
    [("MR", (-35, 30, 10), 25, False), ("PT", (30, 0, 20), 25, False), ("MR", (-10, 0, -8), 18, True)],
)
def test_a_small_region_lies_where_the_whole_scans_have_it(head, modality, center, radius, left):
    """By itself it is alike at many a place: the first two ended 85 and 42 mm off, one of them called good."""
    scan = head.mr if modality == "MR" else head.pet
    registration = register(head.ct, scan, fixed_mask=ball(head.ct, np.array(center), radius))
    points = np.random.default_rng(0).uniform(-radius / 2, radius / 2, (200, 3)) + center
    off = registration.to_moving(points) - Registration(
        "rigid", head.truth[modality], None, Grid.of(head.ct)
    ).to_moving(points)
    assert np.linalg.norm(off, axis=1).mean() < 4
    assert registration.quality.verdict != "failed", registration.quality
    assert ("where it was left" in registration.quality.reason) == left, registration.quality
    assert (registration.quality.verdict == "check" and registration.quality.astray > 12) or not left


def test_a_small_scan_is_no_region_of_itself(head):
    """Without masks there is no whole scan to ask."""
    small = head.mr.with_array(head.mr.array[40:60, 40:90, 40:90])
    assert register(small, head.ct).quality.astray == 0


@pytest.mark.parametrize("options", [{"moving_mask": True}, {"levels": (3,)}])
def test_a_small_region_is_found_whichever_scan_it_is_drawn_in_and_on_one_grid(head, options):
    """Points of the whole fixed scan hardly met a region of the other one: that was said not to overlap."""
    center, radius = np.array((-35.0, 30, 10)), 25
    if "moving_mask" in options:
        there = np.linalg.inv(head.truth["MR"]) @ np.append(center, 1)
        options = {"moving_mask": ball(head.mr, there[:3], radius)}
    else:
        options = options | {"fixed_mask": ball(head.ct, center, radius)}
    registration = register(head.ct, head.mr, **options)
    points = np.random.default_rng(0).uniform(-radius / 2, radius / 2, (200, 3)) + center
    off = mapped(registration.matrix @ np.linalg.inv(head.truth["MR"]), points) - points
    assert np.linalg.norm(off, axis=1).mean() < 4
    assert registration.quality.verdict == "good" and registration.quality.astray < 4.5, registration.quality


def test_a_small_region_far_from_a_named_start_is_not_called_good_elsewhere(head):
    """From the scanners' placement it alone ended 59 mm off, and that was called good."""
    center = np.array((-35.0, 30, 10))
    registration = register(head.ct, head.mr, initial="identity", fixed_mask=ball(head.ct, center, 25))
    off = mapped(registration.matrix @ np.linalg.inv(head.truth["MR"]), center[None]) - center
    assert np.linalg.norm(off) < 5 or registration.quality.verdict != "good", registration.quality


def test_a_small_region_of_a_scan_of_another_scale(head):
    """A rigid motion of the whole scans could not say where it lies: 18 mm off."""
    scaled = np.diag([1.1, 1.1, 1.1, 1])
    mask = ball(head.ct, (-35, 60, 40), 25)
    registration = register(head.ct, moved(head.mr, scaled), "affine", fixed_mask=mask)
    points = np.random.default_rng(0).uniform((-47, 48, 28), (-23, 72, 52), (200, 3))
    off = mapped(registration.matrix @ scaled @ np.linalg.inv(head.truth["MR"]), points) - points
    assert np.linalg.norm(off, axis=1).mean() < 4
    assert registration.quality.verdict == "good", registration.quality


@pytest.mark.parametrize("name", ["fixed_mask", "moving_mask"])
def test_a_mask_beside_the_anatomy_is_refused_before_any_search(head, name):
    asked, corner = [], np.zeros(head.mr.array.shape, np.uint8)
    corner[0, 0, 0] = 1
    with pytest.raises(VolumeError, match="hardly covers any of its anatomy"):
        register(head.mr, head.ct, cancelled=lambda: asked.append(1), **{name: head.mr.with_array(corner)})
    assert len(asked) < 10


def test_a_small_region_without_the_whole_scans_is_not_called_good(head):
    """All else of the moving scan is noise: the region is found by itself, and nothing bears it out."""
    mr = head.mr
    keep = ball(mr, head.head.mean(axis=0) @ np.linalg.inv(head.truth["MR"])[:3, :3].T, 40)
    noise = np.random.default_rng(2).normal(mr.array.mean(), 3 * mr.array.std(), mr.array.shape)
    moving = mr.with_array(np.where(keep.array, mr.array, noise).astype(np.float32))
    registration = register(mr, moving, moving_mask=keep)
    assert np.isnan(registration.quality.astray)
    assert registration.quality.verdict == "check" and "do not say" in registration.quality.reason, registration.quality


def test_the_view_of_a_scan_ends_where_its_voxels_do():
    """Whatever its modality and values; a CT's outside is air, and no less outside for that."""
    fixed = Grid((8, 6, 5), np.diag([1.0, 1, 1, 1]))
    shift = np.eye(4)
    shift[:3, 3] = 2, 0, 1
    here = Registration("rigid", shift, None, fixed)
    ct = Volume(np.zeros((3, 6, 4), np.int16), np.eye(4), "CT", "HU")
    seen = np.zeros((5, 6, 8), bool)
    seen[1:4, :, 2:6] = True
    moved = here.resample(ct)
    assert np.array_equal(moved.view, seen)
    assert np.array_equal(moved.array, np.where(seen, 0, -1000))
    assert here.resample(ct.with_array(ct.array, affine=np.diag([9.0, 1, 9, 1]))).view is None
    # What it did not show before it was moved it does not show now.
    half = np.ones(ct.array.shape, bool)
    half[:, :3] = False
    seen[:, :3] = False
    assert np.array_equal(here.resample(ct.with_array(ct.array, view=half)).view, seen)


def test_same_seed_same_matrix(head):
    first, second = (register(head.ct, head.pet, seed=5).matrix for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("short", [True, False])
def test_a_gpu_without_memory_or_an_operation_hands_over_to_the_cpu(head, short, monkeypatch, caplog):
    class Image(search.Image):
        def __init__(self, volume, spacings, device, mask=None):
            if short and device.type != "cpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            super().__init__(volume, spacings, device, mask)

    expected = register(head.ct, head.pet, device="cpu").matrix
    monkeypatch.setattr(search, "Image", Image)
    # A device that every machine has and that is not the CPU stands for the GPU: it lacks what takes data back.
    monkeypatch.setattr(devices, "choose", lambda name: torch.device("meta"))
    np.testing.assert_array_equal(register(head.ct, head.pet).matrix, expected)
    assert ("ran out of memory" if short else "lacks an operation") + ": the CPU takes over" in caplog.text


def test_arrays_that_cannot_be_written_are_taken_without_a_warning():
    """As the voxels of a scene are. torch gives the warning once only, so that it needs a process of its own."""
    code = """
import warnings
warnings.simplefilter("error")
import numpy as np
from MedFusionLib.registration import register
from MedFusionLib.volume import Volume
values = np.zeros((24, 24, 24), np.float32)
values[6:18, 5:16, 7:20] = np.random.default_rng(0).random((12, 11, 13))
values.flags.writeable = False
print(register(Volume(values, np.eye(4), "MR"), Volume(values, np.eye(4), "CT")).model)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "rigid\n", done.stderr


def test_none_leaves_it_in_place(head):
    registration = register(head.ct, head.pet, model="none")
    assert np.array_equal(registration.matrix, np.eye(4))
    resampled = registration.resample(head.pet)
    assert resampled.same_grid(head.ct) and resampled.units == "SUV" and resampled.name == head.pet.name


def test_nothing_in_common_is_not_called_good(head):
    noise = np.random.default_rng(1).normal(size=(40, 40, 40)).astype(np.float32)
    registration = register(head.ct, Volume(noise, np.diag([4.0, 4, 4, 1]), "MR"))
    assert registration.quality.verdict != "good"
    assert registration.quality.reason


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.with_array(np.full(v.array.shape, 7, np.int16)), "constant"),
        (lambda v: v.with_array(np.where(v.array > 0, np.nan, v.array)), "NaN"),
        (lambda v: v.with_array(v.array[:1]), "slices"),
        (lambda v: v.with_array(v.array[:1, :1, :1]), "constant"),
        (lambda v: v.with_array(np.stack([v.array] * 3, -1)), "colour"),
    ],
)
def test_volumes_that_cannot_be_registered(head, change, says):
    with pytest.raises(VolumeError, match=says):
        register(head.ct, change(head.pet))


@pytest.mark.parametrize(
    "options",
    [
        {"model": "elastic"},
        {"initial": "somewhere"},
        {"initial": np.zeros((4, 4))},
        {"similarity": "ssd"},
        {"levels": (3, 1)},
        {"levels": ()},
        {"levels": None},
        {"levels": (np.nan,)},
        {"seed": -1},
        {"initial": [["a"] * 4] * 4},
        {"initial": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.1, 0, 0, 1]]},
        {"initial": np.diag([-1.0, 1, 1, 1])},
        {"initial": np.diag([1.2, 1, 1, 1])},
    ],
)
def test_unknown_options(head, options):
    with pytest.raises(MethodError):
        register(head.ct, head.pet, **options)


def test_an_empty_mask(head):
    with pytest.raises(VolumeError, match="fixed_mask is empty"):
        register(head.ct, head.pet, fixed_mask=head.ct.with_array(np.zeros(head.ct.array.shape, np.uint8)))


@pytest.mark.parametrize("model", ["rigid", "deformable"])
@pytest.mark.parametrize("of", ["fixed_mask", "moving_mask"])
def test_a_mask_of_somewhere_else(head, model, of):
    away = np.eye(4)
    away[:3, 3] = 5000
    volume = head.ct if of == "fixed_mask" else head.pet
    with pytest.raises(VolumeError, match=f"mask of “{volume.name}” hardly covers"):
        register(head.ct, head.pet, model, **{of: Volume(np.ones((9, 9, 9), np.uint8), away)})


def test_a_mask_that_is_none(head):
    with pytest.raises(VolumeError, match="a ndarray is no Volume"):
        register(head.ct, head.pet, fixed_mask=head.ct.array > 0)
    with pytest.raises(VolumeError, match="moving_mask is a colour or vector"):
        register(head.ct, head.pet, moving_mask=Volume(np.ones((4, 4, 4, 3)), np.eye(4)))


def test_what_is_no_volume(head):
    for model in ("none", "rigid"):
        with pytest.raises(VolumeError, match="a str is no Volume"):
            register(head.ct, "pet.nii.gz", model)
    with pytest.raises(VolumeError, match="a NoneType is no Volume"):
        register(head.ct, head.pet, "none").resample(None)


def test_cancel_is_prompt_and_progress_rises(head):
    asked, fractions = [], []

    def cancelled():
        asked.append(1)
        return len(asked) > 12

    with pytest.raises(Cancelled):
        register(head.ct, head.mr, progress=lambda f, m: fractions.append(f), cancelled=cancelled)
    assert len(asked) == 13
    assert fractions == sorted(fractions)


@pytest.mark.parametrize("model", ["none", "rigid"])
def test_progress_ends_at_one(head, model):
    fractions = []
    register(head.ct, head.pet, model, progress=lambda f, m: fractions.append(f))
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1


def test_results_need_no_torch():
    code = "import sys, MedFusionLib.registration as r; r.Registration; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


# ---- what a Registration does ---------------------------------------------------------------------


def blob(shape=(20, 24, 28), affine=None, dtype=np.float32):
    k, j, i = np.indices(shape)
    values = np.exp(-((k - 9) ** 2 + (j - 11) ** 2 + (i - 15) ** 2) / 30)
    return Volume(
        (1000 * values).astype(dtype), np.diag([2.0, 2, 2, 1]) if affine is None else affine, "MR", "", "blob"
    )


def shifted_field(volume, shift):
    return volume.with_array(np.broadcast_to(np.float32(shift), (*volume.array.shape, 3)).copy())


@pytest.mark.parametrize("interpolation", ["linear", "bspline", "nearest"])
@pytest.mark.parametrize("deformed", [False, True])
def test_resample_moves_by_whole_voxels(interpolation, deformed):
    moving = blob()
    matrix = np.eye(4)
    matrix[:3, 3] = (4, -6, 2)  # moving -> fixed: 2, -3 and 1 voxels
    field = shifted_field(moving, (-4, 6, -2)) if deformed else None
    registration = Registration("rigid", matrix, field, Grid.of(moving))
    out = registration.resample(moving, interpolation).array
    assert np.abs(out[1:, :-3, 2:] - moving.array[:-1, 3:, :-2]).max() < 0.05
    assert (out[0] == 0).all() and (out[:, :, :2] == 0).all()


def test_resample_keeps_meaning_and_fills_ct_with_air():
    ct = Volume(
        np.full((6, 6, 6), 40, np.int16) + np.indices((6, 6, 6))[0].astype(np.int16),
        np.eye(4),
        "CT",
        "HU",
        "thorax",
        (0, 100),
    )
    registration = Registration("none", np.eye(4), None, Grid((8, 6, 6), np.eye(4)))
    out = registration.resample(ct)
    assert (out.array[..., 6:] == -1000).all() and np.array_equal(out.array[..., :6], ct.array)
    assert (out.array.dtype, out.modality, out.units, out.name, out.display_range) == (
        np.int16,
        "CT",
        "HU",
        "thorax",
        (0, 100),
    )


def test_a_transform_file_is_read_back_to_the_same_matrix(tmp_path):
    matrix = turn(20, "y", (5, -6, 7)) @ np.diag([1.1, 0.9, 1, 1])
    registration = Registration("affine", matrix, None, Grid((4, 5, 6), np.eye(4)))
    for ending in ("h5", "tfm"):
        registration.write(tmp_path / f"t.{ending}")
        np.testing.assert_allclose(read_matrix(tmp_path / f"t.{ending}"), matrix, atol=1e-9)
    centred = sitk.Euler3DTransform((10, 20, 30), 0.1, 0.2, 0.3, (1, 2, 3))
    sitk.WriteTransform(sitk.CompositeTransform([centred, sitk.TranslationTransform(3, (4, 5, 6))]), tmp_path / "c.h5")
    point = (np.linalg.inv(read_matrix(tmp_path / "c.h5")) @ (7, 8, 9, 1))[:3]
    expected = np.array(centred.TransformPoint((-7.0 + 4, -8.0 + 5, 9.0 + 6))) * (-1, -1, 1)
    np.testing.assert_allclose(point, expected, atol=1e-9)
    scan = blob()
    Registration("deformable", matrix, shifted_field(scan, (1, 2, 3)), Grid.of(scan)).write(tmp_path / "bent.h5")
    (tmp_path / "no.tfm").write_text("nothing")
    sitk.WriteTransform(sitk.Euler2DTransform(), tmp_path / "flat.tfm")
    for name in ("bent.h5", "no.tfm", "away.h5", "flat.tfm"):
        with pytest.raises(FileError, match=name):
            read_matrix(tmp_path / name)


@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32])
def test_whole_numbers_are_rounded_not_cut_off(kind, interpolation):
    counts = np.random.default_rng(0).poisson(12, (12, 14, 10)).astype(kind)
    matrix = np.eye(4)
    matrix[:3, 3] = 0.3, -0.4, 0.25
    scans = [Volume(a, np.eye(4), "NM") for a in (counts, counts.astype(np.float64))]
    registration = Registration("rigid", matrix, None, Grid.of(scans[0]))
    whole, exact = (registration.resample(scan, interpolation).array for scan in scans)
    assert whole.dtype == kind
    np.testing.assert_array_equal(whole, np.rint(exact).clip(np.iinfo(kind).min, np.iinfo(kind).max))
    inner = (slice(2, -2),) * 3
    assert whole[inner].mean() == pytest.approx(counts[inner].mean(), rel=0.02)


def test_a_registration_has_a_matrix_that_can_be_inverted():
    grid = Grid((4, 5, 6), np.eye(4))
    for matrix in (np.eye(3), np.diag([1, 1, 0, 1]), np.diag([np.nan, 1, 1, 1]), np.diag([np.inf, 1, 1, 1])):
        with pytest.raises(GeometryError, match="finite, invertible 4x4"):
            Registration("rigid", matrix, None, grid)
    assert Registration("rigid", np.eye(4).astype(int).tolist(), None, grid).matrix.dtype == np.float64


def test_what_lies_on_the_fixed_grid_already_is_not_resampled():
    scan = Volume(np.random.default_rng(0).random((4, 5, 6)), turn(20, "y", (5, -6, 7)))
    assert Registration("none", np.eye(4), None, Grid.of(scan)).resample(scan) is scan


@pytest.mark.parametrize("kind", [">f2", "<f2", ">f8", "longdouble"])
def test_resample_takes_floats_that_itk_does_not_have(kind):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(kind)
    shift = np.eye(4)
    shift[0, 3] = 1
    moved = Registration("rigid", shift, None, Grid((6, 5, 4), np.eye(4))).resample(Volume(values, np.eye(4), "MR"))
    np.testing.assert_array_equal(moved.array[..., 1:], values[..., :-1])


def test_resample_refuses_what_it_does_not_know():
    with pytest.raises(VolumeError, match="sinc"):
        Registration("none", np.eye(4), None, Grid.of(blob())).resample(blob(), "sinc")


@pytest.mark.parametrize("ending", [".h5", ".tfm", ".txt", ".mat"])
def test_written_transforms_are_read_to_the_same_mapping(tmp_path, ending):
    matrix = turn(25, "y", (7, -8, 9)) @ np.diag([1.1, 0.9, 1.05, 1])
    registration = Registration("affine", matrix, None, Grid.of(blob()))
    path = tmp_path / f"moving to fixed{ending}"
    registration.write(path)
    read = sitk.ReadTransform(str(path))
    for point in ([0, 0, 0], [10.0, -20, 30]):
        there = np.array(read.TransformPoint((LPS[:3, :3] @ point).tolist())) @ LPS[:3, :3]
        assert np.allclose(there, registration.to_moving([point])[0], atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_written_deformations_are_read_to_the_same_mapping(tmp_path):
    affine = turn(15, "z", (3, 2, 1)) @ np.diag([-2.0, 1.5, 3, 1])
    fixed = blob(affine=affine)
    k, j, i = np.indices(fixed.array.shape)
    field = np.stack([np.sin(i / 5), np.cos(j / 6), 0.1 * k], -1).astype(np.float32)
    registration = Registration("deformable", np.eye(4), fixed.with_array(field), Grid.of(fixed))
    registration.write(tmp_path / "warp.h5")
    read = sitk.ReadTransform(str(tmp_path / "warp.h5"))
    index = np.array([[3, 4, 5], [10.5, 8.25, 7.75]])
    for point in index @ affine[:3, :3].T + affine[:3, 3]:
        there = np.array(read.TransformPoint((LPS[:3, :3] @ point).tolist())) @ LPS[:3, :3]
        assert np.allclose(there, registration.to_moving([point])[0], atol=1e-4)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("model", ["rigid", "deformable"])
def test_a_transform_that_does_not_fit_on_the_disk_is_not_begun(tmp_path, model):
    """A real limit: the system lets no file grow past 4 kB. HDF5 alone would end the process."""
    code = f"""
import resource, numpy as np
from MedFusionLib import Volume
from MedFusionLib.errors import FileError
from MedFusionLib.registration.result import Grid, Registration
grid = Volume(np.zeros((4, 5, 6, 3)), np.eye(4))
registration = Registration({model!r}, np.eye(4), grid if {model!r} == "deformable" else None, Grid.of(grid))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    registration.write({str(tmp_path / "it.h5")!r})
except FileError as error:
    print(error)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "'it.h5' cannot be written" in done.stdout, done
    assert not done.stderr
    assert not list(tmp_path.iterdir())


def test_the_room_that_a_transform_is_given_is_enough(tmp_path):
    grid = Volume(np.random.default_rng(0).random((4, 5, 6, 3)), np.eye(4))
    for model, field in (("rigid", None), ("deformable", grid)):
        Registration(model, np.eye(4), field, Grid.of(grid)).write(tmp_path / "it.h5")
        assert (tmp_path / "it.h5").stat().st_size <= HEADER + (0 if field is None else 8 * grid.array.size)


def test_write_leaves_nothing_behind(tmp_path):
    registration = Registration("rigid", np.eye(4), None, Grid.of(blob()))
    for path in (tmp_path / "it.png", tmp_path / "missing" / "it.h5"):
        with pytest.raises(FileError):
            registration.write(path)
    assert not list(tmp_path.iterdir())


def test_deformable_undoes_a_known_warp(head):
    """A smooth invertible warp of up to 8 mm, seen by another contrast."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    fixed = head.mr
    rng = np.random.default_rng(2)
    sigma = [14 / s for s in fixed.spacing[::-1]]
    # Displacement of the moving scan's voxels, along its own index axes, in mm; inverted by iteration for the truth.
    back = np.stack([gaussian_filter(rng.standard_normal(fixed.array.shape), sigma, mode="wrap") for _ in range(3)])
    back *= 8 / np.linalg.norm(back, axis=0).max() / np.array(fixed.spacing[::-1])[:, None, None, None]
    grid = np.indices(fixed.array.shape).astype(float)
    warped = map_coordinates(900.0 - fixed.array, grid + back, order=1, mode="nearest")
    truth = -back
    for _ in range(8):
        truth = -np.stack([map_coordinates(b, grid + truth, order=1, mode="nearest") for b in back])
    truth_mm = np.moveaxis(truth, 0, -1)[..., ::-1] @ fixed.affine[:3, :3].T

    moving = fixed.with_array(warped.astype(np.float32))
    seen = np.arange(fixed.size[0]) + np.zeros(fixed.array.shape) > 2
    registration = register(fixed.with_array(fixed.array, view=seen), moving, model="deformable")
    brain = (
        np.linalg.norm(
            (np.indices(fixed.array.shape).reshape(3, -1)[::-1].T @ fixed.affine[:3, :3].T + fixed.affine[:3, 3])
            - (np.linalg.inv(head.truth["MR"]) @ [0, -18, 10, 1])[:3],
            axis=1,
        ).reshape(fixed.array.shape)
        < 60
    )
    before = np.linalg.norm(truth_mm, axis=-1)[brain].mean()
    after = np.linalg.norm(registration.displacement.array - truth_mm, axis=-1)[brain].mean()
    assert after < 0.5 * before, (before, after)
    assert registration.quality.folded == 0 and registration.quality.jacobian[0] > 0
    assert registration.resample(fixed).array.shape == fixed.array.shape
    assert registration.displacement.view is None  # the map goes on beyond the scan


def test_deformable_does_not_depend_on_how_the_moving_scan_is_stored(head):
    """Axes permuted, turned by 90 degrees and flipped: the same scan, the same map."""
    scan = head.mr
    k, j, i = (np.arange(n) for n in scan.array.shape)
    warp = 4 * np.sin(k / 9)[:, None, None] * np.cos(j / 11)[:, None] * np.ones(len(i))
    field = np.stack([warp, np.zeros_like(warp), -warp], -1).astype(np.float32)
    fixed = Registration("deformable", np.eye(4), scan.with_array(field), Grid.of(scan)).resample(scan)
    turned = np.ascontiguousarray(scan.array.transpose(2, 0, 1)[:, ::-1])
    affine = scan.affine[:, [1, 2, 0, 3]].copy()
    affine[:3, 3] += affine[:3, 1] * (turned.shape[1] - 1)
    affine[:3, 1] *= -1
    moving = scan.with_array(turned, affine=affine)
    stored, other = (register(fixed, one, model="deformable", initial="identity") for one in (scan, moving))
    points = scan.center + np.random.default_rng(0).uniform(-40, 40, (200, 3))
    one, another = stored.to_moving(points), other.to_moving(points)
    assert np.linalg.norm(one - points, axis=1).mean() > 1
    assert np.linalg.norm(one - another, axis=1).mean() < 0.3
