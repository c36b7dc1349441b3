"""Independent pieces of work side by side, each on one thread.

Splitting every small operation over all threads, as torch does, makes them wait for each other thousands of times
a second: beside a busy Slicer that costs several times what it gains.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed

import torch

MOST = 4
"""Pieces at a time: bounds the memory."""


def at_once():
    """How many pieces `spread` works on side by side."""
    return min(torch.get_num_threads(), MOST)


def spread(work, items, step=lambda done: None):
    """Call work(item) for every item, in any order. step(done): called with how many are done, from 0.

    An exception of `work` or `step` ends it, without starting further pieces.
    """
    items = list(items)
    threads = torch.get_num_threads()
    if threads < 2:
        for done, item in enumerate(items):
            step(done)
            work(item)
        return

    def piece(item):
        with torch.inference_mode():
            work(item)

    pool = ThreadPoolExecutor(at_once(), initializer=torch.set_num_threads, initargs=(1,))
    try:
        step(0)
        for done, future in enumerate(as_completed([pool.submit(piece, item) for item in items]), 1):
            future.result()
            step(done)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
