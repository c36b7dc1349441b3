"""One intensity mapping per volume, by its modality."""

import numpy as np
import pytest

from MedFusionLib.errors import VolumeError
from MedFusionLib.normalize import CT_WINDOW, display_range, looks_like_hu, to_unit
from MedFusionLib.volume import Volume

RNG = np.random.default_rng(0)


def volume(array, modality="MR", units="", **more):
    return Volume(np.asarray(array), np.eye(4), modality, units, **more)


def head(scale=100.0, shape=(20, 24, 26)):
    """Background at zero, tissue at about `scale`."""
    values = np.zeros(shape)
    values[4:16, 4:20, 4:22] = RNG.normal(scale, scale / 10, (12, 16, 18))
    return np.clip(values, 0, None)


def test_ct_in_hu_has_one_fixed_window():
    hu = head(1040) - 1000
    assert display_range(volume(hu, "CT", "HU")) == CT_WINDOW
    assert display_range(volume(hu, "CT")) == CT_WINDOW
    assert looks_like_hu(volume(hu, "CT"))
    assert not looks_like_hu(volume(hu + 1000, "CT"))
    assert not looks_like_hu(volume(hu, "MR"))
    assert not looks_like_hu(volume(hu, "CT", "mg/mL"))


@pytest.mark.parametrize("share", ("sides", "edge"))
@pytest.mark.parametrize("fill", (-2000, -3024, -32768))
def test_padding_around_a_scan_is_not_its_air(fill, share):
    """Stored values of a CT, air at 0, were taken for HU by it: the whole head was white. An MRI was, for its black."""
    stored = head(1040) + RNG.normal(20, 5, (20, 24, 26))
    outside = np.zeros(stored.shape, bool)
    if share == "sides":
        outside[:, :2] = outside[:, :, -2:] = True
    else:  # six voxels in a thousand
        outside[:, :2, -2:] = True
    for modality in ("CT", "MR"):
        padded = volume(np.where(outside, fill, stored), modality)
        assert not looks_like_hu(padded)
        black, white = display_range(volume(stored, modality))
        assert display_range(padded) == pytest.approx((black, white), abs=0.02 * white)
    assert looks_like_hu(volume(np.where(outside, fill, stored - 1024), "CT"))
    # Nothing but the brain: no air at all, and yet in HU.
    assert looks_like_hu(volume(np.where(stored > 500, stored - 1024, fill), "CT"))


def test_a_scan_that_is_cut_off_below_has_no_padding():
    values = np.clip(RNG.normal(0, 100, (20, 24, 26)), -100, None)
    assert display_range(volume(values))[0] == -100


def test_a_volume_s_own_range_wins():
    assert display_range(volume(head(), "CT", "HU", display_range=(0, 80))) == (0, 80)


def test_mr_is_stretched_over_its_tissue_and_not_its_background():
    values = head()
    black, white = display_range(volume(values))
    assert black == 0
    assert white == pytest.approx(np.percentile(values[values > 2], 99.8), rel=0.02)


def test_a_few_wild_voxels_do_not_blacken_the_rest():
    values = head(shape=(40, 44, 46))
    expected = display_range(volume(values))
    values[6, 5, 4:24] = 1e6  # 20 failed fits of an ADC map
    assert display_range(volume(values)) == pytest.approx(expected, rel=0.1)
    assert display_range(volume(values, "PT"))[1] > 1e5  # a lesion may be as small


def test_a_scan_that_goes_below_zero_has_its_black_there_and_pet_at_zero():
    values = np.linspace(-900, 900, 24_000).reshape(20, 30, 40)
    for modality, black, percentile in (("MR", np.percentile(values, 0.5), 99.8), ("PT", 0, 99.95)):
        white = np.percentile(values[values > black + 0.02 * (900 - black)], percentile)
        assert display_range(volume(values, modality)) == pytest.approx((black, white), rel=1e-9)
    values = np.linspace(-1000, -980, 24_000).reshape(20, 30, 40)
    expected = display_range(volume(values))
    values[3, 4, 5:20] = 20  # fifty times as far as the rest reaches
    assert display_range(volume(values)) == pytest.approx(expected, abs=0.1)


def test_a_small_hot_spot_does_not_saturate_in_pet():
    values = head(5, (40, 64, 64))
    values[20, 30:33, 30:33] = 18.0  # 9 of 160 000 voxels
    _, white = display_range(volume(values, "PT", "SUV"))
    assert white > 9


def test_the_range_of_a_large_volume_is_not_that_of_a_few_columns(monkeypatch):
    values = np.full((64, 64, 64), 0.1)
    values[10:54, 10:54, 32:34] = 3.0
    assert display_range(volume(values, "PT", "SUV")) == (0, 3)
    monkeypatch.setattr("MedFusionLib.normalize.MAX_SAMPLES", 4096)
    assert display_range(volume(values, "PT", "SUV")) == (0, 3)  # every 64th voxel would be in one column
    assert display_range(volume(values, "PT", "SUV")) == display_range(volume(values, "PT", "SUV"))


def test_to_unit_maps_black_and_white_and_clips():
    unit = to_unit(volume([[[-5.0, 0.0, 5.0, 10.0, 20.0]]], display_range=(0, 10)))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [[[0, 0, 0.5, 1, 1]]])


@pytest.mark.parametrize("dtype", (np.uint8, np.int16, np.uint16, np.int32, np.float64))
def test_number_types_give_the_same_mapping(dtype):
    values = np.arange(120).reshape(4, 5, 6)
    expected = to_unit(volume(values.astype(np.float32)))
    np.testing.assert_allclose(to_unit(volume(values.astype(dtype))), expected, atol=1e-6)


def test_the_mapping_is_the_volume_s_and_not_the_slice_s():
    values = head()
    values[10] *= 3
    whole = to_unit(volume(values))
    black, white = display_range(volume(values))
    for k in (5, 10):
        np.testing.assert_allclose(whole[k], np.clip((values[k] - black) / (white - black), 0, 1), atol=1e-6)


def test_nothing_to_map_is_said():
    with pytest.raises(VolumeError, match="constant"):
        display_range(volume(np.ones((3, 4, 5))))
    with pytest.raises(VolumeError, match="NaN"):
        display_range(volume(np.full((3, 4, 5), np.nan)))


def test_few_bright_voxels_still_give_a_range():
    values = np.zeros((5, 6, 7))
    values[2, 3, 4] = 9.0
    assert display_range(volume(values)) == (0.0, 9.0)
    assert display_range(volume(-values)) == (-9.0, 0.0)


@pytest.mark.parametrize("size", [1e-50, 1e-38, 1e39, 1e300])
def test_values_that_single_precision_lacks_are_scaled(size):
    array = np.linspace(0, 1, 60).reshape(3, 4, 5)
    for black in (0, -0.5):
        unit = to_unit(
            Volume((array + black) * size, np.eye(4), "MR", display_range=(black * size, (1 + black) * size))
        )
        assert np.allclose(unit, array, atol=1e-6)


def test_half_precision_is_scaled_as_single_precision_is():
    array = np.linspace(-1000, 2000, 60).reshape(3, 4, 5).astype(np.float16)
    for ends in ((-70000, 70000), (-1000, 2000)):
        half, single = (
            to_unit(Volume(array.astype(kind), np.eye(4), "CT", display_range=ends))
            for kind in (np.float16, np.float32)
        )
        assert np.array_equal(half, single)
