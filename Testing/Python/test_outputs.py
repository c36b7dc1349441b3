"""The files that people keep of a result: each is of the right volumes, and no other file is touched."""

import csv
import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedFusionLib import read_volume
from MedFusionLib.color import colorize
from MedFusionLib.errors import FileError
from MedFusionLib.fusion import fuse
from MedFusionLib.outputs import REPORT, write_result, write_table
from MedFusionLib.pipeline import Coloring, Request, Result
from MedFusionLib.registration import Grid, Registration, contact_sheet
from MedFusionLib.registration.result import Quality, read_matrix
from MedFusionLib.volume import Volume


@pytest.fixture
def done():
    """(result, request) of a CT and a PET that were brought to an MRI by known motions."""
    k, j, i = np.indices((12, 20, 24))
    base = np.hypot(np.hypot((i - 11) / 10, (j - 9) / 8), (k - 6) / 5) < 1
    values = {"CT": 900 * base - 400 * (i > 14), "MR": 100 * base + i, "PT": 5.0 * base + 3 * (j > 9)}
    sources = tuple(Volume(v.astype(np.float32), np.diag([2, 2, 3, 1.0]), m, name="Doe") for m, v in values.items())
    quality = Quality("check", "it is vague.", math.nan, 1.25, 0.5, 0.75, 1.5, (0.9, 1.1), 0)
    registrations = []
    for n in (0, 2):
        matrix = np.eye(4)
        matrix[:3, 3] = (2 + n, -4, 3)
        registrations.append(Registration("rigid", matrix, None, Grid.of(sources[1]), quality))
    registrations.insert(1, None)
    aligned = tuple(r.resample(s) if r else s for s, r in zip(sources, registrations, strict=True))
    request = Request(sources, reference=1, method="average", coloring=Coloring(threshold=2.0))
    fusion = fuse(aligned, "average", device="cpu")
    rgb = colorize(fusion.volume, aligned[2], request.coloring)
    return Result(fusion, aligned, tuple(registrations), rgb, {"MI": 1.5, "EN": 2.25}, {"fuse": 0.5}, ()), request


def test_every_file_is_of_its_own_volumes(done, tmp_path):
    result, request = done
    write_result(result, request, tmp_path)
    np.testing.assert_array_equal(read_volume(tmp_path / "fused.nrrd").array, result.fusion.volume.array)
    np.testing.assert_array_equal(read_volume(tmp_path / "color.nrrd").array, result.rgb.array)
    for n, name in ((0, "CT-to-MR"), (2, "PT-to-MR")):
        registration = result.registrations[n]
        np.testing.assert_allclose(read_matrix(tmp_path / f"{name}.h5"), registration.matrix, atol=1e-9)
        sheet = contact_sheet(request.sources[1], request.sources[n], registration)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{name}.png"))), sheet)
    with open(tmp_path / "scores.csv", newline="") as file:
        assert list(csv.reader(file)) == [["metric", "value"], ["MI", "1.5"], ["EN", "2.25"]]
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["reference"] == "MR" and [source["label"] for source in report["sources"]] == ["CT", "MR", "PT"]
    assert report["registrations"]["PT"]["matrix"] == result.registrations[2].matrix.tolist()
    measured = report["registrations"]["CT"]["measured"]
    assert measured["similarity_before"] is None  # nothing overlapped
    assert (measured["similarity_after"], measured["overlap"], measured["jacobian"]) == (1.25, 0.5, [0.9, 1.1])
    assert report["files"] == sorted(file.name for file in tmp_path.iterdir())


def test_of_an_earlier_result_only_its_own_files_go(done, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "kept.txt").touch()
    (folder / "old.png").touch()
    listed = ["old.png", "gone.png", "../kept.txt", str(tmp_path / "kept.txt")]
    (folder / REPORT).write_text(json.dumps({"files": listed, "fusion": {"MedFusion.Version": "0.1"}}))
    names = write_result(*done, folder)
    assert sorted(file.name for file in folder.iterdir()) == names and "old.png" not in names
    assert (tmp_path / "kept.txt").exists()


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "scores.csv").mkdir()
    with pytest.raises(FileError, match=r"'scores\.csv' cannot be written"):
        write_table(tmp_path / "scores.csv", [{"metric": "MI", "value": 1.5}])
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]


def test_a_file_that_cannot_be_replaced_leaves_the_earlier_result_whole(done, tmp_path):
    """On Windows one that another program has open, as a spreadsheet has the scores: here one that is a folder."""
    result, request = done
    write_result(result, request, tmp_path / "out")
    (tmp_path / "out" / "scores.csv").unlink()
    (tmp_path / "out" / "scores.csv").mkdir()
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file()}
    other = replace(result, rgb=None, fusion=replace(result.fusion, volume=result.sources[0]))
    with pytest.raises(FileError, match=r"'out' \(scores.csv: Is a directory\): close what other programs have open"):
        write_result(other, request, tmp_path / "out")
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert [file.name for file in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "scores.csv").is_dir()


@pytest.mark.parametrize("name", ("old.png", "scores.csv"))
def test_a_file_that_is_open_elsewhere_leaves_the_earlier_result_whole(done, tmp_path, monkeypatch, name):
    """As Windows refuses to move it: old.png is of an earlier result alone."""
    (tmp_path / "old.png").touch()
    write_result(*done, tmp_path)
    report = json.loads((tmp_path / REPORT).read_text())
    (tmp_path / REPORT).write_text(json.dumps(report | {"files": [*report["files"], "old.png"]}))
    (tmp_path / "old.png").touch()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    move = {function: getattr(os, function) for function in ("replace", "unlink")}

    def refusing(function):
        def refuse(path, *others, **options):
            if Path(path) == tmp_path / name:
                raise PermissionError(errno.EACCES, "is being used by another process", str(path))
            return move[function](path, *others, **options)

        return refuse

    for function in move:
        monkeypatch.setattr(os, function, refusing(function))
    with pytest.raises(FileError, match=f"{name}: is being used by another process"):
        write_result(*done, tmp_path)
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
