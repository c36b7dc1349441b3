"""The demo, on a coarse phantom and on files: what it prints, and the files that Slicer opens."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from MedFusionLib import Request, Volume, phantom, read_volume, run, write_volume
from MedFusionLib.cli import _bar, main
from MedFusionLib.contact_sheet import PLANES, _bounds, interesting_points, write_contact_sheet
from MedFusionLib.demo import run_demo
from MedFusionLib.errors import MedFusionError


@pytest.fixture(scope="module")
def head():
    return phantom.make(seed=0, spacing=2)


@pytest.fixture(scope="module")
def shown(head, tmp_path_factory):
    """(folder, what was printed) of a demo on the phantom."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("demo") / "demo-output"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_demo(head, folder, "average", "cpu", 0, _bar)
    return folder, printed.getvalue()


def test_it_prints_errors_scores_and_times(shown):
    _, printed = shown
    errors = [float(mm) for mm in re.findall(r"registration of \w+ to CT: ([\d.]+) mm from the truth", printed)]
    assert len(errors) == 2 and errors[0] < 1 and errors[1] < 2
    assert re.search(r"SSIM +0\.\d+", printed)
    assert re.search(r"time: read .* register [\d.]+ s, fuse", printed)


def test_it_writes_everything(shown):
    folder, printed = shown
    names = {file.name for file in folder.iterdir()}
    assert {"fused.nrrd", "color.nrrd", "MR-to-CT.h5", "PT-to-CT.h5", "contact-sheet.png", "scores.csv"} <= names
    assert all(name in printed for name in names)
    assert read_volume(folder / "fused.nrrd").array.dtype == np.float32
    assert json.loads((folder / "report.json").read_text())["reference"] == "CT"


def test_the_contact_sheet_shows_bone_soft_tissue_and_colour(shown):
    folder, _ = shown
    sheet = np.asarray(Image.open(folder / "contact-sheet.png").convert("RGB")).astype(int)
    assert min(sheet.shape[:2]) > 800
    colourful = np.ptp(sheet, axis=-1) > 60
    columns = np.array_split(colourful[sheet.shape[0] // 12 :], 5, axis=1)
    # The last column is in colour, the sources are grey (but for their captions).
    assert columns[4].mean() > 0.1
    assert all(column.mean() < 0.01 for column in columns[:4])


def test_names_of_scans_are_no_formulas(tmp_path):
    """A dollar sign begins one in matplotlib, which ended the demo after all of its work."""
    random = np.random.default_rng(0)
    scans = [Volume(random.random((6, 8, 9)), np.eye(4), modality) for modality in ("CT", "MR")]
    result = run(Request(tuple(scans), registration="none", method="average", evaluate=False))
    write_contact_sheet(tmp_path / "sheet.png", result, interesting_points(result), "price $x_{$ + T1")
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


def test_thick_slices_are_looked_at_one_by_one():
    """Thinned like their fine pixels, they would be shown without the first and last, and a small lesion be missed."""
    z, y, x = np.mgrid[0:180:5, 0:180:0.5, 0:180:0.5]
    body = np.hypot(np.hypot(x - 90, y - 90), z - 87.5) < 85
    uptake = body + 9.0 * (np.hypot(np.hypot(x - 100, y - 90), z - 90) < 6)
    grid = np.diag([0.5, 0.5, 5, 1])
    scans = [Volume(body.astype(np.float32), grid, "CT", display_range=(0, 1)), Volume(uptake, grid, "PT")]
    low, high = _bounds(scans, np.eye(3))
    assert low[2] <= 5 and high[2] >= 170
    result = run(Request(tuple(scans), registration="none", method="average", evaluate=False))
    *_, (_, place, caption) = interesting_points(result)
    assert "highest uptake" in caption
    np.testing.assert_allclose(place, (100, 90, 90), atol=5)


@pytest.mark.parametrize(
    ("slices", "tilt", "gantry"), ((1, 0, 0), (1, 0.05, 0), (2, 0.4, 0), (5, -0.4, 0), (5, 0.1, 0.4))
)
@pytest.mark.parametrize("plane", PLANES)
def test_a_stack_of_few_slices_is_seen_in_its_own_plane(tmp_path, plane, slices, tilt, gantry):
    """Cut in the patient's, a tilted one was a strip, and of a sagittal one came a sheet of 21,000 pixels' height."""
    right, down = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane]
    through = 3 - right - down
    turn = np.eye(3)
    turn[np.ix_((right, through), (right, through))] = [[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]]
    grid = np.eye(4)
    grid[:3, :3] = turn[:, [right, down, through]] * (4, 4, 5)
    grid[:3, 2] += gantry * grid[:3, 1]
    body = np.random.default_rng(0).uniform(80, 120, (slices, 60, 50)).astype(np.float32)
    body[:, 50:, 40:] = 255  # to the right (sagittal: in front), and in front or above
    scans = [Volume(values, grid, kind, display_range=(0, 255)) for values, kind in ((body, "CT"), (255 - body, "MR"))]
    result = run(Request(tuple(scans), registration="none", method="average", evaluate=False))
    write_contact_sheet(tmp_path / "sheet.png", result, interesting_points(result))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert sheet.shape[0] < sheet.shape[1]
    ct = sheet[66:-10, : sheet.shape[1] // 3 - 5]
    assert (ct > 50).mean() > 0.9
    # As scans are shown: at the left the patient's right or front, at the top the front or the head.
    assert ct[30:50, 20:45].mean() > 200 and ct[30:50, -45:-20].mean() < 150 and ct[-50:-30, 20:45].mean() < 150


def test_letters_are_read_over_bone(tmp_path):
    """White on white, none told left from right."""
    bone = np.random.default_rng(0).uniform(250, 255, (40, 40, 40))
    scans = [Volume(bone[::step], np.diag([4, 4, 4, 1]), "CT", display_range=(0, 100)) for step in (1, -1)]
    result = run(Request(tuple(scans), registration="none", method="average", evaluate=False))
    write_contact_sheet(tmp_path / "sheet.png", result, interesting_points(result))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    first = sheet[66:, : sheet.shape[1] // 3]
    assert (first[80:160, 8:40] < 100).sum() > 20


@pytest.mark.parametrize("height", range(52, 58))
def test_an_l_keeps_its_foot(tmp_path, height):
    """Wherever it comes to lie: without it, it reads I."""
    dark = np.random.default_rng(0).uniform(0, 10, (40, height, 40))
    scans = [Volume(dark[::step], np.diag([4, 4, 4, 1]), "CT", display_range=(0, 1000)) for step in (1, -1)]
    result = run(Request(tuple(scans), registration="none", method="average", evaluate=False))
    write_contact_sheet(tmp_path / "sheet.png", result, [("axial", scans[0].center, "")])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    panel = sheet[66:, : sheet.shape[1] // 3 - 4]
    middle = panel.shape[0] // 2
    letter = panel[middle - 12 : middle + 12, -24:] > 128
    rows, columns = (np.flatnonzero(letter.any(axis)) for axis in (1, 0))
    assert np.ptp(columns) >= 0.4 * np.ptp(rows) > 0


@pytest.mark.scene
def test_the_scene_opens_in_slicer_s_mrml(shown):
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    from scene import new_scene

    folder, _ = shown
    scene, _, alive = new_scene()
    assert scene.ReadFromMRB(str(folder / "scene.mrb"))
    names = {scene.GetNthNodeByClass(n, "vtkMRMLVolumeNode").GetName() for n in range(6)}
    assert {"Phantom CT", "Phantom MRI", "Phantom PET", "Phantom PET overlay"} <= names
    assert scene.GetNumberOfNodesByClass("vtkMRMLVectorVolumeNode") == 1
    for name in ("Phantom MRI to Phantom CT", "Phantom PET to Phantom CT"):
        assert scene.GetFirstNodeByName(name).IsA("vtkMRMLTransformNode")
    del alive


def test_a_registration_off_the_truth_is_no_success(head, tmp_path):
    """A phantom whose own truth is wrong: the demo must say so, after writing what there is to look at."""
    from dataclasses import replace

    wrong = replace(head, truth=head.truth | {"PT": np.eye(4)})
    with pytest.raises(MedFusionError, match=r"not as good as it should be: PT is [\d.]+ mm off"):
        run_demo(wrong, tmp_path / "out", "average", "cpu", 0, _bar)
    assert (tmp_path / "out" / "contact-sheet.png").is_file()


def test_it_takes_the_user_s_own_files(head, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_volume(head.ct, tmp_path / "a.nii.gz")
    write_volume(head.pet, tmp_path / "b.nii.gz")
    arguments = ["--ct", tmp_path / "a.nii.gz", "--pet", tmp_path / "b.nii.gz", "--method", "average"]
    with pytest.raises(SystemExit) as ended:
        main(["demo", *map(str, arguments), "-o", "out"])
    assert not ended.value.code
    assert "from the truth" not in capsys.readouterr().out
    assert {"fused.nrrd", "color.nrrd", "PT-to-CT.h5", "contact-sheet.png", "scene.mrb"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_scene_that_does_not_fit_on_the_disk_is_not_begun(tmp_path):
    """A real limit: no file may grow past 3 MB, which all others stay below."""
    pytest.importorskip("slicer_core", reason="slicer-core is not installed")
    code = f"""
import resource
from pathlib import Path
from MedFusionLib import phantom
from MedFusionLib.cli import _bar
from MedFusionLib.demo import run_demo
from MedFusionLib.errors import FileError
head = phantom.make(seed=0, spacing=3)
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
try:
    run_demo((head.ct, head.mr), Path({str(tmp_path / "out")!r}), "average", "cpu", 0, _bar)
except FileError as error:
    print(error)
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "'scene.mrb' cannot be written" in done.stdout, done
    assert "HDF5" not in done.stderr
    assert not list(tmp_path.iterdir())
