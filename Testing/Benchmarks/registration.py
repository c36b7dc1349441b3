"""Registration against the standard tools: accuracy, time and memory, interleaved in one run.

python Testing/Benchmarks/registration.py                        the phantom's cases
python Testing/Benchmarks/registration.py --regbench SCRIPT      and those of a script for real templates

Every method gets the same threads and priority. Time covers everything from volumes in memory to the transform.
Memory is how far a registration of the full-size scan raises the resident size of a process that has done a small one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

if __name__ == "__main__":
    # Before numpy and torch start their threads.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rigid", "affine", "deformable"])
    parser.add_argument("--cases", type=int, default=4, help="seeds of each kind of case")
    parser.add_argument("--regbench", help="a script that makes cases of real templates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of methods")
    parser.add_argument("--no-full-size", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = str(options.threads)

import numpy as np  # noqa: E402
from registration_cases import full_size_case, phantom_cases, regbench_cases  # noqa: E402
from registration_peers import DEFORMABLE, LINEAR  # noqa: E402


def cases(model, options):
    if options.regbench:
        yield from regbench_cases(options.regbench, options.cases, model)
    if model != "deformable":
        yield from phantom_cases(max(1, options.cases // 4), model)
    if model == "rigid" and not options.no_full_size:
        yield full_size_case()


def measure(model, options):
    """{(arm, method): [(error, seconds, folded)]}"""
    methods = DEFORMABLE if model == "deformable" else LINEAR
    methods = {name: run for name, run in methods.items() if not options.only or name in options.only}
    rows = defaultdict(list)
    warmed = False
    for case in cases(model, options):
        if not warmed:
            # Imports and first calls are nobody's registration time.
            for run in methods.values():
                run(case.fixed, case.moving, model, options.threads)
            warmed = True
        for name, run in methods.items():
            try:
                answer, seconds, _ = run(case.fixed, case.moving, model, options.threads)
                errors = case.errors(answer)
            except RuntimeError as problem:
                print(f"{name} gave up on {case.name}: {str(problem).strip().splitlines()[-1]}", file=sys.stderr)
                errors, seconds = {"error": np.nan}, np.nan
            rows[case.name, name].append((errors["error"], seconds, errors.get("folded", 0.0)))
        print(
            f"  {model} {case.name}: "
            + ", ".join(
                f"{name} {rows[case.name, name][-1][0]:.2f} mm {rows[case.name, name][-1][1]:.2f} s" for name in methods
            ),
            file=sys.stderr,
            flush=True,
        )
    return rows


def table(model, rows):
    arms = list(dict.fromkeys(arm for arm, _ in rows))
    linear = [arm for arm in arms if arm in ("CT-T1", "T2-T1", "PET-T1", "SPECT-T1")]
    groups = [(" + ".join(linear), linear)] if len(linear) > 1 else []
    print(f"\n| {model} | method | mean mm | 95 % mm | worst mm | median s | x time of fastest peer | folded % |")
    print("|---|---|---|---|---|---|---|---|")
    for title, members in groups + [(arm, [arm]) for arm in arms]:
        found = {
            name: np.array([r for arm in members for r in rows[arm, name]])
            for name in dict.fromkeys(n for _, n in rows)
        }
        usual = [np.nanmedian(values[:, 1]) for name, values in found.items() if name != "MedFusion"]
        for name, values in found.items():
            error, seconds = values[:, 0], np.nanmedian(values[:, 1])
            ratio = f"{seconds / min(usual):.2f}" if usual else ""
            figures = f"{np.nanmean(error):.3f} | {np.nanpercentile(error, 95):.3f} | {np.nanmax(error):.2f}"
            print(f"| {title} | {name} | {figures} | {seconds:.2f} | {ratio} | {values[:, 2].max():.2f} |")


def memory(options):
    """Peak growth in MB of each method on the full-size case, each in a process of its own."""
    print("\n| memory, full size | method | MB above the volumes |\n|---|---|---|")
    for name in LINEAR:
        if options.only and name not in options.only:
            continue
        command = [sys.executable, __file__, "--memory-of", name, "--threads", str(options.threads)]
        out = subprocess.run(command, capture_output=True, text=True)
        last = out.stdout.strip().splitlines()[-1:] or ["null"]
        grown = json.loads(last[0]) if out.returncode == 0 else None
        print(f"| | {name} | {'failed' if grown is None else f'{grown:.0f}'} |")


def memory_of(name, options):
    import threading
    import time

    import psutil

    case = full_size_case()
    small = next(iter(phantom_cases(1, "rigid")))
    LINEAR[name](small.fixed, small.moving, "rigid", options.threads)
    process, highest, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch():
        while not done.is_set():
            highest[0] = max(highest[0], process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    LINEAR[name](case.fixed, case.moving, "rigid", options.threads)
    done.set()
    watcher.join()
    print(json.dumps((highest[0] - before) / 1e6))


def main(options):
    if options.memory_of:
        memory_of(options.memory_of, options)
        return
    for model in options.models:
        rows = measure(model, options)
        if rows:
            table(model, rows)
    if not options.no_memory:
        memory(options)


if __name__ == "__main__":
    main(options)
