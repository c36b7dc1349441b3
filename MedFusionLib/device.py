"""Which compute device to use."""

from __future__ import annotations

import sys

from .errors import DeviceError


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


def is_out_of_memory(error):
    """Whether an exception says that a device or the machine ran out of memory."""
    torch = sys.modules.get("torch")  # which is not imported for that: what has not been says nothing
    if torch is None:
        return isinstance(error, MemoryError)
    text = str(error).lower()
    return (
        isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
        or "out of memory" in text
        or "allocate memory" in text
    )
