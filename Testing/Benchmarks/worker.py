"""What a job in a child process costs its parent: python Testing/Benchmarks/worker.py [MEGAVOXELS]

Prints how long `start`, the longest `poll` and `cancel` take, and the parent's peak memory against its inputs and
outputs. Two synthetic volumes of MEGAVOXELS (default 16) are averaged without registration.
"""

import sys
import time

import numpy as np

from MedFusionLib import worker
from MedFusionLib.pipeline import Request
from MedFusionLib.volume import Volume


def memory(field):
    """Bytes of this process as Linux counts them, file maps included."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def request(megavoxels, registration="none"):
    generator = np.random.default_rng(0)
    shape = (round(megavoxels * 2**20 / 256**2), 256, 256)
    arrays = (generator.random(shape, np.float32) for _ in range(2))
    sources = tuple(Volume(a, np.diag([1.0, 1, 1, 1]), m) for a, m in zip(arrays, ("MR", "PT"), strict=True))
    return Request(sources, registration=registration, method="average", device="cpu", evaluate=False)


def main(megavoxels=16.0):
    job_request = request(megavoxels)
    inputs = sum(source.array.nbytes for source in job_request.sources)
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")  # the peak counts from here
    before = memory("VmRSS")
    began = time.perf_counter()
    job = worker.start(job_request)
    started = time.perf_counter() - began
    polls = []
    while job.state == "running":
        time.sleep(0.02)
        asked = time.perf_counter()
        job.poll()
        polls.append(time.perf_counter() - asked)
    result = job.result()
    volumes = [result.fusion.volume, result.rgb, *result.sources, *(result.fusion.weights or ())]
    for volume in volumes:
        volume.array.sum(dtype=float)
    outputs = sum(volume.array.nbytes for volume in volumes)
    grown = memory("VmHWM") - before
    print(f"start returned after           {1000 * started:8.1f} ms")
    print(f"longest poll of {len(polls):5d}          {1000 * max(polls):8.1f} ms")
    print(f"job took                       {time.perf_counter() - began:8.1f} s")
    print(f"parent grew by                 {grown / 2**20:8.1f} MiB")
    print(f"  allowed: outputs and inputs  {(outputs + inputs) / 2**20:8.1f} MiB")
    job.close()

    waits = []
    for _ in range(5):
        job = worker.start(request(megavoxels, registration="rigid"))
        while not any((event.fraction or 0) >= 0.05 for event in job.poll()):
            time.sleep(0.02)
        asked = time.perf_counter()
        job.cancel()
        job.wait()
        waits.append(time.perf_counter() - asked)
        assert job.state == "cancelled"
    print(f"cancel took, 5 times, at most  {max(waits):8.2f} s")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
