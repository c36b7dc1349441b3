"""What tests of several files are given."""

import os

import pytest


class _Windows:
    """The module os as it names Windows."""

    name = "nt"

    def __getattr__(self, name):
        return getattr(os, name)


@pytest.fixture
def windows():
    """To put in the place of a module's os."""
    return _Windows()


@pytest.fixture
def new_scene():
    """(scene, axial slice view): an empty MRML scene of slicer-core's, Slicer's until the test ends."""
    slicer = pytest.importorskip("slicer", reason="needs slicer-core: pip install .[test]")
    from scene import new_scene

    scene, view, alive = new_scene()
    yield scene, view
    del alive
    slicer.mrmlScene = None


@pytest.fixture
def scene(new_scene):
    return new_scene[0]


@pytest.fixture
def view(new_scene):
    return new_scene[1]
