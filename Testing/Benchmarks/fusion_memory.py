"""Memory that fusing a volume takes, of every method.

    python Testing/Benchmarks/fusion_memory.py [METHOD ...] [--shape 132 256 256] [--threads 1 2] [--part]

Each figure is of a process of its own: by how much its resident memory rises, at the most, above what it held when
the sources were there and a small pair had been fused, over the size of the sources in float32. The result counts:
a fused volume is half of two sources, and the weight maps are as large as the sources.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from MedFusionLib.fusion import fuse, registry
from MedFusionLib.volume import Volume

SHAPE = (132, 256, 256)
"""Over 32 MiB a source: of less, the allocator keeps what is freed, and its habits would be measured."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="default: all of the registry")
    parser.add_argument("--shape", nargs=3, type=int, default=SHAPE, metavar=("K", "J", "I"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--sources", type=int, choices=(2, 3), default=2)
    parser.add_argument("--part", action="store_true", help="all sources but the first show half of the slices")
    options = parser.parse_args()
    size = " x ".join(str(n) for n in options.shape[::-1])
    print(f"Peak memory beyond {options.sources} sources of {size}, over their size in float32:")
    for method in options.methods or registry.methods():
        for threads in options.threads:
            times, seconds = peak(method, options.shape, threads, options.sources, options.part)
            print(f"  {method}, {threads} thread{'s' * (threads > 1)}: {times:.2f} ({seconds:.1f} s)", flush=True)


def peak(method, shape=SHAPE, threads=1, count=2, part=False):
    """(peak memory beyond the sources over their size, seconds) of a method, measured in a process of its own.

    part: all sources but the first show half of the slices.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (method, tuple(shape), threads, count, part))


def _peak(method, shape, threads, count, part):
    import torch

    torch.set_num_threads(threads)
    stack = np.random.default_rng(0).random((count, *shape), dtype=np.float32)
    names = ("CT", "MR", "PT")[:count]
    sources = [Volume(a, np.eye(4), m, display_range=(0, 1)) for a, m in zip(stack, names, strict=True)]
    # What is loaded once is not what a volume costs.
    fuse([source.with_array(source.array[:8, :64, :64]) for source in sources], method, device="cpu")
    if part:
        view = np.ones(shape, bool)
        view[: shape[0] // 2] = False
        sources[1:] = [source.with_array(source.array, view=view) for source in sources[1:]]
    before, began = highest(forget=True), time.perf_counter()
    fuse(sources, method, device="cpu")
    return (highest() - before) / stack.nbytes, time.perf_counter() - began


def highest(forget=False):
    """The most bytes of memory that this process has held; forget: since now, where the system can."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        # macOS counts bytes, others kilobytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # Linux: ru_maxrss would begin with what the parent process held.
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main()
