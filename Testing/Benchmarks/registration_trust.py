"""How well the verdict of a registration's quality report tells right from wrong.

    python Testing/Benchmarks/registration_trust.py calibrate     the cases that the limits were chosen on
    python Testing/Benchmarks/registration_trust.py judge         others: other seeds, other pairs, other patients

Cases that should work (whole scans, small ones, small regions), cases made to fail (no overlap, another body part,
noise, a constant, left for right, a start far off) and near misses: right answers moved by 5 to 20 mm or turned by 7 to
15 degrees, and deformations with a false bump of 6 to 15 mm, handed to the verdict as if they had been found. An error
is wrong beyond 5 mm: mean over the head (or the region, or the small field of view) of a matrix, 98th percentile over
the brain of a deformation; what was spoilt by less is left out. Prints how many wrong ones were not called good, how
many right ones were not, and each that was judged amiss, and keeps that in bench-output.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from registration_arms import ATLAS, TEMPLATES  # noqa: E402
from registration_cases import atlas_cases, phantom_cases, template_cases  # noqa: E402

from MedFusionLib.errors import MedFusionError  # noqa: E402
from MedFusionLib.registration import quality, register  # noqa: E402
from MedFusionLib.registration.driver import LEVELS  # noqa: E402
from MedFusionLib.registration.images import Image  # noqa: E402
from MedFusionLib.registration.linear import rotation  # noqa: E402
from MedFusionLib.registration.search import _small_first  # noqa: E402

OUT = Path(__file__).resolve().parents[2] / "bench-output" / "registration"

LIMIT = 5.0
"""mm: an error beyond this is a failure."""

SETS = {
    "calibrate": {"rigid": (("CT-T1", "PET-T1", "EPI-T1"), (100, 101)), "affine": (("PET-T1",), (100,)),
                  "deformable": (("T2",), (100, 101)), "phantom": (0, 1), "atlas": (0,)},
    "judge": {"rigid": (("T2-T1", "SPECT-T1", "CT-T1", "PET-T1", "EPI-T1"), (200, 201)),
              "affine": (("T2-T1", "SPECT-T1", "CT-T1"), (200,)), "deformable": (("PD", "T2"), (200, 201)),
              "phantom": (10, 11), "atlas": (10, 11)},
}  # fmt: skip


def rigid_cases(which):
    if TEMPLATES.exists():
        pairs, seeds = which["rigid"]
        for seed in seeds:
            yield from template_cases(TEMPLATES, pairs, seed, "rigid")
    for seed in which["phantom"]:
        yield from phantom_cases(seed, "rigid")
    if ATLAS.is_dir():
        for seed in which["atlas"]:
            yield from atlas_cases(ATLAS, seed)


def other_cases(which):
    """(model, case)."""
    if TEMPLATES.exists():
        for model in ("affine", "deformable"):
            pairs, seeds = which[model]
            for seed in seeds:
                yield from ((model, case) for case in template_cases(TEMPLATES, pairs, seed, model))
    for seed in which["phantom"]:
        yield from (("affine", case) for case in phantom_cases(seed, "affine"))
        yield from (("deformable", case) for case in phantom_cases(seed, "deformable"))
    # Scans of unlike grids, orientation and contrast, between which nothing is to be deformed.
    yield from (("deformable", case) for case in phantom_cases(which["phantom"][0], "rigid"))


class Judge:
    """Hands an answer for a pair of scans to the verdict."""

    def __init__(self, fixed, moving):
        self.images = [Image(v, LEVELS, "cpu") for v in (fixed, moving)]
        self.center = self.images[0].center_of_mass

    def __call__(self, matrix, displacement=None):
        one, other, first_to_second = _small_first(*self.images, matrix)
        return quality.judge(one, other, first_to_second, displacement, 0)


def linear_answers(case, rng):
    """(kind, error in mm, Quality or None where it was refused)."""
    fixed, moving = case.fixed, case.moving

    def error(result):
        return case.errors(np.linalg.inv(result.matrix))["error"]

    found = register(fixed, moving, device="cpu")
    yield "as it is", error(found), found.quality
    right, judge = np.linalg.inv(found.matrix), Judge(fixed, moving)
    steps = [("shifted 6-19 mm", _shift(amount * _unit(rng))) for amount in (6, 9, 13, 19)]
    steps += [("turned 7-15 degrees", _turn(degrees, judge.center, rng)) for degrees in (7, 9, 12, 15)]
    for kind, step in steps:
        if case.errors(right @ step)["error"] > LIMIT:
            yield kind, case.errors(right @ step)["error"], judge(right @ step)
    for amount in (25, 40):
        # What a local search makes of a bad start: right again, or a local optimum.
        start = right @ _turn(amount, judge.center, rng) @ _shift(amount * _unit(rng))
        again = register(fixed, moving, device="cpu", initial=np.linalg.inv(start))
        yield "start 25-40 mm and degrees off", error(again), again.quality
    away = register(fixed, moving, device="cpu", initial=_turn(rng.uniform(60, 120), judge.center, rng))
    yield "start 60-120 degrees off", error(away), away.quality
    slab = _box(moving, (case.truth @ np.append(judge.center, 1))[:3], (np.inf, np.inf, 40))
    part = register(fixed, slab, device="cpu")
    yield "40-mm slab", error(part), part.quality
    for size in ((160, 160, 40), (100, 100, 40), (80, 80, 80)):
        middle = judge.center + rng.uniform((-30, -40, -30), (30, 40, 40))
        part = register(fixed, _box(moving, case.truth[:3, :3] @ middle + case.truth[:3, 3], size), device="cpu")
        inside = middle + rng.uniform(-0.45, 0.45, (200, 3)) * size
        yield "field of view of 80-160 mm", _off(part, inside, case.truth), part.quality
    for radius in (25, 40):
        middle = judge.center + rng.uniform((-30, -40, -30), (30, 40, 40))
        region = register(fixed, moving, device="cpu", fixed_mask=_ball(fixed, middle, radius))
        inside = middle + rng.normal(size=(200, 3)) * radius / 2.2
        yield "region of 50-80 mm", _off(region, inside, case.truth), region.quality

    lost = {
        "no overlap": (moving, {"initial": _shift(900 * _unit(rng))}),
        "noise": (moving.with_array(rng.normal(size=moving.array.shape).astype(np.float32)), {}),
        "constant": (moving.with_array(np.full(moving.array.shape, 7, np.int16)), {}),
        "clouds": (moving.with_array(_clouds(moving, rng)), {}),
        "limb": (moving.with_array(_limb(moving)), {}),
    }
    if case.name.endswith("MRI"):
        # Scans of patients: templates of many heads and the phantom are nearly alike left and right.
        mirrored = np.flip(moving.array, moving.anatomical_axis("sagittal"))
        lost["mirrored"] = (moving.with_array(np.ascontiguousarray(mirrored)), {})
    for kind, (scan, options) in lost.items():
        try:
            # Where there is no truth, any answer is wrong.
            yield kind, np.inf, register(fixed, scan, device="cpu", **options).quality
        except MedFusionError:
            yield kind, np.inf, None
    yield from bumps(case, judge, right, _straight(case.fixed, right), rng)


def other_answers(model, case, rng):
    found = register(case.fixed, case.moving, model=model, device="cpu")
    matrix = np.linalg.inv(found.matrix)
    judge = Judge(case.fixed, case.moving)
    if model == "affine":
        yield "affine", case.errors(matrix)["error"], found.quality
        for size in (0.12, 0.2):
            stretch = np.eye(4)
            stretch[:3, :3] += rng.choice((-size, size), 3) * np.eye(3) + rng.uniform(-size, size, (3, 3)) / 2
            wrong = matrix @ _shift(judge.center) @ stretch @ _shift(-judge.center)
            yield "stretched 12-20 %", case.errors(wrong)["error"], judge(wrong)
        return
    field = found.displacement.array.transpose(2, 1, 0, 3)
    yield "deformable", _field_error(case, field, judge.center), found.quality
    if _field_error(case, field, judge.center) < LIMIT:
        yield from bumps(case, judge, matrix, field, rng)


def bumps(case, judge, matrix, field, rng):
    """A deformation, and the same with a false bump."""
    yield "no bump", _field_error(case, field, judge.center), judge(matrix, _as_volume(case.fixed, field))
    places = _places(case.fixed)
    for height, width in ((6, 30), (8, 25), (11, 20), (15, 20)):
        middle = (judge.center + rng.uniform((-30, -30, -20), (30, 30, 40))).astype(np.float32)
        bump = np.exp(((places - middle) ** 2).sum(-1) / np.float32(-2 * width**2))
        wrong = field + bump[..., None] * (height * _unit(rng)).astype(np.float32)
        error = _field_error(case, wrong, judge.center)
        if error > LIMIT:
            yield "bump of 6-15 mm", error, judge(matrix, _as_volume(case.fixed, wrong))


def _field_error(case, field, center):
    """98th percentile of the distance from the truth over about the brain, mm. field: (I, J, K, 3)."""
    places = _places(case.fixed)
    brain = (((places - center - np.array((0, 0, 10))) / np.array((65, 75, 60))) ** 2).sum(-1) < 1
    inside = places[brain]
    if case.truth.ndim == 4:
        truth = case.truth[brain]
    else:
        truth = inside @ (case.truth[:3, :3] - np.eye(3)).T + case.truth[:3, 3]
    return float(np.percentile(np.linalg.norm(field[brain] - truth, axis=-1), 98))


def _places(volume):
    """RAS mm (I, J, K, 3) of the voxels."""
    index = np.moveaxis(np.indices(volume.size, np.float32), 0, -1)
    return index @ volume.affine[:3, :3].T.astype(np.float32) + volume.affine[:3, 3].astype(np.float32)


def _straight(volume, matrix):
    places = _places(volume)
    return (places @ (matrix[:3, :3] - np.eye(3)).T + matrix[:3, 3]).astype(np.float32)


def _as_volume(fixed, field):
    return fixed.with_array(np.ascontiguousarray(field.transpose(2, 1, 0, 3)), display_range=None)


def _box(volume, middle, size):
    """About `size` mm along RAS about RAS `middle`, cut along the axes of the grid that are nearest to them; infinite:
    all of it."""
    along = np.abs(volume.affine[:3, :3]).argmax(axis=0)
    counts = np.clip(np.round(np.array(size)[along] / volume.spacing), 6, volume.size).astype(int)
    first = np.round((np.linalg.inv(volume.affine) @ [*middle, 1])[:3] - counts / 2)
    first = np.clip(first, 0, np.array(volume.size) - counts).astype(int)
    i, j, k = (slice(start, start + count) for start, count in zip(first, counts, strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*first, 1])[:3]
    return volume.with_array(np.ascontiguousarray(volume.array[k, j, i]), affine=affine)


def _off(registration, points, truth):
    """mm, mean over RAS points (N, 3) of the fixed scan. truth: 4x4, fixed -> moving."""
    off = registration.to_moving(points) - points @ truth[:3, :3].T - truth[:3, 3]
    return float(np.linalg.norm(off, axis=1).mean())


def _ball(volume, middle, radius):
    """A mask of what lies within `radius` mm of RAS `middle`."""
    inside = np.linalg.norm(_places(volume) - middle, axis=-1) < radius
    return volume.with_array(np.ascontiguousarray(inside.transpose(2, 1, 0)).astype(np.uint8))


def _clouds(volume, rng):
    from scipy.ndimage import zoom

    return zoom(rng.normal(size=(6, 6, 6)), [n / 6 for n in volume.array.shape], order=1).astype(np.float32)


def _limb(volume):
    """Another body part: two bones in a thigh."""
    k, j, i = np.indices(volume.array.shape)
    x, y, z = ((v - (n - 1) / 2) * s for v, n, s in zip((i, j, k), volume.size, volume.spacing, strict=True))
    leg = np.hypot(x - 0.1 * z, y) < 62
    bone = (np.hypot(x - 0.1 * z - 8, y + 10) < 15) | (np.hypot(x - 0.2 * z + 28, y - 12) < 7)
    low, high = np.percentile(volume.array, (1, 99))
    return (low + (high - low) * (0.45 * leg + 0.55 * bone)).astype(np.float32)


def _unit(rng):
    vector = rng.normal(size=3)
    return vector / np.linalg.norm(vector)


def _shift(vector):
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix


def _turn(degrees, center, rng):
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(np.deg2rad(degrees) * _unit(rng))
    return _shift(center) @ matrix @ _shift(-center)


def report(found):
    wrong = [f for f in found if f["error"] > LIMIT]
    right = [f for f in found if f["error"] <= LIMIT]
    lines = ["| kind | right | called check or failed | wrong | called good |", "|---|---|---|---|---|"]
    for kind in [*dict.fromkeys(f["kind"] for f in found), "all"]:
        ok, bad = ([f for f in group if kind in (f["kind"], "all")] for group in (right, wrong))
        alarms, missed = sum(f["verdict"] != "good" for f in ok), sum(f["verdict"] == "good" for f in bad)
        lines.append(f"| {kind} | {len(ok)} | {alarms} | {len(bad)} | {missed} |")
    caught, alarms = sum(f["verdict"] != "good" for f in wrong), sum(f["verdict"] != "good" for f in right)
    lines.append("")
    lines.append(
        f"Errors over {LIMIT:.0f} mm caught: {caught} of {len(wrong)} ({100 * caught / max(1, len(wrong)):.1f} %);"
        f" false alarms: {alarms} of {len(right)} ({100 * alarms / max(1, len(right)):.1f} %)."
    )
    for f in found:
        if (f["error"] > LIMIT) == (f["verdict"] == "good"):
            lines.append(f"judged amiss: {f['case']}, {f['kind']}, {f['error']:.1f} mm, {f['verdict']}: {f['reason']}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=list(SETS))
    parser.add_argument("--save", type=Path, help="JSON file for every case's values")
    options = parser.parse_args()
    torch.set_num_threads(1)
    which, found = SETS[options.set], []
    answers = ((case, linear_answers) for case in rigid_cases(which))
    others = ((case, lambda c, rng, m=model: other_answers(m, c, rng)) for model, case in other_cases(which))
    for number, (case, make) in enumerate(itertools.chain(answers, others)):
        for kind, error, judged in make(case, np.random.default_rng([number, len(options.set)])):
            values = {"verdict": "refused", "reason": ""} if judged is None else dataclasses.asdict(judged)
            found.append({"case": case.name, "kind": kind, "error": error, **values})
        amiss = sum((f["error"] > LIMIT) == (f["verdict"] == "good") for f in found)
        print(f"{number + 1}, {case.name}: {amiss} of {len(found)} judged amiss", flush=True)
        if options.save:
            options.save.write_text(json.dumps(found))
    text = report(found)
    print("\n" + text)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"trust-{options.set}.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
