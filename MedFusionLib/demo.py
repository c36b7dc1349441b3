"""The whole job on a phantom with known truth, or on the user's own scans, with everything that one can look at."""

from __future__ import annotations

from rich.console import Console

from .contact_sheet import interesting_points, write_contact_sheet
from .errors import MedFusionError
from .files import require_space
from .normalize import display_range
from .outputs import label, write_result
from .phantom import Phantom
from .pipeline import Coloring, Request, run
from .volume import FUNCTIONAL

SCENE = "scene.mrb"
SHEET = "contact-sheet.png"
TOLERANCE = {"MR": 1.0, "PT": 2.0}
"""Millimetres that a registration of the phantom may be off, as a mean over the head."""


def run_demo(subject, output, method, device, seed, bar):
    """Run it, print what came of it, and write the files.

    subject: a `phantom.Phantom`, or two or three Volumes. output: folder. method, device, seed: as in
    `pipeline.Request`. bar: context manager whose value is progress(fraction, message).

    Raises MedFusionError also where the phantom's registration is further from the truth than `TOLERANCE`.
    """
    from .cli import print_scores, print_seconds

    console = Console(highlight=False)
    phantom = subject if isinstance(subject, Phantom) else None
    volumes = (phantom.ct, phantom.mr, phantom.pet) if phantom else tuple(subject)
    for volume in volumes:
        console.print(f"  {_described(volume)}", soft_wrap=True)
    request = Request(volumes, method=method, device=device, seed=seed, coloring=_coloring(volumes))
    with bar() as progress:
        result = run(request, progress)
    for message in result.messages:
        console.print(f"note: {message}", markup=False, soft_wrap=True)
    errors = _print_errors(console, phantom, result) if phantom else {}
    print_scores(result.scores)
    print_seconds(result.seconds)

    def more(folder):
        points = _phantom_points(phantom) if phantom else interesting_points(result)
        write_contact_sheet(folder / SHEET, result, points, " + ".join(v.name or v.modality for v in volumes))
        _write_scene(console, folder, request, result)

    with console.status("Writing"):
        names = write_result(result, request, output, more)
    console.print(f"wrote to {output}: {', '.join(names)}", soft_wrap=True, markup=False)
    wrong = [f"{name} is {off:.2f} mm off" for name, off in errors.items() if off > TOLERANCE[name]]
    if wrong:
        raise MedFusionError(f"the phantom's registration is not as good as it should be: {', '.join(wrong)}.")


def _described(volume):
    size = " x ".join(str(n) for n in volume.size)
    spacing = " x ".join(f"{mm:.3g}" for mm in volume.spacing)
    return f"{volume.modality}: {size} voxels of {spacing} mm {volume.units}".rstrip()


def _coloring(volumes):
    """Colour from an eighth of the PET's range: below it, colour would only veil the anatomy.

    In a table that climbs evenly: PET-Heat is yellow from a third of the range on, where normal brain lies.
    """
    hot = next((volume for volume in volumes if volume.modality in FUNCTIONAL), None)
    if hot is None:
        return Coloring()
    black, white = display_range(hot)
    return Coloring("PET-HotMetalBlue", threshold=round(black + 0.125 * (white - black), 2))


def _print_errors(console, phantom, result):
    errors = {}
    for name, registration in zip(label(result.sources), result.registrations, strict=True):
        if registration is not None:
            errors[name] = phantom.error(name, registration.matrix)
            before = phantom.error(name, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            console.print(
                f"registration of {name} to CT: {errors[name]:.2f} mm from the truth (before: {before:.1f} mm)"
            )
    return errors


def _phantom_points(phantom):
    first, second = (lesion.center for lesion in phantom.lesions)
    return [
        ("axial", first, f"axial, lesion {phantom.lesions[0].name}"),
        ("axial", second, f"axial, lesion {phantom.lesions[1].name}"),
        ("axial", (0, 0, -34), "axial, skull base"),
        ("coronal", first, f"coronal, lesion {phantom.lesions[0].name}"),
        ("sagittal", (second[0], 0, 0), f"sagittal, lesion {phantom.lesions[1].name}"),
    ]


def _write_scene(console, folder, request, result):
    """scene.mrb for Slicer, where slicer-core (Slicer's own MRML) is installed."""
    try:
        import slicer
    except ImportError:
        console.print("slicer-core is not installed: no scene.mrb (pip install slicer-core).")
        return
    from . import mrml

    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    application, colors = slicer.vtkSlicerApplicationLogic(), slicer.vtkMRMLColorLogic()
    logics = [application, colors]
    try:
        for logic in (application, colors):
            logic.SetMRMLScene(scene)
        for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
            view = slicer.vtkMRMLSliceLogic()
            view.SetMRMLApplicationLogic(application)
            view.SetMRMLScene(scene)
            view.AddSliceNode(name)
            view.GetSliceNode().SetOrientation(orientation)
            logics.insert(0, view)
        nodes = [mrml.add_volume(volume) for volume in request.sources]
        mrml.show(mrml.add_result(result, nodes, request))
        # Slicer's writers say it in pages of their own, and HDF5 may end the process.
        written = (*request.sources, *result.sources, result.fusion.volume, *filter(None, (result.rgb,)))
        require_space(folder / SCENE, sum(volume.array.nbytes for volume in written))
        if not scene.WriteToMRB(str((folder / SCENE).resolve())):
            raise MedFusionError(f"{SCENE} cannot be written: check the disk's space.")
    finally:
        # A logic that outlives its scene crashes in its destructor.
        for logic in logics:
            logic.SetMRMLScene(None)
