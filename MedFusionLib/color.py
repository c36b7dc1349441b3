"""PET and SPECT in colour over grey anatomy, as an RGB volume."""

from __future__ import annotations

import numpy as np

from .errors import GeometryError, MethodError, VolumeError
from .normalize import display_range
from .volume import Volume, require_finite, require_volume

LUTS = {
    # (place 0..255, red, green, blue 0..1), linear in between: the same tables as Slicer's PET colour nodes.
    "PET-Heat": (
        (0, 0.0, 0.0, 0.0),
        (35, 0.36, 0.0, 0.0),
        (38, 0.5, 0.0, 0.0),
        (50, 0.7, 0.1, 0.0),
        (70, 0.7, 0.5, 0.0),
        (87, 1.0, 1.0, 0.0),
        (255, 1.0, 1.0, 1.0),
    ),
    "PET-Rainbow": (
        (0, 0.0, 0.0, 0.0),
        (35, 0.0, 0.0, 0.3),
        (38, 0.2, 0.0, 0.3),
        (50, 0.5, 0.0, 0.0),
        (70, 0.7, 0.5, 0.0),
        (87, 1.0, 1.0, 0.0),
        (255, 1.0, 1.0, 1.0),
    ),
    "PET-Rainbow2": (
        (0, 0.0, 0.0, 0.0),
        (32, 0.251, 0.0, 0.502),
        (64, 0.0, 0.0, 1.0),
        (96, 0.0, 1.0, 0.0),
        (160, 1.0, 1.0, 0.0),
        (192, 1.0, 0.7529, 0.0),
        (255, 1.0, 0.0118, 0.0),
    ),
    "PET-DICOM": (
        (0, 0.0, 0.0, 0.0),
        (63, 0.0, 0.502, 0.4902),
        (128, 0.502, 0.0, 1.0),
        (192, 1.0, 0.502, 0.0),
        (255, 1.0, 1.0, 1.0),
    ),
    "PET-HotMetalBlue": (
        (0, 0.0, 0.0, 0.0),
        (85, 0.0, 0.0, 0.6549),
        (102, 0.1961, 0.0, 0.7843),
        (119, 0.3529, 0.0, 0.5882),
        (136, 0.549, 0.1255, 0.1961),
        (153, 0.7451, 0.251, 0.0),
        (170, 1.0, 0.3765, 0.0),
        (255, 1.0, 1.0, 1.0),
    ),
}
"""Colour tables by the name of Slicer's `vtkMRMLPETProceduralColorNode` types."""

SLAB = 2**22
"""Voxels that are coloured at once."""


def table(lut):
    """uint8 (256, 3) of a colour table. Raises MethodError for a name that `LUTS` lacks."""
    if lut not in LUTS:
        raise MethodError(f"{lut!r} is not a colour table: choose one of {', '.join(LUTS)}.")
    points = np.array(LUTS[lut])
    channels = [np.interp(np.arange(256), points[:, 0], points[:, n]) for n in (1, 2, 3)]
    return np.rint(255 * np.stack(channels, 1)).astype(np.uint8)


def require_coloring(coloring):
    """Raise MethodError unless a `pipeline.Coloring` names a colour table, an opacity and a threshold that exist."""
    table(coloring.lut)
    numbers = {"opacity": coloring.opacity}
    if coloring.threshold is not None:
        numbers["threshold"] = coloring.threshold
    for what, value in numbers.items():
        if not isinstance(value, (int, float, np.number)) or np.isnan(value):
            raise MethodError(f"the overlay's {what} is {value!r}: give a number.")
    if not 0 <= coloring.opacity <= 1:
        raise MethodError(f"the overlay's opacity is {coloring.opacity}: choose 0 to 1.")


def colorize(base, functional, coloring):
    """Lay PET or SPECT in colour over grey anatomy.

    base: Volume shown in grey, its display range (0..1 for a fused volume) from black to white. functional: the PET
    or SPECT Volume on the same grid, in its own units; its display range spans the colour table.
    coloring: a `pipeline.Coloring`; where the uptake reaches its threshold the colour covers the grey with its opacity.

    Returns a uint8 RGB Volume, array (K, J, I, 3). Memory beyond it stays bounded for any size.
    Raises GeometryError for different grids, MethodError for an unknown table, VolumeError for unusable volumes.
    """
    for volume in (base, functional):
        require_volume(volume)
    if not base.same_grid(functional):
        raise GeometryError(f"{functional.title} is not on the grid of {base.title}: resample it first.")
    for volume in (base, functional):
        if volume.is_vector:
            raise VolumeError(f"{volume.title} is in colour already: choose a scalar volume.")
        require_finite(volume)
    require_coloring(coloring)
    colors = table(coloring.lut).astype(np.float32) * np.float32(coloring.opacity)
    black, white = display_range(functional)
    base_black, base_white = display_range(base)
    # As Python's number it is compared in the precision of the voxels: one of numpy's 2.3 is above a voxel's 2.3.
    threshold = black if coloring.threshold is None else float(coloring.threshold)
    rgb = np.empty((*base.array.shape, 3), np.uint8)
    slices = max(1, SLAB // base.array[0].size)
    for start in range(0, len(rgb), slices):
        part = slice(start, start + slices)
        grey = _scaled(base.array[part], base_black, base_white)
        uptake = functional.array[part]
        place = np.rint(_scaled(uptake, black, white)).astype(np.uint8)
        covered = uptake > black if coloring.threshold is None else uptake >= threshold
        grey *= np.where(covered, np.float32(1 - coloring.opacity), np.float32(1))
        mixed = colors[place] * covered[..., None] + grey[..., None]
        rgb[part] = np.rint(mixed, out=mixed)
    attributes = base.attributes | {
        "MedFusion.ColorTable": coloring.lut,
        "MedFusion.ColorRange": f"{black:.6g}..{white:.6g} {functional.units}".strip(),
        "MedFusion.ColorThreshold": f"{threshold:.6g} {functional.units}".strip(),
        "MedFusion.ColorOpacity": f"{coloring.opacity:g}",
    }
    return Volume(rgb, base.affine, "OT", "", f"{base.name or base.modality} {coloring.lut}", None, attributes)


def _scaled(values, black, white):
    """float32, 0..255 over the range, clipped."""
    scaled = np.subtract(values, np.float32(black), dtype=np.float32)
    scaled *= np.float32(255 / (white - black))
    return np.clip(scaled, 0, 255, out=scaled)
