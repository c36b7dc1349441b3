"""Registration against the standard tools: accuracy, time and memory, interleaved in one run.

    python Testing/Benchmarks/registration.py                          every arm that can be run here
    python Testing/Benchmarks/registration.py --arms rigid affine      some of them
    python Testing/Benchmarks/registration.py --cases 2 --minutes 10   fewer seeds, and no new case after 10 minutes
    python Testing/Benchmarks/registration.py --report                 the table of what has been measured

Every tool runs in a process of its own with the same threads and priority; one registers at a time, all of them a case
before the next case. Seconds and CPU seconds are those from images in memory to the transform; megabytes, how far that
raises the process's resident size at its highest. Results are kept in --out, line by line: a run that was stopped goes
on where it was. A change to the code or the threads starts anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from registration_arms import arms  # noqa: E402
from registration_report import line, table  # noqa: E402

OUT = ROOT / "bench-output" / "registration"
THREADS = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)  # fmt: skip


class Tools:
    """The tools' processes, started when first asked for."""

    def __init__(self, threads, folder):
        self.threads, self.folder, self.running = threads, folder, {}

    def register(self, name, case, model):
        """What the worker measured, and the errors of its answer."""
        if name not in self.running:
            environment = os.environ | dict.fromkeys(THREADS, str(self.threads)) | {"OMP_WAIT_POLICY": "PASSIVE"}
            command = [sys.executable, str(Path(__file__).parent / "registration_worker.py"), name, str(self.threads)]
            self.running[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True,
            )  # fmt: skip
        worker = self.running[name]
        geometry = {
            part: {"affine": v.affine.tolist(), "modality": v.modality}
            for part, v in (("fixed", case.fixed), ("moving", case.moving))
        }
        request = {"folder": str(self.folder), "model": model, "geometry": geometry}
        print(json.dumps(request), file=worker.stdin, flush=True)
        reply = worker.stdout.readline()
        if not reply:
            self.running.pop(name).wait()
            return {"problem": "its process ended"}
        answer = json.loads(reply)
        if "problem" in answer:
            return answer
        found = np.load(answer.pop("field")) if "field" in answer else np.array(answer.pop("matrix"))
        return answer | case.errors(found)

    def end(self):
        for worker in self.running.values():
            worker.stdin.close()
            worker.wait()
        self.running.clear()


def version(threads):
    """A short hash of what the figures depend on."""
    digest = hashlib.sha256(str(threads).encode())
    for file in sorted(
        [*(ROOT / "MedFusionLib" / "registration").glob("*.py"), *Path(__file__).parent.glob("reg*.py")]
    ):
        if file.name not in ("registration_report.py", "registration_trust.py", "registration_accuracy.py"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def load(out):
    file = out / "results.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def run(chosen, options, out):
    """Measure what has not been, seed by seed over all arms, so that a run that is stopped early has some of each."""
    out.mkdir(parents=True, exist_ok=True)
    now = version(options.threads)
    records = [r for r in load(out) if r["version"] == now]
    done = {(r["arm"], r["case"], r["seed"], r["tool"]) for r in records}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, open(out / "results.jsonl", "a") as file:
        tools = Tools(options.threads, folder)
        for seed in range(max(arm.seeds for arm in chosen)):
            for arm in chosen:
                if seed >= min(arm.seeds, options.cases):
                    continue
                names = [n for n in arm.names() if not options.only or n in options.only]
                if arm.fresh:
                    tools.end()
                for case in _left(arm, seed, names, done):
                    if time.monotonic() - began > 60 * options.minutes:
                        print("Time is up; run it again to go on.", flush=True)
                        tools.end()
                        return records
                    for name, array in (("fixed", case.fixed.array), ("moving", case.moving.array)):
                        np.save(Path(folder) / f"{name}.npy", array)
                    of_case = []
                    # Everyone goes first equally often.
                    turn = seed % len(names)
                    for name in names[turn:] + names[:turn]:
                        key = {"arm": arm.name, "case": case.name, "seed": seed, "tool": name}
                        if tuple(key.values()) not in done:
                            found = tools.register(name, case, arm.model)
                            of_case.append(key | found | {"threads": options.threads, "version": now})
                            print(json.dumps(of_case[-1]), file=file, flush=True)
                    records += of_case
                    print(line(arm, case.name, seed, of_case, records), flush=True)
                if arm.fresh:
                    tools.end()
        tools.end()
    return records


def _left(arm, seed, names, done):
    """The arm's cases of this seed of which something is left to measure."""
    known = {case for a, case, s, _ in done if (a, s) == (arm.name, seed)}
    counts = {sum((arm.name, case, seed, name) in done for name in names) for case in known}
    if len(known) == arm.pairs and counts == {len(names)}:
        return
    for case in arm.make(seed):
        if not all((arm.name, case.name, seed, name) in done for name in names):
            yield case


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", help="some arms alone")
    parser.add_argument("--cases", type=int, default=100, help="at most so many seeds of each arm")
    parser.add_argument("--only", nargs="+", help="some tools alone")
    parser.add_argument("--threads", type=int, default=1, help="of every tool")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no new case after so many")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--report", action="store_true", help="measure nothing, print the table")
    options = parser.parse_args()
    chosen, missing = arms()
    if options.arms:
        unknown = set(options.arms) - {arm.name for arm in chosen}
        if unknown:
            parser.error(
                f"no arm {', '.join(unknown)} here: {', '.join(arm.name for arm in chosen)}. " + " ".join(missing)
            )
        chosen = [arm for arm in chosen if arm.name in options.arms]
    if options.report:
        records = load(options.out)
        newest = records[-1]["version"] if records else None
        records = [r for r in records if r["version"] == newest]
    else:
        records = run(chosen, options, options.out)
    text = "\n".join([table(chosen, records), "", *missing])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main()
