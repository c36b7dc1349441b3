"""Volumes to judge a registration by in a viewer: the edges of one scan, and two scans in a checkerboard."""

from __future__ import annotations

import numpy as np

from ..errors import GeometryError
from ..normalize import display_range, scale

SMOOTHING = 1.5
"""mm: standard deviation of the Gaussian, and half a voxel at least where voxels are larger."""

STEEP, STEEPEST = 0.3, 95
"""Edges are shown that are at least this share as steep as all but the steepest of them (percentile)."""

TILES = 8
"""Along the longest side of the scan."""

ROWS = 16
"""Slices at a time."""


def edge_volume(volume):
    """uint8 Volume on the grid of a scan: 1 where its values change most, else 0.

    Zero crossings of the Laplacian of a Gaussian, in three dimensions and in mm: Marr and Hildreth, "Theory of edge
    detection", Proceedings of the Royal Society B 1980.
    """
    from scipy.ndimage import gaussian_filter

    black, white = display_range(volume)
    spacing = np.asarray(volume.spacing)[::-1]
    sigma = np.maximum(SMOOTHING / spacing, 0.5)
    margin = int(np.ceil(4 * sigma[0])) + 2
    array = volume.array
    slope = np.empty(array.shape, np.float16)
    for start in range(0, len(array), ROWS):
        first, stop = max(0, start - margin), min(start + ROWS, len(array))
        smooth = gaussian_filter(scale(array[first : stop + margin], black, white), sigma, mode="nearest")
        slope[start:stop] = _crossings(smooth, spacing)[start - first : stop - first]
    there = slope[slope > 0].astype(np.float32)  # numpy cannot rank half floats of such a number
    least = STEEP * np.percentile(there, STEEPEST) if there.size else np.inf
    return volume.with_array((slope >= least).astype(np.uint8), **_plain((0, 1)))


def _crossings(image, spacing):
    """The slope per mm of an image (K, J, I) in the voxels nearest to where its Laplacian changes its sign, else 0."""
    square, laplacian = np.zeros_like(image), np.zeros_like(image)
    for axis, (length, step) in enumerate(zip(image.shape, spacing, strict=True)):
        if length < 3:
            continue
        square += np.gradient(image, step, axis=axis) ** 2
        np.moveaxis(laplacian, axis, 0)[1:-1] += np.diff(np.moveaxis(image, axis, 0), 2, axis=0) / step**2
    crossing = np.zeros(image.shape, bool)
    for axis in range(3):
        found, value = np.moveaxis(crossing, axis, 0), np.moveaxis(laplacian, axis, 0)
        change = (value[:-1] > 0) != (value[1:] > 0)
        nearer = np.abs(value[:-1]) < np.abs(value[1:])
        found[:-1] |= change & nearer
        found[1:] |= change & ~nearer
    return np.where(crossing, np.sqrt(square), 0)


def checkerboard_volume(fixed, moved, shown=None):
    """uint8 Volume, 0..255: two scans on one grid in cubes in turn; what runs on from one into the next fits.

    shown: (black, white) of `moved`, as where the whole scan that it was resampled from tells them; by default its own.
    Raises GeometryError where the grids differ.
    """
    if not fixed.same_grid(moved):
        raise GeometryError(f"a checkerboard needs two volumes on one grid: resample {moved.title} to {fixed.title}.")
    ends = display_range(fixed), shown or display_range(moved)
    spacing = np.asarray(fixed.spacing)[::-1]
    side = np.max(spacing * fixed.array.shape) / TILES
    place = [(np.arange(n) * step // side).astype(int) for n, step in zip(fixed.array.shape, spacing, strict=True)]
    odd = (place[1][:, None] + place[2]) % 2 == 1
    board = np.empty(fixed.array.shape, np.uint8)
    for k, row in enumerate(place[0]):
        one, other = (scale(volume.array[k], *range_) for volume, range_ in zip((fixed, moved), ends, strict=True))
        board[k] = np.rint(255 * np.where(odd ^ (row % 2 == 1), other, one))
    return fixed.with_array(board, **_plain((0, 255)))


def _plain(ends):
    """What a picture is, no scan: fields of a Volume."""
    return {"modality": "OT", "units": "", "display_range": ends, "attributes": {}}
