"""Pictures that a registration is judged by."""

import numpy as np
import pytest
import SimpleITK as sitk

from MedFusionLib.errors import FileError, GeometryError
from MedFusionLib.registration import Grid, Registration, contact_sheet
from MedFusionLib.registration.pictures import EDGE_COLOR, GAP, PANEL, checkerboard, edges_over
from MedFusionLib.volume import Volume


def head(affine):
    """A ball with a bright spot at the patient's right front, above the middle."""
    k, j, i = np.indices((30, 36, 40))
    where = np.stack([i, j, k, np.ones_like(i)], -1) @ affine.T[:, :3]
    ball = 100.0 * (np.linalg.norm(where, axis=-1) < 50)
    ball[np.linalg.norm(where - (28, 20, 8), axis=-1) < 12] = 300
    return Volume(ball.astype(np.float32), affine, "MR", "", "head")


def affine(signs=(1, 1, 1), order=(0, 1, 2)):
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(signs)[:, list(order)] * np.array([3.0, 3.5, 4.0])
    matrix[:3, 3] = -matrix[:3, :3] @ [19.5, 17.5, 14.5]
    return matrix


def test_checkerboard_alternates():
    board = checkerboard(np.zeros((16, 16)), np.ones((16, 16)), tiles=4)
    assert board[0, 0] == 0 and board[0, 4] == 1 and board[4, 4] == 0 and board.mean() == 0.5
    with pytest.raises(GeometryError):
        checkerboard(np.zeros((4, 4)), np.zeros((4, 5)))


def test_edges_lie_on_the_outline():
    disc = (np.hypot(*(np.indices((80, 80)) - 40)) < 25).astype(float)
    colored = (edges_over(np.zeros((80, 80)), disc) == EDGE_COLOR).all(-1)
    radius = np.hypot(*(np.argwhere(colored) - 40).T)
    assert len(radius) > 100 and np.abs(radius - 25).max() < 3


@pytest.mark.parametrize("grid", [affine(), affine((-1, -1, 1)), affine((1, -1, -1), (1, 2, 0))])
def test_slices_hang_as_radiologists_hang_them(grid):
    volume = head(grid)
    sheet = contact_sheet(volume, volume, Registration("none", np.eye(4), None, Grid.of(volume)))
    assert sheet.shape == (3 * PANEL + 2 * GAP, 5 * PANEL + 4 * GAP, 3)
    rows, columns = np.nonzero(sheet[:PANEL, :PANEL, 0] > 200)
    assert rows.mean() < PANEL / 2 and columns.mean() < PANEL / 2  # axial: front up, patient's right on the left


def test_a_head_in_a_wide_field_of_view_fills_its_panels():
    """As of a PET of half a metre; a speck of noise far away does not count. Pixels stay square."""
    small, away = head(affine()), 20
    wide = np.pad(small.array, ((0, 25), (away, 40), (70, away)))
    wide[-1, -1, -1] = 300
    start = np.eye(4)
    start[:3, 3] = -70, -away, 0
    volume = small.with_array(wide, affine=small.affine @ start)
    sheet = contact_sheet(volume, volume, Registration("none", np.eye(4), None, Grid.of(volume)))
    for row in range(3):
        top = row * (PANEL + GAP)
        rows, columns = (np.flatnonzero((sheet[top : top + PANEL, :PANEL, 0] > 60).any(n)) for n in (1, 0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert min(height, width) > 0.6 * PANEL
        assert abs(height - width) < 0.06 * PANEL


def test_a_hot_spot_is_not_all_there_is_to_see():
    """It is so bright that the head is as dark as air beside it: the panels showed the spot and 2 cm around it."""
    volume = head(affine())
    hot = volume.array.copy()
    middle = tuple(slice(n // 2 - 2, n // 2 + 2) for n in hot.shape)
    hot[middle] = 30 * hot.max()
    here = Registration("none", np.eye(4), None, Grid.of(volume))
    plain = contact_sheet(volume, volume, here)
    behind = contact_sheet(volume.with_array(hot, display_range=(0, float(hot.max()))), volume, here)
    for row in range(3):
        place = slice(row * (PANEL + GAP), row * (PANEL + GAP) + PANEL), slice(PANEL + GAP, 2 * PANEL + GAP)
        seen = [(sheet[place][..., 0] > 60).sum() for sheet in (plain, behind)]
        assert abs(seen[1] / seen[0] - 1) < 0.1


def test_before_and_after_differ_where_it_moved():
    volume = head(affine())
    away = np.eye(4)
    away[:3, 3] = (0, 15, 0)
    moved = volume.with_array(volume.array, affine=away @ volume.affine)
    sheet = contact_sheet(volume, moved, Registration("rigid", np.linalg.inv(away), None, Grid.of(volume)))
    panels = [sheet[:PANEL, n * (PANEL + GAP) : n * (PANEL + GAP) + PANEL, 0].astype(int) for n in range(5)]
    assert np.abs(panels[0] - panels[1]).mean() > 3
    assert np.abs(panels[0] - panels[4]).mean() < 1


def test_written_whole_or_not_at_all(tmp_path):
    volume = head(affine())
    registration = Registration("none", np.eye(4), None, Grid.of(volume))
    sheet = contact_sheet(volume, volume, registration, tmp_path / "sheet.png")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "sheet.png"))), sheet)
    with pytest.raises(FileError):
        contact_sheet(volume, volume, registration, tmp_path / "missing" / "sheet.png")
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
