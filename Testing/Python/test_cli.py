"""The command line as people type it: exit codes, what it says, and what lies on the disk afterwards."""

import contextlib
import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedFusionLib import phantom, read_volume, write_volume
from MedFusionLib.cli import main
from MedFusionLib.cohort import find_subjects
from MedFusionLib.errors import FileError
from MedFusionLib.outputs import write_result
from MedFusionLib.pipeline import Request, run
from MedFusionLib.volume import Volume

VERBS = ("register", "fuse", "run", "evaluate", "methods", "batch", "train", "demo")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the phantom's scans as files."""
    place = tmp_path_factory.mktemp("scans")
    head = phantom.make(seed=2, spacing=2)
    write_volume(head.ct, place / "ct.nii.gz")
    write_volume(head.mr, place / "t1.nii.gz")
    write_volume(head.pet, place / "pet.nrrd")
    np.save(place / "truth.npy", head.truth["MR"])
    return place


@pytest.fixture
def call(capsys, monkeypatch):
    """call("verb", ...) -> (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def files(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(call, verb):
    code, out, _ = call(verb, "--help")
    assert code == 0
    assert re.search(rf"Examples?\b.*python -m MedFusionLib {verb}", out, re.DOTALL)


@pytest.mark.parametrize("verb", VERBS)
def test_examples_are_in_one_line_where_lines_are_short(call, verb, monkeypatch):
    """Wrapped, they cannot be copied; what is printed is padded with spaces, so that no backslash helps."""
    wide = re.findall(r"^ ((?:python|torchrun) .*)", call(verb, "--help")[1], re.MULTILINE)
    monkeypatch.setenv("COLUMNS", "80")
    narrow = re.findall(r"^ ((?:python|torchrun) .*)", call(verb, "--help")[1], re.MULTILINE)
    assert wide and [line.rstrip() for line in narrow] == [line.rstrip() for line in wide]


def test_it_is_run_as_a_module_and_lists_its_verbs():
    done = subprocess.run([sys.executable, "-m", "MedFusionLib", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)
    done = subprocess.run([sys.executable, "-m", "MedFusionLib", "fly"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command" in done.stderr


def test_methods_lists_the_registry(call):
    from MedFusionLib import methods

    code, out, _ = call("methods")
    assert code == 0
    # Whole lines, also on a narrow screen: what one looks up can be found in it.
    for method in methods().values():
        assert f"{method.name}  {method.title}\n" in out
        assert " ".join(method.paper.split()) in " ".join(out.split())
        assert f"training data: {method.licence}" in " ".join(out.split())


def test_register_writes_the_moved_volume_and_the_transform(call, folder, tmp_path):
    arguments = ("register", folder / "ct.nii.gz", folder / "t1.nii.gz")
    code, out, _ = call(
        *arguments, "-o", tmp_path / "t1.nrrd", "-t", tmp_path / "t.h5", "--picture", tmp_path / "t.png"
    )
    assert code == 0, out
    assert files(tmp_path) == ["t.h5", "t.png", "t1.nrrd"]
    assert read_volume(tmp_path / "t1.nrrd").same_grid(read_volume(folder / "ct.nii.gz"))
    # The transform maps a fixed point to the moving one, in LPS: ITK's way round.
    transform = sitk.ReadTransform(str(tmp_path / "t.h5"))
    fixed = np.array([20.0, -30, 40])
    moving = (np.linalg.inv(np.load(folder / "truth.npy")) @ (*fixed, 1))[:3] * (-1, -1, 1)
    assert np.linalg.norm(np.array(transform.TransformPoint((fixed * (-1, -1, 1)).tolist())) - moving) < 2


def test_register_takes_masks_and_a_start(call, folder, tmp_path):
    ct = read_volume(folder / "ct.nii.gz")
    write_volume(ct.with_array((ct.array > -300).astype(np.uint8)), tmp_path / "mask.nrrd")
    arguments = ("register", folder / "ct.nii.gz", folder / "t1.nii.gz", "-t", tmp_path / "t.h5")
    code, _, err = call(*arguments, "--fixed-mask", tmp_path / "mask.nrrd", "--initial", "geometry")
    assert code == 0, err
    assert (tmp_path / "t.h5").is_file()
    first = sitk.ReadTransform(str(tmp_path / "t.h5")).TransformPoint((10.0, 20.0, 30.0))
    code, _, err = call(*arguments[:-1], tmp_path / "again.h5", "--initial", tmp_path / "t.h5")
    assert code == 0, err
    again = sitk.ReadTransform(str(tmp_path / "again.h5")).TransformPoint((10.0, 20.0, 30.0))
    assert np.linalg.norm(np.subtract(again, first)) < 1
    code, _, err = call(*arguments, "--initial", "wishful")
    assert code == 1 and "wishful" in err


def test_fuse_and_evaluate(call, folder, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("ct", "mr"):
        values = rng.random((20, 32, 36), np.float32)
        write_volume(Volume(values, np.eye(4), name.upper(), display_range=(0, 1)), tmp_path / f"{name}.nrrd")
    pair = (tmp_path / "ct.nrrd", tmp_path / "mr.nrrd")
    code, out, _ = call(
        "fuse", *pair, "--method", "average", "-o", tmp_path / "fused.nrrd", "--weights", tmp_path / "weights"
    )
    assert code == 0, out
    fused = read_volume(tmp_path / "fused.nrrd")
    sources = [read_volume(path).array for path in pair]
    np.testing.assert_allclose(fused.array, np.mean(sources, axis=0), atol=1e-6)
    assert files(tmp_path / "weights") == ["weight-CT.nrrd", "weight-MR.nrrd"]
    code, out, _ = call("evaluate", tmp_path / "fused.nrrd", *pair, "--csv", tmp_path / "scores.csv")
    assert code == 0, out
    with open(tmp_path / "scores.csv") as file:
        *slices, whole = csv.DictReader(file)
    assert [row["slice"] for row in slices] == [str(n) for n in range(20)] and whole.pop("slice") == "volume"
    scores = {name: float(value) for name, value in whole.items()}
    from MedFusionLib import evaluate
    from MedFusionLib.metrics import QUICK

    assert scores == pytest.approx(evaluate(fused, [read_volume(path) for path in pair], names=QUICK))
    assert all(name in out for name in scores)

    code, *_ = call("evaluate", tmp_path / "fused.nrrd", *pair, "--mode", "slice", "--csv", tmp_path / "scores.csv")
    assert code == 0
    with open(tmp_path / "scores.csv") as file:
        *slices, mean = csv.DictReader(file)
    assert mean.pop("slice") == "mean"
    for name, value in mean.items():
        assert float(value) == pytest.approx(np.mean([float(row[name]) for row in slices]))


def test_evaluate_points_out_that_its_volumes_are_mixed_up(call, folder, tmp_path):
    """A source in the place of the fused volume, or one source twice, gave figures that meant nothing."""
    ct, t1 = folder / "ct.nii.gz", tmp_path / "t1_on_ct.nii.gz"
    fixed = read_volume(ct)
    noise = np.random.default_rng(0).random(fixed.array.shape, np.float32)
    write_volume(fixed.with_array(noise), t1)
    write_volume(fixed.with_array(noise[::-1]), tmp_path / "fused.nii.gz")
    code, out, err = call("evaluate", tmp_path / "fused.nii.gz", ct, t1)
    assert code == 0 and "SSIM" in out and "Note" not in err
    code, _, err = call("evaluate", ct, tmp_path / "fused.nii.gz", t1)
    assert code == 0 and "“ct” is not of values from 0 to 1, and was measured as shown from -100 to 900" in err
    code, out, err = call("evaluate", tmp_path / "fused.nii.gz", ct, ct)
    assert code == 1 and "are the same volume" in err and out == ""


def test_weight_maps_leave_a_result_in_their_folder_whole(call, tmp_path):
    rng = np.random.default_rng(0)
    pair = [tmp_path / f"{name}.nrrd" for name in ("ct", "mr")]
    for path in pair:
        write_volume(Volume(rng.random((8, 9, 10), np.float32), np.eye(4), display_range=(0, 1)), path)
    out = tmp_path / "out"
    assert call("run", *pair, "--registration", "none", "--method", "average", "-o", out)[0] == 0
    before = (out / "report.json").read_text()
    assert call("fuse", *pair, "--method", "average", "-o", out / "f.nrrd", "--weights", out)[0] == 0
    assert (out / "weight-CT.nrrd").is_file()
    assert (out / "report.json").read_text() == before


def test_memory_that_torch_lacks_is_said_in_a_line(call, tmp_path, monkeypatch):
    import torch

    from MedFusionLib.fusion.baselines import Average

    rng = np.random.default_rng(0)
    pair = [tmp_path / f"{name}.nrrd" for name in ("ct", "mr")]
    for path in pair:
        write_volume(Volume(rng.random((8, 9, 10), np.float32), np.eye(4), display_range=(0, 1)), path)
    monkeypatch.setattr(Average, "__call__", lambda *_: torch.empty(2**50))
    code, _, err = call("fuse", *pair, "--method", "average", "-o", tmp_path / "f.nrrd")
    assert code == 1 and "there is not enough memory" in err
    assert files(tmp_path) == ["ct.nrrd", "mr.nrrd"]


def test_letters_that_the_output_lacks_are_no_failure(tmp_path):
    """As on Windows, where what is redirected is written in an old alphabet."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.nrrd" for name in ("fused", "ct", "mr")]
    for path in paths:
        write_volume(Volume(rng.random((8, 9, 10), np.float32), np.eye(4), display_range=(0, 1)), path)
    command = [sys.executable, "-m", "MedFusionLib", "evaluate", *paths, "--csv", tmp_path / "Łódź.csv"]
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="latin-1", check=False)
    assert done.returncode == 0, done.stderr
    assert "ód\\u017a.csv" in done.stdout


@pytest.mark.parametrize("verb", ["fuse", "register"])
def test_a_grid_that_the_format_lacks_is_said_before_the_work(verb, call, tmp_path, monkeypatch):
    from MedFusionLib import Volume, fusion, registration

    tilted = np.eye(4)
    tilted[1, 2] = 0.3
    for n, name in enumerate(("a", "b")):
        array = np.random.default_rng(n).random((6, 7, 8), np.float32)
        write_volume(Volume(array, tilted, "MR"), tmp_path / f"{name}.nrrd")
    monkeypatch.setattr(fusion, "fuse", None)
    monkeypatch.setattr(registration, "register", None)
    code, _, err = call(verb, tmp_path / "a.nrrd", tmp_path / "b.nrrd", "-o", tmp_path / "c.nii.gz")
    assert code == 1 and "sheared grid" in err and "write .nrrd" in err


def test_run_says_what_is_wrong_before_it_reads(call, tmp_path):
    for scan in ("a.nii.gz", "b.nii.gz"):
        (tmp_path / scan).write_bytes(b"no scan at all")
    arguments = ("run", tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "-o", tmp_path / "out")
    for wrong, said in (("--method", "magic"), ("--axis", "oblique"), ("--lut", "Heat")):
        code, _, err = call(*arguments, wrong, said)
        assert code == 1 and said in err and "a.nii.gz" not in err
    code, _, err = call(*arguments, "--reference", 3)
    assert code == 2 and "there are 2 sources" in err
    assert files(tmp_path) == ["a.nii.gz", "b.nii.gz"]


def test_run_writes_everything(call, folder, tmp_path):
    sources = [folder / name for name in ("ct.nii.gz", "t1.nii.gz", "pet.nrrd")]
    code, out, err = call("run", *sources, "--method", "average", "--threshold", "3", "-o", tmp_path / "out")
    assert code == 0, out + err
    names = ["MR-to-CT.h5", "MR-to-CT.png", "PT-to-CT.h5", "PT-to-CT.png", "color.nrrd", "fused.nrrd"]
    names += ["report.json", "scores.csv"]
    assert files(tmp_path / "out") == names
    assert files(tmp_path) == ["out", *(f"out/{name}" for name in names)]
    assert read_volume(tmp_path / "out" / "color.nrrd").is_vector
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["fusion"]["MedFusion.Method"] == "average"
    assert report["registrations"]["MR"]["model"] == "rigid"
    measured = report["registrations"]["MR"]["measured"]
    assert measured["similarity_after"] > measured["similarity_before"] and measured["overlap"] > 0.5
    assert measured["inverse_consistency"] >= 0 and measured["folded"] == 0 and len(measured["jacobian"]) == 2
    error = np.array(report["registrations"]["MR"]["matrix"]) - np.load(folder / "truth.npy")
    assert np.abs(error[:3, 3]).max() < 5
    # Nothing in it tells whose files they were.
    assert str(folder) not in json.dumps(report) and "t1.nii" not in json.dumps(report)
    # Again into the same folder: replaced; nothing of the first result that the second lacks stays, what is not
    # MedFusion's does.
    (tmp_path / "out" / "notes.txt").touch()
    assert call("run", *sources[:2], "--method", "maximum", "--registration", "none", "-o", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["fusion"]["MedFusion.Method"] == "maximum"
    assert files(tmp_path / "out") == ["fused.nrrd", "notes.txt", "report.json", "scores.csv"]
    # Nor does another program's report, by the same name, say what may go.
    (tmp_path / "out" / "report.json").write_text('{"files": ["notes.txt"], "fusion": {}}')
    assert call("run", *sources[:2], "--method", "maximum", "--registration", "none", "-o", tmp_path / "out")[0] == 0
    assert "notes.txt" in files(tmp_path / "out")
    # A result is no source for what takes its place.
    fused = tmp_path / "out" / "fused.nrrd"
    code, _, err = call("run", sources[0], fused, "--registration", "none", "-o", tmp_path / "out")
    assert code == 1 and "'fused.nrrd' is one of the inputs" in err


def test_the_report_is_json_and_names_nobody(tmp_path):
    rng = np.random.default_rng(0)
    volumes = [
        Volume(rng.random((5, 5, 5)), np.eye(4), modality, name=name)
        for modality, name in (("CT", "Doe^Jane CT"), ("MR", "Doe^Jane T1"))
    ]
    request = Request(tuple(volumes), registration="none", method="average")
    result = run(request)
    said = f"Registration of {volumes[1].title} to {volumes[0].title}: check."
    write_result(
        replace(result, messages=(said,), scores=result.scores | {"SSIM": math.nan}), request, tmp_path / "out"
    )
    text = (tmp_path / "out" / "report.json").read_text()
    assert "Doe" not in text
    report = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["messages"] == ["Registration of the MR to the CT: check."]
    assert report["scores"]["SSIM"] is None
    assert sorted(report["files"]) == files(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    (
        (("run", "ct.nii.gz", "absent.nii.gz", "-o", "out"), 1, "Error: there is no file or folder 'absent.nii.gz'"),
        (("run", "ct.nii.gz", "-o", "out"), 1, "2 to 3 volumes: 1 given"),
        (("run", "ct.nii.gz", "ct.nii.gz", "-o", "out"), 1, "are the same volume"),
        (("run", "ct.nii.gz", "t1.nii.gz", "--method", "magic", "-o", "out"), 1, "'magic' is not a fusion method"),
        (("run", "ct.nii.gz", "t1.nii.gz", "--lut", "Heat", "-o", "out"), 1, "'Heat' is not a colour table"),
        (("run", "ct.nii.gz", "t1.nii.gz", "--reference", "3", "-o", "out"), 2, "--reference 3, but there are 2"),
        (("run", "ct.nii.gz", "t1.nii.gz", "--opacity", "2", "-o", "out"), 2, "less than or equal to 1"),
        (("run", "ct.nii.gz", "t1.nii.gz", "-m", "CT", "-o", "out"), 2, "--modality is given 1 times for 2"),
        (("run", "ct.nii.gz", "t1.nii.gz", "-m", "CT", "-m", "MRI", "-o", "out"), 1, "'MRI' is not one of CT, MR"),
        (("run", "ct.nii.gz", "t1.nii.gz", "-o", "ct.nii.gz"), 1, "'ct.nii.gz' is a file: name a folder"),
        (("run", "ct.nii.gz", "t1.nii.gz", "-o", "fused.nii.gz"), 1, "'fused.nii.gz' is a file's name, and the"),
        (("run", "ct.nii.gz", "t1.nii.gz", "--device", "cuda:99", "-o", "out"), 1, "this machine has no cuda:99"),
        (("fuse", "ct.nii.gz", "t1.nii.gz", "-o", "f.nrrd"), 1, "is not on the grid of “ct”: register or resample it"),
        (("fuse", "ct.nii.gz", "t1.nii.gz", "-o", "f.jpg"), 1, "'f.jpg': write .nii.gz"),
        (("fuse", "ct.nii.gz", "unread.nii", "-o", "f.nrrd", "--method", "magic"), 1, "'magic' is not a fusion method"),
        (
            ("fuse", "ct.nii.gz", "unread.nii", "-o", "f.nrrd", "--mode", "3d"),
            1,
            "mode '3d' is not one of volume, slice",
        ),
        (("fuse", "ct.nii.gz", "unread.nii", "-o", "f.nrrd", "--axis", "up"), 1, "axis 'up' is not one of axial"),
        (("fuse", "ct.nii.gz", "t1.nii.gz", "-o", "t1.nii.gz"), 1, "'t1.nii.gz' is one of the inputs"),
        (("register", "ct.nii.gz", "t1.nii.gz"), 2, "nothing to write"),
        (("register", "ct.nii.gz", "t1.nii.gz", "-o", "a.nrrd", "-t", "t.foo"), 1, "'t.foo' is no transform file"),
        (("register", "ct.nii.gz", "t1.nii.gz", "-o", "a.nrrd", "-t", "no/t.h5"), 1, "folder of 't.h5' does not exist"),
        (
            ("register", "ct.nii.gz", "t1.nii.gz", "--model", "deformable", "-t", "t.tfm"),
            1,
            "cannot hold a deformation",
        ),
        (("register", "ct.nii.gz", "t1.nii.gz", "-o", "a.nrrd", "--picture", "p.txt"), 1, "'p.txt' is no picture file"),
        (("register", "ct.nii.gz", "t1.nii.gz", "-o", "a.nrrd", "--picture", "no/p.png"), 1, "folder of 'p.png' does"),
        (
            ("register", "ct.nii.gz", "t1.nii.gz", "-t", "t.h5", "--initial", "middle"),
            1,
            "'middle' is no file, and none",
        ),
        (("register", "ct.nii.gz", "t1.nii.gz", "-t", "t.h5", "--initial", "no.h5"), 1, "'no.h5' is no file, and none"),
        (("train", "magic", "--data", "."), 1, "'magic' has nothing to train here: choose one of medfusion"),
        (("evaluate", "ct.nii.gz", "t1.nii.gz", "pet.nrrd", "--csv", "no/s.csv"), 1, "the folder of 's.csv' does not"),
        (("run", "ct.nii.gz", "t1.nii.gz", "-o", "ct.nii.gz/out"), 1, "'ct.nii.gz' is no folder you may write to"),
        (("batch", ".", "-o", "."), 1, "lies in the cohort's folder"),
        (("batch", ".", "-o", "results"), 1, "'results' lies in the cohort's folder"),
        (("register", "ct.nii.gz", "t1.nii.gz", "--model", "soft", "-t", "t.h5"), 1, "soft"),
        (("evaluate", "ct.nii.gz", "t1.nii.gz", "pet.nrrd"), 1, "“t1” is not on the grid of “ct”"),
        (("demo", "--ct", "ct.nii.gz", "-o", "out"), 2, "at least two of --ct, --mr and --pet"),
        (("batch", "absent", "-o", "out"), 1, "there is no file or folder 'absent'"),
    ),
)
def test_what_goes_wrong_is_one_line_and_leaves_the_disk_alone(call, folder, monkeypatch, arguments, code, said):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    got, _, err = call(*arguments)
    assert got == code, err
    # A wrong command is framed in a box, whose lines may break anywhere.
    assert said in re.sub(r"[\s│]+", " ", err), err
    if code == 1:
        assert len(err.strip().splitlines()) == 1, err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.skipif(sys.platform == "win32", reason="needs an interrupt signal")
@pytest.mark.parametrize("sent", (signal.SIGINT, signal.SIGTERM))
def test_an_interrupt_leaves_nothing(folder, tmp_path, sent):
    """Ctrl+C, or a scheduler's end, while it works: a line, no traceback, no file."""
    command = [sys.executable, "-m", "MedFusionLib", "run", folder / "ct.nii.gz", folder / "t1.nii.gz"]
    running = subprocess.Popen(
        [*command, "-o", tmp_path / "out"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background are deaf to Ctrl+C, and so would their children be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # Torch in its memory: it is past the command line and at work.
    maps = Path(f"/proc/{running.pid}/maps")
    end = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < end:
        if not maps.exists() or "libtorch" in maps.read_text():
            break
        time.sleep(0.05)
    running.send_signal(sent)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.strip() == "Interrupted: nothing half-written is left behind."
    assert not files(tmp_path)


def test_a_file_that_says_nothing_of_its_modality_is_pointed_out(call, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        write_volume(Volume(rng.random((12, 14, 16), np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    pair = (tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "--method", "average")
    _, _, err = call("fuse", *pair, "-o", tmp_path / "f.nrrd")
    assert "a.nii.gz does not say what it is: give --modality" in err
    _, _, err = call("fuse", *pair, "-o", tmp_path / "f.nrrd", "-m", "ct", "-m", "mr")
    assert err == ""


# Cohorts


@pytest.fixture
def cohort(tmp_path):
    """Three subjects: a good one, one whose second scan is damaged, and another good one."""
    rng = np.random.default_rng(0)
    for subject in ("anna", "ben", "cleo"):
        (tmp_path / "in" / subject).mkdir(parents=True)
        for name in ("ct", "t1"):
            values = rng.random((14, 20, 24), np.float32)
            write_volume(Volume(values, np.eye(4), display_range=(0, 1)), tmp_path / "in" / subject / f"{name}.nrrd")
    damaged = tmp_path / "in" / "ben" / "t1.nrrd"
    damaged.write_bytes(damaged.read_bytes()[:700])
    return tmp_path


def summary(place):
    with open(place / "out" / "summary.csv") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def test_batch_goes_on_after_a_failure_and_resumes(call, cohort):
    arguments = ("--registration", "none", "--method", "average", "-o", cohort / "out")
    code, out, err = call("batch", cohort / "in", *arguments)
    assert code == 1
    assert "1 of 3 subjects failed" in err
    assert {name: row["state"] for name, row in summary(cohort).items()} == {
        "anna": "done",
        "ben": "failed",
        "cleo": "done",
    }
    assert "'t1.nrrd' cannot be read" in summary(cohort)["ben"]["message"]
    assert not (cohort / "out" / "ben").exists()
    assert (cohort / "out" / "anna" / "fused.nrrd").is_file()
    assert float(summary(cohort)["anna"]["SSIM"]) > 0

    # The damaged file is mended: only that subject is done.
    (cohort / "in" / "ben" / "t1.nrrd").write_bytes((cohort / "in" / "anna" / "t1.nrrd").read_bytes())
    stamp = (cohort / "out" / "anna" / "fused.nrrd").stat().st_mtime_ns
    code, out, _ = call("batch", cohort / "in", *arguments)
    assert code == 0, out
    states = [row["state"] for row in summary(cohort).values()]
    assert states == ["kept", "done", "kept"]
    assert (cohort / "out" / "anna" / "fused.nrrd").stat().st_mtime_ns == stamp
    assert float(summary(cohort)["anna"]["SSIM"]) > 0

    # What stays of an earlier run is not taken for this one's.
    saved = (cohort / "in" / "ben" / "t1.nrrd").read_bytes()
    (cohort / "in" / "ben" / "t1.nrrd").write_bytes(b"torn")
    assert call("batch", cohort / "in", *arguments)[0] == 1
    assert "the result of an earlier run" in summary(cohort)["ben"]["message"]
    (cohort / "in" / "ben" / "t1.nrrd").write_bytes(saved)

    # Other settings: everything again. And again where it is asked for.
    assert call("batch", cohort / "in", *arguments, "--method", "maximum")[0] == 0
    assert [row["state"] for row in summary(cohort).values()] == ["done"] * 3
    assert call("batch", cohort / "in", *arguments, "--method", "maximum", "--again")[0] == 0
    assert [row["state"] for row in summary(cohort).values()] == ["done"] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_batch_goes_on_after_a_subject_whose_name_is_no_utf8(call, cohort):
    (cohort / "in" / "ben").rename(cohort / "in" / "b\udcfcn")
    code, out, _ = call("batch", cohort / "in", "-o", cohort / "out", "--registration", "none", "--method", "average")
    assert code == 1 and "rename it" in out
    assert [row["state"] for row in summary(cohort).values()] == ["done", "failed", "done"]


@contextlib.contextmanager
def barred_from(folder):
    """Within, `folder` may not be looked into; root may everywhere, so where it runs the tests, it is another user."""
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.fixture
def open_place():
    """A folder that other users may look into: pytest's own are open to their owner alone."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        yield place


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_places_that_may_not_be_looked_into_are_said(call, open_place):
    barred = open_place / "barred"
    barred.mkdir()
    cases = (
        (("run", "a.nii", "b.nii", "-o", barred / "out"), "'out' cannot be reached"),
        (("fuse", "a.nii", "b.nii", "-o", barred / "f.nii"), "'f.nii' cannot be reached"),
        (("register", "a.nii", "b.nii", "-o", barred / "f.nii"), "'f.nii' cannot be reached"),
        (("batch", barred / "list.csv", "-o", open_place / "results"), "'list.csv' cannot be reached"),
        (("batch", barred, "-o", open_place / "results"), "'barred' may not be read"),
        (("run", barred, "b.nii", "-o", open_place / "results"), "'barred' may not be read"),
    )
    for arguments, _ in cases:
        call(*arguments)  # imports what another user might not
    open_place.chmod(0o777)
    with barred_from(barred):
        said = [call(*arguments) for arguments, _ in cases]
    for (arguments, message), (code, _, err) in zip(cases, said, strict=True):
        assert code == 1 and message in err, (arguments, err)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
@pytest.mark.parametrize("barred", ("in/ben", "bids/sub-ben", "bids/sub-ben/anat", "out/ben", "tabled/ben"))
def test_batch_goes_on_after_a_subject_whose_folder_may_not_be_looked_into(call, cohort, open_place, barred):
    """The whole batch stopped at its start; with a barred anat the subject was left out, or done without its MRI."""
    for name in ("anna", "ben", "cleo"):
        for kind, datatype, file in (("ct", "ct", "ct"), ("T1w", "anat", "t1")):
            scan = read_volume(cohort / "in" / "anna" / f"{file}.nrrd")
            for path in (f"in/{name}/{file}.nrrd", f"bids/sub-{name}/{datatype}/sub-{name}_{kind}.nii.gz"):
                (open_place / path).parent.mkdir(parents=True, exist_ok=True)
                write_volume(scan, open_place / path)
    data = open_place / barred.partition("/")[0].replace("out", "in")
    if barred == "tabled/ben":
        (open_place / "in").rename(data)
        data = data / "list.csv"
        data.write_text("subject,CT,MR\n" + "".join(f"{n},{n}/ct.nrrd,{n}/t1.nrrd\n" for n in ("anna", "ben", "cleo")))
    (open_place / "in" / "lost+found").mkdir(parents=True, exist_ok=True)
    arguments = ("batch", data, "--registration", "none", "--method", "average", "-o")
    assert call(*arguments, open_place / "before")[0] == 0  # imports what another user might not
    (open_place / "out" / "ben").mkdir(parents=True)
    (open_place / "out").chmod(0o777)
    with barred_from(open_place / barred):
        code, _, err = call(*arguments, open_place / "out")
    assert code == 1 and "1 of 3 subjects failed" in err
    rows = summary(open_place).values()
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    said = {"out/ben": "'ben' is no folder you may write to", "tabled/ben": "'ct.nrrd' may not be read"}
    assert said.get(barred, f"'{Path(barred).name}' may not be read") in list(rows)[1]["message"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_half_a_series_that_may_not_be_read_is_not_left_out(call, open_place):
    """The other half was taken for the whole head. And nobody learns from a cohort of which a part is barred."""
    from test_dicom import write_series

    series = open_place / "series"
    write_series(series)
    slices = sorted(series.iterdir(), key=lambda file: file.stem[-1])
    (series / "second").mkdir()
    for file in slices[3:]:
        file.rename(series / "second" / file.name)
    (open_place / "in" / "barred").mkdir(parents=True)
    assert read_volume(series).size[2] == 6
    train = ("train", "fwnet", "--data", open_place / "in", "-o", open_place / "weights")
    call(*train)  # imports what another user might not
    (series / "lost+found").mkdir()
    with barred_from(series / "lost+found"):
        assert read_volume(series).size[2] == 6
    with barred_from(series / "second"), pytest.raises(FileError, match="'second' may not be read"):
        read_volume(series)
    with barred_from(open_place / "in" / "barred"):
        code, _, err = call(*train)
    assert code == 1 and "'barred' may not be read" in err


def test_batch_says_what_a_subject_lacks(call, cohort):
    (cohort / "in" / "ben" / "t1.nrrd").unlink()
    (cohort / "in" / "cleo" / "ct.nrrd").rename(cohort / "in" / "cleo" / "scan.nrrd")
    arguments = (cohort / "in", "--registration", "none", "--method", "average", "-o", cohort / "out")
    for state in ("done", "kept"):  # the second time from the report
        assert call("batch", *arguments)[0] == 1
        said = summary(cohort)["ben"]["message"]
        assert "this subject has 1 scan: give two or three, each a file or a folder with one DICOM series" in said
        assert summary(cohort)["cleo"]["state"] == state
        assert "does not say what it is" in summary(cohort)["cleo"]["message"]
        assert summary(cohort)["anna"]["message"] == ""


@pytest.mark.parametrize("option", ("--registration", "--method", "--axis", "--lut"))
def test_batch_with_a_wrong_setting_is_not_begun(call, cohort, option):
    code, _, err = call("batch", cohort / "in", option, "wrong", "-o", cohort / "out")
    assert code == 1 and "'wrong' is not" in err and "subjects failed" not in err
    assert not (cohort / "out").exists()


def test_batch_takes_a_table_and_the_reference_is_the_ct(call, cohort):
    (cohort / "in" / "list.csv").write_text(
        "subject,MR,CT\none,anna/t1.nrrd,anna/ct.nrrd\ntwo,cleo/t1.nrrd,cleo/ct.nrrd\n"
    )
    code, out, _ = call(
        "batch", cohort / "in" / "list.csv", "--registration", "none", "--method", "average", "-o", cohort / "out"
    )
    assert code == 0, out
    assert json.loads((cohort / "out" / "two" / "report.json").read_text())["reference"] == "CT"


@pytest.mark.skipif(sys.platform != "linux", reason="gives a folder a second name")
def test_a_cohorts_folder_by_another_way_to_write_its_name_takes_no_results(cohort):
    """As on the disks of Windows and macOS, where capitals make no other folder."""
    (cohort / "In").mkdir()
    verb = f"'{sys.executable}' -m MedFusionLib batch '{cohort}/in' -o '{cohort}/In/results'"
    shell = f"mount --bind '{cohort}/in' '{cohort}/In' && {verb}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"this machine lets no test mount a folder: {done.stderr.strip()}")
    assert "'results' lies in the cohort's folder" in " ".join(done.stderr.split())


def test_names_that_windows_has_no_folders_for_are_few(call, cohort):
    names = ("Conrad", "console", "p.1", "com", "com10", "a;b", "Ren\xe9 (2)")
    lines = "".join(f'"{name}",anna/t1.nrrd,anna/ct.nrrd\n' for name in names)
    (cohort / "in" / "list.csv").write_text(f"subject,MR,CT\n{lines}", encoding="utf-8")
    assert [subject.name for subject in find_subjects(cohort / "in" / "list.csv")] == list(names)


@pytest.mark.parametrize("closed", (True, False))
def test_a_summary_that_is_open_in_a_spreadsheet_stops_no_batch(call, cohort, monkeypatch, closed):
    """Windows lets no one replace it; it is written when it is closed, and where it stays open that is said."""
    (cohort / "in" / "ben" / "t1.nrrd").write_bytes((cohort / "in" / "anna" / "t1.nrrd").read_bytes())
    replace, tries = os.replace, []

    def refuse(source, target):
        if Path(target).name == "summary.csv":
            tries.append(target)
            if len(tries) == 2 or (len(tries) == 3 and not closed):
                raise PermissionError(errno.EACCES, "is being used by another process", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    arguments = ("--registration", "none", "--method", "average", "-o", cohort / "out")
    code, _, err = call("batch", cohort / "in", *arguments)
    assert [(cohort / "out" / name / "report.json").is_file() for name in ("anna", "ben", "cleo")] == [True] * 3
    assert code == (0 if closed else 1)
    assert closed or "'summary.csv' cannot be written (is being used by another process): close it in other" in err
    assert list(summary(cohort)) == (["anna", "ben", "cleo"] if closed else ["anna"])


def test_batch_writes_no_result_over_a_scan(call, cohort):
    scan = cohort / "in" / "anna" / "fused.nrrd"
    (cohort / "in" / "anna" / "t1.nrrd").rename(scan)
    before = scan.read_bytes()
    (cohort / "in" / "list.csv").write_text("subject,CT,MR\nanna,anna/ct.nrrd,anna/fused.nrrd\n")
    arguments = ("-o", cohort / "in", "--registration", "none", "--method", "average")
    code, out, _ = call("batch", cohort / "in" / "list.csv", *arguments)
    assert code == 1 and "would be written over" in " ".join(out.split())
    assert scan.read_bytes() == before
    # Under a name that only some disks take for the same.
    os.link(scan, cohort / "in" / "anna" / "Fused.nrrd")
    (cohort / "in" / "list.csv").write_text("subject,CT,MR\nanna,anna/ct.nrrd,anna/Fused.nrrd\n")
    code, out, _ = call("batch", cohort / "in" / "list.csv", *arguments)
    assert code == 1 and "would be written over" in " ".join(out.split())


def test_an_input_by_another_way_to_write_its_name_is_not_written_over(call, folder, tmp_path):
    """As on the disks of Windows and macOS, where capitals make no other file."""
    for name in ("ct.nii.gz", "t1.nii.gz"):
        shutil.copy(folder / name, tmp_path)
    os.link(tmp_path / "t1.nii.gz", tmp_path / "T1.nii.gz")
    pair = (tmp_path / "ct.nii.gz", tmp_path / "t1.nii.gz")
    code, _, err = call("fuse", *pair, "-o", tmp_path / "T1.nii.gz", "--method", "average")
    assert code == 1 and "'T1.nii.gz' is one of the inputs" in err


def test_names_with_brackets_are_written_as_they_are(call, cohort):
    place = cohort / "results [old]" / "a[bold].nrrd"
    place.parent.mkdir()
    pair = (cohort / "in" / "anna" / "ct.nrrd", cohort / "in" / "anna" / "t1.nrrd")
    _, out, _ = call("fuse", *pair, "-o", place, "--method", "average")
    assert f"wrote {place}" in out


@pytest.mark.parametrize("verb", ("run", "batch"))
def test_reading_counts_as_time(call, cohort, monkeypatch, verb):
    def slow(*arguments, **options):
        time.sleep(0.3)
        return read_volume(*arguments, **options)

    monkeypatch.setattr("MedFusionLib.files.read_volume", slow)
    monkeypatch.setattr("MedFusionLib.cohort.read_volume", slow)
    anna = cohort / "in" / "anna"
    sources = [anna / "ct.nrrd", anna / "t1.nrrd"] if verb == "run" else [cohort / "in"]
    call(verb, *sources, "--registration", "none", "--method", "average", "-o", cohort / "out")
    report = cohort / "out" / ("report.json" if verb == "run" else "anna/report.json")
    assert json.loads(report.read_text())["seconds"]["read"] >= 0.6


@pytest.mark.parametrize(
    "table",
    (
        'Subject,MR,CT\n\n"one, two",anna/t1.nrrd,anna/ct.nrrd\n,,\n',
        "subject;MR;CT\none, two;anna/t1.nrrd;anna/ct.nrrd\n;;\n",
        "\ufeffsubject;note;MR;CT;PT\none, two;x;anna/t1.nrrd;anna/ct.nrrd\n",
        'MR,mr,subject\nanna/ct.nrrd,anna/t1.nrrd,"one, two"\n',
    ),
)
def test_tables_as_spreadsheets_write_them(call, cohort, table):
    (cohort / "in" / "list.csv").write_text(table, encoding="utf-8")
    arguments = ("--registration", "none", "--method", "average", "-o", cohort / "out")
    assert call("batch", cohort / "in" / "list.csv", *arguments)[0] == 0
    report = json.loads((cohort / "out" / "one, two" / "report.json").read_text())
    assert len(report["sources"]) == 2


def test_batch_takes_a_bids_dataset(call, cohort, caplog):
    """Sessions are subjects of their own; masks, other series and derivatives are not scans to fuse."""
    dataset = cohort / "dataset"
    for session, kinds in (("sub-01", ("ct", "T1w")), ("sub-02/ses-a", ("T1w", "pet")), ("sub-02/ses-b", ("pet",))):
        name = session.replace("/", "_")
        for kind in (*kinds, "bold", "T1w_mask"):
            folder = dataset / session / {"T1w": "anat", "T1w_mask": "anat", "bold": "func"}.get(kind, kind)
            folder.mkdir(parents=True, exist_ok=True)
            source = "t1" if kind.startswith("T1w") else "ct"
            scan = read_volume(cohort / "in" / "anna" / f"{source}.nrrd", modality="MR")
            write_volume(scan, folder / f"{name}_{kind}.nii.gz")
            (folder / f"{name}_{kind}.json").write_text("{}")
    (dataset / "derivatives" / "sub-01").mkdir(parents=True)
    (dataset / "sub-03" / "func").mkdir(parents=True)
    assert call("batch", dataset, "--registration", "none", "--method", "average", "-o", cohort / "out")[0] == 1
    states = {name: (row["state"], row["message"]) for name, row in summary(cohort).items()}
    assert {name: state for name, (state, _) in states.items()} == {
        "sub-01": "done", "sub-02_ses-a": "done", "sub-02_ses-b": "failed",
    }  # fmt: skip
    assert "has 1 scan" in states["sub-02_ses-b"][1]
    assert "1 subjects or sessions without anat, pet, ct, spect are left out" in caplog.text
    for name, modalities in (("sub-01", ["CT", "MR"]), ("sub-02_ses-a", ["MR", "PT"])):
        report = json.loads((cohort / "out" / name / "report.json").read_text())
        assert sorted(source["modality"] for source in report["sources"]) == modalities
    arguments = (dataset, "--registration", "none", "--method", "average", "-o")
    assert "lies in the cohort's folder" in call("batch", *arguments, dataset / "sub-01" / "fused")[2]
    for _ in range(2):
        assert "has 1 scan" in call("batch", *arguments, dataset / "derivatives" / "medfusion")[1]
    assert (dataset / "derivatives" / "medfusion" / "sub-01" / "fused.nrrd").is_file()


def test_batch_leaves_out_what_lies_beside_the_scans(call, cohort):
    scan = read_volume(cohort / "in" / "anna" / "t1.nrrd")
    folder = cohort / "in" / "ben"
    (folder / "t1.nrrd").unlink()
    write_volume(scan, folder / "t1.mhd")  # and a second file with the voxels
    (folder / "ct.nrrd").unlink()
    other = sitk.GetImageFromArray(scan.array[::-1] + 1)
    sitk.WriteImage(other, str(folder / "ct.img"))  # and a second one with the header
    assert (folder / "ct.hdr").exists()
    for name in ("Thumbs.db", "desktop.ini", "notes.TXT"):
        (folder / name).write_text("x")
    arguments = ("--registration", "none", "--method", "average", "-o", cohort / "out")
    assert call("batch", cohort / "in", *arguments)[0] == 0, summary(cohort)
    # Other voxels, the same header: another scan.
    (folder / "t1.zraw").touch()
    assert call("batch", cohort / "in", *arguments)[0] == 0
    assert [row["state"] for row in summary(cohort).values()] == ["kept", "done", "kept"]


def test_batch_does_again_what_is_no_longer_whole_or_of_other_weights(call, cohort, monkeypatch):
    (cohort / "in" / "ben" / "t1.nrrd").write_bytes((cohort / "in" / "anna" / "t1.nrrd").read_bytes())
    arguments = (cohort / "in", "--registration", "none", "--method", "average", "-o", cohort / "out")
    assert call("batch", *arguments)[0] == 0
    (cohort / "out" / "ben" / "fused.nrrd").unlink()
    assert call("batch", *arguments)[0] == 0
    assert [row["state"] for row in summary(cohort).values()] == ["kept", "done", "kept"]
    monkeypatch.setattr("MedFusionLib.fusion.registry.weights_hash", lambda method: "trained anew")
    assert call("batch", *arguments)[0] == 0
    assert [row["state"] for row in summary(cohort).values()] == ["done"] * 3


@pytest.mark.parametrize(
    ("table", "said"),
    (
        ("", "needs the column subject"),
        ("name,CT,MR\na,b,c\n", "needs the column subject"),
        ("subject,first,second\na,b,c\n", "columns of paths named by modality"),
        ("subject,CT,MR\n../a,b,c\n", "use names that can be folders"),
        ("subject,CT,MR\na,b,c\na,b,c\n", "'a' twice"),
        ("subject,CT,MR\np1,b,c\nP1,d,e\n", "'P1' twice"),
        ("subject,CT,MR\nM\xfcller,b,c\nMu\u0308ller,d,e\n", "twice: use each name once"),
        ("subject,CT,MR\np1,b,c\np1.,d,e\n", "use names that can be folders on every system"),
        ("subject,CT,MR\nD:p1,b,c\n", "use names that can be folders on every system"),
        ("subject,CT,MR\ncon,b,c\n", "use names that can be folders on every system"),
        ("subject,CT,MR\nnul.1,b,c\n", "use names that can be folders on every system"),
        ("subject,CT,MR\n", "a line for each subject"),
        ("subject,CT,MR\nDoe, Jane,a,b\n", "put text that holds ',' in quotes"),
    ),
)
def test_tables_that_are_none_are_refused(call, tmp_path, table, said):
    (tmp_path / "list.csv").write_text(table, encoding="utf-8")
    code, _, err = call("batch", tmp_path / "list.csv", "-o", tmp_path / "out")
    assert code == 1
    assert said in err
    assert not (tmp_path / "out").exists()


def test_an_empty_cohort_is_refused(call, tmp_path):
    (tmp_path / "in").mkdir()
    code, _, err = call("batch", tmp_path / "in", "-o", tmp_path / "out")
    assert code == 1
    assert "'in' holds no subjects" in err
