"""Values <-> a private folder: how a request and its result travel between two processes.

A value becomes JSON; every array in it becomes a `.npy` file beside it, which the other side maps into memory.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from .errors import FileError, MethodError

CHUNK = 2**26
"""Bytes per write: what is written between two questions whether to stop."""

MAPPED = 2**20
"""Bytes from which an array is mapped instead of read: a map keeps its file open."""

PACKAGE = __package__


class Folder:
    """A folder that holds values under names.

    mode: numpy's for the maps of what is loaded ("r" read-only, "c" writable without touching the file); None:
    nothing is mapped.
    """

    def __init__(self, path, mode="r"):
        self.path = Path(path)
        self.mode = mode
        self._files = {}  # id(array) -> (array, file name): what is stored twice is written once

    def save(self, name, value, stop=None):
        """Write `value`: JSON's types, tuples, paths, arrays and MedFusion's dataclasses, nested at will.

        stop(): called between writes of at most `CHUNK` bytes; it ends the writing by raising.
        Raises FileError when the disk is full or the folder is not writable, MethodError for other types.
        """
        self._stop = stop
        try:
            text = json.dumps(self._encode(value))
            partial = self.path / f"{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path / f"{name}.json")
        except OSError as error:
            raise FileError(
                f"the temporary folder cannot take the volumes ({error.strerror}): free some disk space, or point"
                " TMPDIR (TEMP on Windows) to a larger disk."
            ) from error

    def load(self, name):
        """The value that `save` wrote, with its large arrays mapped."""
        return self._decode(json.loads((self.path / f"{name}.json").read_text(encoding="utf-8")))

    def _encode(self, value):
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return {"array": self._write(value)}
        if isinstance(value, PathLike):
            return fspath(value)
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [self._encode(item) for item in value]}
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self._encode(item) for key, item in value.items()}}
        kind = type(value)
        if is_dataclass(value) and kind.__module__.startswith(PACKAGE + "."):
            state = {field.name: self._encode(getattr(value, field.name)) for field in fields(value) if field.init}
            return {"object": f"{kind.__module__.removeprefix(PACKAGE)}:{kind.__qualname__}", "state": state}
        raise MethodError(f"a {kind.__name__} cannot be handed to another process: give numbers, text or volumes.")

    def _decode(self, value):
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return self._read(value["array"])
        if "object" in value:
            home, _, name = value["object"].partition(":")
            kind = getattr(import_module(home, PACKAGE), name)
            return kind(**{key: self._decode(item) for key, item in value["state"].items()})
        if "dict" in value:
            return {key: self._decode(item) for key, item in value["dict"].items()}
        (kind, items), *_ = value.items()
        return {"list": list, "tuple": tuple}[kind](self._decode(item) for item in items)

    def _write(self, array):
        if id(array) not in self._files:
            number = len(list(self.path.glob("*.npy")))
            name = f"{number}.npy"
            with open(self.path / name, "xb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, header | {"shape": array.shape})
                for part in _parts(array):
                    if self._stop:
                        self._stop()
                    file.write(part)
            self._files[id(array)] = (array, name)
        return self._files[id(array)][1]

    def _read(self, name):
        file = self.path / name
        array = np.load(file, mmap_mode=self.mode if file.stat().st_size >= MAPPED else None, allow_pickle=False)
        self._files[id(array)] = (array, name)
        return array


def _parts(array):
    """The bytes of an array in C order, never copying more than one slab of its first axis."""
    if array.flags.c_contiguous:
        data = array.reshape(-1).view(np.uint8)
        for start in range(0, data.size, CHUNK):
            yield data[start : start + CHUNK]
    else:
        for slab in array if array.ndim > 1 else [array]:
            yield np.ascontiguousarray(slab).reshape(-1).view(np.uint8)
