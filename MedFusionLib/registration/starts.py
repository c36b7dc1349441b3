"""Where to start from: many poses tried at once on coarse grids."""

from __future__ import annotations

import numpy as np
import torch

from .images import mapped
from .linear import Target, climb, rotation

POINTS = 700
BINS = 16
CHUNK = 2**16
"""Sampled points held at once."""

STEP = 14.0
"""mm between starting translations."""

ANGLE = np.deg2rad(27.0)
"""Between starting rotations."""

KEPT, KEPT_OF_PART = (4, 3), (12, 12)
"""Places that are turned, and poses that are climbed from; and as many where one scan shows but a part of the other, of
which many a place is nearly as good: of 96 boxes in heads 46 were lost with the former, 37 with the latter."""


def multi_start(fixed, moving, center, seed, part=False, check=None, stretched=False):
    """The best fixed -> moving rigid matrix found from many starting poses, good to some millimetres.

    part: one of them shows but a part of the other. stretched: the scans may differ in scale and shear: the best is
    the one from which an affine search climbs highest.
    """
    poses = _Poses(fixed, moving, center, seed, check)
    # By scale and shear too many a wrong place of a part climbs higher than the right one.
    turned_from, kept = KEPT_OF_PART if part and not stretched else KEPT
    places = poses.best(_places(fixed, moving, center), turned_from, apart=1.5 * STEP)
    turned = [_turned(place, center, _rotations(), _cross(STEP)) for place in places]
    candidates = poses.best(np.concatenate([places, *turned]), kept, apart=STEP)
    coarse = len(fixed.levels) - 1
    target = Target(fixed, moving, coarse, 2500, center, seed)

    def climbed(matrix):
        matrix, _, _ = climb(target, "rigid", matrix, 4.0, 0.5, 25, check=check)
        highest = climb(target, "affine", matrix, 4.0, 1.0, 10, check=check)[0] if stretched else matrix
        return evidence(*target.value(highest)), matrix

    best = max((climbed(matrix) for matrix in candidates), key=lambda found: found[0])
    # Of a region or a small field of view the few points may rank the scanners' own placement too low to be kept.
    placed = climbed(np.eye(4))
    return (placed if placed[0] > best[0] and poses.apart(placed[1], best[1]) >= STEP else best)[1]


def evidence(nmi, share):
    """How much the scans say about each other in all, not per point: a sliver that agrees by chance says little."""
    return (nmi - 1) * np.sqrt(share)


class _Poses:
    """Scores a batch of poses by nearest-voxel mutual information of a few hundred points."""

    def __init__(self, fixed, moving, center, seed, check):
        self.center = center
        self.check = check or (lambda: None)
        level = fixed.levels[-1]
        points = fixed.points(POINTS, seed)
        index = np.rint(points @ level.to_index[:3, :3].T + level.to_index[:3, 3])
        i, j, k = np.clip(index, 0, level.size - 1).astype(np.int64).T
        values = level.values[k, j, i]
        self.rows = (values * BINS).to(torch.int64).clamp_(0, BINS - 1) * BINS
        self.points = torch.tensor((points - center).T, dtype=torch.float32, device=fixed.device)
        self.probes = self.points[:, ::37].cpu().numpy().astype(np.float64).T + center
        self.level = moving.levels[-1]
        self.bins = (self.level.values * BINS).to(torch.int64).clamp_(0, BINS - 1).reshape(-1)

    def best(self, matrices, count, apart):
        """The `count` best of `matrices` (N, 4, 4), fixed -> moving, that differ by `apart` mm or more."""
        chunk = CHUNK // self.points.shape[1]
        scores = np.concatenate([self._scores(matrices[n : n + chunk]) for n in range(0, len(matrices), chunk)])
        chosen = []
        for n in np.argsort(-scores, kind="stable"):
            if all(self.apart(matrices[n], other) >= apart for other in chosen):
                chosen.append(matrices[n])
                if len(chosen) == count:
                    break
        return chosen

    def apart(self, one, other):
        """mm, mean over the points, between where two matrices take them."""
        return np.linalg.norm(mapped(one, self.probes) - mapped(other, self.probes), axis=1).mean()

    def _scores(self, matrices):
        self.check()
        shift = np.eye(4)
        shift[:3, 3] = self.center
        to_index = (self.level.to_index @ matrices @ shift)[:, :3].astype(np.float32)
        m = torch.from_numpy(to_index).to(self.points.device)
        where = (m[:, :, :3].reshape(-1, 3) @ self.points).reshape(len(m), 3, -1).add_(m[:, :, 3:]).round_()
        size = torch.tensor(self.level.size.reshape(1, 3, 1), dtype=torch.float32, device=m.device)
        inside = ((where >= 0) & (where < size)).all(dim=1)
        where = torch.minimum(where.clamp_(min=0), size - 1)
        ni, nj, _ = (float(n) for n in self.level.size)
        flat = (where[:, 2] * nj + where[:, 1]).to(torch.int64).mul_(int(ni)).add_(where[:, 0].to(torch.int64))
        bins = torch.index_select(self.bins, 0, flat.reshape(-1)).reshape(flat.shape) + self.rows
        bins = torch.where(inside, bins, BINS * BINS)
        bins += torch.arange(len(m), device=m.device)[:, None] * (BINS * BINS + 1)
        counts = torch.bincount(bins.reshape(-1), minlength=len(m) * (BINS * BINS + 1)).float()
        counts = counts.reshape(len(m), -1)[:, :-1].reshape(len(m), BINS, BINS)
        total = counts.sum(dim=(1, 2), keepdim=True)
        joint = counts / total.clamp(min=1)

        def entropy(p):
            return -(p * p.clamp(min=1e-9).log()).flatten(1).sum(1)

        both = entropy(joint)
        nmi = (entropy(joint.sum(1)) + entropy(joint.sum(2))) / both.clamp(min=1e-6)
        share = total.flatten() / self.points.shape[1]
        # Few points look dependent by chance: the first-order bias of the estimate (Roulston 1999) is taken off.
        filled = (joint > 0).flatten(1).sum(1)
        rows = (joint.sum(2) > 0).sum(1) + (joint.sum(1) > 0).sum(1)
        bias = (filled - rows + 1) / (2 * total.flatten().clamp(min=1)) / both.clamp(min=1e-6)
        score = torch.where(share * self.points.shape[1] > 40, (nmi - 1 - bias) * share.sqrt(), -1.0)
        return score.cpu().numpy()


def _places(fixed, moving, center):
    """Starting translations: as the scanners say, centres on centres, and along what one field of view lacks."""
    middle = moving.volume.center
    shifts = [np.zeros(3), middle - fixed.volume.center, moving.center_of_mass - fixed.center_of_mass]
    shifts += [moving.center_of_mass - np.asarray(center)]
    extents = [np.abs(image.levels[-1].affine[:3, :3]) @ (image.box[1] - image.box[0]) for image in (fixed, moving)]
    reach = np.abs(extents[0] - extents[1]) / 2 + 10
    axes = [np.arange(-n, n + 1) * 2 * STEP for n in np.ceil(np.where(reach > 25, reach, 0) / (2 * STEP)).astype(int)]
    box_middle = [
        image.levels[-1].affine[:3, :3] @ (sum(image.box) / 2) + image.levels[-1].affine[:3, 3]
        for image in (fixed, moving)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    shifts += list(box_middle[1] - box_middle[0] + grid)
    around = (np.array(shifts)[:, None] + _cross(STEP)).reshape(-1, 3)
    return _turned(np.eye(4), center, np.eye(3)[None], around)


def _rotations():
    """Rotation matrices (N, 3, 3) about as far apart as `ANGLE`, up to two and a half steps from none."""
    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return np.stack([rotation(ANGLE * step) for step in steps if np.linalg.norm(step) <= 2.5])


def _cross(step):
    """Shifts (7, 3)."""
    return np.concatenate([np.zeros((1, 3)), step * np.eye(3), -step * np.eye(3)])


def _turned(matrix, center, turns, shifts):
    """`matrix` after each of `turns` (N, 3, 3) about `center` and before each of `shifts` (M, 3): (N * M, 4, 4)."""
    steps = np.tile(np.eye(4), (len(turns), 1, 1))
    steps[:, :3, :3] = turns
    steps[:, :3, 3] = center - turns @ center
    moved = np.repeat(matrix @ steps, len(shifts), axis=0)
    moved[:, :3, 3] += np.tile(shifts, (len(turns), 1))
    return moved
