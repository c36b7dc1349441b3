"""A picture of a result as radiologists read it: every source, the fused volume and the colour, in the same planes."""

from __future__ import annotations

import numpy as np

from .files import written_beside
from .normalize import display_range
from .volume import FUNCTIONAL

PLANES = {
    # name: (axis to the right of the picture, axis downwards; RAS, with sign), letters at left, right, top, bottom
    "axial": ((0, -1), (1, -1), "RLAP"),  # seen from the feet: the patient's right is on the left
    "coronal": ((0, -1), (2, -1), "RLSI"),
    "sagittal": ((1, -1), (2, -1), "APSI"),
}

THIN = 1 / 6
"""Of its shorter other side: a scan no thicker is a stack of few slices, across which there is nothing to see."""


def write_contact_sheet(path, result, points, title=""):
    """Write a PNG: one row per plane, one column per source, then the fused volume and the colour overlay.

    result: a `pipeline.Result`. points: (plane name, RAS mm, caption) per row. Planes are cut in patient space, a
    millimetre a pixel, whatever the grid's directions; of a scan of few slices (`THIN`) along these, oblique or not.
    Raises FileError where it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fused = result.fusion.volume
    columns = [(source, source.modality) for source in result.sources]
    columns.append((fused, f"fused: {fused.attributes.get('MedFusion.Method', '')}"))
    if result.rgb is not None:
        columns.append((result.rgb, "colour overlay"))
    frame = _frame(result.sources[0])
    low, high = _bounds(result.sources, frame)
    sizes = [_extent(plane, low, high) for plane, *_ in points]
    heights = [height / width for width, height in sizes]
    inch = 2.6
    figure = Figure((inch * len(columns), inch * sum(heights) + 0.6), facecolor="black", dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(points), len(columns), squeeze=False, height_ratios=heights)
    for row, (plane, point, caption) in enumerate(points):
        for column, (volume, name) in enumerate(columns):
            axes = grid[row, column]
            _draw(axes, volume, plane, point, low, high, frame)
            if row == 0:
                axes.set_title(name, color="white", fontsize=10)
            if column == 0:
                _write(axes, 0.02, 0.01, caption, color="#ffd060", va="bottom")
                _letters(axes, PLANES[plane][2])
    # Scans' names are no formulas, whatever dollar signs are in them.
    figure.suptitle(title, color="white", fontsize=11, y=1 - 0.08 / figure.get_figheight(), parse_math=False)
    figure.subplots_adjust(0, 0, 1, 1 - 0.6 / figure.get_figheight(), 0.01, 0.01)
    with written_beside(path) as partial:
        figure.savefig(partial)


def interesting_points(result):
    """Rows for `write_contact_sheet` where nothing is known of the patient: the middle, and the hottest spot."""
    from scipy.ndimage import gaussian_filter

    body = result.sources[0]
    thin = _thin_axis(body)
    planes = [plane for plane in PLANES if thin is None or body.anatomical_axis(plane) == thin]
    points = [(plane, body.center, f"{plane}, middle") for plane in planes]
    hot = next((source for source in result.sources if source.modality in FUNCTIONAL), None)
    if hot is not None:
        every, step = _thinned(hot, 2)
        smooth = gaussian_filter(hot.array[every].astype(np.float32), 1)
        index = np.array(np.unravel_index(smooth.argmax(), smooth.shape))[::-1] * step
        place = hot.affine[:3, :3] @ index + hot.affine[:3, 3]
        shown = ("axial", "coronal") if thin is None else planes
        points += [(plane, place, f"{plane}, highest uptake") for plane in shown]
    return points


def _thin_axis(volume):
    """The array axis along which a scan of few slices is thin; None of one that is not."""
    reach = np.multiply(volume.size, volume.spacing)
    return 2 - int(reach.argmin()) if reach.min() < THIN * np.sort(reach)[1] else None


def _frame(volume):
    """3x3: the directions, RAS, that a sheet takes for right, anterior and superior: the patient's, or those of a scan
    of few slices that are nearest to them."""
    thin = _thin_axis(volume)
    if thin is None:
        return np.eye(3)
    nearest = [2 - volume.anatomical_axis(plane) for plane in ("sagittal", "coronal", "axial")]
    directions = (volume.affine[:3, :3] / volume.spacing)[:, nearest]
    directions = directions * np.copysign(1, np.diag(directions))
    # At right angles, also with a tilted gantry: the slices' own plane first.
    order = sorted(range(3), key=lambda column: nearest[column] == 2 - thin)
    square, signs = np.linalg.qr(directions[:, order])
    frame = np.empty((3, 3))
    frame[:, order] = square * np.sign(np.diag(signs))
    return frame


def _thinned(volume, apart):
    """(slices that keep voxels about `apart` mm from each other, how many voxels that is along (i, j, k))."""
    step = np.array([max(1, round(apart / size)) for size in volume.spacing])
    return tuple(slice(None, None, n) for n in step[::-1]), step


def _bounds(sources, frame):
    """Corners, mm along the columns of `frame`, of the box around what is not background in any source."""
    first = sources[0]
    every, step = _thinned(first, 3)
    body = np.zeros(first.array[every].shape, bool)
    for source in sources:
        black, white = display_range(source)
        body |= source.array[every] > black + 0.1 * (white - black)
    index = np.argwhere(body)[:, ::-1] * step if body.any() else np.array([[0, 0, 0], np.array(first.size) - 1])
    places = (index @ first.affine[:3, :3].T + first.affine[:3, 3]) @ frame
    return places.min(0) - 4, places.max(0) + 4


def _extent(plane, low, high):
    (right, _), (down, _), _ = PLANES[plane]
    return high[right] - low[right], high[down] - low[down]


def _draw(axes, volume, plane, point, low, high, frame):
    from scipy.ndimage import map_coordinates

    (right, right_sign), (down, down_sign), _ = PLANES[plane]
    places = np.empty((*(max(2, int(high[a] - low[a])) for a in (down, right)), 3))
    places[...] = point @ frame
    places[..., right] = np.linspace(low[right], high[right], places.shape[1])[::right_sign][None]
    places[..., down] = np.linspace(low[down], high[down], places.shape[0])[::down_sign][:, None]
    inverse = np.linalg.inv(volume.affine)
    index = np.moveaxis(places @ frame.T @ inverse[:3, :3].T + inverse[:3, 3], -1, 0)[::-1]
    # A voxel reaches half its size around its middle: an oblique single slice would be met in a line without it.
    last = np.array(volume.array.shape[:3]).reshape(3, 1, 1) - 1
    index = np.where((index >= -0.5) & (index <= last + 0.5), index.clip(0, last), index)
    if volume.is_vector:
        channels = [map_coordinates(volume.array[..., n].astype(np.float32), index, order=1) for n in range(3)]
        axes.imshow(np.stack(channels, -1) / 255, interpolation="bilinear")
    else:
        black, white = display_range(volume)
        image = map_coordinates(volume.array.astype(np.float32), index, order=1, cval=black)
        axes.imshow(image, cmap="gray", vmin=black, vmax=white, interpolation="bilinear")
    axes.set_axis_off()


def _letters(axes, letters):
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.07))
    anchors = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
    for letter, (x, y), (ha, va) in zip(letters, places, anchors, strict=True):
        # Large and bold: of a small one with an outline, which is not hinted, an L may lose its foot.
        _write(axes, x, y, letter, color="white", ha=ha, va=va, fontsize=9, weight="bold")


def _write(axes, x, y, text, **more):
    """Small letters, to be read over bone too; x, y: 0..1 of the picture. more: of matplotlib's `text`."""
    from matplotlib.patheffects import withStroke

    more = {"fontsize": 7, "transform": axes.transAxes} | more
    axes.text(x, y, text, path_effects=[withStroke(linewidth=2, foreground="black")], **more)
