"""DICOM series: geometry, HU, SUV, and what no volume can be made of. One set is real, the others are written here."""

import logging
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from MedFusionLib import files, read_volume
from MedFusionLib.dicom import suv_factor
from MedFusionLib.errors import FileError, GeometryError, VolumeError
from MedFusionLib.volume import LPS

REAL = Path(__file__).resolve().parents[3] / "shared/data/dicom/ct-head"
PATIENT = "DOE^JANE"
SHAPE = (6, 5, 7)


def header(modality="CT", description="Head", number=2, **tags):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.PatientName, dataset.PatientID = PATIENT, "4711"
    dataset.Modality, dataset.SeriesDescription, dataset.SeriesNumber = modality, description, number
    dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.{number}"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    return dataset


def save(dataset, pixels, file):
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.parent.mkdir(exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)


def write_series(folder, places=None, step=None, turn=None, start=0, slopes=None, least=0, **tags):
    """Write slices; stored values (K, J, I). places: millimetres along the normal; step: vector between slices."""
    stored = np.random.default_rng(3).integers(least, 3000, SHAPE)
    turn = np.eye(3) if turn is None else turn
    step = 2.5 * turn[:, 2] if step is None else np.array(step, float)
    # Written out of order: the position counts, not the name.
    for n in np.random.default_rng(4).permutation(len(stored)):
        dataset = header(**tags)
        dataset.ImageOrientationPatient = [*turn[:, 0], *turn[:, 1]]
        away = n * step if places is None else places[n] * turn[:, 2]
        dataset.ImagePositionPatient = [f"{x:.6f}"[:16] for x in np.array([-12.5, 30, 100]) + away]
        dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.6], 2.5
        if slopes is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = slopes[n], 0
        save(dataset, stored[n], folder / f"{start + (n * 7) % 11:03d}-{n}.dcm")
    return stored


def turned():
    a = 0.3
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    )


@pytest.mark.parametrize("turn", (np.eye(3), turned(), turned()[:, [1, 2, 0]]), ids=("axial", "oblique", "sagittal"))
def test_ct_is_in_hu_and_in_its_place(tmp_path, turn):
    stored = write_series(tmp_path / "ct", turn=turn)
    ct = read_volume(tmp_path / "ct")
    assert (ct.modality, ct.units, ct.name, ct.array.dtype) == ("CT", "HU", "Head", np.int16)
    np.testing.assert_array_equal(ct.array, stored - 1024)
    np.testing.assert_allclose(ct.spacing, (0.6, 0.8, 2.5), atol=1e-5)
    # Where ITK's own series reader puts voxel (i, j, k) = (2, 1, 4).
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct"))
    image = sitk.ReadImage(files)
    assert image[2, 1, 4] == ct.array[4, 1, 2]
    place = LPS @ ct.affine @ (2, 1, 4, 1)
    np.testing.assert_allclose(place[:3], image.TransformIndexToPhysicalPoint((2, 1, 4)), atol=1e-3)


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="the real CT series is not beside this checkout")
def test_a_real_series_is_as_itk_reads_it():
    ct = read_volume(REAL)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(REAL)))
    np.testing.assert_array_equal(ct.array, sitk.GetArrayViewFromImage(image))
    np.testing.assert_allclose(ct.spacing, image.GetSpacing())
    place = (LPS @ ct.affine @ (10, 20, 30, 1))[:3]
    np.testing.assert_allclose(place, image.TransformIndexToPhysicalPoint((10, 20, 30)))
    # Its scale is the scanner's own: air at 0, water at 1000, RescaleType "unspecified".
    assert (ct.modality, ct.units) == ("CT", "")


def test_a_tilted_gantry_keeps_every_voxel_in_its_place(tmp_path, caplog):
    step = np.array([0, 0.6, 2.4])
    write_series(tmp_path / "ct", step=step)
    ct = read_volume(tmp_path / "ct")
    assert "tilted by 14.0 degrees" in caplog.text
    for k in (0, 3, 5):
        expected = np.array([-12.5, 30, 100]) + k * step
        np.testing.assert_allclose((LPS @ ct.affine @ (0, 0, k, 1))[:3], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tags", "units"),
    (
        ({}, "HU"),
        ({"RescaleType": "HU"}, "HU"),
        ({"RescaleType": "US", "RescaleIntercept": 0}, ""),
        ({"RescaleType": "HU", "RescaleIntercept": 0}, ""),
        ({"RescaleType": "HU", "RescaleIntercept": -100}, "HU"),
        ({"RescaleType": "OD"}, ""),
    ),
)
def test_a_ct_without_air_may_be_in_hu_too(tmp_path, tags, units):
    stored = write_series(tmp_path / "ct", least=900 if tags.get("RescaleIntercept") is None else 60, **tags)
    ct = read_volume(tmp_path / "ct")
    assert ct.units == units
    np.testing.assert_array_equal(ct.array, stored + tags.get("RescaleIntercept", -1024))


def test_padding_makes_no_hu_of_stored_values(tmp_path):
    """-2000 outside the scanner's circle was taken for air, and a head about 1000 shown white all over."""
    for n in range(4):
        pixels = np.random.default_rng(n).normal(1040, 30, (20, 20)).round().astype(np.int16)
        pixels[:4] = 20
        pixels[:, :2] = -2000
        dataset = header(PixelRepresentation=1, RescaleIntercept=0, RescaleType="US")
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, n]
        dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 1
        save(dataset, pixels, tmp_path / "ct" / f"{n}.dcm")
    ct = read_volume(tmp_path / "ct")
    assert ct.units == "" and ct.array.min() == -2000


def test_missing_slices_are_refused(tmp_path):
    write_series(tmp_path / "ct", places=[0, 2.5, 5, 12.5, 15, 17.5])
    with pytest.raises(GeometryError, match=r"CT “Head” lacks 2 of its slices \(gaps up to 7\.50 mm .* 2\.50 mm\)"):
        read_volume(tmp_path / "ct")


def test_uneven_slices_are_refused_and_rounding_is_not(tmp_path):
    write_series(tmp_path / "uneven", places=[0, 2.5, 5, 7.9, 10.4, 12.9])
    with pytest.raises(GeometryError, match=r"uneven slices \(2\.50 to 2\.90 mm apart\)"):
        read_volume(tmp_path / "uneven")
    write_series(tmp_path / "near", places=[0, 2.5, 5, 7.2, 9.7, 12.2])
    with pytest.raises(GeometryError, match=r"uneven slices \(2\.20 to 2\.50 mm apart\)"):
        read_volume(tmp_path / "near")
    write_series(tmp_path / "even", places=[0, 2.51, 5, 7.49, 10, 12.5])
    assert read_volume(tmp_path / "even").spacing[2] == pytest.approx(2.5)


def test_several_images_at_one_place_are_refused(tmp_path):
    write_series(tmp_path / "pt", places=[0, 0, 2.5, 2.5, 5, 5])
    with pytest.raises(VolumeError, match="several images at one place"):
        read_volume(tmp_path / "pt")


def test_a_scout_among_the_slices_is_refused(tmp_path):
    write_series(tmp_path / "ct")
    scout = header(ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[0, 0, 0], PixelSpacing=[0.8, 0.6])
    save(scout, np.zeros(SHAPE[1:]), tmp_path / "ct" / "scout.dcm")
    with pytest.raises(GeometryError, match="different directions"):
        read_volume(tmp_path / "ct")
    # Parallel, and of larger pixels.
    scout.ImageOrientationPatient, scout.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-12.5, 30, 115]
    scout.PixelSpacing = [0.8, 0.9]
    save(scout, np.zeros(SHAPE[1:]), tmp_path / "ct" / "scout.dcm")
    with pytest.raises(GeometryError, match="pixel sizes"):
        read_volume(tmp_path / "ct")


def test_of_several_series_one_is_chosen_by_number_description_or_uid(tmp_path):
    write_series(tmp_path / "all", number=2, description="Head")
    stored = write_series(tmp_path / "all", start=100, number=5, description="PET AC", modality="PT")
    with pytest.raises(FileError) as caught:
        read_volume(tmp_path / "all")
    assert "'all' holds 2 DICOM series: say which (--series" in str(caught.value)
    assert "2: CT “Head”, 6 files" in str(caught.value) and "5: PT “PET AC”, 6 files" in str(caught.value)
    assert "DOE" not in str(caught.value) and "4711" not in str(caught.value)
    for series in ("5", 5, "pet ac", "1.2.826.0.1.3680043.8.498.5"):
        assert read_volume(tmp_path / "all", series=series).modality == "PT"
    np.testing.assert_array_equal(read_volume(tmp_path / "all", series="Head").array, stored - 1024)
    with pytest.raises(FileError, match="no DICOM series of 'all' is called '9'"):
        read_volume(tmp_path / "all", series="9")


def test_the_same_file_twice_counts_once_and_other_files_not_at_all(tmp_path):
    write_series(tmp_path / "ct")
    first = next((tmp_path / "ct").iterdir())
    (tmp_path / "ct" / "copy.dcm").write_bytes(first.read_bytes())
    (tmp_path / "ct" / "notes.txt").write_text("no image")
    (tmp_path / "ct" / "DICOMDIR").write_text("")
    assert read_volume(tmp_path / "ct").size[2] == len(SHAPE) * 2


@pytest.mark.parametrize("uid", (None, "1.2.3"))
def test_images_that_share_an_identity_or_have_none_are_all_read(tmp_path, uid):
    stored = write_series(tmp_path / "ct")
    for file in (tmp_path / "ct").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = uid
        dataset.save_as(file)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array, stored - 1024)


def test_slices_a_few_micrometres_apart_are_at_different_places(tmp_path):
    write_series(tmp_path / "ct", step=(0, 0, 0.006))
    for file in (tmp_path / "ct").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelSpacing = [0.006, 0.006]
        dataset.save_as(file)
    assert read_volume(tmp_path / "ct").spacing == pytest.approx((0.006,) * 3)


def test_images_without_a_place_are_refused(tmp_path):
    save(header(modality="OT", description="Capture"), np.zeros((5, 7)), tmp_path / "x" / "capture.dcm")
    with pytest.raises(GeometryError, match="OT “Capture” does not say where"):
        read_volume(tmp_path / "x")


def test_an_image_without_a_place_among_the_slices_is_left_out(tmp_path, caplog):
    stored = write_series(tmp_path / "ct")
    save(header(), np.zeros(SHAPE[1:]), tmp_path / "ct" / "capture.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array, stored - 1024)
    assert "1 images of the series say no position and are left out" in caplog.text


def test_values_that_no_short_integer_holds_are_kept(tmp_path):
    stored = write_series(tmp_path / "mr", modality="MR", RescaleIntercept=32000)
    mr = read_volume(tmp_path / "mr")
    assert mr.array.dtype == np.float32
    np.testing.assert_array_equal(mr.array, stored + 32000)


def test_colour_captures_are_refused(tmp_path):
    write_series(tmp_path / "x", SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    with pytest.raises(VolumeError, match="in colour"):
        read_volume(tmp_path / "x")


def test_cut_short_pixels_are_refused(tmp_path):
    write_series(tmp_path / "ct")
    file = sorted((tmp_path / "ct").iterdir())[2]
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(FileError, match="cannot be read"):
        read_volume(tmp_path / "ct")


def test_damaged_files_are_pointed_out(tmp_path, caplog):
    stored = write_series(tmp_path / "ct")
    files = sorted((tmp_path / "ct").iterdir(), key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    last = files[-1].read_bytes()
    for cut in range(150, 700, 50):
        caplog.clear()
        files[-1].write_bytes(last[:cut])
        np.testing.assert_array_equal(read_volume(tmp_path / "ct").array, stored[:-1] - 1024)
        assert "1 damaged or missing DICOM files are left out" in caplog.text, cut
    caplog.clear()
    report = pydicom.dcmread(files[0])
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    report.SOPClassUID = BasicTextSRStorage
    report.save_as(files[-1])
    read_volume(tmp_path / "ct")
    assert not caplog.text
    files[-1].write_bytes(last[:300])
    for file in files[:-1]:
        file.unlink()
    with pytest.raises(FileError, match="'ct' is damaged or cut short"):
        read_volume(tmp_path / "ct")


def test_links_to_slices_that_were_not_fetched_are_pointed_out(tmp_path, caplog):
    stored = write_series(tmp_path / "ct")
    last = max((tmp_path / "ct").iterdir(), key=lambda file: pydicom.dcmread(file).ImagePositionPatient[2])
    last.unlink()
    last.symlink_to("../.git/annex/objects/slice")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array, stored[:-1] - 1024)
    assert "1 damaged or missing DICOM files are left out" in caplog.text


def test_no_patient_in_the_log(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    write_series(tmp_path / "pt", modality="PT", Units="BQML", step=(0, 0.6, 2.4))
    read_volume(tmp_path / "pt")
    assert caplog.records
    assert "DOE" not in caplog.text and "4711" not in caplog.text and str(tmp_path) not in caplog.text


def test_what_the_dicom_library_has_to_say_of_a_header_is_not_heard(tmp_path, caplog, recwarn):
    """It quotes values, once or more for every file."""
    with pytest.warns(UserWarning, match="JANE"):
        write_series(tmp_path / "pt", modality="PT", Units="BQML", SeriesInstanceUID="1.JANE")
    caplog.clear()
    recwarn.clear()
    read_volume(tmp_path / "pt")
    assert "stays in Bq/mL" in caplog.text
    assert "JANE" not in caplog.text
    assert not recwarn.list
    assert not logging.getLogger("pydicom").filters


# PET

INJECTED = datetime(2024, 5, 6, 23, 40, 0)
HALF_LIFE = 6586.2


def pet_tags(waited=3600.0, dose=370e6, **changes):
    agent = Dataset()
    agent.RadionuclideTotalDose, agent.RadionuclideHalfLife = dose, HALF_LIFE
    agent.RadiopharmaceuticalStartTime = INJECTED.strftime("%H%M%S")
    scan = INJECTED + timedelta(seconds=waited)
    return {
        "modality": "PT",
        "description": "FDG",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "PatientWeight": 74.0,
        "RadiopharmaceuticalInformationSequence": [agent],
        "SeriesDate": scan.strftime("%Y%m%d"),
        "SeriesTime": scan.strftime("%H%M%S") + ".00",
        "AcquisitionDate": (scan + timedelta(seconds=30)).strftime("%Y%m%d"),
        "AcquisitionTime": (scan + timedelta(seconds=30)).strftime("%H%M%S"),
    } | changes


def test_pet_becomes_suv_with_every_slice_s_own_slope(tmp_path):
    slopes = [0.5, 1.25, 2.0, 0.123456, 3.75, 1.0]
    stored = write_series(tmp_path / "pt", slopes=slopes, **pet_tags())
    pet = read_volume(tmp_path / "pt")
    # The injection was before midnight, the scan an hour later: the dose has decayed for that hour.
    factor = 74.0 * 1000 / (370e6 * 0.5 ** (3600 / HALF_LIFE))
    assert (pet.modality, pet.units) == ("PT", "SUV")
    expected = stored * np.array(slopes)[:, None, None] * factor
    np.testing.assert_allclose(pet.array, expected, rtol=1e-5)


def test_values_are_those_stored_where_small_ones_are_shown_bright(tmp_path):
    """How an image is to be shown says nothing of its values: ITK turns them over."""
    stored = write_series(
        tmp_path / "pt", PhotometricInterpretation="MONOCHROME1", slopes=[2, 3, 4, 5, 6, 7], Units="CNTS", modality="PT"
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "pt").array, stored * np.arange(2, 8)[:, None, None])
    stored = write_series(tmp_path / "ct", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array, stored - 1024)
    stored = write_series(tmp_path / "mr", PhotometricInterpretation="MONOCHROME1", RescaleSlope=None, modality="MR")
    np.testing.assert_array_equal(read_volume(tmp_path / "mr").array, stored - 1024)


def test_an_injection_told_with_its_day():
    tags = pet_tags(waited=2 * 86400 + 3600)
    agent = tags["RadiopharmaceuticalInformationSequence"][0]
    agent.RadionuclideHalfLife = 282_276  # zirconium-89
    agent.RadiopharmaceuticalStartDateTime = INJECTED.strftime("%Y%m%d%H%M%S.00+0000")
    decayed = 2 ** ((2 * 86400 + 3600) / 282_276)
    assert suv_factor([header(**tags)]) == (pytest.approx(2e-4 * decayed), "SUV")


def test_the_scan_s_time_is_that_of_its_first_slice_where_the_series_has_none():
    expected = pytest.approx(2e-4 * 2 ** (3630 / HALF_LIFE)), "SUV"
    first, later = header(**pet_tags(SeriesDate=None)), header(**pet_tags(waited=4000, SeriesDate=None))
    assert suv_factor([later, first]) == expected


def test_an_injection_of_the_evening_before():
    """As of copper-64, which lasts that long."""
    tags = pet_tags(waited=18 * 3600)
    tags["RadiopharmaceuticalInformationSequence"][0].RadionuclideHalfLife = 45720
    assert suv_factor([header(**tags)]) == (pytest.approx(2e-4 * 2 ** (18 * 3600 / 45720)), "SUV")


def test_suv_of_values_corrected_to_the_injection_takes_the_whole_dose():
    assert suv_factor([header(**pet_tags(DecayCorrection="ADMIN"))]) == (pytest.approx(2e-4), "SUV")


def test_suv_needs_no_factor_where_the_values_are_suv():
    assert suv_factor([header(**pet_tags(Units="GML"))]) == (1.0, "SUV")
    assert suv_factor([header(**pet_tags(Units="GML", SUVType="LBM"))]) == (1.0, "g/mL")


def test_suv_by_the_vendor_s_factor_for_counts():
    dataset = header(**pet_tags(Units="CNTS"))
    dataset.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.000321")
    # The block puts the element at (7053,1000).
    assert suv_factor([dataset]) == (pytest.approx(0.000321), "SUV")
    assert suv_factor([header(**pet_tags(Units="CNTS"))]) == (1.0, "counts")
    # It is for counts alone.
    dataset.Units = "BQML"
    assert suv_factor([dataset]) == suv_factor([header(**pet_tags())])


def test_the_vendor_s_factor_is_read_from_the_files(tmp_path):
    stored = write_series(tmp_path / "pt", slopes=[2] * len(SHAPE) * 2, **pet_tags(Units="CNTS"))
    for file in (tmp_path / "pt").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.25")
        dataset.save_as(file)
    pet = read_volume(tmp_path / "pt")
    assert pet.units == "SUV"
    np.testing.assert_array_equal(pet.array, stored * 0.5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    (
        ({"PatientWeight": None}, "no body weight, dose, half-life or times"),
        ({"PatientWeight": 0}, "a weight, dose or half-life of zero"),
        ({"DecayCorrection": "NONE"}, "no decay correction"),
        ({"RadiopharmaceuticalInformationSequence": []}, "no body weight, dose, half-life or times"),
        ({"SeriesTime": None, "AcquisitionTime": None}, "no body weight, dose, half-life or times"),
        ({"CorrectedImage": ["DECY", "SCAT"]}, "no attenuation correction"),
        ({"waited": -3 * 3600}, "an implausible time between injection and scan"),
        ({"waited": -5}, "an implausible time between injection and scan"),
        ({"dose": 370}, "a dose of a few becquerels (it may be in megabecquerels)"),
    ),
)
def test_pet_stays_in_becquerel_where_the_header_lacks_something(changes, reason, caplog):
    assert suv_factor([header(**pet_tags(**changes))]) == (1.0, "Bq/mL")
    assert f"The PET stays in Bq/mL, since its header has {reason}" in caplog.text


# Multi-frame


def enhanced(count, slopes):
    """Header of a multi-frame CT whose frames go from the top down. slopes: of the frames, or a single one."""
    dataset = header(description="Enhanced", NumberOfFrames=count)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [0.8, 0.6]
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    groups = [Dataset() for _ in range(count)]
    for n, group in enumerate(groups):
        position = Dataset()
        position.ImagePositionPatient = [1, 2, 50 - 3 * n]
        group.PlanePositionSequence = [position]
    for owner, slope in zip(groups if len(slopes) > 1 else [shared], slopes, strict=True):
        values = Dataset()
        values.RescaleSlope, values.RescaleIntercept = slope, -1024
        owner.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def test_an_enhanced_multi_frame_file(tmp_path):
    stored = np.random.default_rng(5).integers(0, 3000, SHAPE)
    dataset = enhanced(len(stored), [1])
    save(dataset, stored, tmp_path / "x" / "enhanced.dcm")
    # Of the last frame: less than all of it is nothing.
    del dataset.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0].ImagePositionPatient
    save(dataset, stored, tmp_path / "y" / "enhanced.dcm")
    with pytest.raises(GeometryError, match="does not say where its images lie"):
        read_volume(tmp_path / "y")
    for path in (tmp_path / "x", tmp_path / "x" / "enhanced.dcm"):
        ct = read_volume(path)
        np.testing.assert_array_equal(ct.array, stored[::-1] - 1024)
        np.testing.assert_allclose(LPS @ ct.affine @ (0, 0, 5, 1), (1, 2, 50, 1))
        assert ct.spacing == pytest.approx((0.6, 0.8, 3.0))


def test_enhanced_files_of_one_frame_each(tmp_path):
    stored = np.random.default_rng(5).integers(0, 3000, SHAPE)
    for n, frame in enumerate(stored):
        dataset = enhanced(1, [1])
        dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [1, 2, 50 + 3 * n]
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 5
        save(dataset, frame[None], tmp_path / "x" / f"{n}.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "x").array, stored - 1024)
    one = read_volume(tmp_path / "x" / "2.dcm")
    np.testing.assert_array_equal(one.array, stored[2:3] - 1024)
    assert one.spacing == pytest.approx((0.6, 0.8, 5.0))


@pytest.mark.parametrize("slopes", ([1], [2.5], [1.5, 2, 0.25, 1, 3, 0.7]), ids=("plain", "shared", "per-frame"))
@pytest.mark.parametrize("compressor", ("JPEG", "JPEG2000"))
def test_a_compressed_multi_frame_file(tmp_path, compressor, slopes):
    """Lossless JPEG, the archives' favourite, is beyond pydicom without further packages."""
    stored = np.random.default_rng(5).integers(0, 3000, (6, 64, 48)).astype(np.uint16)
    writer = sitk.ImageFileWriter()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    writer.Execute(sitk.GetImageFromArray(stored))
    packed = pydicom.dcmread(tmp_path / "packed.dcm")
    assert packed.file_meta.TransferSyntaxUID.is_compressed
    dataset = enhanced(len(stored), slopes)
    dataset.Rows, dataset.Columns = stored.shape[1:]
    dataset.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
    dataset.PixelData = packed.PixelData
    dataset["PixelData"].is_undefined_length = True
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    expected = stored * np.reshape(slopes, (-1, 1, 1)) - 1024
    np.testing.assert_allclose(read_volume(tmp_path / "enhanced.dcm").array, expected[::-1], rtol=1e-6, atol=1e-3)


def test_a_reconstructed_spect(tmp_path):
    stored = np.random.default_rng(5).integers(0, 3000, SHAPE)
    detector = Dataset()
    detector.ImageOrientationPatient, detector.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10, -20, 30]
    dataset = header(modality="NM", description="SPECT", NumberOfFrames=len(stored), RescaleIntercept=0)
    dataset.DetectorInformationSequence = [detector]
    dataset.PixelSpacing, dataset.SpacingBetweenSlices = [4.0, 4.0], 4.0
    save(dataset, stored, tmp_path / "x" / "spect.dcm")
    spect = read_volume(tmp_path / "x")
    assert (spect.modality, spect.spacing) == ("NM", (4.0, 4.0, 4.0))
    np.testing.assert_array_equal(spect.array, stored)
    np.testing.assert_allclose(LPS @ spect.affine @ (0, 0, 2, 1), (-10, -20, 38, 1))
    for kind in ("TOMO", "RECON GATED TOMO"):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", kind, "EMISSION"]
        save(dataset, stored, tmp_path / kind / "spect.dcm")
        with pytest.raises(GeometryError, match="a projection"):
            read_volume(tmp_path / kind)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    save(dataset, stored, tmp_path / "recon" / "spect.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "recon").array, stored)


def test_letters_that_itk_mistakes_on_windows_are_said(tmp_path, monkeypatch, windows):
    """It takes the bytes of UTF-8 for letters of an old alphabet, and finds no file."""
    write_series(tmp_path / "M\xfcller")

    read = sitk.ReadImage
    monkeypatch.setattr(files, "os", windows)
    monkeypatch.setattr(sitk, "ReadImage", lambda name, *options: read(name.encode().decode("cp1252"), *options))
    with pytest.raises(FileError, match=r"“Head” cannot be read: its path has letters other than A to Z"):
        read_volume(tmp_path / "M\xfcller")
