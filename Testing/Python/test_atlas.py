"""The atlas reader, on a small atlas made here and, where it is present, on the real one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from MedFusionLib.errors import FileError
from MedFusionLib.fusion.training import atlas

REAL = Path(__file__).resolve().parents[3] / "shared/data/harvard"


def bar(values):
    """(..., 3) uint8 of a made-up colour bar: black, blue, red, yellow, white. values: 0..1."""
    knots = np.array([[0, 0, 0], [0, 0, 255], [255, 0, 0], [255, 255, 0], [255, 255, 255]], float)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    at = values * length[-1]
    return np.rint(np.stack([np.interp(at, length, knots[:, n]) for n in range(3)], -1)).astype(np.uint8)


def write(folder, group, name, first, second):
    for kind, image in zip(group.split("-"), (first, second), strict=True):
        (folder / group / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / group / kind / name)


@pytest.fixture
def made(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 64), (64, 1))
    gray = np.rint(255 * ramp).astype(np.uint8)
    for subject in ("7", "28"):
        for k in (12, 9):
            write(tmp_path, "CT-MRI", f"{subject}{k:03d}.png", gray + np.uint8(0), np.full_like(gray, k))
    write(tmp_path, "PET-MRI", "25004.png", bar(ramp), gray)
    return tmp_path


def test_pairs_are_split_by_subject(made):
    held, seen = atlas.pairs(made, ("CT-MRI",), True), atlas.pairs(made, ("CT-MRI",), False)
    assert {pair.subject for pair in held} == {"28"}
    assert {pair.subject for pair in seen} == {"7"}
    assert len(atlas.pairs(made)) == len(held) + len(seen) + 1


def test_stacks_are_in_slice_order(made):
    stack = atlas.stacks(atlas.pairs(made, ("CT-MRI",)))["CT-MRI", "7"]
    assert stack.shape == (2, 2, 64, 64)
    assert np.allclose(stack[1, :, 0, 0] * 255, [9, 12])


def test_colors_become_luma_or_scalars(made):
    luma = atlas.pairs(made, ("PET-MRI",))[0].images[0]
    assert luma[0, 16] * 255 == pytest.approx(0.114 * 255, abs=12)
    scalar = atlas.pairs(made, ("PET-MRI",), scalar=True)[0].images[0]
    assert np.abs(scalar[0] - np.linspace(0, 1, 64)).max() < 0.06  # corners of the curve are cut


def test_colors_not_in_the_bar_get_the_nearest_value():
    found = atlas.ColorBar([bar(np.linspace(0, 1, 4000))[None]])
    assert found(np.array([[0, 10, 250]], np.uint8))[0] == pytest.approx(found(np.array([[0, 0, 250]]))[0], abs=12)


@pytest.mark.parametrize("name", ["photo.png", "28x01.png", "12.png"])
def test_foreign_files_are_refused(made, name):
    write(made, "CT-MRI", name, np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8))
    with pytest.raises(FileError, match=name):
        atlas.pairs(made)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileError, match="CT-MRI"):
        atlas.pairs(tmp_path)


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="the atlas is not beside the checkout")
def test_the_real_atlas():
    held = atlas.pairs(REAL, held_back=True)
    assert {(pair.group, pair.subject) for pair in held} == {(g, s) for g, who in atlas.HELD_BACK.items() for s in who}
    assert all(pair.images.shape == (2, 256, 256) and pair.images.max() <= 1 for pair in held)
