"""Slicer without its Qt application: slicer-core's real MRML under a stand-in, on PySide6, for PythonQt and Slicer's
own widgets. `start()` makes `qt`, `ctk` and what `slicer` lacks importable, so that a scripted module runs untouched.

It agrees with PythonQt or is stricter, never kinder: `Testing/Python/test_harness.py` holds it to cases recorded in
genuine Slicer.
"""

from .application import load, new_scene, start

__all__ = ["load", "new_scene", "start"]
