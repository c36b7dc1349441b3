"""Cases with known truth: from the phantom, or from an outside script that makes them of real templates."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from registration_peers import volume

from MedFusionLib import phantom
from MedFusionLib.volume import Volume

MODALITY = {"CT": "CT", "T1": "MR", "T2": "MR", "PD": "MR", "EPI": "MR", "PET": "PT", "SPECT": "NM"}


@dataclass(frozen=True)
class Case:
    """name: of the arm; fixed, moving: Volumes; errors(answer): mm of a 4x4 (fixed -> moving) or a displacement."""

    name: str
    fixed: Volume
    moving: Volume
    errors: object


def phantom_cases(count, model):
    """The phantom's MRI and PET to its CT, moved at random; for "affine" stretched too."""
    for seed in range(count):
        made = _phantom(seed)
        stretch = np.eye(4)
        if model == "affine":
            rng = np.random.default_rng(seed)
            stretch[:3, :3] += rng.uniform(-0.08, 0.08, (3, 3))
        for name, moving in (("MR-CT phantom", made.mr), ("PET-CT phantom", made.pet)):
            truth = np.linalg.inv(made.truth[moving.modality] @ np.linalg.inv(stretch))
            stretched = moving.with_array(moving.array, affine=stretch @ moving.affine)
            yield Case(name, made.ct, stretched, _matrix_errors(truth, made.head))


def regbench_cases(path, count, model):
    """Cases of an outside script with `PAIRS`, `make_case`, `make_deform_case`, `score`, `score_field`."""
    script = _load(path)
    if model == "deformable":
        for pair in ("T2", "PD"):
            for seed in range(count):
                case = script.make_deform_case(pair, seed)
                fixed, moving = (volume(case[n], case[n + "_affine"], "MR") for n in ("fixed", "moving"))
                yield Case(f"T1-{pair} warped", fixed, moving, _field_errors(script, case))
        return
    script.targets()
    for seed in range(count):
        for pair in script.PAIRS:
            case = script.make_case(pair, seed, dof=model)
            fixed = volume(case["fixed"], case["fixed_affine"], "MR")
            moving = volume(case["moving"], case["moving_affine"], MODALITY[pair.split("-")[0]])
            # The templates are a little off each other: a constant that every method finds alike.
            truth = case["T"] @ script.consensus_offset(pair)
            yield Case(pair, fixed, moving, _matrix_errors(truth, np.vstack(script.targets())))


def full_size_case(seed=0):
    """A scan of 9 million voxels and the same one cut from its middle, moved and inverted: the truth is exact."""
    made = _phantom(seed, spacing=1)
    rng = np.random.default_rng(seed)
    fixed = made.mr
    fine = np.repeat(fixed.array, 2, axis=0)
    affine = fixed.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    noise = rng.normal(0, 8, fine.shape).astype(np.float32)
    first = fixed.with_array((fine + noise).astype(np.int16), affine=affine)
    away = phantom._rigid(rng, 12.0, 15.0)
    second = (fine + rng.normal(0, 8, fine.shape).astype(np.float32)).astype(np.int16)
    second = fixed.with_array(1500 - second[4:-6, 5:-3, 2:-7], affine=away @ affine @ _offset(2, 5, 4))
    points = made.head @ np.linalg.inv(made.truth["MR"])[:3, :3].T + np.linalg.inv(made.truth["MR"])[:3, 3]
    return Case("full size", first, second, _matrix_errors(away, points))


def _offset(*voxels):
    matrix = np.eye(4)
    matrix[:3, 3] = voxels
    return matrix


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


@lru_cache(maxsize=2)
def _phantom(seed, spacing=1):
    return phantom.make(seed=seed, spacing=spacing)


@lru_cache(maxsize=1)
def _load(path):
    specification = importlib.util.spec_from_file_location("regbench", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
