"""Rigid and affine registration: coarse to fine, by quasi-Newton steps on sampled mutual information."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .images import sample, sorted_by_block
from .information import fixed_bins, similarity

RADIUS = 70.0
"""mm: a parameter of rotation, scale or shear is how far it moves a point at this distance from the centre."""

EDGE = 2.0
"""mm: the last steps are shorter."""


@dataclass(frozen=True)
class Stage:
    """Which level of the pyramids, how many points, and when to stop: after a step under `tolerance` mm or `most`
    evaluations."""

    level: int
    points: int
    tolerance: float
    most: int


class Target:
    """The similarity of two scans as a function of the fixed -> moving matrix, on one level.

    center: RAS mm in the fixed volume that motions turn about. normalised: see `information.similarity`. near: a matrix
    that the answer is close to: points that it takes to within `EDGE` of the edge of the moving field of view are left
    out, so that no step changes which points are compared. The similarity would rise or fall with those alone.
    """

    def __init__(self, fixed, moving, level, count, center, seed, normalised=True, near=None):
        self.center = np.asarray(center)
        self.normalised = normalised
        grid = fixed.levels[level]
        points = sorted_by_block(fixed.points(count, seed), grid.affine)
        self.points = torch.tensor((points - self.center).T, dtype=torch.float32, device=fixed.device).contiguous()
        self.homogeneous = torch.cat([self.points, torch.ones_like(self.points[:1])])
        to_grid = grid.to_index @ _shift(self.center)
        values, inside, _ = sample(grid, to_grid[:3], self.points)
        self.rows = fixed_bins(values)
        self.inside = inside
        self.moving = moving.levels[level]
        self.mask = moving.mask
        if near is not None:
            self.inside &= self._deep_inside(near)

    def _deep_inside(self, matrix):
        """bool (N,): points `EDGE` mm or more from the edge of the moving field of view (or an eighth of it)."""
        to_index = (self.moving.to_index @ matrix @ _shift(self.center))[:3]
        index = torch.tensor(to_index, dtype=torch.float32, device=self.points.device) @ self.homogeneous
        steps, size = np.linalg.norm(self.moving.affine[:3, :3], axis=0), self.moving.size
        margin = np.minimum(EDGE / steps, size / 8)
        low, high = (
            torch.tensor(bound[:, None], dtype=torch.float32, device=index.device)
            for bound in (margin - 0.5, size - 0.5 - margin)
        )
        return ((index > low) & (index < high)).all(dim=0)

    def _sampled(self, matrix, gradient):
        to_index = (self.moving.to_index @ matrix @ _shift(self.center))[:3]
        values, inside, slope = sample(self.moving, to_index, self.points, gradient)
        inside &= self.inside
        if self.mask is not None:
            where = self.points.cpu().numpy().T.astype(np.float64) + self.center
            holds = self.mask.holds(where @ matrix[:3, :3].T + matrix[:3, 3])
            inside &= torch.from_numpy(holds).to(inside.device)
        return values, inside, slope

    def value(self, matrix):
        """(NMI, share of the points inside the moving volume)."""
        values, inside, _ = self._sampled(matrix, False)
        return similarity(self.rows, values, inside, normalised=self.normalised)[:2]

    def with_gradient(self, matrix):
        """(NMI, its derivative (3, 4) by `matrix` @ translation(center))."""
        values, inside, slope = self._sampled(matrix, True)
        nmi, _, change = similarity(self.rows, values, inside, True, self.normalised)
        by_index = (slope.mul_(change)) @ self.homogeneous.T
        return nmi, self.moving.to_index[:3, :3].T @ by_index.cpu().numpy().astype(np.float64)


class Motion:
    """Parameters, all in mm, -> the fixed -> moving matrix near `base`."""

    def __init__(self, model, base, center):
        self.size = {"rigid": 6, "affine": 12}[model]
        self.base = base @ _shift(center)
        self.back = _shift(-np.asarray(center))

    def step(self, parameters):
        matrix = np.eye(4)
        matrix[:3, 3] = parameters[:3]
        if self.size == 6:
            matrix[:3, :3] = rotation(parameters[3:] / RADIUS)
        else:
            matrix[:3, :3] += parameters[3:].reshape(3, 3) / RADIUS
        return matrix

    def matrix(self, parameters):
        return self.base @ self.step(parameters) @ self.back

    def gradient(self, parameters, by_matrix):
        """The chain rule: by_matrix (3, 4), of matrix @ translation(center), -> by each parameter."""
        pulled = self.base[:3, :3].T @ by_matrix
        gradient = np.empty(self.size)
        gradient[:3] = pulled[:, 3]
        if self.size == 12:
            gradient[3:] = pulled[:, :3].ravel() / RADIUS
            return gradient
        h = 1e-5
        for n in range(3):
            ahead, behind = parameters[3:] / RADIUS, parameters[3:] / RADIUS
            ahead[n] += h
            behind[n] -= h
            gradient[3 + n] = (pulled[:, :3] * (rotation(ahead) - rotation(behind))).sum() / (2 * h * RADIUS)
        return gradient


def climb(target, model, matrix, first_step, tolerance, most, hessian=None, check=None):
    """Raise the similarity from `matrix` by BFGS; (matrix, NMI, inverse Hessian).

    first_step: mm, length of the first step where there is no Hessian. check(): asked at every evaluation.
    """
    motion = Motion(model, matrix, target.center)
    x = np.zeros(motion.size)

    def evaluate(x):
        if check:
            check()
        nmi, by_matrix = target.with_gradient(motion.matrix(x))
        return -nmi, -motion.gradient(x, by_matrix)

    f, g = evaluate(x)
    fresh = hessian is None or hessian.shape[0] != motion.size
    inverse = np.eye(motion.size) if fresh else hessian.copy()
    spent = 1
    while spent < most:
        norm = np.linalg.norm(g)
        if norm < 1e-12:
            break
        if fresh:
            inverse = np.eye(motion.size) * first_step / norm
        direction = -inverse @ g
        slope = direction @ g
        if slope >= 0:
            fresh = True
            inverse = np.eye(motion.size) * first_step / norm
            direction = -inverse @ g
            slope = direction @ g
        length = np.linalg.norm(direction)
        longest = 4 * first_step
        if length > longest:
            direction *= longest / length
            slope *= longest / length
            length = longest
        t, moved = 1.0, False
        for _ in range(6):
            if spent >= most:
                break
            f1, g1 = evaluate(x + t * direction)
            spent += 1
            if f1 <= f + 1e-4 * t * slope:
                moved = True
                break
            # The minimum of the parabola through what is known, kept away from both ends.
            t *= min(0.5, max(0.15, -slope * t / (2 * (f1 - f - slope * t)) if f1 - f - slope * t > 0 else 0.5))
            if t * length < 0.3 * tolerance:
                break
        if not moved:
            if fresh or length < tolerance:
                break
            fresh = True
            first_step = max(tolerance, first_step / 4)
            continue
        s, y = t * direction, g1 - g
        x, f, g = x + s, f1, g1
        curvature = s @ y
        if curvature > 1e-12 * np.linalg.norm(s) * np.linalg.norm(y):
            if fresh:
                inverse = np.eye(motion.size) * curvature / (y @ y)
                fresh = False
            rho = 1 / curvature
            left = np.eye(motion.size) - rho * np.outer(s, y)
            inverse = left @ inverse @ left.T + rho * np.outer(s, s)
        if np.linalg.norm(s) < tolerance:
            break
    return motion.matrix(x), -f, None if fresh else inverse


def refine(fixed, moving, model, matrix, center, stages, seed, check=None, normalised=True):
    """`matrix` improved, coarse to fine."""
    hessian = None
    for n, stage in enumerate(stages):
        near = matrix if stage.level == 0 else None
        target = Target(fixed, moving, stage.level, stage.points, center, seed + n, normalised, near)
        step = float(np.linalg.norm(target.moving.affine[:3, :3], axis=0).mean())
        matrix, _, hessian = climb(target, model, matrix, step / 2, stage.tolerance, stage.most, hessian, check)
    return matrix


def rotation(vector):
    """3x3 matrix of a rotation vector in radians (Rodrigues)."""
    x, y, z = vector
    angle = np.sqrt(x * x + y * y + z * z)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    if angle < 1e-8:
        return np.eye(3) + k
    return np.eye(3) + np.sin(angle) / angle * k + (1 - np.cos(angle)) / angle**2 * (k @ k)


def _shift(vector):
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix
