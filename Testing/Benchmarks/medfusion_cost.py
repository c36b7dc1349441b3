"""What the default method costs: CPU seconds a slice pair on one thread, a large volume's time and memory, leaning.

Memory is what `fusion_memory` measures, in a process of its own: whatever fusing needs beyond the two sources.

python Testing/Benchmarks/medfusion_cost.py [--large]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import fusion_memory

from MedFusionLib.fusion import fuse, registry
from MedFusionLib.fusion.leaning import lean
from MedFusionLib.volume import Volume


def pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    rows = [np.linspace(0, 9, n, dtype=np.float32) for n in shape]
    wave = np.sin(rows[0])[:, None, None] * np.cos(rows[1])[:, None] * np.sin(rows[2])
    return [
        Volume(wave * sign + rng.random(shape, np.float32) / 5, np.eye(4), kind, "", kind, (-1, 1.2))
        for sign, kind in ((1, "CT"), (-1, "MR"))
    ]


def slice_cost(repeats=30):
    torch.set_num_threads(1)
    fuser = registry.load("medfusion", torch.device("cpu"))
    sources = torch.rand(1, 2, 256, 256)
    spent = []
    with torch.inference_mode():
        for _ in range(repeats):
            began = time.process_time()
            fuser(sources, ("CT", "MR"))
            spent.append(time.process_time() - began)
    print(f"256 x 256 pair, one thread: median {statistics.median(spent):.4f} CPU-s, least {min(spent):.4f}")


def volume_cost(shape, threads):
    torch.set_num_threads(threads)
    sources = pair(shape)
    fuse(pair((32, 64, 64)), device="cpu")
    began, busy = time.perf_counter(), time.process_time()
    fuse(sources, device="cpu")
    wall, busy = time.perf_counter() - began, time.process_time() - busy
    size = " x ".join(str(n) for n in shape[::-1])
    print(f"{size} pair, {threads} threads: {wall:.1f} s ({busy:.1f} CPU-s)")
    flat = [Volume(source.array[:1], np.eye(4), source.modality, "", "", (-1, 1.2)) for source in sources]
    del sources
    times, _ = fusion_memory.peak("medfusion", shape, threads)
    print(
        f"  peak memory beyond the two sources (result included), over their size in float32: {times:.2f}"
        f" ({1 + times:.2f} with them)"
    )
    fusion = fuse(flat, device="cpu")
    began = time.perf_counter()
    lean(fusion, flat, 0, 0.3)
    print(f"  leaning one {flat[0].size[0]} x {flat[0].size[1]} slice: {1000 * (time.perf_counter() - began):.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", action="store_true", help="a 512 x 512 x 200 pair instead of 256 x 256 x 100")
    options = parser.parse_args()
    slice_cost()
    volume_cost((200, 512, 512) if options.large else (100, 256, 256), 2)
