"""Fusion measures: against published-definition values, an independent count, and analytic truths."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from MedFusionLib.errors import Cancelled, GeometryError, MedFusionError, MethodError, VolumeError
from MedFusionLib.fusion import Fusion
from MedFusionLib.metrics import NAMES, QUICK, TASK, evaluate, evaluate_slices, markdown, pair_scores
from MedFusionLib.metrics.scores import LEVEL
from MedFusionLib.normalize import display_range
from MedFusionLib.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
REFERENCE = SHARED / "measure" / "metric_reference.json"
HARVARD = SHARED / "data" / "harvard"


def luma(path):
    from PIL import Image

    image = np.asarray(Image.open(path)).astype(float)
    return np.rint(image[..., :3] @ (0.299, 0.587, 0.114)) if image.ndim == 3 else image


@pytest.fixture
def images():
    """Two smooth random (64, 64) images, 0..255, and the mean of them."""
    random = np.random.default_rng(7)
    a, b = (ndimage.gaussian_filter(random.normal(size=(64, 64)), s) for s in (1.5, 3))
    a, b = (np.rint(255 * (x - x.min()) / np.ptp(x)) for x in (a, b))
    return a, b, np.floor((a + b) / 2)


def volume(array, modality="MR", **changes):
    return Volume(np.asarray(array, np.float32), np.diag([1, 1, 2, 1.0]), modality, display_range=(0, 1), **changes)


@pytest.fixture
def volumes():
    """A fused volume (20, 40, 44) and its CT and MR."""
    random = np.random.default_rng(8)
    a, b = (ndimage.gaussian_filter(random.normal(size=(20, 40, 44)), 1.5) for _ in range(2))
    a, b = ((x - x.min()) / np.ptp(x) for x in (a, b))
    return volume((a + b) / 2, "OT"), [volume(a, "CT"), volume(b, "MR")]


@pytest.mark.data
@pytest.mark.skipif(not REFERENCE.is_file() or not HARVARD.is_dir(), reason="no reference values beside the checkout")
@pytest.mark.parametrize("case", range(6))
def test_published_definitions(case):
    case = json.loads(REFERENCE.read_text())["cases"][case]
    folder = HARVARD / case["pair"]
    kind = case["pair"].split("-")[0]
    a = luma(folder / kind / case["name"])
    b = luma(folder / "MRI" / case["name"])
    fused = {"average": np.round((a + b) / 2), "maximum": np.maximum(a, b), "first": a}[case["fused"]]
    scores = pair_scores(a, b, fused)
    scores["MSSSIM"], scores["SSIMhead"] = scores["MS-SSIM"], scores["head-SSIM"]
    scores["PSNRmmse"] = 10 * math.log10(255**2 / scores["MSE"])
    compared = set(case) & set(scores)
    assert len(compared) == 19
    for name in compared:
        assert scores[name] == pytest.approx(case[name], abs=1e-4), name


@pytest.mark.data
@pytest.mark.skipif(not HARVARD.is_dir(), reason="no real pairs beside the checkout")
def test_task_figures_of_controls():
    ct, mri = (luma(HARVARD / "CT-MRI" / kind / "16010.png") for kind in ("CT", "MRI"))
    for fused, bone, soft in ((ct, 1, None), (mri, None, 1), (np.maximum(ct, mri), 1, None)):
        scores = pair_scores(ct, mri, fused, names=TASK)
        assert bone is None or scores["bone_solid"] == bone
        assert soft is None or scores["soft_corr"] == pytest.approx(1)
        assert scores["background"] < 1


def test_information_is_counted(images):
    """Against loops over pixels."""
    a, b, fused = images
    scores = pair_scores(a, b, fused)

    def entropy(*channels):
        seen = {}
        for key in zip(*(c.reshape(-1) for c in channels), strict=True):
            seen[key] = seen.get(key, 0) + 1
        return -sum(n / fused.size * math.log2(n / fused.size) for n in seen.values())

    shared = [entropy(x) + entropy(fused) - entropy(x, fused) for x in (a, b)]
    assert scores["EN"] == pytest.approx(entropy(fused))
    assert scores["MI"] == pytest.approx(sum(shared))
    nmi = sum(2 * m / (entropy(x) + entropy(fused)) for m, x in zip(shared, (a, b), strict=True))
    assert scores["NMI"] == pytest.approx(nmi)
    assert scores["FMI"] == pytest.approx(nmi / 2)


def test_statistics_are_numpys(images):
    a, b, fused = images
    scores = pair_scores(a, b, fused)
    errors = [((x - fused) ** 2).mean() for x in (a, b)]

    def corr(x, y):
        return np.corrcoef(x.ravel(), y.ravel())[0, 1]

    assert scores["mean"] == pytest.approx(fused.mean())
    assert scores["SD"] == pytest.approx(fused.std())
    assert scores["MSE"] == pytest.approx(np.mean(errors))
    assert scores["RMSE"] == pytest.approx(np.mean(np.sqrt(errors)))
    assert scores["PSNR"] == pytest.approx(np.mean([10 * math.log10(255**2 / e) for e in errors]))
    assert scores["REL"] == pytest.approx((corr(a, fused) + corr(b, fused)) / 2)
    assert scores["SCD"] == pytest.approx(corr(fused - b, a) + corr(fused - a, b))
    down, across = np.gradient(fused)
    assert scores["AG"] == pytest.approx(np.sqrt((down**2 + across**2) / 2).mean(), rel=1e-5)


def test_edges_are_counted(images):
    """Qabf and Nabf against a loop over pixels with hand-written Sobel sums."""
    a, b, fused = images

    def polar(image, y, x):
        part = np.pad(image, 1)[y : y + 3, x : x + 3]
        across = part[:, 2] @ (1, 2, 1) - part[:, 0] @ (1, 2, 1)
        down = part[2] @ (1, 2, 1) - part[0] @ (1, 2, 1)
        return math.hypot(across, down), math.atan(down / across) if across else -math.pi / 2

    kept = total = lost = weights = 0
    for y in range(64):
        for x in range(64):
            strength, angle = polar(fused, y, x)
            found = [polar(source, y, x) for source in (a, b)]
            for own, direction in found:
                ratio = min(own, strength) / max(own, strength) if max(own, strength) else 1
                aligned = 1 - abs(direction - angle) / (math.pi / 2)
                kept += (
                    own * 0.9994 / (1 + math.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + math.exp(-22 * (aligned - 0.8)))
                )
                total += own
                weight = own**1.5 if own >= 2 else 0.001
                weights += weight
                if strength > max(found)[0]:
                    same = 0.9999 / (1 + math.exp(-19 * (ratio - 0.5))) * 0.9995 / (1 + math.exp(-22 * (aligned - 0.5)))
                    lost += weight * (1 - same)
    scores = pair_scores(a, b, fused)
    assert scores["Qabf"] == pytest.approx(kept / total)
    assert scores["Nabf"] == pytest.approx(lost / weights) and lost > 0


def test_copies_are_perfect(images):
    scores = pair_scores(images[0], images[0], images[0])
    for name in ("SSIM", "MS-SSIM", "head-SSIM", "Q0", "QS", "QW", "QE", "REL", "FMI"):
        assert scores[name] == pytest.approx(1), name
    assert scores["VIF"] == pytest.approx(2, abs=0.01)
    assert scores["Qabf"] == pytest.approx(0.9994 / (1 + math.exp(-7.5)) * 0.9879 / (1 + math.exp(-4.4)))
    assert scores["MSE"] == scores["RMSE"] == scores["Nabf"] == 0
    assert scores["PSNR"] == pytest.approx(10 * math.log10(255**2 / 1e-10))


def test_worse_fusions_score_worse(images):
    a, b, fused = images
    noisy = np.clip(fused + np.random.default_rng(1).normal(0, 25, fused.shape), 0, 255)
    good, bad = pair_scores(a, b, fused), pair_scores(a, b, noisy)
    for name in ("SSIM", "MS-SSIM", "Qabf", "PSNR", "REL", "Q0", "QS", "QW", "QE", "VIF"):
        assert bad[name] < good[name], name
    assert bad["Nabf"] > 10 * good["Nabf"]


def test_ranges_and_order(images):
    a, b, fused = images
    scores = pair_scores(a, b, fused)
    assert tuple(scores) == NAMES
    assert pair_scores(a / 255, b / 255, fused / 255, data_range=1) == scores
    swapped = pair_scores(b, a, fused)
    assert swapped == pytest.approx(scores)
    assert tuple(pair_scores(a, b, fused, names=("MI", "EN"))) == ("MI", "EN")


def head_pair():
    """A drawn head (CT: skull ring; MRI: textured brain), 0..255."""
    y, x = np.mgrid[-64:64, -64:64]
    radius = np.hypot(x, y)
    ct = np.where((radius > 40) & (radius < 50), 250.0, 0) + np.where(radius <= 40, 60.0, 0)
    texture = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=ct.shape), 2)
    mri = np.where(radius <= 40, np.clip(140 + 400 * texture, 70, 220), 0)
    return ct, mri


@pytest.mark.parametrize(
    ("fuse", "expected"),
    (
        (lambda ct, mri: np.where(ct > 200, ct, mri), (1, 1, 1, 0)),
        (lambda ct, mri: (ct + mri) / 2, (0, 1, 0.5, 0)),
        (lambda ct, mri: mri, (0, 1, 1, 0)),
        (lambda ct, mri: ct, (1, 0, 0, 0)),
        (lambda ct, mri: np.maximum(np.maximum(ct, mri), 20), (1, 1, 1, 20)),
    ),
    ids=("pasted", "average", "mri", "ct", "grey background"),
)
def test_task_figures(fuse, expected):
    ct, mri = head_pair()
    scores = pair_scores(ct, mri, fuse(ct, mri), names=TASK)
    assert list(scores.values()) == pytest.approx(expected, abs=0.02)


def solid_ssim(fused, sources):
    """SSIM with a three-dimensional window, all of it at once."""
    from skimage.metrics import structural_similarity

    levels, *others = (np.rint(v.array * 255.0).astype(float) for v in (fused, *sources))
    how = {"data_range": 255, "gaussian_weights": True, "use_sample_covariance": False}
    return np.mean([structural_similarity(other, levels, **how) for other in others])


def test_three_dimensions(volumes):
    fused, sources = volumes
    scores = evaluate(fused, sources)
    assert tuple(scores) == (*NAMES, *TASK)
    # Grey levels count over all voxels at once, however these are arranged.
    flat = pair_scores(*(v.array.reshape(800, 44) for v in (*sources, fused)), 1, names=LEVEL)
    assert {name: scores[name] for name in LEVEL} == pytest.approx(flat)
    levels = np.rint(fused.array * 255).astype(np.float64)
    steps = [(np.diff(levels, axis=axis) ** 2).mean() for axis in range(3)]
    assert scores["SF"] == pytest.approx(math.sqrt(sum(steps)))
    central = sum(step**2 for step in np.gradient(levels))
    assert scores["AG"] == pytest.approx(np.sqrt(central / 3).mean(), rel=1e-5)
    assert scores["SSIM"] == pytest.approx(solid_ssim(fused, sources), abs=1e-6)
    table = [pair_scores(*(s.array[k] for s in sources), fused.array[k], 1, names=("Qabf", "VIF")) for k in range(20)]
    assert scores["Qabf"] == pytest.approx(np.mean([row["Qabf"] for row in table]))
    assert set(evaluate(fused, sources, names=QUICK)) == set(QUICK)


@pytest.mark.parametrize("axis", ("axial", "coronal", "sagittal"))
def test_slices(volumes, axis):
    fused, sources = volumes
    rows = evaluate_slices(fused, sources, axis, names=("EN", "SSIM"))
    assert len(rows) == {"axial": 20, "coronal": 40, "sagittal": 44}[axis]
    mean = evaluate(fused, sources, "slice", axis, names=("EN", "SSIM"))
    assert mean["EN"] == pytest.approx(np.mean([row["EN"] for row in rows]))
    along = {"axial": 0, "coronal": 1, "sagittal": 2}[axis]
    one = pair_scores(*(v.array.take(3, along) for v in (*sources, fused)), 1, names=("EN", "SSIM"))
    assert rows[3] == {"slice": 3} | one


@pytest.mark.parametrize("along", (0, 1, 2))
@pytest.mark.parametrize("mode", ("volume", "slice"))
def test_a_single_slice_is_measured_as_it_lies(volumes, along, mode):
    """The axial slices of a sagittal one are lines."""
    fused, sources = volumes
    names = ("SSIM", "Qabf", "EN")
    truth = pair_scores(*(v.array.take(9, along) for v in (*sources, fused)), 1, names=names)
    one, *two = (v.with_array(v.array.take([9], along)) for v in (fused, *sources))
    assert evaluate(one, two, mode, names=names) == pytest.approx(truth)
    assert evaluate_slices(one, two, names=names) == [{"slice": 0} | truth]


def test_empty_slices_do_not_count(volumes):
    fused, sources = volumes
    padded = [v.with_array(np.pad(v.array, ((6, 6), (0, 0), (0, 0)))) for v in (fused, *sources)]
    names = ("Qabf", "MS-SSIM", "QW")
    assert evaluate(padded[0], padded[1:], names=names) == pytest.approx(evaluate(fused, sources, names=names))
    # Something in one of the sources is something.
    cut = sources[0].array.copy()
    cut[:6] = 0
    rows = evaluate_slices(fused, [sources[0].with_array(cut), sources[1]], names=("EN",))
    assert [row["slice"] for row in rows] == list(range(20))


def test_three_sources(volumes):
    fused, sources = volumes
    third = sources[1].with_array(sources[1].array[::-1].copy(), modality="PT")
    scores = evaluate(fused, [*sources, third])
    assert all(math.isfinite(scores[name]) for name in ("MI", "SCD", "Qabf", "QW", "SSIM"))
    assert scores["MI"] > evaluate(fused, sources, names=("MI",))["MI"]


def test_the_parts_that_volumes_are_measured_in_do_not_show(volumes, monkeypatch):
    """What keeps the memory bounded: slabs of slices, chunks of voxels."""
    fused, *sources = (
        v.with_array(np.concatenate([v.array, v.array[::-1], v.array[:7]])) for v in (volumes[0], *volumes[1])
    )
    names = ("SF", "AG", "EOG", "MI", "EN", "MSE", "SCD")
    whole = evaluate(fused, sources, names=names)
    monkeypatch.setattr("MedFusionLib.metrics.gradients.SLAB", 5 * fused.array[0].size)
    monkeypatch.setattr("MedFusionLib.metrics.histograms.CHUNK", 10_001)
    assert evaluate(fused, sources, names=names) == pytest.approx(whole, rel=1e-6)
    assert evaluate(fused, sources, names=("SSIM",))["SSIM"] == pytest.approx(solid_ssim(fused, sources), abs=1e-6)


def test_large_volumes_are_sampled(volumes, monkeypatch):
    fused, sources = volumes
    whole = evaluate(fused, sources, names=("SSIM", "Qabf"))
    monkeypatch.setattr("MedFusionLib.metrics.scores.MOST_VOXELS", fused.array.size // 2)
    part = evaluate(fused, sources, names=("SSIM", "Qabf"))
    assert part["Qabf"] != whole["Qabf"]
    assert part == pytest.approx(whole, rel=0.02)


def test_small_images():
    """What is too small for a measure says NaN; the rest still counts."""
    random = np.random.default_rng(2)
    fused, a, b = (random.random((1, 9, 9)) for _ in range(3))
    scores = evaluate(volume(fused, "OT"), [volume(a), volume(b)])
    undefined = {name for name, value in scores.items() if math.isnan(value)}
    assert undefined == {"SSIM", "head-SSIM", "MS-SSIM", "VIF"}
    single = evaluate(volume(fused[:, :1], "OT"), [volume(a[:, :1]), volume(b[:, :1])], names=("SF", "Qabf", "EN"))
    assert all(math.isfinite(value) for value in single.values())


def test_fused_values_from_a_file_are_taken_as_they_are(volumes):
    fused, sources = volumes
    bare = Volume(fused.array * 0.5, fused.affine, "OT")
    assert evaluate(bare, sources, names=("mean",))["mean"] == pytest.approx(127.5 * fused.array.mean(), abs=0.3)
    # Beyond 1 by rounding alone is no other scale, on which all would be brighter.
    rounded = bare.array.copy()
    rounded[0, 0, 0] = np.nextafter(np.float32(1), np.float32(2))
    found = evaluate(bare.with_array(rounded), sources, names=("mean",))["mean"]
    assert found == pytest.approx(127.5 * fused.array.mean(), abs=0.3)
    # On another scale they are shown as such, and not as white.
    large = bare.with_array(200 * fused.array)
    shown = replace(large, display_range=display_range(large))
    assert evaluate(large, sources, names=("mean",)) == evaluate(shown, sources, names=("mean",))


def test_bad_input(volumes):
    fused, (ct, mr) = volumes
    with_nan = fused.array.copy()
    with_nan[0, 0, 0] = np.nan
    moved = mr.affine.copy()
    moved[0, 3] = 5
    for error, text, call in (
        (MethodError, "1 given", lambda: evaluate(fused, [ct])),
        (MethodError, "Quality", lambda: evaluate(fused, [ct, mr], names=["Quality"])),
        (MethodError, "bone_solid", lambda: evaluate(fused, [mr, mr], names=["bone_solid"])),
        (MethodError, "whole", lambda: evaluate(fused, [ct, mr], mode="whole")),
        (GeometryError, "around", lambda: evaluate(fused, [ct, mr], axis="around")),
        (VolumeError, "a ndarray is no Volume", lambda: evaluate(fused.array, [ct, mr])),
        (VolumeError, "a NoneType is no Volume", lambda: evaluate(fused, [ct, None])),
        (VolumeError, "one Volume, not a list", lambda: evaluate(fused, ct)),
        (
            VolumeError,
            r"a Fusion is no Volume \(its \.volume is one\)",
            lambda: evaluate(Fusion(fused, None), [ct, mr]),
        ),
        (GeometryError, "not on the grid", lambda: evaluate(fused, [ct, Volume(mr.array, moved, "MR")])),
        (GeometryError, "not on the grid", lambda: evaluate(fused, [ct, mr.with_array(mr.array[:5])])),
        (VolumeError, "NaN", lambda: evaluate(fused.with_array(with_nan), [ct, mr])),
        (VolumeError, "NaN", lambda: evaluate(fused, [ct, mr.with_array(with_nan)])),
        (VolumeError, "constant", lambda: evaluate(fused, [ct, mr.with_array(np.ones_like(mr.array))])),
        (VolumeError, "colour", lambda: evaluate(fused.with_array(np.zeros((20, 40, 44, 3))), [ct, mr])),
        (GeometryError, "shape", lambda: pair_scores(ct.array, mr.array, fused.array)),
        (GeometryError, "shape", lambda: pair_scores(ct.array[0], mr.array[0], fused.array[0, 1:])),
        (GeometryError, "shape", lambda: pair_scores(ct.array[0, :0], mr.array[0, :0], fused.array[0, :0])),
        (VolumeError, "NaN", lambda: pair_scores(ct.array[0], mr.array[0], with_nan[0])),
        (MethodError, "data range is 0", lambda: pair_scores(ct.array[0], mr.array[0], fused.array[0], 0)),
        (MethodError, "data range is -1", lambda: pair_scores(ct.array[0], mr.array[0], fused.array[0], -1)),
    ):
        with pytest.raises(error, match=text) as caught:
            call()
        assert isinstance(caught.value, MedFusionError)


def test_cancel(volumes):
    fused, sources = volumes
    asked = []
    with pytest.raises(Cancelled):
        evaluate(fused, sources, cancelled=lambda: asked.append(1) or len(asked) > 5)
    assert len(asked) == 6


def test_progress_rises(volumes):
    told = []
    evaluate(*volumes, progress=lambda fraction, message: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_constant_fusion(volumes):
    fused, sources = volumes
    flat = evaluate(fused.with_array(np.full_like(fused.array, 0.5)), sources)
    for name in ("EN", "MI", "REL", "SF", "AG"):
        assert flat[name] == pytest.approx(0, abs=1e-6), name
    assert flat["SD"] == pytest.approx(0, abs=1e-6)


def test_table():
    text = markdown({"average": {"EN": 4.43210, "VIF": float("nan")}, "maximum": {"EN": 3.0, "s": "0.1"}})
    assert text.splitlines() == [
        "|  | EN | VIF | s |",
        "| --- | ---: | ---: | ---: |",
        "| average | 4.432 | – | – |",
        "| maximum | 3 | – | 0.1 |",
    ]


def test_no_torch():
    code = "import MedFusionLib.metrics, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_agrees_with_torchmetrics(images):
    """Where the definitions are the same: VIF. (Its MS-SSIM pads, which the published values do not.)"""
    import torch
    from torchmetrics.functional.image import visual_information_fidelity

    a, b, fused = images
    truth = sum(
        float(visual_information_fidelity(torch.from_numpy(fused)[None, None], torch.from_numpy(x)[None, None]))
        for x in (a, b)
    )
    assert pair_scores(a, b, fused)["VIF"] == pytest.approx(truth, abs=1e-3)
