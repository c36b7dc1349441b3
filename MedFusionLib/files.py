"""Volumes <-> files: NIfTI, NRRD, MetaImage, whatever else SimpleITK reads, and DICOM folders."""

from __future__ import annotations

import contextlib
import errno
import gzip
import locale
import logging
import math
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import FileError, GeometryError, VolumeError
from .normalize import looks_like_hu, peaks_at_air
from .volume import FUNCTIONAL, LPS, MODALITIES, Volume, require_volume, sample

log = logging.getLogger(__name__)

WRITABLE = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""File name endings that `write_volume` takes; of these `.nhdr` and `.mhd` have a second file for the voxels."""

OF_THE_SYSTEM = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
"""Folders on every disk that users may not look into."""

MAX_LABELS = 48
"""An integer image with no more different values than this is a segmentation, not a scan."""

MAX_SAMPLES = 200_000
"""Voxels that a guess looks at."""

_TOKENS = {
    "CT": {"ct", "ctac", "cbct"},
    "MR": {"mr", "mri", "t1", "t1w", "t1c", "t1ce", "t2", "t2w", "flair", "pd", "pdw", "mprage", "dwi", "adc", "swi"},
    "PT": {"pt", "pet", "fdg", "suv", "fet", "psma", "amyloid"},
    "NM": {"nm", "spect", "hmpao", "datscan"},
    "US": {"us", "ultrasound"},
}
MOST_DEFLATED = 1032
"""How many times as long as its file a gzip stream can be."""

HEADER, HEADER_2 = 348, 540
"""Bytes of a NIfTI header, which its first number says, and of one of NIfTI's second version."""

_METADATA = "MedFusion."
_POINTERS = (b"/annex/objects/", b"version https://git-lfs.")
"""How the text files begin that stand for files not fetched yet."""
_IN_TWO = (".mhd", ".nhdr", ".hdr", ".img")
"""Endings of files that are one with another one: of the header and of the voxels."""


def read_volume(path, modality=None, units=None, name=None, *, series=None, labels=False):
    """Read a file or a DICOM folder.

    modality, units: None: from the DICOM header, from what MedFusion itself wrote, or `guess_modality`.
    name: None: the file's name without its ending, or the DICOM series description.
    series: which DICOM series of a folder that holds several: its number, description or instance UID.
    labels: True: take a segmentation (a mask) too, which is otherwise refused as no scan.

    Returns a `Volume` in RAS mm; a 2-D image becomes one slice, an RGB image a (K, J, I, 3) volume.
    Raises FileError for what is missing or cannot be read, VolumeError for what is no volume of one scan.
    """
    path = Path(path)
    require_text(path)
    try:
        folder = path.is_dir()
        if path.is_symlink() and not path.exists():
            raise FileError(f"{path.name!r} is a link to what is not there: get its content first (git-annex?).")
        if not folder and not path.is_file():
            raise FileError(f"there is no file or folder {path.name!r}: check the path.")
        if folder or _is_dicom(path):
            from .dicom import read_series

            volume = read_series(path, series)
        else:
            volume = _from_file(path)
    except PermissionError as error:
        barred = Path(error.filename or path)
        raise FileError(f"{barred.name!r} may not be read: check its permissions.") from error
    except FileError:
        raise
    except OSError as error:  # of a network, a disk, or a cloud that has the file
        raise FileError(
            f"{path.name!r} cannot be read ({error.strerror or error}): see that it opens elsewhere, or copy it to a"
            " disk of this machine."
        ) from error
    said = modality or volume.modality
    if modality is None and volume.modality == "OT":
        modality = guess_modality(volume, path.name)
    if modality is not None or units is not None or name is not None:
        kept = volume.units if units is None else units
        volume = volume.with_array(
            volume.array, modality=modality or volume.modality, units=kept, name=volume.name if name is None else name
        )
    if not volume.is_vector and looks_like_hu(volume):
        volume = volume.with_array(volume.array, units="HU")
    # Few counts in PET or SPECT are few different numbers too.
    if not labels and said not in FUNCTIONAL:
        _refuse_labels(volume)
    return volume


def write_volume(volume, path):
    """Write a volume as `.nii.gz`, `.nii`, `.nrrd`, `.nhdr`, `.mha` or `.mhd`.

    The file is written beside its place and moved there when it is whole, so that a failure leaves what was
    there before. Units, modality and attributes go along in NRRD and MetaImage.

    Raises FileError if it cannot be written, GeometryError for a sheared grid in a format that has none.
    """
    require_volume(volume)
    path = Path(path)
    require_writable(path, volume)
    ending = _ending(path.name)
    image = to_sitk(volume)
    for key, value in {"Modality": volume.modality, "Units": volume.units, "Name": volume.name}.items():
        if value:
            image.SetMetaData(_METADATA + key, _line(value))
    if volume.display_range:
        image.SetMetaData(_METADATA + "DisplayRange", f"{volume.display_range[0]!r} {volume.display_range[1]!r}")
    for key, value in volume.attributes.items():
        image.SetMetaData(key, _line(str(value)))
    with written_beside(path) as partial, _quiet():
        try:
            sitk.WriteImage(image, str(partial), useCompression=ending != ".nii")
            if not partial.exists():
                raise RuntimeError  # written under another name, see `other_letters`
            # NIfTI's writer says nothing of a full disk.
            if ending in (".nii", ".nii.gz"):
                header = sitk.ImageFileReader()
                header.SetFileName(str(partial))
                header.ReadImageInformation()
                if not _is_whole((partial, partial), header):
                    raise RuntimeError
        except RuntimeError as error:
            raise FileError(_why_not_written(path, partial)) from error


def require_writable(path, volume=None):
    """Raise FileError if `write_volume` could not write to `path`, as far as that can be told before.

    volume: one on the grid that would be written, where it is known: GeometryError if the format has no such grids.
    """
    path = Path(path)
    # ITK knows the small ones alone, and writes others under another name or not at all.
    if not path.name.endswith(WRITABLE):
        raise FileError(f"{path.name!r}: write {', '.join(WRITABLE)}, in small letters; the ending says which.")
    # Readers would look for a list of files, or for one of another name.
    if path.suffix in (".nhdr", ".mhd") and re.search(r"^LIST|^ |[%\x00-\x1f]", path.name):
        raise FileError(
            f"{path.name!r}: the header could not name the file of its voxels so that readers find it: choose another"
            " name, or .nrrd or .mha."
        )
    require_place(path)
    if volume is not None and _ending(path.name) in (".nii", ".nii.gz") and _is_sheared(volume.affine):
        raise GeometryError(
            f"{volume.title} has a sheared grid (a CT with gantry tilt, say), which NIfTI readers do not agree on:"
            " write .nrrd."
        )


def require_place(path):
    """Raise FileError if no file could be put at `path`, as far as that can be told before."""
    path = Path(path)
    require_text(path)
    if not path.parent.is_dir():
        raise FileError(f"the folder of {path.name!r} does not exist: make it first.")
    if not takes_files(path.parent):
        raise FileError(f"the folder of {path.name!r} may not be written to: choose another one.")
    if path.is_dir():
        raise FileError(f"{path.name!r} is a folder: name a file in it.")


def takes_files(folder):
    """Whether files can be put into a folder.

    It is tried, and once: Windows' os.access knows of no access lists, and there `tempfile` (before Python 3.13) takes
    a refusal for a name that is taken already, and tries others for hours.
    """
    trial = Path(folder) / f".medfusion-{secrets.token_hex(8)}"
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError:
        return False
    return True


def require_text(path):
    """Raise FileError for a path that is no UTF-8, as old archives unpack to (ITK would end the process), that is too
    long, or in a folder that may not be looked into."""
    try:
        str(path).encode()
        os.stat(path)
    except UnicodeEncodeError as error:
        raise FileError(f"the path of {Path(path).name!r} has letters that are no UTF-8: rename it.") from error
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise FileError(f"{Path(path).name!r} cannot be reached ({error.strerror}): check the path.") from error


def is_same(path, other):
    """Whether two paths are of one file, however written: the disks of Windows and macOS tell capitals from small
    letters as little as a composed letter from a decomposed one."""
    try:
        return os.path.samefile(path, other)
    except OSError:  # not there yet
        return Path(path).resolve() == Path(other).resolve()


def plain(name):
    """A file's name as the disks of Windows and macOS compare names: see `is_same`."""
    return unicodedata.normalize("NFC", name).lower()


def require_space(path, size):
    """Raise FileError unless `size` bytes can be written beside `path`, by the disk's space and the user's quota."""
    path = Path(path)
    try:
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryFile(dir=path.parent) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return  # a file system that cannot reserve space
        raise FileError(
            f"{path.name!r} cannot be written ({error.strerror}): free some space or choose another place."
        ) from error


@contextlib.contextmanager
def written_beside(path):
    """A path in a private folder beside `path`, with its name; what is written there is moved into place at the end.

    Other files that the writer puts next to it move along. When the body raises, nothing is left behind.
    """
    path = Path(path)
    require_place(path)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".medfusion-", dir=path.parent)
    except OSError as error:
        raise FileError(f"{path.name!r} cannot be written ({error.strerror}): choose another folder.") from error
    with folder:
        yield Path(folder.name) / path.name
        try:
            # The header last: it is what makes the others a file.
            for file in sorted(Path(folder.name).iterdir(), key=lambda f: f.name == path.name):
                os.replace(file, path.parent / file.name)
        except OSError as error:
            raise FileError(f"{path.name!r} cannot be written ({error.strerror}): choose another place.") from error


def guess_modality(volume, file_name=""):
    """A DICOM term for a volume that does not say what it is.

    By a word of its file's name ("pet", "t1w", ...), else by its values: air at -1000 and bone above 300 make a
    CT in Hounsfield units. Else "OT": MRI, PET and SPECT cannot be told apart safely by their values.
    """
    # Of "t1_on_ct", t1 is what it shows, and ct whose grid it is on.
    shown = re.split(r"[^a-z0-9]on[^a-z0-9]", file_name.lower())[0]
    words = set(re.split(r"[^a-z0-9]+", shown))
    named = [modality for modality, tokens in _TOKENS.items() if words & tokens]
    if len(named) == 1:
        return named[0]
    if volume.is_vector or volume.array.dtype.kind == "u":
        return "OT"
    values = sample(volume.array, MAX_SAMPLES)
    values = values[np.isfinite(values)]
    if not values.size:
        return "OT"
    low, high = np.percentile(values, (0.5, 99.5))
    # Air is a peak; the noise of a phase image, which is as wide, is the same everywhere.
    return "CT" if -4100 <= low <= -900 and 100 < high < 20_000 and peaks_at_air(values) else "OT"


def to_sitk(volume):
    """SimpleITK image (LPS mm) of a volume; vectors stay as they are. Copies the voxels."""
    array = volume.array
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    image = sitk.GetImageFromArray(array, isVector=volume.is_vector)
    matrix = LPS @ volume.affine
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing([float(s) for s in spacing])
    image.SetDirection([float(x) for x in (matrix[:3, :3] / spacing).reshape(-1)])
    image.SetOrigin([float(x) for x in matrix[:3, 3]])
    return image


def affine_of(image):
    """4x4 of a 3-D SimpleITK image or reader: voxel index (i, j, k) -> RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return LPS @ matrix


def _line(text):
    """A text as headers can hold it: of several lines, MetaImage's writer makes a file that none can read."""
    return re.sub(r"[\x00-\x1f]+", " ", text.encode(errors="replace").decode())


@contextlib.contextmanager
def _by_itself(path):
    """`path`, or a link to it from a folder of its own, where ITK would read another file's voxels: of scan.nii.gz it
    takes the header, and the voxels of a scan.nii that lies beside it."""
    if _ending(path.name) != ".nii.gz" or not path.with_suffix("").exists():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "scan.nii.gz"
        try:
            alone.symlink_to(path.resolve())
        except OSError:  # Windows, without the right to make links
            shutil.copyfile(path, alone)
        yield alone


def _from_file(path):
    reader = sitk.ImageFileReader()
    try:
        with _quiet(), _by_itself(path) as alone:
            reader.SetFileName(str(alone))
            reader.ReadImageInformation()
            _check_header(reader, path)
            if not _names_all_slices(path, reader):
                raise FileError(
                    f"{path.name!r} does not name a file for each of its slices, every one in a line with an end: write"
                    " it again."
                )
            nifti = _parts_of_nifti(path) if reader.HasMetaDataKey("vox_offset") else None
            # Before there is memory for voxels that cannot be in the file.
            if nifti and not _could_be_whole(nifti, reader):
                raise FileError(_damaged(path))
            image = reader.Execute()
    except RuntimeError as error:
        raise FileError(_why_not_read(path, str(error))) from error
    image = _as_3d(image)
    array = sitk.GetArrayFromImage(image)
    if nifti and not _is_whole(nifti, reader, array):
        raise FileError(_damaged(path))
    if nifti and {reader.GetMetaData("qform_code"), reader.GetMetaData("sform_code")} == {"0"}:
        log.warning(
            "A scan of %d x %d x %d voxels does not say how it lies in the patient (Analyze, or NIfTI without"
            " orientation): left and right, front and back are guesses. Convert it from DICOM again.",
            *array.shape[2::-1],
        )
    # Its own alone: SimpleITK cannot look up the names of others that are no UTF-8.
    keys = [key for key in image.GetMetaDataKeys() if key.startswith(_METADATA)]
    try:
        own = {key.removeprefix(_METADATA): image.GetMetaData(key) for key in keys}
        window = [float(value) for value in own.get("DisplayRange", "").split()]
    except (TypeError, ValueError) as error:
        raise FileError(_damaged(path)) from error
    fields = {"Modality", "Units", "Name", "DisplayRange"}
    modality = own.get("Modality", "OT")
    return Volume(
        array,
        affine_of(image),
        modality if modality in MODALITIES else "OT",
        own.get("Units", ""),
        own.get("Name") or path.name[: len(path.name) - len(_ending(path.name))],
        tuple(window) or None,
        {_METADATA + key: value for key, value in own.items() if key not in fields},
    )


def _check_header(reader, path):
    size = reader.GetSize()
    if any(n > 1 for n in size[3:]):
        raise VolumeError(
            f"{path.name!r} is a {len(size)}-D series ({' x '.join(map(str, size))}): save one time point or channel of"
            " it as a file of its own."
        )
    components = reader.GetNumberOfComponents()
    if components not in (1, 3):  # complex numbers are two
        raise VolumeError(
            f"{path.name!r} has {components} values a voxel: give a scalar volume (or RGB, which can be shown but not"
            " fused)."
        )


def _names_all_slices(path, header):
    """Whether a MetaImage whose slices are files of their own has a whole line for each of them: ITK makes the others
    of what was in memory. header: an ITK reader. True for all other files."""
    if path.suffix.lower() not in (".mhd", ".mha"):
        return True
    with open(path, "rb") as file:
        found = re.search(rb"^ElementDataFile *= *LIST *(\d*)[^\n]*\n(.*)", file.read(2**20), re.DOTALL | re.MULTILINE)
    if not found:
        return True
    dimensions = int(found[1] or header.GetDimension() - 1)
    return found[2].count(b"\n") >= math.prod(header.GetSize()[dimensions:])


def _parts_of_nifti(path):
    """(file of the header, file of the voxels) of a NIfTI or Analyze file: .hdr and .img are two."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return path, path
    stem = re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    # Last, and so before others that only some disks take for the same, those that are written as `path` is.
    files = sorted(path.parent.iterdir(), key=lambda file: file.name.startswith(stem))
    beside = {plain(file.name): file for file in files}
    parts = []
    for ending in (".hdr", ".img"):
        names = plain(stem + ending), plain(f"{stem}{ending}.gz")
        parts.append(next((beside[name] for name in names if name in beside), path))
    return tuple(parts)


def _could_be_whole(parts, header):
    """Whether a NIfTI file is long enough for the voxels that its header (an ITK reader) tells of."""
    return parts[1].stat().st_size * (MOST_DEFLATED if _is_packed(parts[1]) else 1) >= _length(header)


def _is_whole(parts, header, array=None):
    """Whether a NIfTI file holds all the voxels that its header (an ITK reader) tells of; one pass, if any is needed.

    ITK's reader takes what a file that was cut short lacks for zeros. It makes zeros of NaN and infinity as well, which
    is water in CT: they are put back into `array`, where one is given that holds what it read.
    """
    packed = _is_packed(parts[1])
    scalar = array is not None and array.ndim == 3
    kind = {"16": "f4", "64": "f8"}.get(header.GetMetaData("datatype")) if scalar else None
    if kind is None and not packed:
        return _could_be_whole(parts, header)
    values, done, size = array.reshape(-1) if kind else None, 0, 0
    try:
        with _unpacked(parts[0]) as file:
            # It begins with its own size, which only makes sense in the file's byte order.
            order = "<" if int.from_bytes(file.read(4), "little") == HEADER else ">"
        with _unpacked(parts[1]) as file:
            size += len(file.read(int(float(header.GetMetaData("vox_offset")))))
            while data := file.read(2**24):
                size += len(data)
                if kind:
                    part = np.frombuffer(data, order + kind, len(data) // int(kind[1]))[: values.size - done]
                    gaps = ~np.isfinite(part)
                    values[done : done + len(part)][gaps] = part[gaps]
                    done += len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False
    return size >= _length(header)


def _length(header):
    """Bytes of a NIfTI file, unpacked, by its header (an ITK reader)."""
    dimensions = [int(header.GetMetaData(f"dim[{n + 1}]")) for n in range(int(header.GetMetaData("dim[0]")))]
    return float(header.GetMetaData("vox_offset")) + math.prod(dimensions) * int(header.GetMetaData("bitpix")) / 8


def _is_packed(path):
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _unpacked(path):
    return gzip.open(path) if _is_packed(path) else open(path, "rb")


def _is_torn(path):
    """Whether a file is packed and cannot be unpacked; ITK says of one whose beginning is damaged that it is none."""
    try:
        with gzip.open(path) as file:
            while file.read(2**24):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return _is_packed(path)
    return False


def _as_3d(image):
    if image.GetDimension() == 2:
        return sitk.JoinSeries(image)
    while image.GetDimension() > 3:
        image = sitk.Extract(image, [*image.GetSize()[:-1], 0], [0] * image.GetDimension())
    return image


def _refuse_labels(volume):
    array = volume.array
    if array.dtype.kind == "f" or array.size < 4096:
        return
    seen = np.unique(sample(array, MAX_SAMPLES))
    # A constant image is refused in its own words, and later.
    if 1 < seen.size <= MAX_LABELS and np.unique(array).size <= MAX_LABELS:
        raise VolumeError(
            f"{volume.title} holds whole numbers, no more than {MAX_LABELS} different ones: that is a segmentation"
            " (label map) and not a scan. Choose the scan it was drawn on; of a PET or SPECT with few counts, say its"
            " modality."
        )


def _is_dicom(path):
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _is_sheared(affine):
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4)


def _ending(name):
    return ".nii.gz" if name.lower().endswith(".nii.gz") else Path(name).suffix.lower()


def _why_not_read(path, said):
    if path.stat().st_size == 0:
        return f"{path.name!r} is empty: copy or export it again."
    with open(path, "rb") as file:
        if file.read(40).startswith(_POINTERS):
            return f"{path.name!r} is only a pointer of git-annex or Git LFS: get its content first."
    if "orthonormal" in said:
        return (
            f"{path.name!r} has a sheared grid (a CT with gantry tilt, say), which NIfTI readers do not agree on:"
            " convert it to .nrrd, or read the DICOM folder."
        )
    if _is_torn(path):
        return _damaged(path)
    with _unpacked(path) as file:
        start = file.read(4)
    if HEADER_2 in (int.from_bytes(start, "little"), int.from_bytes(start, "big")):
        return f"{path.name!r} is NIfTI-2, which MedFusion does not read: save it as NIfTI-1 or NRRD."
    if letters := other_letters(path):
        return f"{path.name!r} cannot be read: {letters}"
    unknown = "Unable to determine ImageIO" in said or "no suitable ImageIO" in said.lower()
    if unknown and path.suffix.lower() != ".img":
        return f"{path.name!r} is no image format that MedFusion reads: give NIfTI, NRRD, MetaImage or a DICOM folder."
    return _damaged(path)


def _damaged(path):
    if path.suffix.lower() in _IN_TWO:
        return (
            f"{path.name!r} cannot be read: it or the other file that belongs to it, of header or voxels, is damaged,"
            " cut short or not there. Copy or export both again."
        )
    return f"{path.name!r} cannot be read: it is damaged or cut short. Copy or export it again."


def other_letters(path):
    """What is to be said of a path that ITK may take for another one; "" where it cannot.

    On Windows it reads the letters in the system's old alphabet.
    """
    if os.name != "nt" or str(Path(path).absolute()).isascii():
        return ""
    return (
        "its path has letters other than A to Z, which ITK mistakes on Windows. Choose a folder and a name without"
        " them, or switch on UTF-8 for all languages in Windows' region settings."
    )


def _why_not_written(path, partial):
    full = shutil.disk_usage(partial.parent).free < 2**20
    return f"{path.name!r} cannot be written: " + (
        "the disk is full. Free some space."
        if full
        else other_letters(path) or "check the disk's space, your quota and the folder's permissions."
    )


@contextlib.contextmanager
def _quiet():
    """ITK prints its warnings, file paths included, straight to standard error: not in anybody's log. And where Qt, or
    whatever else is in this process, has set a decimal comma, its NRRD has numbers that none can read, and reads none.
    """
    before, point = sitk.ProcessObject.GetGlobalWarningDisplay(), locale.setlocale(locale.LC_NUMERIC)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    locale.setlocale(locale.LC_NUMERIC, "C")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_NUMERIC, point)
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
