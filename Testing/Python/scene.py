"""A real MRML scene for tests: slicer-core's, or the one of the Slicer that runs them."""

import tempfile

import numpy as np
import slicer

from MedFusionLib.volume import Volume


def new_scene():
    """An empty scene with Slicer's colour tables and an axial view: (scene, slice logic, what must stay alive)."""
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    colors = slicer.vtkMRMLColorLogic()
    colors.SetMRMLScene(scene)
    cache = tempfile.TemporaryDirectory(prefix="scene-cache-")  # where scene bundles are unpacked
    files = slicer.vtkMRMLRemoteIOLogic()
    files.SetMRMLScene(scene)
    files.AddDataIOToScene()
    files.GetCacheManager().SetRemoteCacheDirectory(cache.name)
    view = slicer.vtkMRMLSliceLogic()
    view.SetMRMLApplicationLogic(application)
    view.SetMRMLScene(scene)
    view.AddSliceNode("Red")
    view.GetSliceNode().SetOrientationToAxial()
    return scene, view, (application, colors, files, cache)


def affine(spacing=(1, 1, 1), origin=(0, 0, 0), angles=(0, 0, 0), flip=False):
    """4x4, voxel index to RAS mm: rotations about x, y and z in radians, optionally left-handed."""
    a, b, c = angles
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = x @ y @ z @ np.diag([-1 if flip else 1, 1, 1]) @ np.diag(spacing)
    matrix[:3, 3] = origin
    return matrix


def rigid(angles, shift):
    return affine(origin=shift, angles=angles)


def blob(grid, shape, center, size):
    """float32 (K, J, I): a Gaussian of `size` mm around a RAS point."""
    return np.exp(-(((points(grid, shape) - center) / size) ** 2).sum(-1) / 2).astype(np.float32)


def points(grid, shape):
    """(K, J, I, 3) RAS mm of every voxel of a grid."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return np.stack([i, j, k, np.ones_like(i)], -1) @ grid.T[:, :3]


def head(modality="MR", grid=None, shape=(24, 40, 36), name=""):
    """A smooth ellipsoid with a bright spot on the patient's right front: no two of its sides look alike."""
    if grid is None:
        grid = affine((3, 3, 4), (-52, -58, -46))
    where = points(grid, shape)
    body = 1 / (1 + np.exp(4 * (np.linalg.norm(where / (42, 50, 38), axis=-1) - 1) * 8))
    spot = blob(grid, shape, (20, 25, 6), 7)
    if modality == "CT":
        return Volume((body * 1040 - 1000 + 600 * spot).astype(np.int16), grid, "CT", "HU", name or "CT head")
    if modality == "PT":
        return Volume((body * 0.5 + 8 * spot).astype(np.float32), grid, "PT", "SUV", name or "PET head")
    return Volume(
        (body * 500 + 300 * blob(grid, shape, (-20, 10, 0), 12)).astype(np.float32), grid, "MR", "", "MR head"
    )
