"""One tool in a process of its own: registers the cases it is told of, and measures time and memory.

Requests come as JSON lines on stdin: {"folder": where the case's arrays lie, "model", "geometry"}. Answers go out as
JSON lines: {"seconds", "cpu_seconds", "megabytes", "matrix" or "field"}, or {"problem"}.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from registration_peers import GPU_TOOLS, TOOLS  # noqa: E402

from MedFusionLib.volume import Volume  # noqa: E402


def serve(tool, threads, answers):
    warmed = set()
    for line in sys.stdin:
        request = json.loads(line)
        model = request["model"]
        try:
            if model not in warmed:
                # Imports and first calls are nobody's registration time.
                tool.run(*(tool.prepare(v, threads) for v in _small()), model, threads)
                warmed.add(model)
            answer = _measured(tool, threads, request, model)
        except (RuntimeError, MemoryError, ValueError) as problem:
            answer = {"problem": (str(problem).strip().splitlines() or [type(problem).__name__])[-1]}
        print(json.dumps(answer), file=answers, flush=True)


def _measured(tool, threads, request, model):
    folder = Path(request["folder"])
    images = []
    for name in ("fixed", "moving"):
        geometry = request["geometry"][name]
        volume = Volume(np.load(folder / f"{name}.npy"), np.array(geometry["affine"]), geometry["modality"])
        images.append(tool.prepare(volume, threads))
        del volume
    before = _settled()
    began, cpu_began = time.perf_counter(), time.process_time()
    found = tool.run(*images, model, threads)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "megabytes": (_peak() - before) / 1e6}
    if found.ndim == 2:
        return answer | {"matrix": found.tolist()}
    np.save(folder / "field.npy", found)
    return answer | {"field": str(folder / "field.npy")}


def _settled():
    """Resident bytes once all that is free has been given back; the peak is counted from here where Linux lets it."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    import psutil

    return psutil.Process().memory_info().rss


def _peak():
    """Most bytes that were resident since `_settled`."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _small():
    """Two volumes that anything can be registered on."""
    k, j, i = np.indices((40, 44, 48)).astype(np.float32)
    ball = np.exp(-((k - 20) ** 2 + (j - 23) ** 2 + (i - 25) ** 2) / 120) + 0.4 * (np.hypot(j - 20, i - 20) < 9)
    grain = np.random.default_rng(0).normal(0, 0.01, ball.shape)
    affine = np.diag([3.0, 3, 3, 1])
    array = (1000 * (ball + grain)).astype(np.float32)
    return Volume(array, affine, "MR"), Volume(1500 - array, affine, "MR")


if __name__ == "__main__":
    # What a tool prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    serve((TOOLS | GPU_TOOLS)[sys.argv[1]], int(sys.argv[2]), answers)
