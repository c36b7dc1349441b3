"""Cases with known truth: of the phantom, of real templates by an outside script, of the Whole Brain Atlas."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from MedFusionLib import phantom
from MedFusionLib.volume import Volume

MODALITY = {"CT": "CT", "T1": "MR", "T2": "MR", "PD": "MR", "EPI": "MR", "PET": "PT", "SPECT": "NM"}


@dataclass(frozen=True)
class Case:
    """name: of the pair; fixed, moving: Volumes; errors(answer): {"error": mm ...} of a 4x4 (fixed -> moving) or of a
    displacement. truth: the 4x4 or the (I, J, K, 3) displacement, RAS mm."""

    name: str
    fixed: Volume
    moving: Volume
    errors: object
    truth: np.ndarray


def volume(array, affine, modality):
    """A Volume of an (I, J, K) array."""
    return Volume(np.ascontiguousarray(array.transpose(2, 1, 0)), affine, modality)


# ---- the phantom ------------------------------------------------------------------------------------


def phantom_cases(seed, model):
    """The phantom's MRI and PET to its CT, moved at random; for "affine" stretched too; its MRI warped."""
    made = _phantom(seed)
    if model == "deformable":
        yield _warped_phantom(made, seed)
        return
    stretch = np.eye(4)
    if model == "affine":
        stretch[:3, :3] += np.random.default_rng(seed).uniform(-0.08, 0.08, (3, 3))
    for name, moving in (("MR-CT", made.mr), ("PET-CT", made.pet)):
        truth = np.linalg.inv(made.truth[moving.modality] @ np.linalg.inv(stretch))
        stretched = moving.with_array(moving.array, affine=stretch @ moving.affine)
        yield Case(name, made.ct, stretched, _matrix_errors(truth, made.head), truth)


def still_cases(seed):
    """The phantom's MRI and PET to its CT, moved at random, for a deformation to leave as they are."""
    made = _phantom(seed)
    for case in phantom_cases(seed, "rigid"):
        at_points = _error_at(case.fixed, made.head, case.truth)

        def errors(found, fixed=case.fixed, at_points=at_points):
            return at_points(found) | {"folded": 100 * float((_determinant(found, fixed) <= 0).mean())}

        yield replace(case, errors=errors)


def _warped_phantom(made, seed, most=8.0, width=16.0):
    """The MRI against itself in another contrast, warped smoothly by up to `most` mm."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    fixed = made.mr
    rng = np.random.default_rng([seed, 5])
    spacing = np.array(fixed.spacing[::-1])
    back = np.stack([gaussian_filter(rng.standard_normal(fixed.array.shape), width / spacing) for _ in range(3)])
    back *= most / np.linalg.norm(back, axis=0).max() / spacing[:, None, None, None]
    grid = np.indices(fixed.array.shape).astype(float)
    values = map_coordinates(fixed.array.astype(np.float32), grid + back, order=1, mode="nearest")
    warped = 600 * np.sqrt(np.clip(1 - values / 1000, 0, 1)) * (values > 60) + rng.normal(0, 10, values.shape)
    # `back` says where each voxel of the warped scan came from; the truth is its inverse, by iteration.
    forth = -back
    for _ in range(12):
        forth = -np.stack([map_coordinates(b, grid + forth, order=1, mode="nearest") for b in back])
    truth = (np.moveaxis(forth, 0, -1)[..., ::-1] @ fixed.affine[:3, :3].T).transpose(2, 1, 0, 3).astype(np.float32)
    k, j, i = np.indices(fixed.array.shape)
    place = np.stack([i, j, k, np.ones_like(i)], -1) @ (made.truth["MR"] @ fixed.affine).T
    brain = (np.linalg.norm((place[..., :3] - (0, -18, 10)) / (65, 80, 60), axis=-1) < 1).transpose(2, 1, 0)

    def errors(found):
        length = np.linalg.norm(found - truth, axis=-1)[brain]
        return {"error": float(length.mean()), "folded": 100 * float((_determinant(found, fixed) <= 0)[brain].mean())}

    moving = fixed.with_array(warped.astype(np.float32))
    return Case("MR warped", fixed, moving, errors, truth)


def _determinant(field, volume):
    """Jacobian determinant of x + field(x), (I, J, K)."""
    by_index = np.stack([np.stack(np.gradient(field[..., r]), -1) for r in range(3)], -2)
    return np.linalg.det(by_index @ np.linalg.inv(volume.affine[:3, :3]) + np.eye(3))


def full_size_case(seed=0):
    """The phantom's MRI on a grid of 13 million voxels, and in another contrast on one of 9 million turned and moved
    against it: each is sampled from the head itself, so that the truth is exact and no grid lies on the other."""
    head = _head()
    rng = np.random.default_rng([seed, 9])
    truth = phantom._rigid(rng, 12.0, 15.0)
    fixed, fixed_affine = head.scan(head.mr, phantom._grid(np.array([0.94, 0.94, 1.1]), order=(1, 2, 0)))
    moving, moving_affine = head.scan(
        head.mr, phantom._grid(np.array([1.0, 1.0, 1.4]), turn=-5.0), np.linalg.inv(truth)
    )
    fixed = 1000 * fixed + rng.normal(0, 20, fixed.shape)
    moving = 800 * np.sqrt(np.clip(1.05 - moving, 0, 1)) * (moving > 0.03) + rng.normal(0, 20, moving.shape)
    first, second = (
        Volume(array.astype(np.int16), affine, "MR")
        for array, affine in ((fixed, fixed_affine), (moving, moving_affine))
    )
    return Case("full size", first, second, _matrix_errors(truth, head.points()), truth)


def gpu_case(seed, model):
    """The phantom's CT as 512x512x200 and its MRI as 256x256x256."""
    from scipy.ndimage import zoom

    made = _phantom(seed, spacing=1)
    ct, mr = (
        _as_size(v, size, zoom) for v, size in ((made.ct, (200, 512, 512)), (made.mr, (256, 256, 256)))
    )  # fmt: skip
    truth = np.linalg.inv(made.truth["MR"])
    return Case("MR-CT", ct, mr, _error_at(ct, made.head, truth), truth)


def _error_at(fixed, points, truth):
    """Errors of a 4x4 or a displacement on `fixed`'s grid, by RAS points of it and the 4x4 that is right."""
    matrix_errors = _matrix_errors(truth, points)

    def errors(found):
        if found.ndim == 2:
            return matrix_errors(found)
        to_index = np.linalg.inv(fixed.affine)
        index = np.rint(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
        i, j, k = np.clip(index, 0, np.array(fixed.size) - 1).T
        place = np.stack([i, j, k], -1) @ fixed.affine[:3, :3].T + fixed.affine[:3, 3]
        there = place @ truth[:3, :3].T + truth[:3, 3]
        return {"error": float(np.linalg.norm(place + found[i, j, k] - there, axis=1).mean())}

    return errors


def _as_size(volume, size, zoom):
    factors = [n / m for n, m in zip(size, volume.array.shape, strict=True)]
    array = zoom(volume.array, factors, order=1, grid_mode=True, mode="nearest")
    scale = np.diag([1 / f for f in factors[::-1]] + [1.0])
    scale[:3, 3] = [(1 / f - 1) / 2 for f in factors[::-1]]
    return volume.with_array(array, affine=volume.affine @ scale)


# ---- real templates ---------------------------------------------------------------------------------


def template_cases(path, pairs, seed, model):
    """Cases of an outside script with `make_case`, `make_deform_case`, `score`, `score_field`."""
    script = _load(path)
    script.targets()
    for pair in pairs:
        if model == "deformable":
            case = script.make_deform_case(pair, seed)
            fixed, moving = (volume(case[n], case[n + "_affine"], "MR") for n in ("fixed", "moving"))
            yield Case(f"T1-{pair}", fixed, moving, _field_errors(script, case), case["disp"])
            continue
        case = script.make_case(pair, seed, dof=model)
        fixed = volume(case["fixed"], case["fixed_affine"], "MR")
        moving = volume(case["moving"], case["moving_affine"], MODALITY[pair.split("-")[0]])
        # The templates are a little off each other: a constant that every method finds alike.
        truth = case["T"] @ script.consensus_offset(pair)
        yield Case(pair, fixed, moving, _matrix_errors(truth, np.vstack(script.targets())), truth)


def atlas_cases(folder, seed):
    """MRI slices of the Whole Brain Atlas stacked into volumes, of each group the subject with the most.

    The moving scan is the same one in another contrast, moved and sampled on a grid of its own, so that the truth is
    exact: the atlas's own registration of CT, PET or SPECT to MRI is good to some millimetres only.
    """
    from scipy.ndimage import affine_transform

    for group, mr in _atlas_stacks(folder).items():
        rng = np.random.default_rng([seed, len(group)])
        # The atlas does not give the slices' distance: thick where there are few.
        spacing = np.array([0.9, 0.9, 150 / len(mr)])
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(mr.shape[::-1]) - 1) / 2)
        truth = phantom._rigid(rng, 12.0, 15.0)
        step = np.array([1.1, 1.1, max(1.3, 0.8 * spacing[2])])
        size = np.round(np.array([230.0, 230.0, 160.0]) / step).astype(int)
        grid = np.diag([*step, 1.0])
        grid[:3, 3] = truth[:3, 3] - grid[:3, :3] @ ((size - 1) / 2)
        to_stack = np.linalg.inv(affine) @ np.linalg.inv(truth) @ grid
        reverse = np.eye(4)[[2, 1, 0, 3]]
        moving = affine_transform(mr, reverse @ to_stack @ reverse, output_shape=tuple(size[::-1]), order=1)
        moving = 200 * np.sqrt(1 - moving / 255) * (moving > 15) + rng.normal(0, 5, moving.shape)
        points = np.argwhere(mr > 25)[::997, ::-1] @ affine[:3, :3].T + affine[:3, 3]
        fixed = Volume(mr + rng.normal(0, 5, mr.shape).astype(np.float32), affine, "MR")
        moving = Volume(moving.astype(np.float32), grid, "MR")
        yield Case(group, fixed, moving, _matrix_errors(truth, points), truth)


@lru_cache(maxsize=1)
def _atlas_stacks(folder):
    from MedFusionLib.fusion.training.atlas import pairs, stacks

    largest = {}
    for (group, _), (_, mr) in stacks(pairs(folder)).items():
        if group not in largest or len(mr) > len(largest[group]):
            largest[group] = 255 * mr
    return largest


def _matrix_errors(truth, points):
    points = np.c_[points, np.ones(len(points))]

    def errors(found):
        return {"error": float(np.linalg.norm((points @ (found - truth).T)[:, :3], axis=1).mean())}

    return errors


def _field_errors(script, case):
    def errors(found):
        score = script.score_field(case, found)
        return {"error": float(score["after"]), "before": float(score["before"]), "folded": float(score["fold_pct"])}

    return errors


@lru_cache(maxsize=1)
def _head():
    return phantom._Head(1)


@lru_cache(maxsize=2)
def _phantom(seed, spacing=2):
    return phantom.make(seed=seed, spacing=spacing)


@lru_cache(maxsize=1)
def _load(path):
    specification = importlib.util.spec_from_file_location("regbench", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
