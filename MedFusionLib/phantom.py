"""A head with known truth: CT, MRI and FDG-PET of one made-up patient, made from the MNI152 tissue maps.

The brain is nilearn's MNI152 (ICBM 2009) grey and white matter, which comes inside its wheel; skull, scalp, face and
neck are grown around it, and two lesions are put in. MRI and PET lie in scanner spaces of their own, each a known rigid
motion away from the CT's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import FileError
from .volume import Volume

LOW, HIGH = np.array([-100.0, -130.0, -98.0]), np.array([100.0, 106.0, 104.0])
"""Corners of the head's box, RAS mm."""


@dataclass(frozen=True)
class Lesion:
    """A sphere of high uptake. center: RAS mm in the CT's space; radius: mm; suv: its uptake before blurring."""

    name: str
    center: tuple[float, float, float]
    radius: float
    suv: float


LESIONS = (
    Lesion("left parietal", (-30.0, -38.0, 32.0), 9.0, 17.0),
    Lesion("right frontal, small", (24.0, 30.0, 22.0), 5.0, 19.0),
)


@dataclass(frozen=True, eq=False)
class Phantom:
    """ct (HU), mr (a.u.), pet (SUV): Volumes. truth: {"MR", "PT"} -> 4x4, RAS mm, that volume's space -> the CT's.

    lesions: where they are. head: points (N, 3) all over the head, RAS mm in the CT's space, to measure errors at.
    """

    ct: Volume
    mr: Volume
    pet: Volume
    truth: dict[str, np.ndarray]
    lesions: tuple[Lesion, ...]
    head: np.ndarray

    def error(self, modality, matrix):
        """Mean distance, mm over the head, of a registration's `matrix` (moving -> fixed, RAS mm) from the truth."""
        truth = self.truth[modality]
        points = np.c_[self.head, np.ones(len(self.head))] @ np.linalg.inv(truth).T
        return float(np.linalg.norm((points @ (np.asarray(matrix) - truth).T)[:, :3], axis=1).mean())


def make(seed=0, spacing=1.0, rotation=10.0, translation=15.0, noise=1.0):
    """Make a phantom, the same one for the same arguments.

    seed: of motion and noise. spacing: millimetres of the head that the scans are taken of, 1 or 2 (whole numbers):
    at 2 the scans' grids are half as fine too, and it takes a fraction of the time. rotation, translation: the most
    degrees and millimetres that MRI and PET are moved by, about and along each axis. noise: times the usual noise.

    Raises FileError if nilearn, which brings the tissue maps, is not installed.
    """
    rng = np.random.default_rng(seed)
    truth = {modality: _rigid(rng, rotation, translation) for modality in ("MR", "PT")}
    head = _Head(int(spacing))
    scale = float(head.spacing)

    ct, ct_affine = head.scan(head.ct, _grid(np.array([0.9, 0.9, 2.0]) * scale, turn=-8.0))
    ct += noise * 9 * _grain(rng, ct.shape, (0.3, 0.6, 0.6))
    ct = np.clip(np.rint(ct), -1024, 3071).astype(np.int16)

    # Sagittal slices, as T1 volumes are acquired: k runs from the patient's left to right.
    mr, mr_affine = head.scan(head.mr, _grid(np.array([1.0, 1.0, 1.4]) * scale, order=(1, 2, 0)), truth["MR"])
    mr *= 1 + 0.2 * _waves(rng, mr.shape)
    # The magnitude of a complex signal: Rician noise.
    mr += noise * 0.02 * _grain(rng, mr.shape)
    np.hypot(mr, noise * 0.02 * _grain(rng, mr.shape), out=mr)
    mr = np.rint(800 * mr).astype(np.int16)

    pet, pet_affine = head.scan(_blurred(head.pet, 5.0 / scale), _grid(np.array([2.2, 2.2, 3.0]) * scale), truth["PT"])
    pet += noise * 0.18 * np.sqrt(np.maximum(pet, 0.05)) * _grain(rng, pet.shape, (0.7, 0.7, 0.7))
    np.maximum(pet, 0, out=pet)

    return Phantom(
        Volume(ct, ct_affine, "CT", "HU", "Phantom CT"),
        Volume(mr, mr_affine, "MR", "", "Phantom MRI"),
        Volume(pet, pet_affine, "PT", "SUV", "Phantom PET"),
        truth,
        LESIONS,
        head.points(),
    )


class _Head:
    """The patient: what CT, MRI and PET would see of it without blur, noise or motion; arrays over (x, y, z)."""

    def __init__(self, spacing):
        self.spacing = spacing
        self.shape = tuple(int(n) for n in (HIGH - LOW) // spacing + 1)
        self._make_tissues()

    def scan(self, world, grid, motion=None):
        """(float32 (K, J, I), affine): the world sampled on a scanner's grid; slices average over their thickness.

        grid: (affine, size (i, j, k)) in the scanner's space. motion: 4x4, the scanner's space -> the world's.
        """
        from scipy.ndimage import affine_transform

        affine, size = grid
        to_world = np.linalg.inv(self._affine()) @ (np.eye(4) if motion is None else motion) @ affine
        thickness = np.linalg.norm(to_world[:3, 2])
        parts = max(1, round(thickness))
        outside = float(world[0, 0, -1])
        total = np.zeros(size, np.float32)
        for part in range(parts):
            shifted = to_world.copy()
            shifted[:3, 3] += to_world[:3, 2] * ((part + 0.5) / parts - 0.5)
            total += affine_transform(world, shifted, output_shape=size, order=1, cval=outside)
        return np.ascontiguousarray((total / parts).transpose(2, 1, 0)), affine

    def points(self):
        """(N, 3) RAS mm: one point every centimetre inside the head."""
        step = max(1, 10 // self.spacing)
        index = np.argwhere(self.inside[::step, ::step, ::step]) * step
        return index @ self._affine()[:3, :3].T + self._affine()[:3, 3]

    def _affine(self):
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:3, 3] = LOW
        return affine

    def _make_tissues(self):
        gm, wm = (self._on_grid(tissue) for tissue in _tissue_maps(self.spacing))
        x, y, z = np.meshgrid(
            *(low + self.spacing * np.arange(n, dtype=np.float32) for low, n in zip(LOW, self.shape, strict=True)),
            indexing="ij",
            sparse=True,
        )
        to_brain = self._distance_to_brain(gm + wm)
        # Skull: inner table, marrow, outer table; thicker at the back, thinner at the temples.
        inner = to_brain - 2.5
        thickness = 6.2 + 1.4 * np.tanh(-(y + 20) / 50) - 1.6 * np.exp(-(((np.abs(x) - 70) / 18) ** 2))
        vault = _inside(np.maximum(-inner, inner - thickness))
        marrow = _inside(np.maximum(1.7 - inner, inner - thickness + 1.9))
        axis = np.hypot(x, (y + 44) * 1.0) + 0 * z
        foramen = _inside(np.maximum(axis - 15, z + 48))
        vault, marrow = vault * (1 - foramen), marrow * (1 - foramen)

        skin_depth = -_smooth_minimum(
            inner - thickness - 6,
            _ellipsoid(x, y, z, (0, 38, -62), (62, 54, 52)),
            np.maximum(_ellipsoid(x, y, 0 * z, (0, -36, 0), (60, 62, 1e3)), z + 40),
        )
        head = _inside(-skin_depth)
        self.inside = head > 0.5
        canal = _inside(np.maximum(axis - 9, z + 60))
        cord = _inside(np.maximum(axis - 5.5, z + 64))
        vertebra = _inside(np.maximum(np.maximum(9 - axis, axis - 17), z + 70))
        eyes = _inside(_ellipsoid(np.abs(x), y, z, (33, 64, -38), (12, 12, 12)))
        orbit = _ellipsoid(np.abs(x), y, z, (31, 58, -38), (17, 22, 16))
        sinus = np.minimum(
            _ellipsoid(np.abs(x), y, z, (27, 56, -66), (12, 15, 15)), _ellipsoid(x, y, z, (0, 62, -62), (10, 22, 20))
        )
        frontal = _ellipsoid(x, y, z, (0, 82, -14), (16, 6, 9))
        air = _inside(np.minimum(sinus, frontal))
        walls = np.maximum(_inside(np.minimum(orbit, np.minimum(sinus, frontal)) - 2.2) - _inside(orbit) - air, 0)

        # Layers from the outside in; each covers what it overlaps.
        layers = [
            # mask, (CT in HU, MRI in a T1-weighted signal of white matter 1, PET in SUV)
            (head, (45, 0.32, 0.9)),  # skin and muscle
            (_inside(2.2 - skin_depth) * _inside(skin_depth - 6.5), (-95, 0.95, 0.4)),  # fat under the skin
            (vertebra, (700, 0.3, 1.1)),
            (canal, (8, 0.16, 0.5)),
            (cord, (35, 0.8, 2.0)),
            (_inside(orbit), (-85, 0.9, 0.5)),
            (walls, (850, 0.1, 0.7)),
            (eyes, (12, 0.2, 0.6)),
            (air, (-1000, 0.0, 0.0)),
            (_inside(inner), (8, 0.18, 0.5)),  # cerebrospinal fluid
            (vault, (1350, 0.05, 0.5)),  # cortical bone
            (marrow, (620, 0.55, 1.1)),  # diploe
            (gm, (38, 0.66, 8.0)),
            (wm, (29, 1.0, 2.6)),
            *(
                (_inside(_ellipsoid(x, y, z, lesion.center, (lesion.radius,) * 3)), (24, 0.5, lesion.suv))
                for lesion in LESIONS
            ),
        ]
        self.ct, self.mr, self.pet = (np.full(self.shape, air, np.float32) for air in (-1000, 0, 0))
        for mask, values in layers:
            mask = np.broadcast_to(mask, self.shape)
            for image, value in zip((self.ct, self.mr, self.pet), values, strict=True):
                image += mask * (np.float32(value) - image)

    def _distance_to_brain(self, brain):
        """Millimetres outside (negative: inside) of the brain's smooth hull."""
        from scipy.ndimage import binary_closing, distance_transform_edt, gaussian_filter, zoom

        coarse = 2 // self.spacing if self.spacing < 2 else 1
        step = coarse * self.spacing
        mask = np.pad(brain[::coarse, ::coarse, ::coarse] > 0.4, 8)
        ball = np.linalg.norm(np.indices((9, 9, 9)) - 4, axis=0) <= 8 / step
        mask = binary_closing(mask, ball)[8:-8, 8:-8, 8:-8]
        distance = distance_transform_edt(~mask) - distance_transform_edt(mask)
        distance = gaussian_filter(distance.astype(np.float32), 3 / step) * step
        if coarse == 1:
            return distance
        factors = [n / m for n, m in zip(self.shape, distance.shape, strict=True)]
        return zoom(distance, factors, order=1)

    def _on_grid(self, tissue):
        """A tissue map (array over x, y, z; its first voxel's centre, RAS mm) on the head's grid, by whole voxels."""
        array, origin = tissue
        placed = np.zeros(self.shape, np.float32)
        shift = np.rint((origin - LOW) / self.spacing).astype(int)
        target = [slice(max(0, s), min(n, s + m)) for s, n, m in zip(shift, self.shape, array.shape, strict=True)]
        source = [slice(t.start - s, t.stop - s) for t, s in zip(target, shift, strict=True)]
        placed[tuple(target)] = array[tuple(source)]
        return placed


def _tissue_maps(spacing):
    """Grey and white matter, 0..1: (array over (x, y, z), RAS mm of its first voxel) each."""
    try:
        from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    except ImportError as error:
        raise FileError("the phantom needs the tissue maps of nilearn: pip install 'MedFusion[demo]'.") from error
    for load in (load_mni152_gm_template, load_mni152_wm_template):
        image = load(resolution=spacing)
        yield np.asarray(image.dataobj, np.float32), image.affine[:3, 3]


def _inside(distance):
    """1 inside, 0 outside, partial volume over a millimetre at the edge, from a signed distance in millimetres."""
    return np.clip(0.5 - np.asarray(distance, np.float32), 0, 1)


def _ellipsoid(x, y, z, center, radii):
    """About the signed distance to an ellipsoid's surface, in millimetres."""
    parts = [(p - c) / r for p, c, r in zip((x, y, z), center, radii, strict=True)]
    return (np.sqrt(sum(p * p for p in parts)) - 1) * np.float32(min(radii))


def _smooth_minimum(*distances, softness=8.0):
    total = sum(np.exp(-np.clip(d, -60, 60) / np.float32(softness)) for d in distances)
    return -np.float32(softness) * np.log(total)


def _rigid(rng, rotation, translation):
    """4x4 with angles (degrees) and shifts (mm) drawn evenly, about the middle of the head."""
    from scipy.spatial.transform import Rotation

    angles = rng.uniform(-rotation, rotation, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    middle = (LOW + HIGH) / 2
    matrix[:3, 3] = middle - matrix[:3, :3] @ middle + rng.uniform(-translation, translation, 3)
    return matrix


def _grid(spacing, order=(0, 1, 2), turn=0.0, margin=10.0):
    """(affine, size (i, j, k)) of a scanner's grid around the head's box.

    order: the patient's axis (0: left-right ...) along i, j and k. turn: degrees about the left-right axis.
    """
    from scipy.spatial.transform import Rotation

    extent = (HIGH - LOW + 2 * margin)[list(order)]
    size = np.ceil(extent / spacing).astype(int)
    affine = np.eye(4)
    turned = Rotation.from_euler("x", turn, degrees=True).as_matrix()
    affine[:3, :3] = turned[:, list(order)] * spacing
    affine[:3, 3] = (LOW + HIGH) / 2 - affine[:3, :3] @ ((size - 1) / 2)
    return affine, tuple(int(n) for n in size)


def _grain(rng, shape, sigma=None):
    """Noise of unit standard deviation, correlated over `sigma` voxels along (k, j, i)."""
    from scipy.ndimage import gaussian_filter

    noise = rng.standard_normal(shape, np.float32)
    if sigma is None:
        return noise
    noise = gaussian_filter(noise, sigma)
    return noise / noise.std()


def _waves(rng, shape):
    """A smooth field of about -1..1: the shading of a receive coil."""
    from scipy.ndimage import zoom

    coarse = rng.uniform(-1, 1, (3, 3, 3)).astype(np.float32)
    return zoom(coarse, [n / 3 for n in shape], order=2)


def _blurred(image, width):
    """Blurred by a Gaussian whose full width at half maximum is `width` voxels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, width / 2.3548)
