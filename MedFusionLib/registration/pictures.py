"""Pictures to judge a registration by: checkerboard, edges of one scan over the other, before and after."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import FileError, GeometryError
from ..normalize import display_range, scale
from .result import Grid, Registration

PANEL = 220
"""Pixels of a panel's longer side."""

ANATOMY = 0.15
"""Of the display range: what is darker is air, unless the mean is darker still, as of a PET with one hot spot."""

MARGIN = 20
"""Millimetres that a picture shows around the anatomy: a PET of the brain alone has a skull around it."""

EDGE_COLOR = np.array([255, 190, 0], np.uint8)
GAP = 6


def checkerboard(fixed, moved, tiles=8):
    """Two slices (rows, columns), 0..1, in alternating squares: an edge that runs on from one into the next fits."""
    fixed, moved = (np.asarray(a) for a in (fixed, moved))
    if fixed.shape != moved.shape or fixed.ndim != 2:
        raise GeometryError(f"a checkerboard needs two slices of one shape, not {fixed.shape} and {moved.shape}.")
    side = max(1, max(fixed.shape) // tiles)
    rows, columns = np.indices(fixed.shape) // side
    return np.where((rows + columns) % 2 == 0, fixed, moved)


def edges_over(fixed, moved):
    """uint8 (rows, columns, 3): the edges of `moved` in colour over `fixed`; both slices (rows, columns), 0..1."""
    from skimage.feature import canny

    edge = canny(np.asarray(moved, np.float32), sigma=1.5, low_threshold=0.02, high_threshold=0.06)
    picture = _gray(fixed)
    picture[edge] = EDGE_COLOR
    return picture


def contact_sheet(fixed, moving, registration, path=None):
    """uint8 (rows, columns, 3): axial, coronal and sagittal middle slices, as far as the fixed scan's anatomy reaches.

    Columns: fixed; moving, as it lay before; its edges over fixed, before; the same after; checkerboard after.
    fixed, moving: Volumes. path: a PNG is written there too, whole or not at all (FileError).
    """
    before = Registration("none", np.eye(4), None, registration.fixed)
    ends, ends_moving = display_range(fixed), display_range(moving)
    middles, shown = _anatomy(fixed, *ends)
    rows = []
    for name in ("axial", "coronal", "sagittal"):
        axis = fixed.anatomical_axis(name)
        one = scale(np.take(fixed.array, middles[axis], axis), *ends)
        # By the whole moving volume's range: what is outside the slice must not change the contrast.
        old, new = (scale(_slice(moving, way, axis, middles[axis]), *ends_moving) for way in (before, registration))
        window = tuple(part for n, part in enumerate(shown) if n != axis)
        one, old, new = (_square(_upright(p[window], fixed.affine, axis), fixed, axis) for p in (one, old, new))
        panels = [_gray(one), _gray(old), edges_over(one, old), edges_over(one, new), _gray(checkerboard(one, new))]
        rows.append(_joined([_framed(p) for p in panels], 1))
    sheet = _joined(rows, 0)
    if path is not None:
        _write_png(sheet, Path(path))
    return sheet


def _anatomy(volume, black, white):
    """Along each array axis the index of the middle of what is not dark, and the slice that holds all but a little."""
    counts = [np.zeros(n) for n in volume.array.shape]
    least = min(ANATOMY, np.mean([scale(plane, black, white).mean() for plane in volume.array]))
    for k, plane in enumerate(volume.array):
        there = scale(plane, black, white) > least
        counts[0][k] = there.sum()
        counts[1] += there.sum(1)
        counts[2] += there.sum(0)
    if not counts[0].any():
        return [len(n) // 2 for n in counts], [slice(None)] * 3
    middles = [round(np.average(np.arange(len(n)), weights=n)) for n in counts]
    shown = []
    for count, size in zip(counts, volume.spacing[::-1], strict=True):
        # Noise and spikes far from the body are few.
        first, last = np.searchsorted(np.cumsum(count), np.array([0.005, 0.995]) * count.sum())
        margin = round(MARGIN / size)
        shown.append(slice(max(0, first - margin), last + margin + 1))
    return middles, shown


def _slice(moving, registration, axis, index):
    """One slice across an array axis of the moving volume on the fixed grid, without resampling the others."""
    grid, field = registration.fixed, registration.displacement
    start, size = np.eye(4), list(grid.size)
    start[2 - axis, 3], size[2 - axis] = index, 1
    affine = grid.affine @ start
    if field is not None:
        field = field.with_array(np.take(field.array, [index], axis), affine=affine)
    one = replace(registration, fixed=Grid(tuple(size), affine), displacement=field)
    return np.take(one.resample(moving).array, 0, axis)


def _upright(picture, affine, axis):
    """A slice across an array axis as a radiologist hangs it: the patient's right on the left, front or top upwards."""
    rows, columns = (a for a in range(3) if a != axis)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    across, down = directions[:, 2 - columns], directions[:, 2 - rows]
    if _turned(affine, rows, columns):
        picture, across, down = picture.T, down, across
    wanted_down = np.array([0.0, -1.0, -1.0])
    wanted_across = np.array([-1.0, -1.0, 0.0])
    if down @ wanted_down < 0:
        picture = picture[::-1]
    if across @ wanted_across < 0:
        picture = picture[:, ::-1]
    return picture


def _square(picture, volume, axis):
    """Resampled to square pixels, `PANEL` on its longer side."""
    from scipy.ndimage import zoom

    rows, columns = (a for a in range(3) if a != axis)
    if _turned(volume.affine, rows, columns):
        rows, columns = columns, rows
    height, width = (n * volume.spacing[2 - a] for n, a in zip(picture.shape, (rows, columns), strict=True))
    scale = PANEL / max(height, width)
    target = max(1, round(height * scale)), max(1, round(width * scale))
    return np.clip(zoom(picture, [t / n for t, n in zip(target, picture.shape, strict=True)], order=1), 0, 1)


def _turned(affine, rows, columns):
    """Whether rows and columns change places: what runs head-to-foot, else front-to-back, goes down the page."""
    down = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0) * np.array([[0.0], [1.0], [2.0]])
    return down[:, 2 - columns].sum() > down[:, 2 - rows].sum()


def _gray(unit):
    return np.repeat((255 * np.clip(unit, 0, 1) + 0.5).astype(np.uint8)[..., None], 3, axis=2)


def _framed(picture):
    frame = np.zeros((PANEL, PANEL, 3), np.uint8)
    top, left = (PANEL - picture.shape[0]) // 2, (PANEL - picture.shape[1]) // 2
    frame[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return frame


def _joined(pictures, axis):
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 40, np.uint8)
    return np.concatenate([part for p in pictures for part in (gap, p)][1:], axis=axis)


def _write_png(picture, path):
    import SimpleITK as sitk

    from ..files import other_letters, written_beside

    with written_beside(path) as partial:
        png = partial.with_name("sheet.png")  # by which ITK knows the format, whatever ending was asked for
        try:
            sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), str(png))
            os.replace(png, partial)
        except (OSError, RuntimeError) as error:
            do = other_letters(path) or "check folder, space and rights."
            raise FileError(f"the picture {path.name!r} cannot be written: {do}") from error
