"""DICOM series -> Volume: geometry from positions, HU by the rescale tags, PET in SUV where the header allows it.

No name, ID or date of a patient leaves this file: messages speak of modality and series description.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import FileError, GeometryError, VolumeError
from .files import OF_THE_SYSTEM, other_letters, require_text
from .normalize import has_air_below
from .volume import LPS, MODALITIES, Volume

log = logging.getLogger(__name__)

MAX_UNEVEN = 0.05
"""Share of the slice spacing by which a single gap may differ before the volume would be distorted."""

MOST_ALIKE = 0.02
"""Share of a pixel within which two images lie at one place."""

LEAST_DOSE = 1e4
"""Bq: less than any patient or animal is given for a scan."""

MOST_HALF_LIVES = 10
"""Between injection and scan: of the dose a thousandth is left, and either time is wrong."""

_HEADER = [
    "SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "SeriesNumber", "Modality", "ImageType",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope",
    "RescaleIntercept", "RescaleType", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DetectorInformationSequence", "Units", "SUVType", "DecayCorrection", "CorrectedImage", "PatientWeight",
    "RadiopharmaceuticalInformationSequence", "SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime",
]  # fmt: skip


@contextlib.contextmanager
def _unheard():
    """pydicom warns and logs in words that quote the header's values, hundreds of times: not in anybody's log."""
    logger = logging.getLogger("pydicom")
    logger.addFilter(_nothing)  # not its level, which pydicom sets when it is imported
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(record):
    return False


@_unheard()
def read_series(path, series=None):
    """Read one series as a Volume.

    path: a folder (searched with its subfolders) or one DICOM file. series: which one, where there are
    several: its number, its description or its instance UID.

    CT is in HU. PET is in SUV (body weight) where the header has what it takes, else in its own units; the
    log says which. A tilted gantry gives a sheared affine, which keeps every voxel in its true place.

    Raises FileError for no images or an unclear choice, GeometryError for missing or uneven slices,
    VolumeError for a series with several images at one place (time points, echoes).
    """
    path = Path(path)
    groups = _scan(path)
    if not groups:
        raise FileError(
            f"{path.resolve().name!r} holds no DICOM images: choose the folder of a CT, MR, PT or NM series."
        )
    headers = _choose(groups, series, path.resolve().name)
    first = headers[0]
    if int(first.get("SamplesPerPixel") or 1) != 1:
        raise VolumeError(f"the series {_label(first)} is in colour: choose the scan itself, not a capture of it.")
    frames = _frames(headers)
    affine, frames = _geometry(frames, _label(first))
    array = _pixels(frames, (int(first.Rows), int(first.Columns)), _label(first))
    modality = _text(first, "Modality")
    modality = modality if modality in MODALITIES else "OT"
    units = ""
    if modality == "CT" and _is_hu(first, frames[0].intercept, array):
        units = "HU"
    elif modality == "PT":
        factor, units = suv_factor(headers)
        array *= np.float32(factor)
    name = _text(first, "SeriesDescription") or modality
    return Volume(_compact(array), LPS @ affine, modality, units, name)


def _is_hu(header, intercept, array):
    """Whether a CT is in HU: air is far below zero, or would be by the intercept where a crop has none. Without either
    it is in some scale of the scanner's own, whatever its header says."""
    said = _text(header, "RescaleType")
    if intercept is None:
        intercept = float(header.get("RescaleIntercept") or 0)
    return said in ("HU", "US", "") and (
        intercept <= -500 or has_air_below(array) or (said == "HU" and array.min() < 0)
    )


def suv_factor(headers):
    """(factor, units) that turn a PET series' stored values into SUV by body weight, or leave them.

    headers: the series' datasets. Values that are not corrected for attenuation are no SUV. The decay-corrected dose
    follows the vendor-neutral reading of the standard: values corrected to the scan's start ("START") are divided by
    the dose decayed until then, values corrected to the injection ("ADMIN") by the whole dose.
    """
    first = headers[0]
    units = _text(first, "Units")
    kept = {"BQML": "Bq/mL", "CNTS": "counts", "GML": "g/mL"}.get(units, units)
    if units == "GML" and _text(first, "SUVType") in ("BW", ""):
        return 1.0, "SUV"
    if units == "CNTS" and (0x7053, 0x1000) in first:
        # Philips: counts to SUV.
        with contextlib.suppress(ValueError, TypeError):
            factor = float(first[0x7053, 0x1000].value)
            if factor > 0:
                return factor, "SUV"
    if units != "BQML":
        return 1.0, kept
    reason = ""
    try:
        agent = first.RadiopharmaceuticalInformationSequence[0]
        weight, dose = float(first.PatientWeight), float(agent.RadionuclideTotalDose)
        half_life = float(agent.RadionuclideHalfLife)
        correction = _text(first, "DecayCorrection")
        if min(weight, dose, half_life) <= 0:
            reason = "a weight, dose or half-life of zero"
        elif dose < LEAST_DOSE:
            reason = "a dose of a few becquerels (it may be in megabecquerels)"
        elif _text(first, "CorrectedImage") and "ATTN" not in _text(first, "CorrectedImage"):
            reason = "no attenuation correction"
        elif correction == "ADMIN":
            return 1000 * weight / dose, "SUV"
        elif correction == "START":
            waited = _seconds_from_injection(headers, agent)
            if 0 <= waited < MOST_HALF_LIVES * half_life:
                return 1000 * weight / (dose * 2 ** (-waited / half_life)), "SUV"
            reason = "an implausible time between injection and scan"
        else:
            reason = "no decay correction"
    except (AttributeError, IndexError, TypeError, ValueError):
        reason = "no body weight, dose, half-life or times"
    log.warning("The PET stays in Bq/mL, since its header has %s to make SUV of it.", reason)
    return 1.0, kept


def _seconds_from_injection(headers, agent):
    scans = []
    for header in headers:
        for kind in ("Series", "Acquisition"):
            day, clock = header.get(f"{kind}Date") or header.get("SeriesDate"), header.get(f"{kind}Time")
            if day and clock:
                scans.append(_moment(day, clock))
    scan = min(scans)  # ValueError where nothing says when
    if agent.get("RadiopharmaceuticalStartDateTime"):
        text = str(agent.RadiopharmaceuticalStartDateTime)
        injected = _moment(text[:8], text[8:])
    else:
        injected = _moment(scan.strftime("%Y%m%d"), agent.RadiopharmaceuticalStartTime)
        # Of the day before; not where a scan was started some seconds or minutes before the injection.
        if injected - scan > timedelta(hours=1):
            injected -= timedelta(days=1)
    return (scan - injected).total_seconds()


def _moment(day, clock):
    digits = str(clock).split("+")[0].split("-")[0].partition(".")[0].ljust(6, "0")
    return datetime.strptime(str(day)[:8] + digits[:6], "%Y%m%d%H%M%S")


def _scan(path):
    """{series instance UID: [header, ...]}; every header knows its `filename`."""
    import pydicom

    # A link to nowhere, as of a dataset fetched in part, is an image that is lost.
    found = [path] if path.is_file() else _files(path)
    files = [file for file in found if file.is_file() or (file.is_symlink() and not file.exists())]
    groups, damaged = defaultdict(dict), 0
    for file in files:
        if file.name == "DICOMDIR":
            continue
        try:
            header = pydicom.dcmread(file, specific_tags=[*_HEADER, 0x70531000], stop_before_pixels=True)
            list(header)  # its values are decoded here, or not at all
            if "Rows" in header and "Columns" in header:
                # The place too: what makes a series anonymous may give all its images one UID, or none.
                image = header.get("SOPInstanceUID"), str(header.get("ImagePositionPatient"))
                groups[str(header.get("SeriesInstanceUID", ""))].setdefault(image, header)
            elif "SOPClassUID" not in header or "Image Storage" in header.SOPClassUID.name:
                damaged += 1  # cut short: reports, contours and the like have no rows, but say what they are
        except pydicom.errors.InvalidDicomError:
            continue
        except PermissionError:
            raise
        except Exception:  # pydicom knows many ways to fail
            damaged += 1
    if damaged and not groups:
        raise FileError(f"{path.resolve().name!r} is damaged or cut short: copy or export it again.")
    if damaged:
        log.warning(
            "%d damaged or missing DICOM files are left out: see that the series is whole, or copy it again.", damaged
        )
    return {uid: list(headers.values()) for uid, headers in groups.items()}


def _files(folder):
    """Paths of all files in a folder and its subfolders. Raises OSError for one that may not be looked into: a glob
    would take it for an empty one, and what is left of its series for the whole."""

    def stop(error):
        if Path(error.filename).name not in OF_THE_SYSTEM:
            raise error

    return sorted(Path(place, name) for place, _, names in os.walk(folder, onerror=stop) for name in names)


def _choose(groups, series, folder):
    if series is None:
        if len(groups) == 1:
            return next(iter(groups.values()))
        raise FileError(
            f"{folder!r} holds {len(groups)} DICOM series: say which (--series, in Python series=), or put each into a"
            f" folder of its own.{_listing(groups)}"
        )
    wanted = str(series).strip().lower()
    found = []
    for uid, headers in groups.items():
        first = headers[0]
        names = (uid, _text(first, "SeriesNumber"), _text(first, "SeriesDescription").lower())
        if wanted in names:
            found.append(headers)
    if len(found) != 1:
        count = "no" if not found else str(len(found))
        raise FileError(f"{count} DICOM series of {folder!r} is called {series!r}: choose one.{_listing(groups)}")
    return found[0]


def _listing(groups):
    lines = sorted(
        (int(headers[0].get("SeriesNumber") or 0), _label(headers[0]), len(headers)) for headers in groups.values()
    )
    return "".join(f"\n  {number}: {label}, {count} file{'s' * (count > 1)}" for number, label, count in lines)


def _label(header):
    description = _text(header, "SeriesDescription") or "without description"
    return f"{_text(header, 'Modality') or 'OT'} “{description}”"


def _text(header, keyword):
    """A tag's value as text; "" where the tag is absent or empty."""
    value = header.get(keyword)
    return "" if value is None else str(value).strip()


class _Frame:
    """One image: where its voxels are (LPS mm) and where its pixels come from. measures: what says their size."""

    def __init__(self, header, index, position, orientation, measures, slope=None, intercept=None):
        self.file, self.index, self.inverted = header.filename, index, _is_inverted(header)
        self.position = np.array(position, float)
        self.row, self.column = np.array(orientation, float).reshape(2, 3)
        self.spacing = tuple(float(s) for s in measures.PixelSpacing)
        self.slope, self.intercept = slope, intercept
        self.step = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0)


def _frames(headers):
    frames, lost = [], 0
    for header in headers:
        try:
            if "PerFrameFunctionalGroupsSequence" in header:
                frames += list(_enhanced(header))
            elif int(header.get("NumberOfFrames") or 1) > 1:
                frames += list(_multi_frame(header))
            else:
                where = header.ImagePositionPatient, header.ImageOrientationPatient, header
                if _is_inverted(header):  # ITK turns the values over where small ones are to be shown bright
                    frames.append(_Frame(header, 0, *where, *_rescale(header)))
                else:
                    frames.append(_Frame(header, None, *where))
        except (AttributeError, IndexError, TypeError, ValueError):
            lost += 1
    if lost:
        if not frames:
            raise GeometryError(
                f"the series {_label(headers[0])} does not say where its images lie in the patient: it is a capture or"
                " a projection. Choose the reconstructed slices."
            )
        log.warning("%d images of the series say no position and are left out.", lost)
    return frames


def _is_inverted(header):
    return _text(header, "PhotometricInterpretation") == "MONOCHROME1"


def _rescale(header):
    """(slope, intercept) of an image's stored values."""
    return float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)


def _enhanced(header):
    shared = header.get("SharedFunctionalGroupsSequence") or [{}]
    for index, group in enumerate(header.PerFrameFunctionalGroupsSequence):

        def find(sequence, group=group):
            return (group.get(sequence) or shared[0].get(sequence))[0]

        values = group.get("PixelValueTransformationSequence") or shared[0].get("PixelValueTransformationSequence")
        slope, intercept = (values[0].RescaleSlope, values[0].RescaleIntercept) if values else (1, 0)
        yield _Frame(
            header,
            index,
            find("PlanePositionSequence").ImagePositionPatient,
            find("PlaneOrientationSequence").ImageOrientationPatient,
            find("PixelMeasuresSequence"),
            float(slope),
            float(intercept),
        )


def _multi_frame(header):
    """Reconstructed SPECT: one position for the first frame, then a step."""
    if _text(header, "Modality") == "NM" and list(header.get("ImageType", ()))[2:3] not in ([], ["RECON TOMO"]):
        raise ValueError("projections, or the phases of a beating heart, are no slices")
    detector = (header.get("DetectorInformationSequence") or [header])[0]
    orientation = detector.get("ImageOrientationPatient") or header.ImageOrientationPatient
    origin = np.array(detector.get("ImagePositionPatient") or header.ImagePositionPatient, float)
    normal = np.cross(*np.array(orientation, float).reshape(2, 3))
    step = float(header.get("SpacingBetweenSlices") or header.SliceThickness)
    for index in range(int(header.NumberOfFrames)):
        yield _Frame(header, index, origin + index * step * normal, orientation, header, *_rescale(header))


def _geometry(frames, label):
    """(4x4 affine, index (i, j, k) -> LPS mm; the frames in the order of k)."""
    first = frames[0]
    for frame in frames:
        turned = max(np.abs(frame.row - first.row).max(), np.abs(frame.column - first.column).max())
        if turned > 1e-3 or not np.allclose(frame.spacing, first.spacing, rtol=1e-3):
            raise GeometryError(
                f"the series {label} mixes images of different directions or pixel sizes (a scout among the slices?):"
                " choose a series of parallel slices."
            )
    normal = np.cross(first.row, first.column)
    places = np.array([frame.position @ normal for frame in frames])
    order = np.argsort(places, kind="stable")
    frames, gaps = [frames[n] for n in order], np.diff(places[order])
    step = normal * first.step
    if len(frames) > 1:
        typical = float(np.median(gaps))
        if gaps.min() < MOST_ALIKE * min(first.spacing):
            raise VolumeError(
                f"the series {label} has several images at one place (time points, echoes or phases): export one of"
                " them as a series of its own."
            )
        lost = int(np.rint(gaps / typical - 1)[gaps > 1.5 * typical].sum())
        if lost:
            raise GeometryError(
                f"the series {label} lacks {lost} of its slices (gaps up to {gaps.max():.2f} mm where the spacing is"
                f" {typical:.2f} mm): export it again."
            )
        uneven = float(np.abs(gaps - typical).max())
        if uneven > MAX_UNEVEN * typical:
            raise GeometryError(
                f"the series {label} has uneven slices ({gaps.min():.2f} to {gaps.max():.2f} mm apart): resample it to"
                " even ones first (Slicer's DICOM import regularises them)."
            )
        step = (frames[-1].position - frames[0].position) / (len(frames) - 1)
        tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
        if tilt > 0.1:
            log.warning("The gantry was tilted by %.1f degrees: the volume has a sheared grid.", tilt)
    affine = np.eye(4)
    # DICOM's spacing is (between rows, between columns); i runs along a row.
    affine[:3, 0], affine[:3, 1] = frames[0].row * frames[0].spacing[1], frames[0].column * frames[0].spacing[0]
    affine[:3, 2], affine[:3, 3] = step, frames[0].position
    return affine, frames


def _pixels(frames, shape, label):
    """float32 (K, J, I), rescaled. Slice by slice: every PET slice has a slope of its own."""
    array = np.empty((len(frames), *shape), np.float32)
    stacks = {}
    for plane, frame in zip(array, frames, strict=True):
        require_text(frame.file)
        try:
            if frame.index is None:
                plane[...] = sitk.GetArrayFromImage(sitk.ReadImage(frame.file, sitk.sitkFloat32)).reshape(shape)
            else:
                if frame.file not in stacks:
                    stack = _stack(next(f for f in frames if f.file == frame.file and f.index == 0))
                    stacks[frame.file] = stack.reshape(-1, *shape)  # of a single frame it is (R, C)
                np.multiply(stacks[frame.file][frame.index], frame.slope, out=plane, casting="unsafe")
                plane += np.float32(frame.intercept)
        except (RuntimeError, ValueError, IndexError) as error:
            if letters := other_letters(frame.file):
                raise FileError(f"the series {label} cannot be read: {letters}") from error
            raise FileError(
                f"the series {label} has pixels that cannot be read (damaged, of another size, or an unusual"
                " compression): export it again, uncompressed."
            ) from error
    return array


def _stack(first):
    """Stored values of a multi-frame file, (F, R, C) or of one frame (R, C), of which `first` is the first frame."""
    import pydicom

    try:
        return pydicom.dcmread(first.file).pixel_array
    except (AttributeError, NotImplementedError) as error:
        raise ValueError("no pixels") from error
    except RuntimeError:
        if first.inverted:
            raise
        # ITK unpacks more, lossless JPEG above all, and has rescaled every frame as the first one.
        rescaled = sitk.GetArrayFromImage(sitk.ReadImage(first.file, sitk.sitkFloat64))
        stored = (rescaled - first.intercept) / first.slope
        if np.abs(stored - np.rint(stored)).max() > 0.01:
            raise
        return np.rint(stored)


def _compact(array):
    """int16 where that holds every value exactly, as CT does: half the memory."""
    if array.min() >= -32768 and array.max() <= 32767 and all(np.array_equal(p, np.rint(p)) for p in array):
        return array.astype(np.int16)
    return array
