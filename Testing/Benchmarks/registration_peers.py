"""The standard tools with settings a careful user would give them, behind one interface.

Each takes Volumes and gives (answer, seconds, details): the answer is the fixed -> moving 4x4 in RAS mm, or the
(I, J, K, 3) RAS displacement; the seconds are those from images in memory to the transform.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time

import numpy as np
import SimpleITK as sitk

from MedFusionLib.volume import LPS, Volume


def volume(array, affine, modality):
    """A Volume of an (I, J, K) array."""
    return Volume(np.ascontiguousarray(array.transpose(2, 1, 0)), affine, modality)


def image(volume):
    """The SimpleITK image of a Volume."""
    out = sitk.GetImageFromArray(np.ascontiguousarray(volume.array, dtype=np.float32))
    lps = LPS @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    out.SetSpacing(spacing.tolist())
    out.SetOrigin(lps[:3, 3].tolist())
    out.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return out


def medfusion(fixed, moving, model, threads):
    """Ours, at its defaults, many starts and quality report included."""
    from MedFusionLib.registration import register

    began = time.perf_counter()
    found = register(fixed, moving, model=model, device="cpu")
    seconds = time.perf_counter() - began
    if found.displacement is not None:
        return found.displacement.array.transpose(2, 1, 0, 3), seconds, found
    return np.linalg.inv(found.matrix), seconds, found


def simpleitk(fixed, moving, model, threads):
    """Mattes mutual information, regular steps, three levels, 20 % of the voxels."""
    fixed, moving = image(fixed), image(moving)
    began = time.perf_counter()
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
    found = method.Execute(fixed, moving)
    return _matrix(found), time.perf_counter() - began, None


def elastix(fixed, moving, model, threads):
    """itk-elastix with its own parameter map for the model."""
    import itk

    fixed, moving = (_itk(image(v)) for v in (fixed, moving))
    began = time.perf_counter()
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
    parameters = itk.ParameterObject.New()
    chosen = parameters.GetDefaultParameterMap(model)
    chosen["AutomaticTransformInitialization"] = ["true"]
    parameters.AddParameterMap(chosen)
    with tempfile.TemporaryDirectory() as folder:
        _, result = itk.elastix_registration_method(
            fixed, moving, parameter_object=parameters, log_to_console=False, output_directory=folder
        )
    seconds = time.perf_counter() - began
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
    return _matrix(kind), seconds, None


def greedy(fixed, moving, model, threads):
    """picsl-greedy, normalised mutual information, as its tutorial has it."""
    from picsl_greedy import Greedy3D

    fixed, moving = image(fixed), image(moving)
    began = time.perf_counter()
    tool = Greedy3D()
    with _silent():
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
    return np.array(tool["found"]), time.perf_counter() - began, None


def ants(fixed, moving, model, threads):
    """antspyx, its own settings for the model (Mattes mutual information)."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    import ants as tool

    def given(volume):
        lps = LPS @ volume.affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        array = np.ascontiguousarray(volume.array.transpose(2, 1, 0), dtype=np.float32)
        return tool.from_numpy(
            array, origin=lps[:3, 3].tolist(), spacing=spacing.tolist(), direction=lps[:3, :3] / spacing
        )

    fixed, moving = given(fixed), given(moving)
    began = time.perf_counter()
    name = {"rigid": "Rigid", "affine": "Affine"}[model]
    found = tool.registration(fixed, moving, type_of_transform=name, random_seed=1)
    matrix = _matrix(sitk.ReadTransform(found["fwdtransforms"][0]))
    seconds = time.perf_counter() - began
    for path in {*found["fwdtransforms"], *found["invtransforms"]}:
        with contextlib.suppress(OSError):
            os.unlink(path)
    return matrix, seconds, None


def convexadam(fixed, moving, model, threads):
    """convexAdam with self-similarity descriptors, at its defaults. Fixed and moving have one grid."""
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(threads)
    arrays = [np.ascontiguousarray(v.array.transpose(2, 1, 0), dtype=np.float32) for v in (fixed, moving)]
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        voxels = convex_adam_pt(*arrays, dtype=torch.float32, device=torch.device("cpu"))
    seconds = time.perf_counter() - began
    return (voxels @ fixed.affine[:3, :3].T).astype(np.float32), seconds, None


LINEAR = {"MedFusion": medfusion, "elastix": elastix, "ANTs": ants, "greedy": greedy, "SimpleITK": simpleitk}
DEFORMABLE = {"MedFusion": medfusion, "convexAdam": convexadam}


@contextlib.contextmanager
def _silent():
    """Keeps what a library's C++ prints from the table."""
    before = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(nowhere)


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


def _itk(image):
    import itk

    out = itk.image_from_array(sitk.GetArrayFromImage(image))
    out.SetSpacing(image.GetSpacing())
    out.SetOrigin(image.GetOrigin())
    out.SetDirection(itk.matrix_from_array(np.array(image.GetDirection()).reshape(3, 3)))
    return out
