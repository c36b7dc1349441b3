"""Deformable registration: a smooth, invertible map found on descriptors of local structure.

The map is the exponential of a stationary velocity field on a lattice (`lattice`), held smooth by its bending, and
driven by the self-similarity context of both scans (Heinrich et al., MICCAI 2013) at points spread over the anatomy.
Departures: both scans are described on one grid, after the affine registration; the descriptors are compared at
sampled points with an analytic gradient, not on the whole grid; and both ways round, along the velocity and against it
(symmetric, as in Avants et al., Medical Image Analysis 12, 2008), which halves what their noise does.

Descriptors are drawn to edges that only one modality shows, everywhere alike, so that neither the way back nor points
left out would tell. Mutual information errs otherwise: the map is followed, region by region, only as far as it agrees
(`_supported`). By itself, with as many degrees of freedom, it would bend the map far worse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from .images import Level, mapped, pooled, sample, sorted_by_block
from .information import fixed_bins
from .information import similarity as information
from .lattice import Interpolation, Lattice, bending, bspline, evaluate, smoothed
from .structure import channels_at, correlation, self_similarity

VOXEL = 2.0
"""mm: of the grid that both scans are described on."""

MOST_VOXELS = 6_000_000
"""Of that grid: its voxels are larger for a whole body."""


@dataclass(frozen=True)
class Step:
    """One round from coarse to fine.

    lattice: mm; points: sampled; rate: of Adam, mm; bending: the weight of smoothness.
    """

    lattice: float
    points: int
    rate: float
    bending: float


STEPS = (Step(24.0, 12_000, 0.8, 2.4), Step(16.0, 30_000, 0.6, 0.8), Step(12.0, 60_000, 0.5, 0.8))

ITERATIONS = 20

ASIDE = 4.0
"""mm that one scan is moved by to see how much less its descriptors are like the other's."""

TELLING = 0.22
"""How much less, of what they differ by in place, for the steps' bending to be right: T1 and T2 of one head."""

STIFFENING = 3.75
"""The power of how little they tell that the bending grows with."""

STIFFEST = 12.0
"""Times the steps' bending, at most: stiffer, a CT and an MRI would not find what does deform either."""

REGION = 50.0
"""mm between the places that each say how far the map is followed there: wider, what deforms in one place only would be
lost; closer, mutual information of so little is uncertain in itself."""

TRUST = 0.004
"""Of mutual information, for a map that tells as much as the steps' bending is right for: so much would it have to rise
for none of the map to be better than all of it."""

SMOOTHINGS = 4
"""By half a voxel's variance each, of the scans whose mutual information is asked: noise and the blur of interpolation,
which changes with every shift, would weigh more than the shift."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the map, everywhere, of which the best is where the regions start from."""

WEIGHINGS = 20
"""Steps of the regions' shares."""


def deform(fixed, moving, matrix, similarity, report):
    """The whole fixed -> moving map as a Volume of RAS mm displacements on the fixed grid, (K, J, I, 3) float32.

    fixed, moving: `Image`s. matrix: fixed -> moving, from an affine registration. similarity: "mind" ("auto") or "ncc".
    """
    pair = _Pair(fixed, moving, matrix, correlation if similarity == "ncc" else self_similarity, report.check)
    lattice, velocity = _fit(pair, STEPS, lambda part: report(0.6 + 0.28 * part, "Deforming"))
    return _whole(fixed, matrix, lattice, velocity, report.check)


def way_back(fixed, moving, matrix, check):
    """A map moving -> fixed found by itself, coarsely: points (N, 3), RAS mm, -> where they lie in `fixed`.

    matrix: fixed -> moving. check(): raises Cancelled.
    """
    inverse = np.linalg.inv(matrix)
    fewer = [replace(step, points=step.points // 4) for step in STEPS]
    pair = _Pair(moving, fixed, inverse, self_similarity, check)
    lattice, velocity = _fit(pair, fewer, lambda part: check())
    with torch.no_grad():
        field = lattice.exponential(velocity)

    def back(points):
        shifts = Interpolation(lattice, points)(field).cpu().numpy()
        return mapped(inverse, points + shifts @ lattice.affine[:3, :3].T)

    return back


def _fit(pair, steps, tell):
    """(lattice, velocity) of a map between a pair of scans. tell(part): how much of it is done, 0..1."""
    lattice = velocity = None
    stiffness = pair.stiffness()
    for n, step in enumerate(steps):
        previous, lattice = lattice, Lattice(pair.fixed, step.lattice)
        velocity = lattice.zeros() if velocity is None else lattice.take_over(velocity, previous)
        velocity = _optimise(
            pair, lattice, velocity, step, stiffness, 17 + n, lambda p, n=n: tell(0.8 * (n + p) / len(steps))
        )
    return lattice, _supported(pair, lattice, velocity, steps[-1].points // 2, stiffness, tell)


class _Pair:
    """Both scans described on one grid: the fixed scan's, pooled, with the moving one where `matrix` puts it."""

    def __init__(self, fixed, moving, matrix, describe, check):
        self.fixed, self.moving, self.matrix = fixed, moving, matrix
        spacing = VOXEL
        self.grid = pooled(fixed.levels[0], spacing)
        while self.grid.values.numel() > MOST_VOXELS:
            spacing *= 1.3
            self.grid = pooled(fixed.levels[0], spacing)
        # As linear interpolation blurs, on average over where a point lies between two voxels: the other scan is
        # interpolated, and what is blurred or noisy in one only looks like a difference.
        here = _blurred(self.grid, 1 / 6)
        self.first = describe(here)
        check()
        # Described on its own grid the moving scan's channels would run along other axes.
        self.other = pooled(moving.levels[0], spacing)
        there = _resampled(self.other, self.other.to_index @ matrix, self.grid)
        self.second = describe(there)
        check()
        self.smooth = [_blurred(level, 0.5, SMOOTHINGS) for level in (here, there)]
        check()

    def stiffness(self):
        """How many times as stiff the map is to be as between two scans that tell much about each other.

        Where little tells right from wrong, as between PET and CT, noise and what only one of them shows would bend
        the map.
        """
        points = self.points(STEPS[0].points, seed=5)
        place = mapped(self.grid.to_index, points)
        device = self.first.rows.device
        here = channels_at(self.first, torch.tensor(place, dtype=torch.float32, device=device))

        def unlikeness(shift):
            index = place + self.grid.to_index[:3, :3] @ shift
            there = channels_at(self.second, torch.tensor(index, dtype=torch.float32, device=device))
            return float((there - here).square().mean())

        aside = np.mean([unlikeness(sign * ASIDE * axis) for axis in np.eye(3) for sign in (-1, 1)])
        telling = aside / (unlikeness(np.zeros(3)) + 1e-9) - 1
        return float(np.clip((TELLING / max(telling, 1e-3)) ** STIFFENING, 1, STIFFEST))

    def points(self, count, seed):
        """float64 RAS mm (about `count`, 3) in and around the fixed scan's anatomy, where there is a moving scan."""
        points = self.fixed.points(int(1.6 * count), seed)
        grid = self.fixed.levels[-1]
        near = functional.max_pool3d(self.fixed.anatomy[None, None], 3, 1, 1)[0, 0]
        points = points[grid.nearest(near, points) > 0]
        there = mapped(self.matrix, points)
        seen = self.other.holds(there)
        if self.moving.mask is not None:
            seen &= self.moving.mask.holds(there)
        # Scans that do not overlap are for the verdict to tell.
        points = points[seen] if seen.sum() > 100 else points
        return sorted_by_block(points[:count], grid.affine)


def _blurred(level, variance, times=1):
    """`level` blurred along each axis by three taps of a `variance` in voxels^2, so many times, the edges repeated."""
    values = level.values
    for axis in (0, 1, 2) * times:
        n = values.shape[axis]
        out = values * (1 - variance)
        for to, of, count in ((1, 0, n - 1), (0, 0, 1), (0, 1, n - 1), (n - 1, n - 1, 1)):
            out.narrow(axis, to, count).add_(values.narrow(axis, of, count), alpha=variance / 2)
        values = out
    return Level(values, level.affine)


def _resampled(level, to_index, grid):
    """`level` on another grid, with the edge's values beyond it. to_index: 4x4, mm of the grid -> index in `level`."""

    # grid_sample counts from -1 to 1 from the first voxel's centre to the last one's.
    def scale(size):
        matrix = np.diag([*(2 / np.maximum(size - 1, 1)), 1.0])
        matrix[:3, 3] = -1
        return matrix

    theta = (scale(level.size) @ to_index @ grid.affine @ np.linalg.inv(scale(grid.size)))[:3]
    theta = torch.tensor(theta, dtype=torch.float32, device=level.values.device)[None]
    where = functional.affine_grid(theta, (1, 1, *grid.values.shape), align_corners=True)
    values = functional.grid_sample(level.values[None, None], where, padding_mode="border", align_corners=True)
    return Level(values[0, 0], grid.affine)


class _Unlikeness(torch.autograd.Function):
    """Sum of squared differences of descriptors at points, by the displacement of the points."""

    @staticmethod
    def forward(ctx, shift, points, channels, described, to_index):
        index = torch.addmm(to_index[:, 3], points + shift, to_index[:, :3].T)
        value, by_index = channels_at(described, index, channels)
        ctx.save_for_backward(by_index @ to_index[:, :3])
        return value

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None, None, None


class _Adam:
    """Kingma and Ba, ICLR 2015. torch's own imports a compiler first, which takes as long as half a registration."""

    DECAY, SQUARE_DECAY = 0.9, 0.99

    def __init__(self, values):
        self.values, self.steps = values, 0
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)

    def __call__(self, rate):
        """One step along the gradient, which is taken away."""
        gradient, self.values.grad = self.values.grad, None
        self.steps += 1
        self.mean.lerp_(gradient, 1 - self.DECAY)
        self.square.lerp_(gradient.square(), 1 - self.SQUARE_DECAY)
        spread = (self.square / (1 - self.SQUARE_DECAY**self.steps)).sqrt_().add_(1e-8)
        with torch.no_grad():
            self.values.addcdiv_(self.mean, spread, value=-rate / (1 - self.DECAY**self.steps))


class _Information(torch.autograd.Function):
    """Normalised mutual information of values at points with a `Level`, by the displacement of the points."""

    @staticmethod
    def forward(ctx, shift, points, rows, inside, level, to_index):
        values, inside_there, slope = sample(level, to_index.cpu().numpy(), (points + shift).T.contiguous(), True)
        nmi, _, by_value = information(rows, values, inside & inside_there, gradient=True)
        ctx.save_for_backward((slope * by_value).T @ to_index[:, :3])
        return shift.new_tensor(nmi)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None, None, None, None


class _Spread:
    """Points of a pair of scans with what it takes to move them."""

    def __init__(self, pair, lattice, count, seed):
        points = pair.points(count, seed)
        self.lattice, self.interpolation = lattice, Interpolation(lattice, points)
        # Coordinates relative to a point of the head keep their digits in single precision.
        center = points.mean(axis=0)
        shift = np.eye(4)
        shift[:3, 3] = center
        as_tensor = {"dtype": torch.float32, "device": lattice.device}
        self.points = torch.tensor(points - center, **as_tensor)
        self.to_index = torch.tensor((pair.grid.to_index @ shift)[:3], **as_tensor)
        self.to_mm = torch.tensor(lattice.affine[:3, :3], **as_tensor)

    def shifts(self, velocity):
        """mm (N, 3): how far the exponential of `velocity` moves the points."""
        return self.interpolation(self.lattice.exponential(velocity)) @ self.to_mm.T


def _optimise(pair, lattice, velocity, step, stiffness, seed, tell):
    spread = _Spread(pair, lattice, step.points, seed)
    index = torch.addmm(spread.to_index[:, 3], spread.points, spread.to_index[:, :3].T)
    first, second = (channels_at(described, index) for described in (pair.first, pair.second))
    velocity = velocity.clone().requires_grad_(True)
    climb = _Adam(velocity)
    for iteration in range(ITERATIONS):
        tell(iteration / ITERATIONS)
        loss = stiffness * step.bending * bending(smoothed(velocity) * lattice.spacing, lattice.spacing)
        for along, here, there in ((velocity, first, pair.second), (-velocity, second, pair.first)):
            shifts = spread.shifts(along)
            loss = loss + 0.5 * _Unlikeness.apply(shifts, spread.points, here, there, spread.to_index)
        loss.backward()
        climb(step.rate / lattice.spacing * (1 - 0.8 * iteration / ITERATIONS))
    return velocity.detach()


def _supported(pair, lattice, velocity, count, stiffness, tell):
    """`velocity` times a smooth share between 0 and 1, with which the mutual information of the scans is about highest.

    count: of points, others than those that the velocity was found at. Both ways round, as the velocity itself. Where
    mutual information hardly tells, more of the map is kept the less `stiffness` it needed.
    """
    spread = _Spread(pair, lattice, count, seed=991)
    here, there = pair.smooth
    (first, inside, _), (second, inside_second, _) = (
        sample(level, spread.to_index.cpu().numpy(), spread.points.T.contiguous()) for level in (here, there)
    )
    inside = inside & inside_second
    ways = ((1, fixed_bins(first), there), (-1, fixed_bins(second), here))

    def agreement(part):
        """Of `velocity` times `part`."""
        return 0.5 * sum(
            _Information.apply(
                spread.shifts(sign * part * velocity), spread.points, rows, inside, level, spread.to_index
            )
            for sign, rows, level in ways
        )

    def whole(share):
        tell(0.8 + 0.04 * share)
        return float(agreement(share))

    with torch.no_grad():
        start = max(SHARES, key=whole)
    if start == SHARES[-1]:
        # Where both agree on the whole, the descriptors know the regions better.
        return velocity
    sizes = [max(2, int(np.ceil((n - 1) * lattice.spacing / REGION)) + 1) for n in lattice.size]
    to_lattice = [
        bspline(np.linspace(0, m - 1, n), m, lattice.device) for n, m in zip(lattice.size, sizes, strict=True)
    ]
    share = torch.full((1, *sizes[::-1]), start, device=lattice.device, requires_grad=True)
    climb = _Adam(share)
    for iteration in range(WEIGHINGS):
        tell(0.84 + 0.16 * iteration / WEIGHINGS)
        (TRUST / stiffness * (1 - share).square().mean() - agreement(evaluate(share, to_lattice))).backward()
        climb(0.2 * (1 - 0.8 * iteration / WEIGHINGS))
        with torch.no_grad():
            share.clamp_(0, 1)
    with torch.no_grad():
        return evaluate(share, to_lattice) * velocity


def _whole(fixed, matrix, lattice, velocity, check):
    """The map on every voxel of the fixed grid."""
    volume = fixed.volume
    turn = torch.tensor(matrix[:3, :3] @ lattice.affine[:3, :3], dtype=torch.float32, device=lattice.device)
    with torch.no_grad():
        field = torch.einsum("rc,ckji->rkji", turn, lattice.exponential(velocity)[0])
    # Along each of the lattice's axes, which are the volume's: control points' weights at the voxels.
    to_lattice = lattice.to_index @ volume.affine
    by_i, by_j, by_k = (
        bspline(np.clip(to_lattice[a, a] * np.arange(n) + to_lattice[a, 3], 0, m - 1), m, lattice.device)
        for a, (n, m) in enumerate(zip(volume.size, lattice.size, strict=True))
    )
    field = field @ by_i.T
    field = (field.transpose(2, 3) @ by_j.T).transpose(2, 3).contiguous()
    # The affine part, in the plane of a slice.
    rest = (matrix - np.eye(4)) @ volume.affine
    index = (np.arange(n, dtype=np.float32) for n in volume.size[:2])
    i, j = (torch.from_numpy(n).to(lattice.device) for n in index)
    rest = torch.tensor(rest[:3], dtype=torch.float32, device=lattice.device)
    flat = rest[:, 0, None, None] * i + rest[:, 1, None, None] * j[:, None] + rest[:, 3, None, None]
    out = np.empty((*volume.array.shape, 3), np.float32)
    for k in range(len(out)):
        check()
        plane = flat + k * rest[:, 2, None, None]
        # Four control points reach a place.
        for n in torch.nonzero(by_k[k])[:, 0].tolist():
            plane.add_(field[:, n], alpha=float(by_k[k, n]))
        out[k] = plane.permute(1, 2, 0).cpu().numpy()
    return volume.with_array(out, modality="OT", units="mm", display_range=None, view=None)
