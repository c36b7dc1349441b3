"""MedFusion's engine: read, register, fuse, colour and evaluate CT, MRI, PET and SPECT volumes.

Names are loaded when first used, so that importing the package is quick and imports no torch.
"""

import os
from importlib import import_module

# OpenMP threads that spin between two loops slow down whatever else runs; this must be said before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOMES = {
    "Volume": "volume",
    "read_volume": "files",
    "write_volume": "files",
    "register": "registration",
    "Registration": "registration",
    "fuse": "fusion",
    "Fusion": "fusion",
    "lean": "fusion",
    "methods": "fusion",
    "evaluate": "metrics",
    "colorize": "color",
    "run": "pipeline",
    "Request": "pipeline",
    "Result": "pipeline",
    "MedFusionError": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))
