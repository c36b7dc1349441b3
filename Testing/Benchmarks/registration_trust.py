"""How well the verdict of a registration's quality report tells right from wrong.

python Testing/Benchmarks/registration_trust.py [--cases N] [--regbench SCRIPT] [--save FILE]

Registers cases that should work and cases made to fail (no overlap, another body part, noise, a start far off), and
counts: of the errors over 5 mm, how many are not called good; of the others, how many are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from registration_cases import phantom_cases, regbench_cases  # noqa: E402

from MedFusionLib.registration import quality, register  # noqa: E402
from MedFusionLib.registration.linear import rotation  # noqa: E402

LIMIT = 5.0
"""mm: a mean error beyond this is a failure."""


def spoilt(case, rng):
    """(kind, fixed, moving, options of register, whether the truth is lost) of one case, as it is and made to fail."""
    fixed, moving = case.fixed, case.moving
    yield "as it is", fixed, moving, {}, False
    away = np.eye(4)
    away[:3, :3] = rotation(np.deg2rad(rng.uniform(40, 110)) * _unit(rng))
    away[:3, 3] = 60 * _unit(rng)
    yield "wrong start", fixed, moving, {"initial": away}, False
    far = np.eye(4)
    far[:3, 3] = 900 * _unit(rng)
    yield "no overlap", fixed, moving, {"initial": far}, True
    noise = rng.normal(size=moving.array.shape).astype(np.float32)
    yield "noise", fixed, moving.with_array(noise), {}, True
    blocks = rng.normal(size=(6, 6, 6))
    from scipy.ndimage import zoom

    clouds = zoom(blocks, [n / 6 for n in moving.array.shape], order=1)
    yield "clouds", fixed, moving.with_array(clouds.astype(np.float32)), {}, True
    yield "limb", fixed, moving.with_array(_limb(moving)), {}, True


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--regbench")
    parser.add_argument("--save", help="JSON file for every case's values")
    options = parser.parse_args()
    found = []
    cases = list(phantom_cases(max(1, options.cases // 2), "rigid"))
    if options.regbench:
        cases += list(regbench_cases(options.regbench, options.cases, "rigid"))
    conclude = quality.conclude
    measured = {}
    quality.conclude = lambda values: (measured.clear(), measured.update(values), conclude(values))[2]
    for n, case in enumerate(cases):
        for kind, fixed, moving, choices, lost in spoilt(case, np.random.default_rng(n)):
            result = register(fixed, moving, device="cpu", **choices)
            # Where there is no truth, any answer is wrong.
            error = np.inf if lost else case.errors(np.linalg.inv(result.matrix))["error"]
            error = case.errors(np.linalg.inv(result.matrix))["error"] if kind == "no overlap" else error
            found.append(
                {"case": case.name, "kind": kind, "error": error, **measured, "verdict": result.quality.verdict}
            )
        print(case.name, file=sys.stderr, flush=True)
    if options.save:
        Path(options.save).write_text(json.dumps(found))
    wrong = [f for f in found if f["error"] > LIMIT]
    right = [f for f in found if f["error"] <= LIMIT]
    caught = sum(f["verdict"] != "good" for f in wrong)
    alarms = sum(f["verdict"] != "good" for f in right)
    print(
        f"| errors over {LIMIT:.0f} mm caught | {caught} of {len(wrong)} | {100 * caught / max(1, len(wrong)):.1f} % |"
    )
    print(f"| false alarms | {alarms} of {len(right)} | {100 * alarms / max(1, len(right)):.1f} % |")
    for kind in dict.fromkeys(f["kind"] for f in found):
        of_kind = [f for f in found if f["kind"] == kind]
        verdicts = {v: sum(f["verdict"] == v for f in of_kind) for v in ("good", "check", "failed")}
        print(f"| {kind} | {sum(f['error'] > LIMIT for f in of_kind)} of {len(of_kind)} wrong | {verdicts} |")


if __name__ == "__main__":
    main()
