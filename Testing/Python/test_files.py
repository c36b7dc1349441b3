"""Files: what is written comes back, geometry and meaning included; what cannot be read is refused in plain words."""

import errno
import gzip
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedFusionLib import files, read_volume, write_volume
from MedFusionLib.errors import FileError, GeometryError, MedFusionError, VolumeError
from MedFusionLib.files import guess_modality, written_beside
from MedFusionLib.outputs import require_folder
from MedFusionLib.volume import LPS, Volume

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def rotation(*angles):
    (a, b, c), s, k = angles, np.sin, np.cos
    x = np.array([[1, 0, 0], [0, k(a), -s(a)], [0, s(a), k(a)]])
    y = np.array([[k(b), 0, s(b)], [0, 1, 0], [-s(b), 0, k(b)]])
    z = np.array([[k(c), -s(c), 0], [s(c), k(c), 0], [0, 0, 1]])
    return x @ y @ z


def affine(turn=1.0, spacing=(1, 1, 1), origin=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.diag(spacing) if np.isscalar(turn) else turn * spacing
    matrix[:3, 3] = origin
    return matrix


GRIDS = {
    "plain": affine(),
    "oblique, anisotropic": affine(rotation(0.3, -0.5, 0.8), (0.7, 1.1, 4.5), (-91.5, 30.2, 812.7)),
    "left-handed": affine(rotation(0.1, 0.2, -0.3) @ np.diag([-1, 1, 1]), (2, 2, 3), (5, -6, 7)),
    "sagittal": affine(np.eye(3)[:, [1, 2, 0]], (1, 1, 1.4), (-80, -120, -70)),
}
SHEARED = affine() @ np.array([[1, 0, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def scan(shape=(5, 7, 9), grid=GRIDS["plain"], dtype=np.float32, **more):
    values = np.random.default_rng(1).normal(200, 300, shape)
    return Volume(values.astype(dtype), grid, **({"modality": "MR", "name": "a scan"} | more))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("grid", GRIDS)
def test_geometry_and_voxels_come_back(tmp_path, ending, grid):
    volume = scan(grid=GRIDS[grid])
    write_volume(volume, tmp_path / f"v{ending}")
    back = read_volume(tmp_path / f"v{ending}", modality="MR")
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.same_grid(volume, 2e-4)


def test_a_link_to_what_was_not_fetched_says_so(tmp_path):
    (tmp_path / "t1.nii.gz").symlink_to("../.git/annex/objects/t1.nii.gz")
    with pytest.raises(FileError, match=r"'t1\.nii\.gz' is a link to what is not there: get its content"):
        read_volume(tmp_path / "t1.nii.gz")


@pytest.mark.parametrize("ending", (".mhd", ".nhdr"))
@pytest.mark.parametrize("name", ("100%", "a%03d", "%s", "LIST", " scan", "two\nlines"))
def test_voxels_in_a_second_file_get_no_name_that_readers_take_for_another(tmp_path, name, ending):
    """Of 100%.mhd they made zeros, of LIST.mhd what was in memory, and %s.mhd ended the process."""
    with pytest.raises(FileError, match="choose another name"):
        write_volume(scan(), tmp_path / f"{name}{ending}")
    assert not list(tmp_path.iterdir())
    write_volume(scan(), tmp_path / f"{name}.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / f"{name}.nrrd").array, scan().array)


def test_a_name_too_long_for_the_disk_says_so(tmp_path):
    long = tmp_path / f"{'a' * 300}.nii.gz"
    with pytest.raises(FileError, match=r"\.nii\.gz' cannot be reached .*: check the path"):
        read_volume(long)
    with pytest.raises(FileError, match=r"\.nii\.gz' cannot be reached .*: check the path"):
        write_volume(scan(), long)


def test_the_affine_is_what_itk_means(tmp_path):
    """An independent reading of the file: a voxel's place by ITK itself, in LPS."""
    volume = scan(grid=GRIDS["oblique, anisotropic"])
    write_volume(volume, tmp_path / "v.nrrd")
    image = sitk.ReadImage(str(tmp_path / "v.nrrd"))
    place = image.TransformIndexToPhysicalPoint((3, 2, 4))
    np.testing.assert_allclose((LPS @ volume.affine @ (3, 2, 4, 1))[:3], place, atol=1e-6)
    assert image[3, 2, 4] == volume.array[4, 2, 3]


def test_nifti_agrees_with_nibabel(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volume = scan(grid=GRIDS["left-handed"])
    write_volume(volume, tmp_path / "v.nii.gz")
    image = nibabel.load(tmp_path / "v.nii.gz")
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-4)
    np.testing.assert_array_equal(image.get_fdata(), volume.array.transpose(2, 1, 0))


@pytest.mark.parametrize("ending", (".nrrd", ".mha"))
def test_sheared_grids_come_back_from_nrrd_and_metaimage(tmp_path, ending):
    volume = scan(grid=SHEARED)
    write_volume(volume, tmp_path / f"v{ending}")
    assert read_volume(tmp_path / f"v{ending}").same_grid(volume)


def test_sheared_grids_are_refused_in_nifti_and_leave_no_file(tmp_path):
    with pytest.raises(GeometryError, match=r"“a scan” has a sheared grid.*write \.nrrd"):
        write_volume(scan(grid=SHEARED), tmp_path / "v.nii.gz")
    assert not list(tmp_path.iterdir())


def test_sheared_nifti_from_elsewhere_is_explained(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32), None)
    image.set_sform(SHEARED, 1)
    nibabel.save(image, tmp_path / "tilt.nii")
    with pytest.raises(FileError, match=r"'tilt\.nii' has a sheared grid"):
        read_volume(tmp_path / "tilt.nii")


@pytest.mark.parametrize("ending", (".nrrd", ".mha"))
def test_meaning_comes_back_where_the_format_holds_it(tmp_path, ending):
    volume = scan(modality="PT", units="SUV", display_range=(0, 12.5), attributes={"MedFusion.Method": "average"})
    write_volume(volume, tmp_path / f"v{ending}")
    back = read_volume(tmp_path / f"v{ending}")
    assert (back.modality, back.units, back.name, back.display_range) == ("PT", "SUV", "a scan", (0, 12.5))
    assert back.attributes == {"MedFusion.Method": "average"}
    named = read_volume(tmp_path / f"v{ending}", name="other")
    assert (named.modality, named.units, named.name) == ("PT", "SUV", "other")
    # A CT's units are what it says, however low it goes.
    write_volume(Volume(scan().array - 1e4, np.eye(4), "CT", "mg/mL"), tmp_path / f"w{ending}")
    assert read_volume(tmp_path / f"w{ending}").units == "mg/mL"


@pytest.mark.parametrize("ending", ENDINGS)
def test_rgb_comes_back(tmp_path, ending):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
    write_volume(Volume(rgb, GRIDS["left-handed"]), tmp_path / f"v{ending}")
    back = read_volume(tmp_path / f"v{ending}")
    assert back.is_vector and back.array.dtype == np.uint8
    np.testing.assert_array_equal(back.array, rgb)


@pytest.mark.parametrize(
    "dtype", (np.uint8, np.int16, ">i2", np.uint16, np.int32, np.int64, np.float16, np.float64, np.longdouble)
)
def test_number_types_come_back(tmp_path, dtype):
    volume = Volume(np.arange(6 * 7 * 8).reshape(6, 7, 8).astype(dtype), np.eye(4))
    write_volume(volume, tmp_path / "v.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nrrd").array, volume.array)


def test_one_slice_and_2d_images_are_volumes(tmp_path):
    write_volume(scan((1, 8, 9)), tmp_path / "one.nii.gz")
    assert read_volume(tmp_path / "one.nii.gz").array.shape == (1, 8, 9)
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(72, dtype=np.uint8).reshape(8, 9)), str(tmp_path / "flat.png"))
    assert read_volume(tmp_path / "flat.png").array.shape == (1, 8, 9)


def test_a_single_time_point_is_a_volume_and_several_are_not(tmp_path):
    frames = [sitk.GetImageFromArray(scan().array) for _ in range(3)]
    sitk.WriteImage(sitk.JoinSeries(frames), str(tmp_path / "time.nii"))
    sitk.WriteImage(sitk.JoinSeries(frames[:1]), str(tmp_path / "one.nii"))
    assert read_volume(tmp_path / "one.nii").array.shape == (5, 7, 9)
    with pytest.raises(VolumeError, match=r"'time\.nii' is a 4-D series \(9 x 7 x 5 x 3\).*one time point"):
        read_volume(tmp_path / "time.nii")


def test_colour_with_alpha_and_complex_numbers_are_refused(tmp_path):
    four = sitk.GetImageFromArray(np.zeros((4, 5, 6, 4), np.uint8), isVector=True)
    sitk.WriteImage(four, str(tmp_path / "rgba.nrrd"))
    with pytest.raises(VolumeError, match=r"'rgba\.nrrd' has 4 values a voxel"):
        read_volume(tmp_path / "rgba.nrrd")
    for ending in (".nii", ".nrrd", ".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 5, 6), 1j)), str(tmp_path / f"c{ending}"))
        with pytest.raises(VolumeError, match=f"'c{ending}' has 2 values a voxel"):
            read_volume(tmp_path / f"c{ending}")


def test_label_maps_are_refused_unless_asked_for(tmp_path):
    labels = np.zeros((16, 20, 20), np.uint8)
    labels[4:9, 3:9, 3:9], labels[10:12, 10:15, 10:15] = 1, 17
    write_volume(Volume(labels, np.eye(4)), tmp_path / "seg.nrrd")
    with pytest.raises(VolumeError, match="segmentation"):
        read_volume(tmp_path / "seg.nrrd")
    np.testing.assert_array_equal(read_volume(tmp_path / "seg.nrrd", labels=True).array, labels)


def test_few_counts_are_a_scan_where_it_is_said_to_be_one(tmp_path):
    counts = np.random.default_rng(0).poisson(6, (16, 20, 20)).astype(np.uint16)
    image = sitk.GetImageFromArray(counts)
    sitk.WriteImage(image, str(tmp_path / "pet-seg.nii"))
    with pytest.raises(VolumeError, match="few counts, say its modality"):
        read_volume(tmp_path / "pet-seg.nii")
    assert read_volume(tmp_path / "pet-seg.nii", "NM").modality == "NM"
    write_volume(Volume(counts, np.eye(4), "PT"), tmp_path / "v.nrrd")
    assert read_volume(tmp_path / "v.nrrd").modality == "PT"
    with pytest.raises(VolumeError, match="segmentation"):
        read_volume(tmp_path / "pet-seg.nii", "CT")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    (
        ("absent.nii.gz", None, "there is no file or folder 'absent.nii.gz'"),
        ("empty.nrrd", b"", "'empty.nrrd' is empty"),
        ("text.txt", b"not an image", "no image format that MedFusion reads"),
        ("annexed.nii.gz", b"/annex/objects/MD5E-s3--a.nii.gz\n", "only a pointer .*: get its content"),
        ("in-lfs.nrrd", b"version https://git-lfs.github.com/spec/v1\nsize 3\n", "only a pointer .*: get its content"),
        ("text.nii.gz", b"not an image", "'text.nii.gz' (is no image format|cannot be read)"),
    ),
)
def test_unreadable_files_say_why(tmp_path, name, content, message, capfd):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_volume(tmp_path / name)
    assert str(tmp_path) not in "".join(capfd.readouterr())


def test_of_a_packed_file_whose_beginning_is_damaged_it_is_not_said_that_it_is_no_image(tmp_path):
    write_volume(scan((20, 30, 40)), tmp_path / "v.nii.gz")
    content = bytearray((tmp_path / "v.nii.gz").read_bytes())
    content[100] ^= 0xFF
    for damaged in (content, content[:90]):
        (tmp_path / "v.nii.gz").write_bytes(damaged)
        with pytest.raises(FileError, match=r"'v\.nii\.gz' cannot be read: it is damaged"):
            read_volume(tmp_path / "v.nii.gz")


@pytest.mark.parametrize(("old", "new"), ((b"=0.0 100.0", b"=0.0 1;0.0"), (b"=0.0 100.0", b"=0.0 1 0.0")))
def test_a_damaged_display_range_is_said(tmp_path, old, new):
    write_volume(scan(display_range=(0, 100)), tmp_path / "v.nrrd")
    content = (tmp_path / "v.nrrd").read_bytes()
    assert old in content
    (tmp_path / "v.nrrd").write_bytes(content.replace(old, new))
    with pytest.raises(MedFusionError, match=r"'v\.nrrd' cannot be read|must be two numbers"):
        read_volume(tmp_path / "v.nrrd")


def test_names_of_metadata_that_are_no_text_do_no_harm(tmp_path):
    write_volume(scan(), tmp_path / "v.nrrd")
    content = (tmp_path / "v.nrrd").read_bytes()
    (tmp_path / "v.nrrd").write_bytes(content.replace(b"\n\n", b"\nJ\xfcrgen:=1\n\n", 1))
    assert read_volume(tmp_path / "v.nrrd").size == scan().size


@pytest.mark.parametrize("ending", (".nrrd", ".nii.gz", ".nii", ".mha"))
def test_files_cut_short_are_refused(tmp_path, ending):
    file = tmp_path / f"v{ending}"
    write_volume(scan((20, 30, 40)), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(FileError, match="damaged or cut short"):
        read_volume(file)


@pytest.mark.parametrize("ending", (".nii.gz", ".nii"))
@pytest.mark.parametrize("missing", (1, 40))
def test_a_nifti_that_lacks_its_last_bytes_is_refused(tmp_path, ending, missing):
    """The reader would take them for zeros, or in a packed file not even look at the checksum."""
    file = tmp_path / f"v{ending}"
    write_volume(scan((20, 30, 40)), file)
    file.write_bytes(file.read_bytes()[:-missing])
    with pytest.raises(FileError, match="damaged or cut short"):
        read_volume(file)


@pytest.mark.parametrize("name", ("v.hdr", "v.img"))
@pytest.mark.parametrize("packed", (False, True))
def test_nifti_of_two_files_is_as_one(tmp_path, name, packed):
    """Half of the head could be missing: it was zeros, and so was NaN."""
    values = scan((20, 30, 40)).array
    values[1, 2, 3] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "v.img"))
    whole = (tmp_path / "v.img").read_bytes()
    if packed:
        whole = gzip.compress(whole)
        (tmp_path / "v.img").unlink()
    voxels = tmp_path / ("v.img.gz" if packed else "v.img")
    path = voxels if name == "v.img" else tmp_path / name
    voxels.write_bytes(whole)
    np.testing.assert_array_equal(read_volume(path).array, values)
    for kept in (len(whole) - 1, len(whole) // 2, 0):
        voxels.write_bytes(whole[:kept])
        with pytest.raises(FileError, match=r"damaged, cut short|is empty|damaged or cut short"):
            read_volume(path)


@pytest.mark.parametrize(
    ("written", "listed"), (("SCAN", "scan"), ("Scan", "SCAN"), ("M\xfcller", "Mu\u0308ller")), ids=ascii
)
def test_nifti_of_two_files_by_another_way_to_write_its_name(tmp_path, monkeypatch, written, listed):
    """The disks of Windows and macOS find it by all of these, and list it as it was first written."""
    values = scan().array
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / f"{listed}.img"))
    for ending in (".hdr", ".img"):
        os.link(tmp_path / f"{listed}{ending}", tmp_path / f"{written}{ending}")
    there = [tmp_path / f"{listed}{ending}" for ending in (".hdr", ".img")]
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(there))
    for ending in (".hdr", ".img"):
        np.testing.assert_array_equal(read_volume(tmp_path / f"{written}{ending}").array, values)


def test_of_files_that_differ_in_capitals_each_is_its_own(tmp_path):
    for n, name in enumerate(("scan", "Scan", "SCAN")):
        sitk.WriteImage(sitk.GetImageFromArray(np.full((6, 7, 8 + n), n, np.float32)), str(tmp_path / f"{name}.img"))
    for n, name in enumerate(("scan", "Scan", "SCAN")):
        for ending in (".hdr", ".img"):
            assert read_volume(tmp_path / f"{name}{ending}").array.shape == (6, 7, 8 + n)
        (tmp_path / f"{name}.img").write_bytes(b"")
        with pytest.raises(FileError, match="damaged"):
            read_volume(tmp_path / f"{name}.hdr")


@pytest.mark.skipif(sys.platform != "linux", reason="a file that is there and cannot be read")
def test_a_disk_that_fails_is_said():
    with pytest.raises(FileError, match=r"'mem' cannot be read \(Input/output error\)"):
        read_volume("/proc/self/mem")


def test_letters_that_itk_mistakes_on_windows_are_said(tmp_path, monkeypatch, windows):
    """It takes the bytes of UTF-8 for letters of an old alphabet: it finds no file, or writes one of another name."""
    write_volume(scan(), tmp_path / "v.nrrd")
    (tmp_path / "v.nrrd").rename(tmp_path / "M\xfcller.nrrd")

    def mistaken(name):
        return name.encode().decode("cp1252")

    class Reader(sitk.ImageFileReader):
        def SetFileName(self, name):
            super().SetFileName(mistaken(name))

    write = sitk.WriteImage
    monkeypatch.setattr(files, "os", windows)
    monkeypatch.setattr(sitk, "ImageFileReader", Reader)
    monkeypatch.setattr(sitk, "WriteImage", lambda image, name, **options: write(image, mistaken(name), **options))
    with pytest.raises(FileError, match="cannot be read: its path has letters other than A to Z"):
        read_volume(tmp_path / "M\xfcller.nrrd")
    with pytest.raises(FileError, match="cannot be written: its path has letters other than A to Z"):
        write_volume(scan(), tmp_path / "Jos\xe9.nrrd")
    assert [file.name for file in tmp_path.iterdir()] == ["M\xfcller.nrrd"]


@pytest.mark.parametrize(
    ("ending", "gone"), ((".mhd", ".zraw"), (".nhdr", ".raw.gz"), (".hdr", ".img"), (".img", ".hdr"))
)
def test_a_file_without_its_other_one_says_so(tmp_path, ending, gone):
    sitk.WriteImage(sitk.GetImageFromArray(scan().array), str(tmp_path / f"v{ending}"), useCompression=True)
    (tmp_path / f"v{gone}").unlink()
    with pytest.raises(FileError, match=rf"'v\{ending}' cannot be read: it or the other file that belongs to it"):
        read_volume(tmp_path / f"v{ending}")


def test_slices_that_a_list_of_files_lacks_are_not_made_of_memory(tmp_path):
    values = scan(dtype=np.int16).array
    for k, plane in enumerate(values):
        (tmp_path / f"{k}.raw").write_bytes(plane.tobytes())
    head = "ObjectType = Image\nNDims = 3\nDimSize = 9 7 5\nElementType = MET_SHORT\nElementDataFile = LIST\n"
    names = [f"{k}.raw" for k in range(5)]
    for end in ("\n", "\r\n"):
        (tmp_path / "v.mhd").write_bytes((head + "\n".join(names) + "\n").replace("\n", end).encode())
        np.testing.assert_array_equal(read_volume(tmp_path / "v.mhd").array, values)
    for lines in ("\n".join(names), "\n".join(names[:4]) + "\n"):
        (tmp_path / "v.mhd").write_text(head + lines)
        with pytest.raises(FileError, match=r"'v\.mhd' does not name a file for each of its slices"):
            read_volume(tmp_path / "v.mhd")


def test_a_scan_that_does_not_say_how_it_lies_is_pointed_out(tmp_path, caplog):
    """It is read as if the patient's front were at its back in what wrote it, as often as not."""
    nibabel = pytest.importorskip("nibabel")
    values = scan().array.transpose(2, 1, 0)
    for image, name in ((nibabel.Nifti1Image(values, None), "v.nii.gz"), (nibabel.AnalyzeImage(values, None), "a.img")):
        caplog.clear()
        nibabel.save(image, tmp_path / name)
        read_volume(tmp_path / name)
        assert "9 x 7 x 5 voxels does not say how it lies in the patient" in caplog.text and name not in caplog.text
    caplog.clear()
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "said.nii")
    write_volume(scan(), tmp_path / "own.nii.gz")
    for name in ("said.nii", "own.nii.gz"):
        read_volume(tmp_path / name)
    assert caplog.text == ""


@pytest.mark.parametrize("ending", (".nii", ".nii.gz"))
def test_the_second_version_of_nifti_is_called_that(tmp_path, ending):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti2Image(scan().array, np.eye(4)), tmp_path / f"v{ending}")
    with pytest.raises(FileError, match="is NIfTI-2, which MedFusion does not read: save it as NIfTI-1"):
        read_volume(tmp_path / f"v{ending}")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on memory")
def test_a_header_of_more_voxels_than_there_can_be_takes_no_memory(tmp_path):
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 2000, 2000, 2000, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 16, 32)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    for name, data in (("v.nii", bytes(header) + bytes(4000)), ("v.nii.gz", gzip.compress(header + bytes(4000)))):
        (tmp_path / name).write_bytes(data)
        code = f"""
import resource
from MedFusionLib import read_volume
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
try:
    read_volume({str(tmp_path / name)!r})
except Exception as error:
    print(repr(error))
"""
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        assert "damaged or cut short" in done.stdout, done


def test_a_packed_nifti_that_is_not_packed_is_read(tmp_path):
    write_volume(scan(), tmp_path / "v.nii")
    (tmp_path / "v.nii").rename(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii.gz").array, scan().array)


def test_a_packed_nifti_beside_an_unpacked_one_keeps_its_own_voxels(tmp_path):
    """ITK takes the header of one and the voxels of the other."""
    packed, other = scan(), scan((5, 7, 9), dtype=np.int16, name="other")
    write_volume(packed, tmp_path / "v.nii.gz")
    write_volume(other, tmp_path / "v.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii.gz").array, packed.array)
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii").array, other.array)
    assert read_volume(tmp_path / "v.nii.gz").name == "v"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_paths_that_are_no_utf8_are_refused(tmp_path):
    """ITK ends the process."""
    file = tmp_path / "J\udcfcrgen.nrrd"
    write_volume(scan(), tmp_path / "v.nrrd")
    (tmp_path / "v.nrrd").rename(file)
    for attempt in (lambda: read_volume(file), lambda: write_volume(scan(), file)):
        with pytest.raises(FileError, match=r"rgen\.nrrd' has letters that are no UTF-8: rename it"):
            attempt()


@pytest.mark.parametrize("ending", (".nrrd", ".mha"))
def test_names_of_several_lines_leave_a_file_that_can_be_read(tmp_path, ending):
    write_volume(scan(name="T1\nafter \udcfc contrast"), tmp_path / f"v{ending}")
    assert read_volume(tmp_path / f"v{ending}").name == "T1 after ? contrast"


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "series").mkdir()
    with pytest.raises(FileError, match="'series' holds no DICOM images"):
        read_volume(tmp_path / "series")


def test_unknown_endings_and_folders_are_refused(tmp_path):
    with pytest.raises(FileError, match=r"'v\.jpg': write \.nii\.gz"):
        write_volume(scan(), tmp_path / "v.jpg")
    for name in ("v.MHA", "v.NII.GZ"):  # the first was written as v.mhd
        with pytest.raises(FileError, match="in small letters"):
            write_volume(scan(), tmp_path / name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match=r"folder of 'v\.nrrd' does not exist"):
        write_volume(scan(), tmp_path / "no" / "v.nrrd")


@pytest.mark.parametrize("ending", files.WRITABLE)
def test_a_decimal_comma_of_the_process_changes_no_file(tmp_path, ending):
    """Qt sets the one of the user's language, as of German, on Linux and macOS."""
    compiled = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if not shutil.which("localedef") or subprocess.run(compiled, capture_output=True, check=False).returncode:
        pytest.skip("this machine cannot make a locale with a decimal comma")
    volume = scan(grid=np.diag([1.25, 0.75, 2.5, 1]))
    write_volume(volume, tmp_path / f"point{ending}")
    code = f"""
import locale
from MedFusionLib import read_volume, write_volume
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
write_volume(read_volume({str(tmp_path / f"point{ending}")!r}), {str(tmp_path / f"comma{ending}")!r})
print(locale.localeconv()["decimal_point"])
"""
    options = {"cwd": Path(__file__).resolve().parents[2], "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"LOCPATH": str(tmp_path)}, **options)
    assert done.stdout == ",\n", done.stderr
    again = read_volume(tmp_path / f"comma{ending}")
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-5)


def test_a_folder_of_windows_that_may_not_be_written_to_is_tried_once(tmp_path, monkeypatch, windows):
    """os.access says that it may, and `tempfile` goes on to another name two thousand million times."""
    tried = []

    def refuse(path, *mode):
        tried.append(path)
        raise PermissionError(errno.EACCES, "Access is denied", str(path))

    monkeypatch.setattr(tempfile, "_os", windows)
    monkeypatch.setattr(tempfile, "TMP_MAX", 100)
    monkeypatch.setattr(os, "mkdir", refuse)
    places = (
        lambda: write_volume(scan(), tmp_path / "v.nrrd"),
        lambda: files.require_place(tmp_path / "v.nrrd"),
        lambda: require_folder(tmp_path / "out"),
        lambda: written_beside(tmp_path / "v.nrrd").__enter__(),
    )
    for place in places:
        tried.clear()
        with pytest.raises(FileError, match="written"):
            place()
        assert len(tried) == 1


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    write_volume(scan(), tmp_path / "v.nrrd")
    before = (tmp_path / "v.nrrd").read_bytes()
    with pytest.raises(ZeroDivisionError), written_beside(tmp_path / "v.nrrd") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == ["v.nrrd"]
    assert (tmp_path / "v.nrrd").read_bytes() == before


@pytest.mark.parametrize(("ending", "voxels"), ((".nhdr", ".raw.gz"), (".mhd", ".zraw")))
def test_the_header_is_moved_into_place_after_its_voxels(tmp_path, monkeypatch, ending, voxels):
    moved, replace = [], os.replace

    def seen(source, target):
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", seen)
    write_volume(scan(), tmp_path / f"v{ending}")
    assert moved == [f"v{voxels}", f"v{ending}"]


def test_a_full_disk_is_told_from_other_reasons_on_every_system(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError

    monkeypatch.setattr(sitk, "WriteImage", fail)
    for free, said in ((0, "the disk is full"), (2**40, "check the disk's space, your quota")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: shutil._ntuple_diskusage(free, 0, free))
        with pytest.raises(FileError, match=f"'v.nrrd' cannot be written: {said}"):
            write_volume(scan(), tmp_path / "v.nrrd")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("ending", (".nrrd", ".nii.gz", ".nii", ".mha", ".mhd"))
def test_a_full_disk_is_reported_and_nothing_stays(tmp_path, ending):
    """A real failing write: the system refuses to let any file grow past 10 kB."""
    code = f"""
import resource, signal, numpy as np
from MedFusionLib import Volume, write_volume
from MedFusionLib.errors import FileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
volume = Volume(np.random.default_rng(0).random((30, 40, 50)), np.eye(4))
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_volume(volume, {str(tmp_path / ("v" + ending))!r})
except FileError as error:
    print(error)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert f"'v{ending}' cannot be written" in done.stdout, done
    assert not list(tmp_path.iterdir())


def test_modality_is_guessed_by_the_name_or_by_hounsfield_units(tmp_path):
    rng = np.random.default_rng(0)
    hu = np.full((20, 20, 20), -1000, np.int16)
    hu[5:15, 5:15, 5:15] = rng.normal(40, 10, (10, 10, 10))
    hu[5:15, 5:7, 5:15] = 900
    positive = Volume(np.abs(hu), np.eye(4))
    assert guess_modality(Volume(hu, np.eye(4))) == "CT"
    assert guess_modality(Volume(np.where(hu == -1000, -2000, hu), np.eye(4))) == "OT"  # no air
    assert guess_modality(Volume(rng.integers(-4096, 4096, (20, 20, 20)), np.eye(4))) == "OT"  # phase, of noise
    assert guess_modality(positive) == "OT"
    assert guess_modality(positive, "sub-01_T1w.nii.gz") == "MR"
    assert guess_modality(positive, "brain_PET_fdg.nii") == "PT"
    assert guess_modality(positive, "t1_on_ct.nii.gz") == "MR"
    assert guess_modality(positive, "ct_to_pet.nii") == "OT"  # two words that disagree
    assert guess_modality(positive, "aspect.nii") == "OT"  # part of a word is no word
    write_volume(Volume(hu, np.eye(4)), tmp_path / "x.nii.gz")
    back = read_volume(tmp_path / "x.nii.gz")
    assert (back.modality, back.units) == ("CT", "HU")
    assert read_volume(tmp_path / "x.nii.gz", modality="MR", units="a.u.").units == "a.u."
    with pytest.raises(VolumeError, match="'XX' is not one of CT, MR"):
        read_volume(tmp_path / "x.nii.gz", modality="XX")


def test_a_guess_looks_at_more_than_a_few_columns(monkeypatch):
    monkeypatch.setattr("MedFusionLib.files.MAX_SAMPLES", 4096)
    hu = np.full((64, 64, 64), -1000, np.int16)
    hu[8:56, 8:56, 8:56] = 40
    hu[8:56, 8:56, 8:12] = 700
    assert guess_modality(Volume(hu, np.eye(4))) == "CT"  # every 64th voxel would be air


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_nan_is_read_as_it_is(tmp_path, ending, kind):
    values = scan().array.astype(kind)
    values[1, 2, 3], values[2, 1, 0] = np.nan, -np.inf
    write_volume(Volume(values, np.eye(4)), tmp_path / f"v{ending}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"v{ending}").array, values)


def test_nan_of_a_big_endian_nifti_is_read_as_it_is(tmp_path):
    values = scan().array.astype(np.float32)
    values[1, 2, 3] = np.nan
    write_volume(Volume(values, np.eye(4)), tmp_path / "v.nii")
    data = (tmp_path / "v.nii").read_bytes()
    fields = "i10s18sihcc8h3f4h8f3fhcc4f2i80s24s2h6f12f16s4s"
    header = struct.pack(">" + fields, *struct.unpack("<" + fields, data[:348]))
    voxels = np.frombuffer(data[352:], "<f4").astype(">f4").tobytes()
    (tmp_path / "v.nii").write_bytes(header + data[348:352] + voxels)
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii").array, values)
