"""`pipeline.run`: the whole job on a head with known truth, and every wrong request said in plain words."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from MedFusionLib import device as devices
from MedFusionLib import phantom
from MedFusionLib.errors import (
    Cancelled,
    FileError,
    GeometryError,
    MethodError,
    RegistrationError,
    VolumeError,
)
from MedFusionLib.files import write_volume
from MedFusionLib.fusion import registry
from MedFusionLib.normalize import to_unit
from MedFusionLib.pipeline import Coloring, Request, leaned, run
from MedFusionLib.volume import Volume

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def head():
    return phantom.make(seed=1, spacing=2)


@pytest.fixture(scope="module")
def request_(head):
    return Request((head.ct, head.mr, head.pet), method="average", coloring=Coloring(threshold=3.0), device="cpu")


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def result(request_, told):
    return run(request_, lambda fraction, message: told.append((fraction, message)))


def scan(name="scan", shape=(12, 14, 16), modality="MR", **more):
    return Volume(RNG.random(shape, np.float32) + 1, np.eye(4), modality, name=name, **more)


# The whole job


def test_registration_is_near_the_truth(head, result):
    assert result.registrations[0] is None
    # At half the resolution of the demo's: twice what is asked of that.
    assert head.error("MR", result.registrations[1].matrix) < 2
    assert head.error("PT", result.registrations[2].matrix) < 4


def test_the_result_is_on_the_reference_s_grid_in_the_order_of_the_request(head, result):
    assert [source.modality for source in result.sources] == ["CT", "MR", "PT"]
    assert [source.units for source in result.sources] == ["HU", "", "SUV"]
    for volume in (*result.sources, result.fusion.volume, result.rgb, *result.fusion.weights):
        assert volume.same_grid(head.ct)
    assert result.sources[0] is head.ct


def test_the_fused_volume_is_the_method_s(head, result):
    everywhere = np.ones(head.ct.array.shape, bool)
    for registration, moving in zip(result.registrations[1:], (head.mr, head.pet), strict=True):
        everywhere &= registration.resample(moving.with_array(np.ones(moving.array.shape))).array > 0
    units = np.stack([to_unit(source) for source in result.sources])
    fused = result.fusion.volume.array
    assert everywhere.mean() > 0.5
    np.testing.assert_allclose(fused[everywhere], units.mean(0)[everywhere], atol=1e-6)
    shares = np.stack([share.array for share in result.fusion.weights])
    np.testing.assert_allclose(fused, (shares * units).sum(0), atol=1e-6)


def test_both_lesions_are_in_the_overlay(head, result):
    """The colour at each lesion is that of high uptake; around it, it is not."""
    for lesion in head.lesions:
        i, j, k = np.rint(np.linalg.inv(head.ct.affine) @ (*lesion.center, 1))[:3].astype(int)
        red, green, _ = result.rgb.array[k, j, i].astype(int)
        grey = 255 * result.fusion.volume.array[k, j, i]
        # Half the grey and half of PET-Heat's upper end, yellow to white.
        assert red > 0.5 * grey + 110 and green > 0.5 * grey + 110


def test_steps_are_timed_and_progress_rises_to_the_end(result, told):
    assert set(result.seconds) == {"read", "register", "fuse", "color", "evaluate"}
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] == 1
    assert len(told) > 10 and all(message for _, message in told)


def test_progress_does_not_fall_back_where_the_cpu_takes_over(monkeypatch, caplog):
    """It begins again."""

    class Short:
        halo, done = None, 0

        def __call__(self, sources, modalities):
            self.done += 1
            if self.done > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return torch.zeros(len(sources), *sources.shape[2:]), None

    load, told = registry.load, []
    monkeypatch.setattr(registry, "load", lambda name, device: load(name, device) if device.type == "cpu" else Short())
    # A device that every machine has and that is not the CPU stands for the GPU.
    monkeypatch.setattr(devices, "choose", lambda name: torch.device("meta"))
    request = Request((scan("one"), scan("two")), registration="none", method="average", mode="slice", evaluate=False)
    run(request, lambda fraction, message: told.append(fraction))
    assert "the CPU takes over" in caplog.text
    assert told == sorted(told) and told[-1] == 1


def test_scores_are_finite(result):
    assert result.scores and np.isfinite(list(result.scores.values())).all()


def test_the_same_request_gives_the_same_result(request_, result):
    again = run(request_)
    np.testing.assert_array_equal(again.fusion.volume.array, result.fusion.volume.array)
    np.testing.assert_array_equal(again.registrations[2].matrix, result.registrations[2].matrix)


def test_inputs_stay_as_they_were(head, result):
    fresh = phantom.make(seed=1, spacing=2)
    for used, new in zip((head.ct, head.mr, head.pet), (fresh.ct, fresh.mr, fresh.pet), strict=True):
        np.testing.assert_array_equal(used.array, new.array)
        np.testing.assert_array_equal(used.affine, new.affine)


def test_any_source_can_be_the_reference(request_, head):
    result = run(replace(request_, reference=2, registration="none", evaluate=False, sources=request_.sources))
    assert result.fusion.volume.same_grid(head.pet)
    assert result.registrations[2] is None
    assert [source.modality for source in result.sources] == ["CT", "MR", "PT"]


def test_a_ct_goes_on_as_it_is_beyond_an_mri_of_a_few_slices(head):
    # A CT in its own space: without the motion, the MRI's slab covers the voxels that are checked here.
    below = head.ct.with_array(head.ct.array[: len(head.ct.array) // 2], modality="MR", units="")
    slab = below.with_array(1000 - np.abs(below.array.astype(np.float32)))
    request = Request((head.ct, slab), registration="none", device="cpu", evaluate=False)
    result = run(request)
    above = slice(len(slab.array), None)
    np.testing.assert_allclose(result.fusion.volume.array[above], to_unit(head.ct)[above], atol=1e-6)
    # There is no more of the MRI there by leaning towards it.
    closer = leaned(result, request, 1, 0.7).fusion
    np.testing.assert_allclose(closer.volume.array[above], to_unit(head.ct)[above], atol=1e-6)
    assert not closer.weights[1].array[above].any()
    expected = 0.3 * result.fusion.volume.array + 0.7 * to_unit(result.sources[1])
    np.testing.assert_allclose(closer.volume.array[: len(slab.array)], expected[: len(slab.array)], atol=1e-5)
    # The other way round the slab is all there is to fuse.
    fused = run(Request((slab, head.ct), registration="none", device="cpu", evaluate=False)).fusion.volume
    assert fused.same_grid(slab)


@pytest.mark.parametrize("threshold", [None, 80, 81])
def test_a_threshold_that_no_uptake_reaches_is_said(threshold):
    pet = scan("p", modality="PT", units="SUV")
    pet = pet.with_array(80 * pet.array / pet.array.max())
    coloring = Coloring(threshold=threshold)
    request = Request((scan("a"), pet), registration="none", method="average", evaluate=False, coloring=coloring)
    said = "“p” is not coloured anywhere: its values end at 80 SUV, below the threshold 81."
    assert run(request).messages == ((said,) if threshold == 81 else ())


def test_files_and_volumes_give_the_same(tmp_path):
    pair = (scan("a"), scan("b"))
    for volume in pair:
        write_volume(volume, tmp_path / f"{volume.name}.nrrd")
    plain = Request(pair, registration="none", method="average", evaluate=False, device="cpu")
    files = replace(plain, sources=tuple(os.fspath(tmp_path / f"{v.name}.nrrd") for v in pair))
    np.testing.assert_array_equal(run(plain).fusion.volume.array, run(files).fusion.volume.array)


def test_no_colour_without_pet_or_where_none_is_asked_for(request_):
    small = Request((scan("a"), scan("b")), registration="none", method="average", evaluate=False)
    assert run(small).rgb is None
    pet = scan("p", modality="PT")
    assert run(replace(small, sources=(scan("a"), pet))).rgb is not None
    assert run(replace(small, sources=(scan("a"), pet), coloring=None)).rgb is None
    assert run(small).scores == {}


@pytest.mark.parametrize("axis", ("axial", "coronal", "sagittal"))
def test_slices_along_every_axis_give_the_same_average(axis):
    small = Request((scan("a"), scan("b")), registration="none", method="average", evaluate=False)
    whole = run(small).fusion.volume.array
    np.testing.assert_allclose(run(replace(small, mode="slice", axis=axis)).fusion.volume.array, whole, atol=1e-6)


def test_single_slices_fuse_without_registration():
    pair = (scan("a", (1, 14, 16)), scan("b", (1, 14, 16)))
    assert run(Request(pair, registration="none", method="average")).fusion.volume.array.shape == (1, 14, 16)


# Cancelling


@pytest.mark.parametrize("asked", (1, 3, 12))
def test_cancel_ends_it(request_, asked):
    calls = []

    def cancelled():
        calls.append(None)
        return len(calls) >= asked

    with pytest.raises(Cancelled, match="nothing was changed"):
        run(request_, cancelled=cancelled)
    assert len(calls) == asked


def test_a_broken_progress_is_not_swallowed(request_):
    def progress(fraction, message):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(request_, progress)


# Wrong requests: the message, and nothing on the disk


def bad(values, name="bad", **more):
    return Volume(np.asarray(values), np.eye(4), "MR", name=name, **more)


def with_nan():
    values = RNG.random((12, 14, 16))
    values[3, 4, 5:9] = np.nan
    return values


GOOD = scan("good")
WRONG = {
    "no source": (Request(()), MethodError, "fuses 2 to 3 volumes: 0 given"),
    "nothing at all": (Request(None), VolumeError, "a NoneType is no Volume"),
    "one source": (Request((GOOD,)), MethodError, "2 to 3 volumes: 1 given"),
    "four sources": (Request((GOOD, scan(), scan(), scan())), MethodError, "2 to 3 volumes: 4 given"),
    "the same twice": (Request((GOOD, GOOD)), VolumeError, "“good” and “good” are the same volume: choose two"),
    "a copy": (Request((GOOD, GOOD.with_array(GOOD.array.copy(), name="copy"))), VolumeError, "“copy” are the same"),
    "constant": (Request((GOOD, bad(np.ones((12, 14, 16))))), VolumeError, "“bad” is constant"),
    "NaN": (Request((GOOD, bad(with_nan()))), VolumeError, "“bad” has 4 NaN or infinite voxels: replace them"),
    "infinite": (Request((GOOD, bad(np.where(with_nan() > 0.99, np.inf, 1)))), VolumeError, "“bad” has .* infinite"),
    "one voxel": (Request((GOOD, bad([[[3.0]]]))), VolumeError, "“bad” is constant"),
    "colour": (Request((GOOD, bad(RNG.random((12, 14, 16, 3))))), VolumeError, "“bad” is a colour or vector volume"),
    "no volume": (Request((GOOD, None)), VolumeError, "a NoneType is no Volume"),
    "a lone path": (Request("nowhere/x.nii.gz"), FileError, r"no file or folder 'x\.nii\.gz'"),
    "reference of another kind": (Request((GOOD, scan()), reference="1"), MethodError, "the reference is source 1"),
    "option": (
        Request((GOOD, scan()), register_options={"iterations": 5}),
        MethodError,
        "hold iterations: choose of fixed_mask",
    ),
    "options in a list": (
        Request((GOOD, scan()), register_options=["initial"]),
        MethodError,
        "register_options is a list: give a dict",
    ),
    "seed": (Request((GOOD, scan()), seed=1.5), MethodError, "the seed is 1.5: give a whole number"),
    "starts": (
        Request((GOOD, scan()), register_options={"initial": (None, "auto", "auto")}),
        MethodError,
        "initial has 3 entries, but there are 2 sources",
    ),
    "coloring": (Request((GOOD, scan()), coloring={"lut": "PET-Heat"}), MethodError, "coloring is a dict"),
    "threshold": (Request((GOOD, scan()), coloring=Coloring(threshold="2")), MethodError, "threshold is '2'"),
    "reference": (Request((GOOD, scan()), reference=2), MethodError, "reference is source 2, but there are 2"),
    "model": (Request((GOOD, scan()), registration="elastic"), MethodError, "'elastic' is not one of none, rigid"),
    "method": (Request((GOOD, scan()), method="magic"), MethodError, "'magic' is not a fusion method: choose one of"),
    "mode": (Request((GOOD, scan()), mode="3-D"), MethodError, "mode '3-D' is not one of volume, slice"),
    "axis": (Request((GOOD, scan()), axis="oblique"), MethodError, "axis 'oblique' is not one of axial"),
    "untrusted": (Request((GOOD, scan()), untrusted="pray"), MethodError, "'pray' is not one of warn, stop"),
    "opacity": (Request((GOOD, scan()), coloring=Coloring(opacity=2)), MethodError, "opacity is 2: choose 0 to 1"),
    "lut": (
        Request((GOOD, scan(modality="PT")), coloring=Coloring("Heat")),
        MethodError,
        "'Heat' is not a colour table",
    ),
    "single slice": (Request((GOOD, scan("flat", (1, 14, 16)))), VolumeError, "“flat”"),
    "missing file": (Request((GOOD, "nowhere/x.nii.gz")), FileError, r"no file or folder 'x\.nii\.gz'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_say_what_is_wrong_and_leave_no_trace(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong, kind, message = WRONG[case]
    wrong = replace(wrong, method="average") if wrong.method == "medfusion" else wrong
    with pytest.raises(kind, match=message):
        run(wrong)
    assert not list(tmp_path.iterdir())


def test_settings_are_checked_before_anything_is_read():
    with pytest.raises(MethodError, match="'elastic' is not one of"):
        run(Request(("nowhere/x.nii.gz", "nowhere/y.nii.gz"), registration="elastic"))


def test_volumes_that_do_not_overlap_are_never_passed_on_in_silence(head, request_):
    far = head.mr.affine.copy()
    far[:3, 3] += 5000
    sources = (head.ct, head.mr.with_array(head.mr.array, affine=far))
    apart = replace(request_, sources=sources, registration="none", evaluate=False)
    with pytest.raises(RegistrationError, match="“Phantom MRI” lies outside “Phantom CT”: choose rigid registration"):
        run(apart)


def test_a_failed_registration_stops_where_asked_and_else_warns(request_, head):
    noise = Volume(RNG.random((20, 22, 24), np.float32), 5 * np.eye(4) + np.diag([0, 0, 0, -4.0]), "MR", name="noise")
    doubtful = replace(request_, sources=(head.ct, noise), evaluate=False)
    with pytest.raises(RegistrationError, match="“noise” to “Phantom CT”: failed"):
        run(replace(doubtful, untrusted="stop"))
    assert any("“noise”" in message and "failed" in message for message in run(doubtful).messages)


@pytest.mark.parametrize(("values", "shade"), [((-900, -300), "black"), ((1000, 3000), "white")])
def test_a_scan_of_one_shade_is_said(request_, head, values, shade):
    """A CT of lung alone lies below the window of a CT."""
    lung = head.ct.with_array(RNG.uniform(*values, head.ct.array.shape).astype(np.float32), name="lung")
    sources = (head.ct.with_array(head.ct.array), lung)
    said = run(replace(request_, sources=sources, registration="none", evaluate=False)).messages
    assert any(f"“lung” is {shade} all over, as its display range is -100 to 900 HU" in message for message in said)
    mr = lung.with_array(np.abs(lung.array), modality="MR", units="", display_range=(-9, -5), name="dim")
    said = run(replace(request_, sources=(sources[0], mr), registration="none", evaluate=False)).messages
    assert said == ("“dim” is white all over, as its display range is -9 to -5: give it one that fits.",)
    fitting = (sources[0], lung.with_array(lung.array, display_range=values))
    assert not run(replace(request_, sources=fitting, registration="none", evaluate=False)).messages


def test_options_reach_the_registration(request_, head):
    known = replace(
        request_,
        sources=(head.ct, head.mr),
        evaluate=False,
        register_options={"initial": head.truth["MR"]},
    )
    assert head.error("MR", run(known).registrations[1].matrix) < 2


def test_every_source_may_start_from_a_place_of_its_own(request_, head, monkeypatch):
    from MedFusionLib import registration

    told = []

    def listening(fixed, moving, **options):
        told.append((moving.modality, options.get("initial"), options.get("moving_mask")))
        return register(fixed, moving, **options)

    register = registration.register
    monkeypatch.setattr(registration, "register", listening)
    matrix = tuple(map(tuple, head.truth["PT"].tolist()))
    mask = head.pet.with_array(np.ones(head.pet.array.shape, np.uint8))
    options = {"initial": (None, "moments", matrix), "moving_mask": (None, None, mask)}
    run(replace(request_, evaluate=False, register_options=options))
    assert told == [("MR", "moments", None), ("PT", matrix, mask)]
    told.clear()
    run(replace(request_, sources=(head.ct, head.pet), evaluate=False, register_options={"initial": matrix}))
    assert told == [("PT", matrix, None)]


def test_grids_that_differ_are_only_for_run(head):
    from MedFusionLib import fuse

    with pytest.raises(GeometryError, match="“Phantom MRI” is not on the grid of “Phantom CT”: register or resample"):
        fuse([head.ct, head.mr], method="average")
