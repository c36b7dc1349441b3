"""Which compute device to use."""

from __future__ import annotations

import logging
import sys

from .errors import DeviceError

log = logging.getLogger(__name__)

SHORT = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "paging file is too small",
    "failed to map segment",
    "cannot map zero-fill pages",
)
"""How torch, C++, the systems (Windows' paging file is error 1455 in every language) and, last, loaders of shared
libraries say that there is too little memory."""


def choose(name="auto"):
    """torch.device for "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises DeviceError for a device that this machine lacks.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"{name!r} is not a device: use auto, cpu, cuda, cuda:1 or mps.") from error
    if not available.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        here = ", ".join(kind for kind, there in available.items() if there)
        raise DeviceError(f"this machine has no {name}: it has {here}. Choose auto.")
    return device


def run_on(device, work):
    """work(device); where the device has too little memory or lacks an operation, work(CPU), and the log says so.

    device: a torch.device.
    """
    try:
        return work(device)
    except Exception as error:
        short = is_out_of_memory(error)
        if device.type == "cpu" or not (short or _is_lacking(device, error)):
            raise
        log.warning("%s %s: the CPU takes over.", device, "ran out of memory" if short else "lacks an operation")
    import torch

    # Out here the error no longer keeps what was on the device.
    return work(torch.device("cpu"))


def _is_lacking(device, error):
    """Whether a device cannot do what it was asked: Apple's say so by errors of several kinds."""
    if device.type == "mps" and isinstance(error, RuntimeError | TypeError) and "MPS" in str(error):
        return True
    return isinstance(error, NotImplementedError)


def is_out_of_memory(error):
    """Whether an exception says that a device or the machine ran out of memory."""
    torch = sys.modules.get("torch")  # which is not imported for that: what has not been has raised nothing
    kinds = (MemoryError, torch.cuda.OutOfMemoryError) if torch else MemoryError
    text = str(error).lower()
    return isinstance(error, kinds) or any(words in text for words in SHORT) or getattr(error, "winerror", 0) == 1455
