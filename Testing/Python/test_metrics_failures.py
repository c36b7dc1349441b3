"""Each figure of failure, on a drawn head that has just this fault."""

import numpy as np
import pytest
from scipy import ndimage

from MedFusionLib.metrics.failures import flicker, scalp_halo, skull_failures, uptake_failures
from MedFusionLib.metrics.task import task_measures


@pytest.fixture
def ct_mri():
    y, x = np.mgrid[-96:96, -96:96]
    radius = np.hypot(x, y)
    ct = np.where((radius > 62) & (radius < 74), 250.0, np.where(radius <= 62, 60.0, 0))
    mri = np.where(radius <= 62, 120.0 + 30 * np.sin(x / 4), 0)
    return ct, mri, np.where(ct > 200, ct, mri)


@pytest.fixture
def pet_mri():
    y, x = np.mgrid[-96:96, -96:96]
    pet = np.where(np.hypot(x, y) < 80, 40.0, 0) + 180 * (np.hypot(x - 30, y) < 9)
    mri = np.where(np.hypot(x, y) < 80, 100.0, 0)
    return pet, mri, np.maximum(pet, mri)


def test_a_good_skull(ct_mri):
    assert skull_failures(*ct_mri) == pytest.approx({"bone_level": 1, "bone_fill": 1, "bone_lost": 0})
    assert scalp_halo(*ct_mri) == 0


def test_dimmed(ct_mri):
    ct, mri, fused = ct_mri
    found = skull_failures(ct, mri, np.where(ct > 200, 0.6 * fused, fused))
    assert found == pytest.approx({"bone_level": 0.6, "bone_fill": 1, "bone_lost": 0})


def test_hollowed(ct_mri):
    ct, mri, fused = ct_mri
    inside = ndimage.binary_erosion(ct > 200, iterations=2)
    found = skull_failures(ct, mri, np.where(inside, 0.3 * fused, fused))
    assert found["bone_fill"] == pytest.approx(0.3)
    assert found["bone_lost"] > 0.4


def test_chunks_off(ct_mri):
    ct, mri, fused = ct_mri
    off = (ct > 200) & (np.arange(192) < 96)
    found = skull_failures(ct, mri, np.where(off, mri, fused))
    assert found["bone_lost"] == pytest.approx(0.5, abs=0.02)
    specks = (ct > 200) & (np.add.outer(np.arange(192), np.arange(192)) % 3 == 0)
    assert skull_failures(ct, mri, np.where(specks, 0, fused))["bone_lost"] < 0.1


def test_halo(ct_mri):
    ct, mri, fused = ct_mri
    assert 2 < scalp_halo(ct, mri, np.maximum(fused, ndimage.gaussian_filter(ct, 2))) < 60


def test_good_uptake(pet_mri):
    found = uptake_failures(*pet_mri)
    assert found["blotches"] == 0
    pet, mri, _ = pet_mri
    assert uptake_failures(pet, mri, pet)["hot_contrast"] == pytest.approx(1)


def test_lesion_lost(pet_mri):
    pet, mri, _ = pet_mri
    assert uptake_failures(pet, mri, mri)["hot_contrast"] == pytest.approx(0)
    assert uptake_failures(pet, mri, (pet + mri) / 2)["hot_contrast"] == pytest.approx(0.5)


def test_dark_blotches(pet_mri):
    pet, mri, fused = pet_mri
    y, x = np.mgrid[-96:96, -96:96]
    ring = np.abs(np.hypot(x - 30, y) - 9) < 2
    assert uptake_failures(pet, mri, np.where(ring, 0, fused))["blotches"] > 1


def test_flicker():
    random = np.random.default_rng(0)
    a, b = (ndimage.gaussian_filter(random.random((12, 40, 40)), 2) * 255 for _ in range(2))
    assert flicker(a, b, (a + b) / 2) <= 1
    assert flicker(a, b, np.maximum(a, b)) <= 1
    rescaled = np.stack([255 * (s - s.min()) / np.ptp(s) for s in (a + b) / 2])
    assert flicker(a, b, rescaled) > 1.5
    assert np.isnan(flicker(a[:1], b[:1], a[:1]))


def test_bytes_give_the_figures_of_numbers(ct_mri, pet_mri):
    """Their differences wrap around."""
    random = np.random.default_rng(0)
    stacks = random.integers(0, 256, (3, 4, 40, 40))
    for measure, images in (
        (skull_failures, ct_mri),
        (uptake_failures, pet_mri),
        (task_measures, ct_mri),
        (flicker, stacks),
    ):
        images = [np.rint(image) for image in images]
        expected = measure(*images)
        assert measure(*(image.astype(np.uint8) for image in images)) == pytest.approx(expected, nan_ok=True), measure


def test_nothing_to_measure():
    black = np.zeros((64, 64))
    values = [scalp_halo(black, black, black), *skull_failures(black, black, black).values()]
    values += uptake_failures(black, black, black).values()
    assert np.isnan(values).all()
