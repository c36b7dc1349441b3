"""`Volume`: voxels with their geometry, units and meaning; the value that everything passes around."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .errors import GeometryError, VolumeError

MODALITIES = ("CT", "MR", "PT", "NM", "US", "OT")
"""DICOM's terms for what MedFusion tells apart."""

FUNCTIONAL = ("PT", "NM")
"""Modalities whose intensity is metabolism or perfusion rather than anatomy."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS <-> LPS: its own inverse."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar volume, or one of 3-vectors, in patient space.

    array: (K, J, I), or (K, J, I, 3) for RGB or displacement vectors; kept as given, never copied.
    affine: 4x4, voxel index (i, j, k) -> RAS millimetres. Oblique, anisotropic, sheared and
        left-handed matrices are all normal.
    modality: one of `MODALITIES`. units: of the values ("HU", "SUV", "Bq/mL", "" if unknown).
    display_range: (black, white) in those units; None: chosen by modality (`normalize.display_range`).
    attributes: provenance, as text.
    view: bool (K, J, I), False beyond the scan's field of view, as `Registration.resample` leaves it; None: all of the
        grid lies in it.

    Raises GeometryError or VolumeError for shapes and matrices that are not such a volume.
    """

    array: np.ndarray
    affine: np.ndarray
    modality: str = "OT"
    units: str = ""
    name: str = ""
    display_range: tuple[float, float] | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    view: np.ndarray | None = None

    def __post_init__(self):
        array = np.asarray(self.array)
        try:
            affine = np.array(self.affine, dtype=np.float64)
        except (TypeError, ValueError):
            affine = np.empty(0)
        if array.dtype == bool:
            array = array.view(np.uint8)
        if array.dtype.kind not in "iuf":
            raise VolumeError(f"{self.title} holds {array.dtype} values: give real numbers.")
        if (array.ndim == 4 and array.shape[3] != 3) or array.ndim not in (3, 4):
            raise VolumeError(
                f"{self.title} has shape {array.shape}: a volume is (K, J, I). Give a 2-D image as one slice"
                " (array[None]) and one time point or channel of a 4-D series."
            )
        if array.size == 0:
            raise VolumeError(f"{self.title} has no voxels (shape {array.shape}): load it again.")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], (0, 0, 0, 1)):
            raise GeometryError(f"{self.title}: the affine must be a finite 4x4 matrix, voxel index to RAS mm.")
        # Of the directions alone: a voxel of a micrometre is small, and no less a voxel.
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        if not steps.all() or abs(np.linalg.det(affine[:3, :3] / steps)) < 1e-6:
            raise GeometryError(f"{self.title}: the affine is singular (a voxel has no volume): check its spacing.")
        if self.modality not in MODALITIES:
            raise VolumeError(f"{self.title}: modality {self.modality!r} is not one of {', '.join(MODALITIES)}.")
        if self.display_range is not None:
            try:
                black, white = (float(x) for x in self.display_range)
            except (TypeError, ValueError):
                black = white = np.nan
            if not (np.isfinite([black, white]).all() and black < white):
                raise VolumeError(
                    f"{self.title}: display range {self.display_range} must be two numbers that rise from black to"
                    " white."
                )
            object.__setattr__(self, "display_range", (black, white))
        if self.view is not None:
            view = np.asarray(self.view)
            if view.dtype != bool or view.shape != array.shape[:3]:
                raise VolumeError(
                    f"{self.title}: its view has {view.dtype} values and shape {view.shape}: give a bool for each voxel"
                    f" {array.shape[:3]}, or None."
                )
            object.__setattr__(self, "view", view)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    def __repr__(self):
        size = " x ".join(str(n) for n in self.size)
        mm = " x ".join(f"{s:.4g}" for s in self.spacing)
        return f"<Volume {self.title}: {self.modality} {self.units}, {size} voxels of {mm} mm>"

    @property
    def title(self):
        """Its name as messages say it."""
        return f"“{self.name}”" if self.name else f"the {self.modality} volume"

    @property
    def size(self):
        """Voxels along (i, j, k)."""
        return tuple(int(n) for n in self.array.shape[2::-1])

    @property
    def spacing(self):
        """Millimetres along (i, j, k)."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def is_vector(self):
        return self.array.ndim == 4

    @property
    def center(self):
        """The middle of the grid, RAS mm, shape (3,)."""
        middle = (np.array(self.size) - 1) / 2
        return self.affine[:3, :3] @ middle + self.affine[:3, 3]

    def with_array(self, array, **changes):
        """The same geometry and meaning with other voxels (and `changes` of other fields).

        Where these are of another shape, the view is left behind: it is not theirs. Those that are mirrored or turned
        within the shape need theirs in `changes`.
        """
        if np.shape(array)[:3] != self.array.shape[:3]:
            changes = {"view": None} | changes
        return replace(self, array=array, **changes)

    def same_grid(self, other, tolerance=1e-3):
        """Whether both have the same voxels in space, corners within `tolerance` millimetres."""
        if self.size != other.size:
            return False
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
        corners[:, :3] *= np.array(self.size) - 1
        return bool(np.abs(corners @ (self.affine - other.affine).T).max() <= tolerance)

    def anatomical_axis(self, name):
        """The array axis (0, 1 or 2) whose step is nearest to an anatomical direction.

        name: "axial" (through-plane is superior), "coronal" (anterior) or "sagittal" (right).
        """
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        order = {"sagittal": 0, "coronal": 1, "axial": 2}
        if name not in order:
            raise GeometryError(f"axis {name!r} is not one of {', '.join(order)}.")
        # The three names must fall on three different axes, also for a 45-degree oblique grid.
        from itertools import permutations

        best = max(permutations(range(3)), key=lambda p: sum(abs(directions[r, p[r]]) for r in range(3)))
        return 2 - best[order[name]]

    def slice_axis(self, name):
        """The array axis on which slices follow each other: `anatomical_axis`, but of a single slice its own."""
        named = self.anatomical_axis(name)
        single = [axis for axis, size in enumerate(self.array.shape[:3]) if size == 1]
        return single[0] if len(single) == 1 else named


def sample(array, count):
    """About `count` of an array's values, 1-D, or all where it has not twice as many; the same ones every time.

    They are drawn from all over it: every n-th would be those of a few columns where n goes with a row's length.
    """
    if array.size < 2 * count:
        return array.reshape(-1)
    places = np.arange(count) * array.size // count
    places += np.random.default_rng(0).integers(0, array.size // count, count)
    return array[np.unravel_index(places, array.shape)]


def require_volume(value):
    """Raise VolumeError unless `value` is a `Volume`."""
    if not isinstance(value, Volume):
        held = " (its .volume is one)" if isinstance(getattr(value, "volume", None), Volume) else ""
        raise VolumeError(f"a {type(value).__name__} is no Volume{held}: give what read_volume returns.")


def is_single(value):
    """Whether a value given for several things is one of them: a string is no list of letters."""
    return isinstance(value, Volume | str) or not hasattr(value, "__iter__")


def require_several(sources):
    """`sources` as a list. Raises VolumeError where they are a single thing, not several."""
    if is_single(sources):
        raise VolumeError(f"one {type(sources).__name__}, not a list of Volumes: give two or three in brackets.")
    return list(sources)


def require_usable(volume):
    """Raise VolumeError unless `volume` is a scalar one with finite values that are not all equal.

    Computes nothing that grows with the volume but one pass over it.
    """
    require_volume(volume)
    if volume.is_vector:
        raise VolumeError(f"{volume.title} is a colour or vector volume: choose a scalar one (its intensities).")
    low, high = require_finite(volume)
    if low == high:
        raise VolumeError(f"{volume.title} is constant (every voxel is {low}): there is nothing to register or fuse.")


def require_finite(volume):
    """(least, greatest) value of a volume. Raises VolumeError where a voxel is NaN or infinite."""
    low, high = volume.array.min(), volume.array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int((~np.isfinite(volume.array)).sum())
        raise VolumeError(
            f"{volume.title} has {bad} NaN or infinite voxels: replace them (for example by 0, outside the body)."
        )
    return low, high


def require_different(volumes):
    """Raise VolumeError if two of `volumes` are one: the same object, or the same voxels on the same grid."""
    for n, first in enumerate(volumes):
        for second in volumes[n + 1 :]:
            if first is second or (first.same_grid(second) and np.array_equal(first.array, second.array)):
                raise VolumeError(
                    f"{first.title} and {second.title} are the same volume: choose two different scans to fuse."
                )
