"""A scan made ready for registration: a pyramid of float32 grids, points spread over its anatomy, and sampling."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ..errors import VolumeError
from ..normalize import looks_like_hu, without_padding

SLAB = 2**20
"""Voxels converted to float32 at once, so that a full-size scan never exists as a float32 copy."""

CHUNK = 2**14
"""Points sampled at once, on the CPU: what lies between stays small and in the cache."""

LEAST_HU = -1200.0
"""HU: air has no less, noise included; what lies below is filled in."""

COUNTED = 5_000
"""Points to see what share of a scan lies somewhere."""

FEWEST = 40
"""Points in a mask under which no similarity can be measured."""

# The generalised golden ratio of three dimensions: its powers spread points evenly (Roberts 2018, the R3 sequence).
_GOLDEN = 1.2207440846057596 ** -np.arange(1, 4)


@dataclass(frozen=True, eq=False)
class Level:
    """One grid of a pyramid. values: float32 (K, J, I), 0..1; affine: voxel index (i, j, k) -> RAS mm."""

    values: torch.Tensor
    affine: np.ndarray

    @property
    def size(self):
        return np.array(self.values.shape[::-1])

    @cached_property
    def to_index(self):
        return np.linalg.inv(self.affine)

    def holds(self, points):
        """bool (N,): which RAS points (N, 3) lie in the field of view."""
        index = mapped(self.to_index, points)
        return ((index > -0.5) & (index < self.size - 0.5)).all(axis=1)

    def nearest(self, values, points):
        """Values (N,) of an array (K, J, I) on this grid at the voxels nearest to RAS points (N, 3)."""
        i, j, k = np.clip(np.rint(mapped(self.to_index, points)), 0, self.size - 1).astype(np.int64).T
        return values.cpu().numpy()[k, j, i]


def mapped(matrix, points):
    """Points (N, 3) under a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


class Image:
    """A volume's pyramid. device: of the grids. spacings: mm of each level's voxels at least, finest first."""

    def __init__(self, volume, spacings, device, mask=None):
        self.volume = volume
        self.device = device
        finest, affine = _pooled(volume.array, volume.affine, spacings[0], device)
        self.low, self.high = _range(finest, looks_like_hu(volume))
        finest.sub_(self.low).div_(self.high - self.low).clamp_(0, 1)
        self.levels = [Level(finest, affine)]
        for spacing in spacings[1:]:
            self.levels.append(pooled(self.levels[-1], spacing))
        self.mask = None if mask is None else _Mask(mask, device)

    @cached_property
    def anatomy(self):
        """float32 (K, J, I) of 0 and 1 on the coarsest level: what differs from the background at the edges."""
        values = self.levels[-1].values
        faces = [values.select(axis, end).reshape(-1) for axis in range(3) for end in (0, -1)]
        background = torch.cat(faces).median()
        contrast = (values - background).abs()
        mask = contrast > 0.5 * contrast.mean() + 0.02
        return mask.float() if bool(mask.any()) else torch.ones_like(values)

    @cached_property
    def box(self):
        """(low, high) voxel index (i, j, k) on the coarsest level of the anatomy's bounding box, with a margin."""
        level = self.levels[-1]
        margin = 12 / np.linalg.norm(level.affine[:3, :3], axis=0)
        bounds = []
        for axis, size in zip((2, 1, 0), level.size, strict=True):
            share = self.anatomy.mean(dim=[a for a in range(3) if a != axis]).cpu().numpy()
            there = np.flatnonzero(share > 0.01)
            low, high = (there[0], there[-1]) if there.size else (0, size - 1)
            bounds.append((low, high, size))
        low = np.array([max(-0.5, b[0] - m) for b, m in zip(bounds, margin, strict=True)])
        high = np.array([min(b[2] - 0.5, b[1] + m) for b, m in zip(bounds, margin, strict=True)])
        return low, high

    @property
    def extent(self):
        """mm^3 of the box of the anatomy."""
        low, high = self.box
        return float(np.prod(high - low) * abs(np.linalg.det(self.levels[-1].affine[:3, :3])))

    @cached_property
    def center_of_mass(self):
        """RAS mm: of the anatomy."""
        mask = self.anatomy
        total = mask.sum()
        index = [
            float(
                (mask.sum(dim=[a for a in range(3) if a != axis]) * torch.arange(n, device=mask.device)).sum() / total
            )
            for axis, n in ((2, mask.shape[2]), (1, mask.shape[1]), (0, mask.shape[0]))
        ]
        affine = self.levels[-1].affine
        return affine[:3, :3] @ index + affine[:3, 3]

    def without_mask(self):
        """The same scan, all of which is compared."""
        whole = copy.copy(self)
        whole.mask = None
        return whole

    @property
    def compared(self):
        """mm^3 of the box of the anatomy that the mask leaves, or all of it."""
        if self.mask is None:
            return self.extent
        return self.extent * self.mask.holds(self.without_mask().points(COUNTED, 0)).mean()

    def points(self, count, seed):
        """float64 RAS mm (about `count`, 3), spread evenly over the box of the anatomy (and the mask, if any)."""
        affine = self.levels[-1].affine
        low, high = self.box
        points = np.empty((0, 3))
        asked, start = count, 1
        for _ in range(6):
            found = np.arange(start, start + asked)[:, None] * _GOLDEN
            found += np.random.default_rng(seed).random(3)
            found %= 1
            found *= high - low
            found += low
            found = found @ affine[:3, :3].T
            found += affine[:3, 3]
            start += asked
            if self.mask is None:
                return found
            points = np.concatenate([points, found[self.mask.holds(found)]])
            if len(points) >= count:
                return points[:count]
            asked = min(20 * count, asked * 4)
        if len(points) < FEWEST:
            raise VolumeError(
                f"the mask of {self.volume.title} hardly covers any of its anatomy: draw it larger, check that it is of"
                " this scan, or leave it out."
            )
        return points


class _Mask:
    """Where to look: a label Volume on any grid."""

    def __init__(self, volume, device):
        self.values = torch.from_numpy(np.ascontiguousarray(volume.array != 0)).to(device).reshape(-1)
        self.size = np.array(volume.size)
        self.to_index = np.linalg.inv(volume.affine)

    def holds(self, points):
        """bool (N,) of RAS points (N, 3)."""
        index = np.rint(points @ self.to_index[:3, :3].T + self.to_index[:3, 3]).astype(np.int64)
        inside = ((index >= 0) & (index < self.size)).all(axis=1)
        i, j, k = np.where(inside[:, None], index, 0).T
        flat = torch.from_numpy((k * self.size[1] + j) * self.size[0] + i).to(self.values.device)
        return inside & self.values[flat].cpu().numpy()


def sorted_by_block(points, affine, block=12.0):
    """Points (N, 3) reordered so that neighbours in memory lie near each other in space: sampling is far faster."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cells = points @ (axes / block)
    cells = np.floor(cells, out=cells).astype(np.int32)
    cells -= cells.min(axis=0)
    n = cells.max(axis=0) + 1
    # Of 16 bits where they suffice: numpy sorts those several times faster.
    number = np.zeros(len(cells), np.uint16 if n.prod(dtype=np.float64) <= 2**16 else np.int64)
    for axis in (2, 1, 0):
        number *= number.dtype.type(n[axis])
        number += cells[:, axis].astype(number.dtype)
    return points[np.argsort(number, kind="stable")]


def sample(level, matrix, points, gradient=False):
    """Trilinear values at points, and where asked their gradient.

    matrix: 3x4 float64, the points' coordinates -> voxel index (i, j, k). points: float32 (3, N).
    Returns (values (N,), inside (N,) bool, gradient (3, N) along (i, j, k) or None). Half a voxel beyond the outer
    voxel centres is still inside, with the edge's value.
    """
    flat = level.values.reshape(-1)
    size = torch.tensor(level.size.reshape(3, 1), dtype=torch.float32, device=points.device)
    m = torch.tensor(matrix, dtype=torch.float32, device=points.device)
    count = points.shape[1]
    values = torch.empty(count, device=points.device)
    inside = torch.empty(count, dtype=torch.bool, device=points.device)
    slope = torch.empty((3, count), device=points.device) if gradient else None
    step = CHUNK if points.device.type == "cpu" else count
    for start in range(0, count, max(1, step)):
        part = slice(start, start + step)
        of_part = None if slope is None else slope[:, part]
        _sample(flat, level.size, size, m, points[:, part], values[part], inside[part], of_part)
    return values, inside, slope


def _sample(flat, counts, size, m, points, values, inside, slope):
    """`sample` of some points, into the last three."""
    where = torch.addmm(m[:, 3:], m[:, :3], points)
    torch.all((where > -0.5) & (where < size - 0.5), dim=0, out=inside)
    clamped = torch.minimum(where.clamp_(min=0), size - 1.0)
    base = torch.minimum(clamped.floor(), (size - 2).clamp_(min=0))
    fx, fy, fz = clamped.sub_(base)
    base = base.to(torch.int64)
    ni, nj, nk = (int(n) for n in counts)
    di, dj, dk = min(1, ni - 1), ni * min(1, nj - 1), ni * nj * min(1, nk - 1)
    index = base[2].mul_(nj).add_(base[1]).mul_(ni).add_(base[0])
    c = []
    for offset in (0, di, dj, di + dj, dk, dk + di, dk + dj, dk + dj + di):
        c.append(torch.index_select(flat, 0, index + offset))
    a0, a1, a2, a3 = (torch.lerp(c[n], c[n + 1], fx) for n in (0, 2, 4, 6))
    b0, b1 = torch.lerp(a0, a1, fy), torch.lerp(a2, a3, fy)
    torch.lerp(b0, b1, fz, out=values)
    if slope is None:
        return
    torch.lerp(
        torch.lerp(c[1] - c[0], c[3] - c[2], fy), torch.lerp(c[5].sub_(c[4]), c[7].sub_(c[6]), fy), fz, out=slope[0]
    )
    torch.lerp(a1 - a0, a3 - a2, fz, out=slope[1])
    torch.sub(b1, b0, out=slope[2])


def _range(values, in_hu):
    """(low, high) between which a scan's values are told apart: without padding, and the outliers at both ends."""
    flat = values.reshape(-1)
    step = max(1, flat.numel() // 200_000)
    while math.gcd(step, values.shape[-1]) > max(1, values.shape[-1] // 4):
        step += 1  # or it would see few columns only, again and again
    sample = flat[::step].cpu().numpy()
    # Air at one value, as of a CT that was denoised or resampled, is no padding.
    sample = np.maximum(sample, LEAST_HU) if in_hu else without_padding(sample)
    low, high = (float(x) for x in np.percentile(sample, (0.1, 99.8)))
    if not low < high:
        low, high = float(flat.min()), float(flat.max())
    return (low, high) if low < high else (low, low + 1.0)


def _factors(affine, spacing, shape):
    """How many voxels along (i, j, k) to average for voxels of about `spacing` mm."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    return [
        int(min(max(1, np.floor(spacing / s + 0.3)), max(1, n // 4))) for s, n in zip(steps, shape[::-1], strict=True)
    ]


def _coarser(affine, factors):
    scale = np.diag([*factors, 1.0])
    scale[:3, 3] = (np.array(factors) - 1) / 2
    return affine @ scale


def _pooled(array, affine, spacing, device):
    """Averaged to voxels of about `spacing` mm, slab by slab: (float32 tensor (K, J, I), affine)."""
    fi, fj, fk = _factors(affine, spacing, array.shape)
    values = torch.empty([n // f for n, f in zip(array.shape, (fk, fj, fi), strict=True)], device=device)
    slices = max(1, SLAB // (array.shape[1] * array.shape[2] * fk))
    for start in range(0, len(values), slices):
        part = values[start : start + slices]
        # A copy also where none were needed: torch warns of arrays that cannot be written, as those of a scene are.
        slab = np.array(array[start * fk : (start + len(part)) * fk], dtype=np.float32, order="C")
        part.copy_(_average(torch.from_numpy(slab).to(device), (fk, fj, fi)))
    return values, _coarser(affine, (fi, fj, fk))


def pooled(level, spacing):
    """A `Level` averaged to voxels of about `spacing` mm."""
    factors = _factors(level.affine, spacing, level.values.shape)
    return Level(_average(level.values, factors[::-1]), _coarser(level.affine, factors))


def _average(values, factors):
    for axis, factor in enumerate(factors):
        if factor > 1:
            n = values.shape[axis] // factor * factor
            parts = [values[(slice(None),) * axis + (slice(offset, n, factor),)] for offset in range(factor)]
            values = sum(parts[1:], parts[0]) / factor
    return values.contiguous()
