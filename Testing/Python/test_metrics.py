"""Measures against published-definition values, against other libraries, and against what must be true."""

import json
from pathlib import Path

import numpy as np
import pytest

from MedFusionLib import Volume
from MedFusionLib.errors import GeometryError, MethodError
from MedFusionLib.metrics import ALL, evaluate, scores, slice_scores
from MedFusionLib.metrics.structure import ms_ssim, ssim_maps, vif

SHARED = Path(__file__).resolve().parents[3] / "shared"
REFERENCE = SHARED / "measure" / "metric_reference.json"
NAMES = {"SSIMhead": "head-SSIM", "MSSSIM": "MS-SSIM"}


def _images(seed=0, size=192):
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    smooth = [gaussian_filter(rng.random((size, size)), s) for s in (2, 6, 1)]
    return [255 * (x - x.min()) / np.ptp(x) for x in smooth]


def _atlas(case):
    from PIL import Image

    first = case["pair"].split("-")[0]
    folder = SHARED / "data" / "harvard" / case["pair"]
    image = np.asarray(Image.open(folder / first / case["name"])).astype(float)
    if image.ndim == 3:
        image = np.round(image @ [0.299, 0.587, 0.114])
    return image, np.asarray(Image.open(folder / "MRI" / case["name"]).convert("L")).astype(float)


@pytest.mark.data
@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference values are not beside the checkout")
def test_agrees_with_published_definitions():
    cases = json.loads(REFERENCE.read_text())["cases"]
    assert cases
    for case in cases:
        a, b = _atlas(case)
        fused = np.round({"average": (a + b) / 2, "maximum": np.maximum(a, b), "first": a}[case["fused"]])
        measured = scores([a, b], fused)
        compared = {NAMES.get(name, name) for name in case} & set(measured)
        assert len(compared) >= 15
        for name, value in case.items():
            name = NAMES.get(name, name)
            if name in measured:
                assert measured[name] == pytest.approx(value, abs=1e-4), (case["pair"], case["fused"], name)


def test_agrees_with_other_libraries():
    torch = pytest.importorskip("torch")
    from skimage.metrics import structural_similarity
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as theirs
    from torchmetrics.functional.image import visual_information_fidelity

    a, _, f = _images()
    expected = structural_similarity(
        a, f, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim_maps(a, f, crop=True)[0].mean() == pytest.approx(expected, abs=1e-9)
    tensors = [torch.from_numpy(x)[None, None] for x in (f, a)]
    assert ms_ssim(a, f) == pytest.approx(float(theirs(*tensors, data_range=255.0)), abs=1e-3)
    assert vif(a, f) == pytest.approx(float(visual_information_fidelity(*tensors)), abs=1e-4)


def test_a_perfect_copy_and_a_blank():
    a, b, _ = _images()
    copy = scores([a, a], a)
    assert copy["MSE"] == 0
    assert copy["SSIM"] == pytest.approx(1)
    assert copy["MS-SSIM"] == pytest.approx(1)
    assert copy["Qabf"] > 0.95
    assert copy["Nabf"] == 0
    assert copy["Q0"] == pytest.approx(1)
    assert copy["NMI"] == pytest.approx(2)
    blank = scores([a, b], np.zeros_like(a))
    assert [blank[name] for name in ("EN", "SD", "MI", "SF")] == pytest.approx([0] * 4, abs=1e-9)
    assert all(np.isfinite(value) for value in blank.values())


def test_ranks_fusions_as_readers_do():
    a, b, noise = _images()
    good, bad = np.maximum(a, b), np.clip((a + b) / 2 + noise - 128, 0, 255)
    better, worse = scores([a, b], good), scores([a, b], bad)
    assert better["Qabf"] > worse["Qabf"]
    assert better["SSIM"] > worse["SSIM"]
    assert better["Nabf"] < worse["Nabf"]


def test_known_values():
    ramp = np.tile(np.arange(256.0), (256, 1))
    measured = scores([ramp, ramp], ramp, names=("EN", "mean", "SF", "AG"))
    assert measured["EN"] == pytest.approx(8)
    assert measured["mean"] == pytest.approx(127.5)
    assert measured["SF"] == pytest.approx(1)
    assert measured["AG"] == pytest.approx(np.sqrt(0.5))


def test_task_figures_see_a_hollow_skull_and_a_grey_background():
    y, x = np.mgrid[:256, :256] - 128.0
    radius = np.hypot(x, y)
    ct = np.where((radius > 85) & (radius < 95), 255.0, np.where(radius < 85, 40.0, 0.0))
    mri = np.where(radius < 85, 120 + 60 * np.sin(x / 6) * np.cos(y / 9), 0.0)
    ideal = np.where(ct > 200, ct, mri)
    good = scores([ct, mri], ideal, modalities=["CT", "MR"])
    assert good["bone_solid"] == 1
    assert good["soft_corr"] > 0.999
    assert good["soft_edges"] > 0.99
    assert good["background"] == 0
    hollow = scores([ct, mri], np.where(ct > 200, 0.5 * ct, mri) + 20, modalities=["CT", "MR"])
    assert hollow["bone_solid"] == 0
    assert hollow["background"] == 20
    assert "bone_solid" not in scores([ct, mri], ideal, modalities=["PT", "MR"])


def test_volumes_are_measured_in_their_own_units():
    a, b, _ = _images()
    ct = Volume(np.stack([a * 4 - 100] * 6), np.diag([1, 1, 3, 1]), "CT", "HU", "ct", (-100, 920))
    mr = Volume(np.stack([b] * 6), np.diag([1, 1, 3, 1]), "MR", "", "mr", (0, 255))
    fused = Volume(np.stack([np.maximum(a, b)] * 6).astype(np.float32) / 255, np.diag([1, 1, 3, 1]))
    expected = scores([np.round(a), np.round(b)], np.round(np.maximum(a, b)))
    measured = evaluate(fused, [ct, mr], names=None)
    assert measured["Qabf"] == pytest.approx(expected["Qabf"], abs=1e-6)
    assert set(expected) <= set(measured) <= set(ALL)
    assert len(slice_scores(fused, [ct, mr], ("SSIM",))) == 6
    sagittal = evaluate(fused, [ct, mr], ("MSE", "MS-SSIM"), axis="sagittal")
    assert "MS-SSIM" not in sagittal
    assert np.isfinite(sagittal["MSE"])


def test_says_what_is_wrong():
    a, b, _ = _images(size=32)
    first = Volume(a[None], np.eye(4), "MR", name="T1")
    other = Volume(b[None], np.diag([2, 2, 2, 1]), "PT", name="FDG")
    with pytest.raises(GeometryError, match=r"FDG.*grid"):
        evaluate(first, [first, other])
    with pytest.raises(MethodError, match="NIQE"):
        evaluate(first, [first, first], names=("NIQE",))
