"""Smooth fields on a lattice of control points.

Cubic B-splines (Rueckert et al., IEEE Trans. Medical Imaging 18, 1999), and the exponential of a stationary velocity
(Arsigny et al., MICCAI 2006).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

SQUARINGS = 6


class Lattice:
    """Control points in even steps over the fixed volume's anatomy.

    Fields on it are (1, 3, K, J, I), components along (i, j, k) in steps of the lattice.
    """

    def __init__(self, fixed, spacing):
        level = fixed.levels[-1]
        low, high = fixed.box
        steps = np.linalg.norm(level.affine[:3, :3], axis=0)
        extent = (high - low) * steps
        self.size = np.maximum(np.ceil(extent / spacing).astype(int) + 1, 2) + 2
        self.affine = np.eye(4)
        self.affine[:3, :3] = level.affine[:3, :3] / steps * spacing
        middle = level.affine[:3, :3] @ ((low + high) / 2) + level.affine[:3, 3]
        self.affine[:3, 3] = middle - self.affine[:3, :3] @ ((self.size - 1) / 2)
        self.to_index = np.linalg.inv(self.affine)
        self.spacing = spacing
        self.device = fixed.device
        shape = tuple(int(n) for n in self.size[::-1])
        self.identity = functional.affine_grid(torch.eye(3, 4, device=self.device)[None], (1, 1, *shape), True)
        # grid_sample counts from -1 to 1 from the first control point to the last.
        self.scale = torch.tensor(2 / (self.size - 1), dtype=torch.float32, device=self.device)

    def zeros(self):
        return torch.zeros((1, 3, *(int(n) for n in self.size[::-1])), device=self.device)

    def exponential(self, velocity):
        """The displacement that following `velocity` for a unit of time gives, by scaling and squaring."""
        field = smoothed(velocity) / 2**SQUARINGS
        for _ in range(SQUARINGS):
            where = self.identity + field.permute(0, 2, 3, 4, 1) * self.scale
            field = field + functional.grid_sample(field, where, padding_mode="border", align_corners=True)
        return field

    def take_over(self, velocity, other):
        """The velocity of `other` lattice on this one."""
        index = [np.arange(n) for n in self.size]
        there = self._index_on(other, index)
        taken = evaluate(
            smoothed(velocity)[0], [_linear(x, n).to(self.device) for x, n in zip(there, other.size, strict=True)]
        )
        return taken[None] * (other.spacing / self.spacing)

    def _index_on(self, other, index):
        # Both lattices have the same axes and middle.
        return [
            (np.asarray(x) - (n - 1) / 2) * self.spacing / other.spacing + (m - 1) / 2
            for x, n, m in zip(index, self.size, other.size, strict=True)
        ]


class Interpolation:
    """The sparse interpolation from a lattice to points: weights of cubic B-splines, tabulated on a lattice twice as
    fine and linear in between."""

    def __init__(self, lattice, points):
        fine = [np.arange(2 * n - 1) / 2 for n in lattice.size]
        self.refine = [bspline(x, n, lattice.device) for x, n in zip(fine, lattice.size, strict=True)]
        shape = 2 * lattice.size - 1
        index = 2 * (points @ lattice.to_index[:3, :3].T + lattice.to_index[:3, 3])
        index = np.clip(index, 0, shape - 1.001)
        base = np.floor(index).astype(np.int64)
        part = index - base
        columns, weights = [], []
        for corner in np.ndindex(2, 2, 2):
            columns.append(
                ((base[:, 2] + corner[2]) * shape[1] + base[:, 1] + corner[1]) * shape[0] + base[:, 0] + corner[0]
            )
            weights.append(np.prod(np.where(corner, part, 1 - part), axis=1))
        self.columns = torch.from_numpy(np.stack(columns)).to(lattice.device)
        self.weights = torch.tensor(np.stack(weights), dtype=torch.float32, device=lattice.device)

    def __call__(self, field):
        """field (1, 3, K, J, I) -> (N, 3), in the lattice's steps."""
        fine = evaluate(field[0], self.refine).reshape(3, -1).T
        return _Gather.apply(fine, self.columns, self.weights)


class _Gather(torch.autograd.Function):
    """Weighted sums of rows; far faster than what autograd makes of indexing."""

    @staticmethod
    def forward(ctx, rows, columns, weights):
        ctx.save_for_backward(columns, weights)
        ctx.count = len(rows)
        rows = rows.contiguous()
        out = torch.zeros((columns.shape[1], rows.shape[1]), device=rows.device)
        for column, weight in zip(columns, weights, strict=True):
            out.addcmul_(torch.index_select(rows, 0, column), weight[:, None])
        return out

    @staticmethod
    def backward(ctx, gradient):
        columns, weights = ctx.saved_tensors
        out = torch.zeros((ctx.count, gradient.shape[1]), device=gradient.device)
        for column, weight in zip(columns, weights, strict=True):
            out.index_add_(0, column, gradient * weight[:, None])
        return out, None, None


def bending(field, spacing):
    """Mean squared second differences, per 10 mm, of a field in mm of 3 points or more along each axis."""
    total = 0.0
    for axis in (2, 3, 4):
        n = field.shape[axis]
        second = field.narrow(axis, 2, n - 2) - 2 * field.narrow(axis, 1, n - 2) + field.narrow(axis, 0, n - 2)
        total = total + second.square().mean()
        for other in range(axis + 1, 5):
            first = field.narrow(axis, 1, n - 1) - field.narrow(axis, 0, n - 1)
            m = field.shape[other]
            mixed = first.narrow(other, 1, m - 1) - first.narrow(other, 0, m - 1)
            total = total + 2 * mixed.square().mean()
    return total * (10 / spacing) ** 4 / 100


def evaluate(field, weights):
    """(3, K, J, I) lattice values, and a (n, N) matrix along each of (i, j, k) -> (3, k, j, i)."""
    field = field @ weights[0].T
    field = (field.transpose(2, 3) @ weights[1].T).transpose(2, 3)
    return (field.permute(0, 2, 3, 1) @ weights[2].T).permute(0, 3, 1, 2)


def smoothed(field):
    """Cubic B-spline coefficients -> values at the control points, with the edges repeated."""
    for axis in (2, 3, 4):
        n = field.shape[axis]
        before = torch.cat([field.narrow(axis, 0, 1), field.narrow(axis, 0, n - 1)], axis)
        after = torch.cat([field.narrow(axis, 1, n - 1), field.narrow(axis, n - 1, 1)], axis)
        field = (before + 4 * field + after) / 6
    return field


def bspline(where, size, device):
    """float32 (len(where), size): weights of cubic B-splines at control points, edges repeated."""
    base = np.floor(where).astype(int)
    t = where - base
    matrix = np.zeros((len(where), size), np.float32)
    pieces = ((1 - t) ** 3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2, t**3 / 6)
    for offset, weight in zip((-1, 0, 1, 2), pieces, strict=True):
        np.add.at(matrix, (np.arange(len(where)), np.clip(base + offset, 0, size - 1)), weight)
    return torch.from_numpy(matrix).to(device)


def _linear(where, size):
    where = np.clip(where, 0, size - 1)
    base = np.minimum(np.floor(where).astype(int), size - 2)
    matrix = np.zeros((len(where), size), np.float32)
    matrix[np.arange(len(where)), base] = 1 - (where - base)
    matrix[np.arange(len(where)), base + 1] = where - base
    return torch.from_numpy(matrix)
