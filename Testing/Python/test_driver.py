"""How volumes reach a fusion method: slices, tiles, geometry, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from scipy import ndimage

from MedFusionLib import fuse
from MedFusionLib.errors import Cancelled, DeviceError, GeometryError, MethodError, VolumeError, WeightsError
from MedFusionLib.fusion import driver, registry, weights
from MedFusionLib.normalize import scale
from MedFusionLib.volume import Volume

BASELINES = ("average", "maximum", "weighted", "pca", "laplacian", "wavelet", "guided")
TILED = ("average", "maximum", "weighted", "pca")

TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
GRIDS = {
    "axial": np.diag([1, 1, 2, 1.0]),
    "left-handed": np.diag([-1, 1, 2, 1.0]),
    "sagittal stack": np.array([[0, 0, 3, 5], [1, 0, 0, -7], [0, 1, 0, 2], [0, 0, 0, 1.0]]),
    "oblique": np.vstack([np.hstack([TURN @ np.diag([0.9, 1.1, 2.5]), [[3], [4], [5]]]), [[0, 0, 0, 1]]]),
}


def scans(shape=(14, 22, 26), affine=GRIDS["axial"], count=2, seed=0):
    """Different smooth volumes of one grid, in their own units."""
    random = np.random.default_rng(seed)
    arrays = [ndimage.gaussian_filter(random.normal(size=shape), 1.5) for _ in range(count)]
    arrays = [(a - a.min()) / np.ptp(a) for a in arrays]
    ct = Volume(arrays[0] * 1000 - 100, affine, "CT", "HU", "head CT")
    others = [
        Volume(array * 80, affine, modality, "", modality, (0, 80))
        for array, modality in zip(arrays[1:], ("MR", "PT"), strict=False)
    ]
    return [ct, *others]


@pytest.mark.parametrize("axis", ("axial", "coronal", "sagittal"))
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", ("wavelet", "guided"))
def test_slices_are_those_of_the_anatomical_axis(method, grid, axis):
    """Slice mode equals fusing every slice as an image of its own."""
    sources = scans(affine=GRIDS[grid])
    fused = fuse(sources, method, "slice", axis, "cpu").volume
    along = {"axial": 2, "coronal": 1, "sagittal": 0}[axis]
    directions = np.abs(GRIDS[grid][:3, :3] / np.linalg.norm(GRIDS[grid][:3, :3], axis=0))
    array_axis = 2 - int(directions[along].argmax())
    for n in (0, 5):
        images = [
            source.with_array(source.array.take([n], array_axis), display_range=registry_range(source))
            for source in sources
        ]
        alone = fuse(images, method, "slice", axis, "cpu").volume
        np.testing.assert_allclose(alone.array, fused.array.take([n], array_axis), atol=1e-5)
    assert fused.same_grid(sources[0])


@pytest.mark.parametrize("mode", ("volume", "slice"))
@pytest.mark.parametrize("method", ("fwnet", "guided"))
def test_a_single_slice_is_fused_as_it_lies(method, mode):
    """Not row by row where it is a coronal or sagittal one."""
    axial = scans((1, 40, 44))
    flat = fuse(axial, method, mode, device="cpu").volume.array[0]
    for axis in (1, 2):
        turned = [source.with_array(np.moveaxis(source.array, 0, axis)) for source in axial]
        fused = fuse(turned, method, mode, device="cpu").volume.array
        np.testing.assert_allclose(np.moveaxis(fused, axis, 0)[0], flat, atol=1e-5)


def registry_range(source):
    from MedFusionLib.normalize import display_range

    return display_range(source)


@pytest.mark.parametrize("method", TILED)
def test_tiles_leave_no_seams(method, monkeypatch):
    sources = scans((60, 66, 70))
    whole = fuse(sources, method, device="cpu").volume.array
    parts = []
    cut = driver._parts
    monkeypatch.setattr(driver, "BATCH_VOXELS", 70**3 // 16)
    monkeypatch.setattr(driver, "_parts", lambda *a: parts.extend(found := list(cut(*a))) or found)
    tiled = fuse(sources, method, device="cpu").volume.array
    assert len(parts) >= 4
    np.testing.assert_allclose(tiled, whole, atol=2e-6)


@pytest.mark.parametrize("mode", ("volume", "slice"))
@pytest.mark.parametrize("method", BASELINES)
def test_three_sources_and_provenance(method, mode):
    sources = scans(count=3)
    fusion = fuse(sources, method, mode, device="cpu")
    assert fusion.volume.array.shape == sources[0].array.shape
    assert fusion.volume.array.dtype == np.float32
    assert 0 <= fusion.volume.array.min() <= fusion.volume.array.max() <= 1
    attributes = fusion.volume.attributes
    assert attributes["MedFusion.Method"] == method
    assert attributes["MedFusion.Source1"] == "CT HU -100..900"
    assert attributes["MedFusion.Source3"] == "PT  0..80"
    if fusion.weights is not None:
        np.testing.assert_allclose(sum(w.array for w in fusion.weights), 1, atol=1e-5)


@pytest.mark.parametrize("mode", ["volume", "slice"])
@pytest.mark.parametrize("method", ["medfusion", "fwnet", "average", "maximum"])
def test_beyond_a_scan_s_field_of_view_the_others_go_on(method, mode, monkeypatch):
    monkeypatch.setattr(driver, "BATCH_VOXELS", 5000)
    ct, mr = scans()
    seen = np.zeros(ct.array.shape, bool)
    seen[4:9] = True
    mr.array[~seen] = 0
    fusion = fuse([ct, mr.with_array(mr.array, view=seen)], method, mode, device="cpu")
    units = np.stack([scale(v.array, *registry_range(v)) for v in (ct, mr)])
    shares = np.stack([share.array for share in fusion.weights])
    np.testing.assert_allclose(fusion.volume.array[~seen], units[0][~seen], atol=1e-6)
    np.testing.assert_allclose(fusion.volume.array, (shares * units).sum(0), atol=1e-6)
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-6)
    assert not shares[1][~seen].any()


def test_of_three_the_brighter_one_that_is_there_fills_in():
    sources = scans(count=3)
    views = np.random.default_rng(5).random((3, *sources[0].array.shape)) > 0.3
    views[0] |= True
    sources = [source.with_array(source.array, view=view) for source, view in zip(sources, views, strict=True)]
    fusion = fuse(sources, "average", device="cpu")
    units = np.stack([scale(v.array, *registry_range(v)) for v in sources])
    best = np.where(views, units, 0).max(0)
    np.testing.assert_allclose(fusion.volume.array, np.where(views, units, best).mean(0), atol=1e-6)
    shares = np.stack([share.array for share in fusion.weights])
    np.testing.assert_allclose((shares * units).sum(0), fusion.volume.array, atol=1e-6)
    assert not shares[~views].any()


def test_what_no_scan_shows_stays_as_it_is():
    """Zero is no black in the range of an MRI that goes below it: the weights have to tell the value all the same."""
    ct, mr = scans()
    mr = mr.with_array(mr.array, display_range=(-1000, 1000))
    views = np.ones((2, *ct.array.shape), bool)
    views[:, :4] = views[1, 4:8] = False
    mr.array[:8] = 0
    sources = [source.with_array(source.array, view=view) for source, view in zip((ct, mr), views, strict=True)]
    fusion = fuse(sources, "average", device="cpu")
    units = np.stack([scale(v.array, *registry_range(v)) for v in (ct, mr)])
    np.testing.assert_allclose(fusion.volume.array[:4], units[:, :4].mean(0), atol=1e-6)
    np.testing.assert_allclose(fusion.volume.array[4:8], units[0, 4:8], atol=1e-6)
    shares = np.stack([share.array for share in fusion.weights])
    np.testing.assert_allclose((shares * units).sum(0), fusion.volume.array, atol=1e-6)


def test_a_long_preparation_tells_how_far_it_is_and_can_be_cancelled():
    """The selector's trial is most of its work."""
    sources = scans()
    told, asked = [], []
    fuse(
        sources,
        "selector",
        device="cpu",
        progress=lambda fraction, message: told.append((fraction, message)),
        cancelled=lambda: asked.append(1) and False,
    )
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    trial = [fraction for fraction, message in told if "preparing" in message]
    assert len(trial) > 20 and max(trial) < 0.5 and len(asked) > len(told)
    asked.clear()
    with pytest.raises(Cancelled):
        fuse(sources, "selector", device="cpu", cancelled=lambda: asked.append(1) or len(asked) == 3)


@pytest.mark.parametrize("mode", ("volume", "slice"))
@pytest.mark.parametrize("method", ("sesf", "medfusion", "pca"))
def test_white_stays_within_the_range(method, mode):
    """Not an ulp beyond: a file of such a volume is no longer told as one of 0..1."""
    sources = scans(count=3)
    for source in sources:
        source.array[:, 8:14, 8:14] = 2000
    assert fuse(sources, method, mode, device="cpu").volume.array.max() <= 1


@pytest.mark.parametrize("method", BASELINES)
def test_one_mapping_for_the_volume(method):
    """The same slice, wherever it stands in the volume and whatever is above it, comes out the same in slice mode."""
    sources = scans((10, 24, 24))
    doubled = [
        source.with_array(np.concatenate([source.array, source.array]), display_range=registry_range(source))
        for source in sources
    ]
    fused = fuse(doubled, method, "slice", device="cpu").volume.array
    np.testing.assert_allclose(fused[:10], fused[10:], atol=1e-6)


@pytest.mark.parametrize("mode", ("volume", "slice"))
@pytest.mark.parametrize("shape", ((1, 20, 24), (20, 1, 24), (1, 1, 2), (2, 1, 1)))
@pytest.mark.parametrize("method", BASELINES)
def test_thin_volumes(method, shape, mode):
    random = np.random.default_rng(4)
    sources = [Volume(random.random(shape), np.eye(4), modality, display_range=(0, 1)) for modality in ("MR", "PT")]
    fused = fuse(sources, method, mode, device="cpu").volume
    assert fused.array.shape == shape
    assert np.isfinite(fused.array).all()


def test_progress_rises_to_the_end(monkeypatch):
    monkeypatch.setattr(driver, "BATCH_VOXELS", 22 * 26 * 2)
    told = []
    fuse(scans(), "average", "slice", device="cpu", progress=lambda fraction, message: told.append(fraction))
    assert len(told) >= 5
    assert told == sorted(told)
    assert told[-1] == 1


@pytest.mark.parametrize("mode", ("volume", "slice"))
def test_cancel_between_batches(mode, monkeypatch):
    monkeypatch.setattr(driver, "BATCH_VOXELS", 2000)
    asked = []
    with pytest.raises(Cancelled):
        fuse(
            scans((40, 40, 40)),
            "average",
            mode,
            device="cpu",
            cancelled=lambda: asked.append(1) or len(asked) == 3,
        )
    assert len(asked) == 3


def one(**changes):
    base = dict(array=np.arange(24.0).reshape(2, 3, 4), affine=np.eye(4), modality="MR", name="T1")
    return Volume(**(base | changes))


other = one(array=np.arange(24.0)[::-1].reshape(2, 3, 4), name="T2")
spoiled = np.arange(24.0).reshape(2, 3, 4)
spoiled[1, 1, 1] = np.inf


@pytest.mark.parametrize(
    ("sources", "options", "error", "text"),
    (
        ([], {}, MethodError, "0 given"),
        ([one()], {}, MethodError, "1 given"),
        ([one(), other, one(), other], {}, MethodError, "4 given"),
        (one(), {}, VolumeError, "one Volume, not a list"),
        (None, {}, VolumeError, "one NoneType, not a list"),
        ([one(), None], {}, VolumeError, "a NoneType is no Volume"),
        ([one().array, other.array], {}, VolumeError, "a ndarray is no Volume"),
        (["ct.nii.gz", "t1.nii.gz"], {}, VolumeError, "a str is no Volume"),
        ([one(), other], {"device": None}, DeviceError, "None is not a device"),
        ([one(), one()], {}, VolumeError, "same volume"),
        ([one(), one(name="copy")], {}, VolumeError, "copy”.*same volume"),
        ([one(), other], {"method": "magic"}, MethodError, "magic.*choose one of.*average"),
        ([one(), other], {"mode": "cube"}, MethodError, "cube"),
        ([one(), other], {"mode": "slice", "axis": "up"}, GeometryError, "up"),
        ([one(), other], {"device": "abacus"}, DeviceError, "abacus"),
        ([one(), one(array=spoiled, name="bad")], {}, VolumeError, "bad.*1 NaN or infinite"),
        ([one(), one(array=np.ones((2, 3, 4)), name="flat")], {}, VolumeError, "flat.*constant"),
        ([one(array=np.ones((1, 1, 1)), name="dot"), other], {}, VolumeError, "dot.*constant"),
        ([one(), one(array=np.zeros((2, 3, 4, 3)), name="rgb")], {}, VolumeError, "rgb.*colour"),
        ([one(), one(array=np.arange(12.0).reshape(1, 3, 4), name="less")], {}, GeometryError, "less.*grid"),
        ([one(), one(affine=np.diag([1, 1, 2, 1]), name="thick")], {}, GeometryError, "thick.*grid"),
        ([one(), one(affine=np.diag([-1, 1, 1, 1]), name="mirrored")], {}, GeometryError, "mirrored.*grid"),
    ),
)
def test_refused(sources, options, error, text):
    with pytest.raises(error, match=text):
        fuse(sources, **({"method": "average", "device": "cpu"} | options))


def test_sources_are_left_as_they_are():
    sources = scans()
    before = [source.array.copy() for source in sources]
    for method in BASELINES:
        fuse(sources, method, device="cpu")
    for source, array in zip(sources, before, strict=True):
        np.testing.assert_array_equal(source.array, array)


def test_registry_is_complete():
    """Every method says what people need to know of it, and its module is there."""
    from importlib.util import find_spec

    for name, method in registry.methods().items():
        assert name == method.name
        assert method.title
        assert find_spec(f"MedFusionLib.fusion.{method.home}")
        assert bool(method.weights) == (method.licence != "none")
        assert method.paper or name in ("average", "maximum", "weighted")


@pytest.fixture
def resources(tmp_path, monkeypatch):
    """A copy of the shipped weights, to spoil."""
    folder = shutil.copytree(weights.FOLDER, tmp_path / "Resources", ignore=shutil.ignore_patterns("Screenshots"))
    monkeypatch.setattr(weights, "FOLDER", folder)
    monkeypatch.setattr(weights, "CHECKSUMS", folder / weights.CHECKSUMS.name)
    return folder


def test_missing_and_damaged_weights_are_named(resources):
    file = resources / "medfusion.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"medfusion\.safetensors are damaged .*reinstall"):
        fuse(scans(), device="cpu")
    file.unlink()
    with pytest.raises(WeightsError, match=r"medfusion\.safetensors .*reinstall"):
        fuse(scans(), device="cpu")
    assert fuse(scans(), "average", device="cpu").volume.array.max() <= 1


def test_a_gpu_without_memory_hands_over_to_the_cpu(monkeypatch, caplog):
    def load(name, device):
        if device.type != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(name, device)

    original = registry.load
    monkeypatch.setattr(registry, "load", load)
    # A device that every machine has and that is not the CPU stands for the GPU.
    monkeypatch.setattr(driver.devices, "choose", lambda name: torch.device("meta"))
    found = fuse(scans(), "maximum").volume.array
    assert "ran out of memory: the CPU takes over" in caplog.text
    monkeypatch.undo()
    np.testing.assert_array_equal(found, fuse(scans(), "maximum", device="cpu").volume.array)


def test_a_device_that_lacks_an_operation_hands_over_to_the_cpu(monkeypatch, caplog):
    expected = fuse(scans(), "maximum", device="cpu").volume.array
    # It cannot copy back, for want of any data.
    monkeypatch.setattr(driver.devices, "choose", lambda name: torch.device("meta"))
    np.testing.assert_array_equal(fuse(scans(), "maximum").volume.array, expected)
    assert "meta lacks an operation: the CPU takes over" in caplog.text
