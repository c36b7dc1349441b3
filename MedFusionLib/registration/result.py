"""What a registration found, and what can be done with it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FileError, GeometryError, VolumeError
from ..normalize import looks_like_hu
from ..volume import LPS, Volume, require_volume

AIR = -1000.0
"""HU: what lies outside a CT."""

HEADER = 2**16
"""Bytes of a transform file beyond its displacements, at most."""

SLAB = 2**22
"""Voxels that are resampled at once through a displacement, whose vectors ITK wants in double precision, or rounded."""

_INTERPOLATIONS = ("linear", "bspline", "nearest")
_ENDINGS = (".h5", ".hdf5", ".tfm", ".txt", ".mat")


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie. size: (i, j, k) voxels; affine: 4x4, voxel index (i, j, k) -> RAS mm."""

    size: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def of(cls, volume):
        return cls(volume.size, volume.affine)


@dataclass(frozen=True)
class Quality:
    """How far a registration can be trusted.

    verdict: "good", "check" (look at it before use) or "failed" (do not use it). reason: why, in a sentence.
    similarity_before, similarity_after: normalised mutual information of the overlap, 1 (unrelated) to 2
        (the same), before (as the scanners placed the volumes) and after; NaN where nothing overlaps.
    overlap: share of the smaller field of view that lies inside the other one, 0..1, over the anatomy.
    inverse_consistency: mm, mean difference over the anatomy between this result and the inverse of what
        registering fixed to moving gives: from there, and for a deformation also anew.
    sharpness: how many times as high the similarity (less 1) is here as at the best place 12 mm away: a true optimum
        stands out, over 1.
    jacobian: (least, greatest) determinant of the fixed -> moving map's Jacobian. folded: voxels where it is not
        positive.
    mirrored: how many times as high the similarity (less 1) would be with the moving scan mirrored left to right:
        over 1 means that one of the two scans has its sides exchanged.
    unsupported: mm, of a deformation: the geometric mean of how far it moves some part without making it fit better,
        and of how far points end from themselves after it and a way back found anew. Each is exceeded by few parts.
    astray: mm, of a small region that masks leave: the mean distance of its points from where the whole scans have
        them, if it alone says; NaN where the whole scans do not say.
    """

    verdict: str
    reason: str
    similarity_before: float
    similarity_after: float
    overlap: float
    inverse_consistency: float
    sharpness: float
    jacobian: tuple[float, float]
    folded: int
    mirrored: float = 0.0
    unsupported: float = 0.0
    astray: float = 0.0


@dataclass(frozen=True, eq=False)
class Registration:
    """A mapping between a moving and a fixed volume.

    model: "none", "rigid", "affine" or "deformable".
    matrix: 4x4 float64, RAS mm, moving -> fixed: what a transform node on the moving volume holds. For a
        deformable registration: its linear part.
    displacement: None, or a Volume of RAS mm vectors, (K, J, I, 3), on the fixed grid: a fixed point x lies at
        x + displacement(x) in the moving volume. It is the whole map, the linear part included.
    fixed: the fixed volume's grid. quality: a `Quality`, or None where nothing was measured (model "none").
    """

    model: str
    matrix: np.ndarray
    displacement: Volume | None
    fixed: Grid
    quality: Quality | None = None

    def __post_init__(self):
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
            raise GeometryError("a registration's matrix must be a finite, invertible 4x4 matrix.")
        object.__setattr__(self, "matrix", matrix)

    def to_moving(self, points):
        """RAS mm (N, 3) in the fixed volume's space -> where they lie in the moving volume's, RAS mm (N, 3).

        With a displacement: linear between voxel centres, and its edge value outside the fixed grid.
        """
        points = np.asarray(points, dtype=np.float64)
        if self.displacement is None:
            inverse = np.linalg.inv(self.matrix)
            return points @ inverse[:3, :3].T + inverse[:3, 3]
        from scipy.ndimage import map_coordinates

        to_index = np.linalg.inv(self.displacement.affine)
        index = (points @ to_index[:3, :3].T + to_index[:3, 3]).T[::-1]
        shift = [
            map_coordinates(self.displacement.array[..., axis], index, order=1, mode="nearest") for axis in range(3)
        ]
        return points + np.stack(shift, axis=-1)

    def resample(self, volume, interpolation="linear"):
        """`volume`, which lies as the moving one does, on the fixed grid: same type, units, name and display range.

        interpolation: "linear", "bspline" (cubic) or "nearest" (labels). Outside `volume`: air (-1000) for a CT in
        HU, else 0; the `view` of the result tells where that is.

        Raises VolumeError for an unknown interpolation.
        """
        require_volume(volume)
        if interpolation not in _INTERPOLATIONS:
            raise VolumeError(f"interpolation {interpolation!r} is not one of {', '.join(_INTERPOLATIONS)}.")
        if (
            self.displacement is None
            and volume.same_grid(self.fixed, 1e-6)
            and np.allclose(self.matrix, np.eye(4), atol=1e-12)
        ):
            return volume
        from ..files import to_sitk

        background = AIR if not volume.is_vector and looks_like_hu(volume) else 0.0
        array = self._resampled(to_sitk(volume), interpolation, background)
        shown = np.ones(volume.array.shape[:3], np.uint8) if volume.view is None else volume.view.view(np.uint8)
        view = self._resampled(to_sitk(volume.with_array(shown)), "nearest", 0).view(bool)
        return volume.with_array(array, affine=self.fixed.affine, view=None if view.all() else view)

    def _resampled(self, image, interpolation, background):
        """Array (K, J, I) or (K, J, I, 3): a SimpleITK image, lying as the moving volume does, on the fixed grid."""
        import SimpleITK as sitk

        kind = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline, "nearest": sitk.sitkNearestNeighbor}
        resampler = sitk.ResampleImageFilter()
        resampler.SetInterpolator(kind[interpolation])
        resampler.SetDefaultPixelValue(background)
        voxels = sitk.GetArrayViewFromImage(image)
        out = np.empty(self.fixed.size[::-1] + voxels.shape[3:], voxels.dtype)
        # ITK cuts decimals off: whole numbers would lose half a unit on average.
        rounds = out.dtype.kind in "iu" and interpolation != "nearest"
        if rounds:
            resampler.SetOutputPixelType(sitk.sitkVectorFloat64 if out.ndim == 4 else sitk.sitkFloat64)
        else:
            resampler.SetOutputPixelType(image.GetPixelID())
        whole = self.displacement is None and not rounds
        step = len(out) if whole else max(1, SLAB // (out.shape[1] * out.shape[2]))
        for start in range(0, len(out), step):
            slab = out[start : start + step]
            origin, spacing, direction = _itk_geometry(self.fixed.affine, start)
            resampler.SetOutputOrigin(origin)
            resampler.SetOutputSpacing(spacing)
            resampler.SetOutputDirection(direction)
            resampler.SetSize([int(n) for n in slab.shape[2::-1]])
            resampler.SetTransform(self._itk_transform(start, start + len(slab)))
            resampled = resampler.Execute(image)  # a view does not keep its image alive
            values = sitk.GetArrayViewFromImage(resampled)
            if rounds:
                ends = np.iinfo(out.dtype)
                values = np.rint(values).clip(ends.min, ends.max)
            slab[...] = values
        return out

    def write(self, path):
        """Write an ITK transform file (.h5, .tfm, .txt or .mat), which SimpleITK and Slicer read to the same mapping.

        In ITK's sense: fixed -> moving, LPS mm. Slicer shows the moving volume under it where it belongs.
        Raises FileError when it cannot be written; then nothing is left behind.
        """
        import SimpleITK as sitk

        from ..files import other_letters, require_space, written_beside

        path = Path(path)
        require_transform(path, self.model)
        # HDF5 that runs out of space writes pages to standard error, and may end the process.
        require_space(path, HEADER + (0 if self.displacement is None else 8 * self.displacement.array.size))
        with written_beside(path) as partial:
            try:
                sitk.WriteTransform(self._itk_transform(0, self.fixed.size[2]), str(partial))
                if not partial.exists():
                    raise RuntimeError  # written under another name, see `other_letters`
            except (OSError, RuntimeError) as error:
                do = other_letters(path) or "check folder, space and rights."
                raise FileError(f"the transform {path.name!r} cannot be written: {do}") from error

    def _itk_transform(self, start, stop):
        """The fixed -> moving map as ITK has it, for slices `start` to `stop` of the fixed grid."""
        import SimpleITK as sitk

        if self.displacement is None:
            inverse = LPS @ np.linalg.inv(self.matrix) @ LPS
            transform = sitk.AffineTransform(3)
            transform.SetMatrix(inverse[:3, :3].ravel().tolist())
            transform.SetTranslation(inverse[:3, 3].tolist())
            return transform
        vectors = self.displacement.array[start:stop] * np.array([-1.0, -1.0, 1.0])
        field = sitk.GetImageFromArray(vectors, isVector=True)
        origin, spacing, direction = _itk_geometry(self.fixed.affine, start)
        field.SetOrigin(origin)
        field.SetSpacing(spacing)
        field.SetDirection(direction)
        return sitk.DisplacementFieldTransform(field)


def read_matrix(path):
    """4x4 float64, RAS mm, moving -> fixed, of a linear ITK transform file, such as `Registration.write` writes.

    Raises FileError for a file that cannot be read, or bends space.
    """
    import SimpleITK as sitk

    path = Path(path)
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise FileError(f"{path.name!r} cannot be read as an ITK transform: check the path.") from error
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise FileError(f"{path.name!r} is no linear transform in 3-D: give a rigid or an affine one.")
    matrix = np.eye(4)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    for axis, place in enumerate(np.eye(3)):
        matrix[:3, axis] = np.array(transform.TransformPoint(place.tolist())) - matrix[:3, 3]
    return np.linalg.inv(LPS @ matrix @ LPS)


def require_transform(path, model):
    """Raise FileError if a registration of `model` could not be written to `path`, as far as can be told before."""
    if path.suffix.lower() not in _ENDINGS:
        raise FileError(f"{path.name!r} is no transform file: end its name in {', '.join(_ENDINGS)}.")
    if model == "deformable" and path.suffix.lower() not in (".h5", ".hdf5"):
        raise FileError(f"{path.name!r} cannot hold a deformation: end its name in .h5.")
    from ..files import require_place

    require_place(path)


def _itk_geometry(affine, start=0):
    """(origin, spacing, direction cosines), LPS, of a voxel index -> RAS mm matrix, from slice `start` on."""
    lps = LPS @ affine
    lps[:3, 3] += start * lps[:3, 2]
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, 3].tolist(), spacing.tolist(), (lps[:3, :3] / spacing).ravel().tolist()
