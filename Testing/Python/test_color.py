"""Colour over grey: tables, thresholds, opacity, against hand-computed pixels and Slicer's own tables."""

import numpy as np
import pytest

from MedFusionLib.color import LUTS, colorize, table
from MedFusionLib.errors import GeometryError, MethodError, VolumeError
from MedFusionLib.pipeline import Coloring
from MedFusionLib.volume import Volume


def grey(value=0.4, shape=(2, 3, 4)):
    return Volume(np.full(shape, value, np.float32), np.eye(4), display_range=(0, 1))


def pet(values, display_range=(0.0, 10.0)):
    return Volume(np.array(values, np.float32).reshape(2, 3, 4), np.eye(4), "PT", "SUV", "pet", display_range)


def test_colour_covers_grey_by_its_opacity_above_the_threshold_only():
    uptake = np.zeros(24)
    uptake[5], uptake[6], uptake[7] = 10.0, 2.9, 3.1
    rgb = colorize(grey(), pet(uptake), Coloring("PET-Heat", 0.25, 3.0)).array.reshape(-1, 3)
    assert rgb.dtype == np.uint8
    assert (rgb[[0, 6]] == 102).all()  # grey as it was: 0.4 * 255, below the threshold
    np.testing.assert_array_equal(rgb[5], np.rint(0.75 * 102 + 0.25 * np.array([255, 255, 255])))
    np.testing.assert_allclose(rgb[7], 0.75 * 102 + 0.25 * table("PET-Heat")[79], atol=0.51)


def test_threshold_is_in_the_units_of_the_pet_whatever_its_display_range():
    uptake = np.linspace(0, 24, 24)
    first = colorize(grey(), pet(uptake, (0, 10)), Coloring(opacity=1.0, threshold=12.0)).array
    second = colorize(grey(), pet(uptake, (0, 40)), Coloring(opacity=1.0, threshold=12.0)).array
    assert ((first != 102).any(-1) == (second != 102).any(-1)).all()
    assert (first != 102).any(-1).sum() == (uptake >= 12).sum()


@pytest.mark.parametrize("threshold", (2.3, np.float64(2.3), np.float32(2.3)))
def test_uptake_of_just_the_threshold_is_coloured(threshold):
    rgb = colorize(grey(), pet(np.full(24, 2.3)), Coloring(opacity=1.0, threshold=threshold)).array
    assert (rgb != 102).any(-1).all()


def test_no_opacity_shows_the_grey_and_full_opacity_the_table():
    uptake = pet(np.linspace(0.01, 10, 24))
    assert (colorize(grey(), uptake, Coloring(opacity=0.0)).array == 102).all()
    full = colorize(grey(), uptake, Coloring("PET-DICOM", opacity=1.0)).array.reshape(-1, 3)
    np.testing.assert_array_equal(full, table("PET-DICOM")[np.rint(25.5 * uptake.array.ravel()).astype(int)])


def test_slabs_join_without_a_seam(monkeypatch):
    rng = np.random.default_rng(0)
    base = Volume(rng.random((9, 5, 6), np.float32), np.eye(4), display_range=(0, 1))
    uptake = Volume(rng.random((9, 5, 6), np.float32), np.eye(4), "PT", display_range=(0, 1))
    whole = colorize(base, uptake, Coloring())
    monkeypatch.setattr("MedFusionLib.color.SLAB", 61)
    np.testing.assert_array_equal(colorize(base, uptake, Coloring()).array, whole.array)


def test_what_was_done_is_recorded():
    said = colorize(grey(), pet(np.arange(24)), Coloring("PET-Rainbow2", 0.5, 2.5)).attributes
    assert said["MedFusion.ColorTable"] == "PET-Rainbow2"
    assert said["MedFusion.ColorThreshold"] == "2.5 SUV"
    assert said["MedFusion.ColorRange"] == "0..10 SUV"


def test_bad_inputs_are_named():
    with pytest.raises(MethodError, match=r"'Heat' is not a colour table: choose one of PET-Heat"):
        colorize(grey(), pet(np.arange(24)), Coloring("Heat"))
    with pytest.raises(MethodError, match=r"opacity is 1\.5"):
        colorize(grey(), pet(np.arange(24)), Coloring(opacity=1.5))
    with pytest.raises(GeometryError, match="“pet” is not on the grid"):
        colorize(grey(shape=(2, 3, 5)), pet(np.arange(24)), Coloring())
    rgb = colorize(grey(), pet(np.arange(24)), Coloring())
    with pytest.raises(VolumeError, match="in colour already"):
        colorize(rgb, pet(np.arange(24)), Coloring())
    spoiled = np.arange(24.0)
    spoiled[5] = np.nan
    with pytest.raises(VolumeError, match="“pet” has 1 NaN"):
        colorize(grey(), pet(spoiled, (0, 10)), Coloring())
    with pytest.raises(MethodError, match="threshold is nan"):
        colorize(grey(), pet(np.arange(24)), Coloring(threshold=float("nan")))
    with pytest.raises(VolumeError, match="a NoneType is no Volume"):
        colorize(grey(), None, Coloring())
    with pytest.raises(VolumeError, match="“pet” is constant"):
        colorize(grey(), pet(np.ones(24), None), Coloring())


@pytest.mark.scene
@pytest.mark.parametrize("lut", LUTS)
def test_tables_are_slicers(lut):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    node = slicer.vtkMRMLPETProceduralColorNode()
    for kind in range(node.GetFirstType(), node.GetLastType() + 1):
        node.SetType(kind)
        if node.GetTypeAsString() == lut:
            break
    else:
        pytest.fail(f"Slicer has no {lut}")
    colors = np.array([node.GetColorTransferFunction().GetColor(place) for place in range(256)])
    np.testing.assert_allclose(table(lut), 255 * colors, atol=0.6)
