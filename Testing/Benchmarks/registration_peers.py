"""The standard tools with settings a careful user would give them, behind one interface.

Each is a pair of functions. `prepare(volume, threads)` makes the tool's own image of a Volume: nobody's registration
time or memory. `run(fixed, moving, model, threads)` gives the answer: the fixed -> moving 4x4 in RAS mm, or the
(I, J, K, 3) RAS displacement of the map between voxel centres.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from MedFusionLib.volume import LPS


@dataclass(frozen=True)
class Tool:
    prepare: object
    run: object
    models: tuple[str, ...]


def image(volume, threads=1):
    """The SimpleITK image of a Volume."""
    out = sitk.GetImageFromArray(np.ascontiguousarray(volume.array, dtype=np.float32))
    origin, spacing, direction = _geometry(volume)
    out.SetSpacing(spacing.tolist())
    out.SetOrigin(origin.tolist())
    out.SetDirection(direction.ravel().tolist())
    return out


def medfusion(fixed, moving, model, threads, device="cpu"):
    """Ours, at its defaults, many starts and quality report included."""
    from MedFusionLib.registration import register

    found = register(fixed, moving, model=model, device=device)
    if found.displacement is not None:
        return found.displacement.array.transpose(2, 1, 0, 3)
    return np.linalg.inv(found.matrix)


def medfusion_gpu(fixed, moving, model, threads):
    """The same on a CUDA device, transfers included."""
    return medfusion(fixed, moving, model, threads, device="cuda")


def simpleitk(fixed, moving, model, threads):
    """Mattes mutual information, regular steps, three levels, 20 % of the voxels."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    kind = sitk.Euler3DTransform() if model == "rigid" else sitk.AffineTransform(3)
    start = sitk.CenteredTransformInitializer(fixed, moving, kind, sitk.CenteredTransformInitializerFilter.GEOMETRY)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, seed=1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInitialTransform(start, inPlace=False)
    return _matrix(method.Execute(fixed, moving))


def itk_image(volume, threads):
    """The ITK image of a Volume."""
    import itk

    out = itk.image_from_array(np.ascontiguousarray(volume.array, dtype=np.float32))
    origin, spacing, direction = _geometry(volume)
    out.SetSpacing(spacing.tolist())
    out.SetOrigin(origin.tolist())
    out.SetDirection(itk.matrix_from_array(direction))
    return out


def elastix(fixed, moving, model, threads):
    """itk-elastix with its own parameter map for the model."""
    import itk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
    parameters = itk.ParameterObject.New()
    chosen = parameters.GetDefaultParameterMap(model)
    chosen["AutomaticTransformInitialization"] = ["true"]
    chosen["WriteResultImage"] = ["false"]
    parameters.AddParameterMap(chosen)
    with tempfile.TemporaryDirectory() as folder:
        _, result = itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, log_to_console=False, output_directory=folder
        )
    last = result.GetParameterMap(result.GetNumberOfParameterMaps() - 1)
    values = [float(x) for x in last["TransformParameters"]]
    center = np.array([float(x) for x in last["CenterOfRotationPoint"]])
    if model == "rigid":
        kind = sitk.Euler3DTransform()
        kind.SetComputeZYX(last.get("ComputeZYX", ["false"])[0] == "true")
    else:
        kind = sitk.AffineTransform(3)
    kind.SetCenter(center.tolist())
    kind.SetParameters(values)
    return _matrix(kind)


def greedy(fixed, moving, model, threads):
    """picsl-greedy, normalised mutual information, as its tutorial has it."""
    from picsl_greedy import Greedy3D

    tool = Greedy3D()
    tool.execute(
        f"-i fixed moving -a -dof {6 if model == 'rigid' else 12} -n 40x40x20 -m NMI -ia-image-centers"
        f" -threads {threads} -o found",
        fixed=fixed,
        moving=moving,
        found=None,
        out=io.StringIO(),
        err=io.StringIO(),
    )
    # Greedy's matrices are fixed -> moving in RAS mm.
    return np.array(tool["found"])


def ants_image(volume, threads):
    """The ANTs image of a Volume."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    import ants as tool

    array = np.ascontiguousarray(volume.array.transpose(2, 1, 0), dtype=np.float32)
    origin, spacing, direction = _geometry(volume)
    return tool.from_numpy(array, origin=origin.tolist(), spacing=spacing.tolist(), direction=direction)


def ants(fixed, moving, model, threads):
    """antspyx, its own settings for the model (Mattes mutual information)."""
    import ants as tool

    name = {"rigid": "Rigid", "affine": "Affine"}[model]
    found = tool.registration(fixed, moving, type_of_transform=name, random_seed=1)
    matrix = _matrix(sitk.ReadTransform(found["fwdtransforms"][0]))
    for path in {*found["fwdtransforms"], *found["invtransforms"]}:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return matrix


def convexadam(fixed, moving, model, threads):
    """convexAdam with self-similarity descriptors, at its defaults. Fixed and moving have one grid."""
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(threads)
    arrays = [np.ascontiguousarray(v.array.transpose(2, 1, 0), dtype=np.float32) for v in (fixed, moving)]
    voxels = convex_adam_pt(*arrays, dtype=torch.float32, device=torch.device("cpu"))
    return (voxels @ fixed.affine[:3, :3].T).astype(np.float32)


def _as_it_is(volume, threads):
    return volume


_LINEAR = ("rigid", "affine")
TOOLS = {
    "MedFusion": Tool(_as_it_is, medfusion, (*_LINEAR, "deformable")),
    "elastix": Tool(itk_image, elastix, _LINEAR),
    "ANTs": Tool(ants_image, ants, _LINEAR),
    "greedy": Tool(image, greedy, _LINEAR),
    "SimpleITK": Tool(image, simpleitk, _LINEAR),
    "convexAdam": Tool(_as_it_is, convexadam, ("deformable",)),
}
GPU_TOOLS = {
    "MedFusion": TOOLS["MedFusion"],
    "MedFusion, GPU": Tool(_as_it_is, medfusion_gpu, (*_LINEAR, "deformable")),
}


def _geometry(volume):
    """(origin, spacing, direction cosines) in ITK's LPS mm."""
    lps = LPS @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return lps[:3, 3], spacing, lps[:3, :3] / spacing


def _matrix(transform):
    """The fixed -> moving 4x4, RAS mm, of a linear ITK transform."""
    if isinstance(transform, sitk.CompositeTransform):
        transform = transform.GetNthTransform(0)
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        unit = [0.0, 0.0, 0.0]
        unit[axis] = 1.0
        matrix[:3, axis] = np.array(transform.TransformPoint(unit)) - origin
    matrix[:3, 3] = origin
    return LPS @ matrix @ LPS
