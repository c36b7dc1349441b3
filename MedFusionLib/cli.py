"""The command line: `python -m MedFusionLib VERB`."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from .device import is_out_of_memory
from .errors import FileError, MedFusionError, MethodError

app = typer.Typer(
    help="Register and fuse CT, MRI, PET and SPECT volumes of one patient. For research; not a medical device.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
INTERRUPTED = 130
"""Exit code after Ctrl+C, as shells have it."""

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Sources = Annotated[
    list[Path], typer.Argument(metavar="SOURCE SOURCE [SOURCE]", help="Two or three files or DICOM folders.")
]
Modality = Annotated[
    list[str] | None,
    typer.Option("--modality", "-m", help="CT, MR, PT, NM, US or OT: once per source, in order. Default: guessed."),
]
Series = Annotated[
    list[str] | None,
    typer.Option(help="DICOM series (number, description or UID), once per source, '' for the only one."),
]
Model = Annotated[str, typer.Option(help="none, rigid, affine or deformable.")]
Method = Annotated[str, typer.Option(help="Fusion method; see the verb [b]methods[/b].")]
Mode = Annotated[str, typer.Option(help="volume, or slice (see --axis).")]
Axis = Annotated[str, typer.Option(help="Slices to fuse with --mode slice: axial, coronal or sagittal.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
Reference = Annotated[int, typer.Option(min=1, max=3, help="Which source keeps its place and grid (1 is the first).")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop when a registration cannot be trusted; default: warn.")]
Lut = Annotated[str, typer.Option(help="Colour table for PET and SPECT: PET-Heat, PET-Rainbow2, PET-DICOM ...")]
Opacity = Annotated[float, typer.Option(min=0, max=1, help="Of the colour over the anatomy.")]
Threshold = Annotated[float | None, typer.Option(help="Least uptake to colour, in the PET's own units (SUV ...).")]


def main(arguments=None):
    """Run the command line.

    Exit code 0: done; 1: it could not be done, one line says why; 2: a wrong command; 130: interrupted.
    """
    if hasattr(sys.stdout, "reconfigure"):
        # A name with letters that the alphabet of a redirected output lacks, as on Windows, is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_time=False, show_path=False)],
    )
    try:
        app(arguments, prog_name="python -m MedFusionLib")
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            err.print("Interrupted: nothing half-written is left behind.")
        raise
    except MedFusionError as error:
        err.print(f"[red]Error:[/red] {_plain(str(error))}", soft_wrap=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        err.print("[red]Error:[/red] there is not enough memory: crop the volumes or resample them to larger voxels.")
        sys.exit(1)


@app.command()
def register(
    fixed: Annotated[Path, typer.Argument(help="The volume that keeps its place.")],
    moving: Annotated[Path, typer.Argument(help="The volume that is moved onto it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Resampled moving volume (.nii.gz ...).")
    ] = None,
    transform: Annotated[Path | None, typer.Option("--transform", "-t", help="ITK transform to write (.h5).")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to judge it by: edges and checkerboard.")] = None,
    model: Model = "rigid",
    initial: Annotated[
        str, typer.Option(help="Where to start: auto, identity, geometry, moments, or a linear ITK transform file.")
    ] = "auto",
    fixed_mask: Annotated[Path | None, typer.Option(help="Compare only where this volume is not 0.")] = None,
    moving_mask: Annotated[Path | None, typer.Option(help="The same, for the moving volume.")] = None,
    modality: Modality = None,
    series: Series = None,
    device: Device = "auto",
    seed: Seed = 0,
    strict: Strict = False,
):
    """Register one volume to another.

    [b]Examples[/b]

    python -m MedFusionLib register ct.nii t1.nii -o t1_on_ct.nii -t t1_to_ct.h5

    python -m MedFusionLib register ct_dicom/ pet_dicom/ --model affine -t pet.h5

    python -m MedFusionLib register t1.nii t2.nii --model deformable -o t2_t1.nii

    python -m MedFusionLib register t1.nii t2.nii --fixed-mask brain.nii -t t2.h5
    """
    if not (output or transform or picture):
        raise typer.BadParameter("nothing to write: give --output, --transform or --picture.")
    _keep_apart([fixed, moving, *filter(None, (fixed_mask, moving_mask))], output, transform, picture)
    from .files import read_volume, require_place, require_writable, write_volume
    from .registration.driver import INITIAL
    from .registration.result import read_matrix, require_transform

    if output:
        require_writable(output)
    if transform:
        require_transform(transform, model)
    if picture:
        if picture.suffix.lower() != ".png":
            raise FileError(f"{picture.name!r} is no picture file: end its name in .png.")
        require_place(picture)
    if initial not in INITIAL and not Path(initial).is_file():
        # Else HDF5 says so, in pages.
        raise FileError(f"--initial {initial!r} is no file, and none of {', '.join(INITIAL)}: check it.")
    start = initial if initial in INITIAL else read_matrix(initial)
    masks = [mask and read_volume(mask, labels=True) for mask in (fixed_mask, moving_mask)]
    volumes = _read([fixed, moving], modality, series)
    if output:
        require_writable(output, volumes[0])
    from .registration import register as run_register
    from .volume import require_different, require_usable

    for volume in volumes:
        require_usable(volume)
    require_different(volumes)
    with _bar() as progress:
        registration = run_register(
            *volumes, model, device, seed, start, fixed_mask=masks[0], moving_mask=masks[1], progress=progress
        )
    _judge(registration, strict)
    if output:
        write_volume(registration.resample(volumes[1]), output)
    if transform:
        registration.write(transform)
    if picture:
        from .registration import contact_sheet

        contact_sheet(*volumes, registration, picture)
    for file in filter(None, (output, transform, picture)):
        out.print(_plain(f"wrote {file}"), soft_wrap=True)


@app.command()
def fuse(
    sources: Sources,
    output: Annotated[Path, typer.Option("--output", "-o", help="Fused volume to write (.nii.gz, .nrrd, .mha).")],
    method: Method = "medfusion",
    mode: Mode = "volume",
    axis: Axis = "axial",
    weights: Annotated[Path | None, typer.Option(help="Folder for the weight map of each source.")] = None,
    modality: Modality = None,
    series: Series = None,
    device: Device = "auto",
):
    """Fuse volumes that lie on one grid already; [b]run[/b] registers them first.

    [b]Examples[/b]

    python -m MedFusionLib fuse ct.nii.gz t1_on_ct.nii.gz -o fused.nii.gz

    python -m MedFusionLib fuse a.nii b.nii --mode slice --axis coronal -o f.nii

    python -m MedFusionLib fuse a.nii b.nii -m CT -m PT --method maximum -o f.nii
    """
    from .files import require_writable, write_volume
    from .fusion import fuse as run_fuse
    from .outputs import folder_beside, label, require_folder
    from .pipeline import Request, require_settings

    require_settings(Request(tuple(sources), method=method, mode=mode, axis=axis))
    _keep_apart(sources, output)
    require_writable(output)
    if weights:
        require_folder(weights)
    volumes = _read(sources, modality, series)
    require_writable(output, volumes[0])
    with _bar() as progress:
        fusion = run_fuse(volumes, method, mode, axis, device, progress)
    if weights and fusion.weights is None:
        raise MethodError(f"{method} has no weight maps: leave out --weights, or choose another method.")
    write_volume(fusion.volume, output)
    out.print(_plain(f"wrote {output}"), soft_wrap=True)
    if weights:
        with folder_beside(weights) as folder:
            for name, share in zip(label(volumes), fusion.weights, strict=True):
                write_volume(share, folder / f"weight-{name}.nrrd")
        out.print(_plain(f"wrote the weight maps to {weights}"), soft_wrap=True)


@app.command()
def run(
    sources: Sources,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")],
    reference: Reference = 1,
    registration: Model = "rigid",
    method: Method = "medfusion",
    mode: Mode = "volume",
    axis: Axis = "axial",
    lut: Lut = "PET-Heat",
    opacity: Opacity = 0.5,
    threshold: Threshold = None,
    modality: Modality = None,
    series: Series = None,
    device: Device = "auto",
    seed: Seed = 0,
    strict: Strict = False,
):
    """Register, fuse, colour and measure: the whole job.

    [b]Examples[/b]

    python -m MedFusionLib run ct.nii.gz t1.nii.gz pet.nii.gz -o results

    python -m MedFusionLib run ct/ pet/ --series "" --series "PET AC" -o results

    python -m MedFusionLib run ct.nii pet.nii --threshold 2.5 -o results
    """
    from .outputs import NAMES, require_folder, write_result
    from .pipeline import Coloring, Request, require_settings
    from .pipeline import run as run_pipeline

    require_folder(output)
    _keep_apart(sources, *(output / name for name in NAMES))
    if reference > len(sources):
        raise typer.BadParameter(f"--reference {reference}, but there are {len(sources)} sources.")
    request = Request(
        tuple(sources),
        reference - 1,
        registration,
        method,
        mode,
        axis,
        device,
        seed,
        Coloring(lut, opacity, threshold),
        untrusted="stop" if strict else "warn",
    )
    require_settings(request)
    began = time.perf_counter()
    request = replace(request, sources=tuple(_read(sources, modality, series)))
    read = time.perf_counter() - began
    with _bar() as progress:
        result = run_pipeline(request, progress)
    result.seconds["read"] += read
    names = write_result(result, request, output)
    _print_messages(result.messages)
    print_scores(result.scores)
    print_seconds(result.seconds)
    out.print(_plain(f"wrote {', '.join(names)} to {output}"), soft_wrap=True)


@app.command()
def evaluate(
    fused: Annotated[Path, typer.Argument(help="The fused volume, 0 to 1.")],
    sources: Sources,
    csv: Annotated[Path | None, typer.Option(help="Write a row per slice, and one of the whole volume.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All measures, also the slow ones.")] = False,
    mode: Annotated[str, typer.Option(help="volume, or slice: the mean over the slices.")] = "volume",
    axis: Annotated[str, typer.Option(help="Of the slices: axial, coronal or sagittal.")] = "axial",
    modality: Modality = None,
    series: Series = None,
):
    """Measure a fused volume against the sources on its grid.

    [b]Examples[/b]

    python -m MedFusionLib evaluate fused.nii.gz ct.nii.gz t1_on_ct.nii.gz

    python -m MedFusionLib evaluate f.nii ct.nii pet.nii --all --csv scores.csv
    """
    from .files import read_volume, require_place
    from .metrics import QUICK, evaluate_slices, range_of_fused
    from .metrics import evaluate as measure
    from .outputs import write_table
    from .volume import require_different

    _keep_apart([fused, *sources], csv)
    if csv:
        require_place(csv)
    names = None if every else QUICK
    volume, volumes = read_volume(fused), _read(sources, modality, series)
    require_different(volumes)
    with _bar() as progress:
        scores = measure(volume, volumes, mode, axis, names, progress)
        rows = evaluate_slices(volume, volumes, axis, names, progress) if csv else []
    black, white = range_of_fused(volume)
    if (black, white) != (0, 1):
        said = f"{volume.title} is not of values from 0 to 1, and was measured as shown from {black:g} to {white:g}."
        _print_messages([f"{said} If it is a source: the fused volume comes first."])
    print_scores(scores)
    if csv:
        write_table(csv, [*rows, {"slice": "volume" if mode == "volume" else "mean", **scores}])
        out.print(_plain(f"wrote {csv}"), soft_wrap=True)


@app.command()
def methods():
    """List the fusion methods.

    [b]Example[/b]

    python -m MedFusionLib methods
    """
    from .fusion.registry import methods as known

    for method in known().values():
        out.print(f"[bold]{_plain(method.name)}[/bold]  {_plain(method.title)}")
        said = (
            " and ".join(f"{n}-D" for n in method.dimensions),
            f"2-{method.max_sources} sources" if method.max_sources > 2 else "2 sources",
            f"made for {', '.join(method.modalities)}",
            "nothing invented" if method.convex else "may invent intensities",
            f"training data: {method.licence}",
        )
        for line in ("; ".join(said), method.paper):
            if line:
                out.print(Padding(_plain(line), (0, 0, 0, 4)))


@app.command()
def batch(
    cohort: Annotated[
        Path, typer.Argument(help="Folder with one subfolder per subject, a BIDS dataset, or a CSV file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results, one subfolder per subject.")],
    registration: Model = "rigid",
    method: Method = "medfusion",
    mode: Mode = "volume",
    axis: Axis = "axial",
    lut: Lut = "PET-Heat",
    opacity: Opacity = 0.5,
    threshold: Threshold = None,
    device: Device = "auto",
    seed: Seed = 0,
    strict: Strict = False,
    again: Annotated[bool, typer.Option("--again", help="Do finished subjects again.")] = False,
):
    """Run the whole job for every subject of a cohort; run it again to go on where it stopped.

    A subject's folder holds two or three files or DICOM folders. Of a BIDS
    dataset each session counts as a subject, with what lies in anat, pet, ct and
    spect. A CSV file has the column [b]subject[/b] and two or three of [b]CT, MR, PT, NM,
    US, OT[/b] (one may come twice) with paths, relative to the CSV file. The
    reference is the first there is of CT, MR, PT, NM, US, OT. A failed subject
    does not stop the others; summary.csv tells how each one went, and the exit
    code is 1 if any failed.

    [b]Examples[/b]

    python -m MedFusionLib batch patients/ -o results

    python -m MedFusionLib batch cohort.csv --method laplacian -o results
    """
    from . import bids
    from .cohort import find_subjects, run_cohort
    from .files import require_text
    from .outputs import require_folder
    from .pipeline import Coloring

    require_folder(output)
    require_text(cohort)
    inside = cohort.is_dir() and _is_inside(output, cohort)
    # BIDS keeps what was made of a dataset in its derivatives.
    derived = inside and _is_inside(output, cohort / "derivatives") and bids.scans(cohort)
    if inside and not derived:
        raise FileError(f"{output.name!r} lies in the cohort's folder: results there would be taken for scans.")

    settings = {
        "registration": registration,
        "method": method,
        "mode": mode,
        "axis": axis,
        "device": device,
        "seed": seed,
        "coloring": Coloring(lut, opacity, threshold),
        "untrusted": "stop" if strict else "warn",
    }
    subjects = find_subjects(cohort)
    with _bar() as progress:
        rows = run_cohort(subjects, output, settings, again, progress)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("subject", "state", "seconds", "message"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_plain(str(row.get(column, ""))) for column in ("subject", "state", "seconds", "message")))
    out.print(table)
    out.print(_plain(f"wrote {output / 'summary.csv'}"), soft_wrap=True)
    failed = sum(row["state"] == "failed" for row in rows)
    if failed:
        err.print(f"[red]Error:[/red] {failed} of {len(rows)} subjects failed.")
        raise typer.Exit(1)


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="Which network; the error for a wrong name lists them.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with one subfolder per subject, or CSV file, as for batch, of volumes on one grid; or a folder"
            " of registered slice pairs: CT-MRI, PET-MRI, SPECT-MRI."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for weights, card, checkpoint and log. Default: Resources/, or of volumes"
            " ~/.medfusion/weights; checkpoint and log in runs/.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: as the shipped weights had.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The same for medfusion, which has no epochs.")] = None,
    folds: Annotated[
        int, typer.Option(min=0, help="Cross-validate medfusion by subject too, in so many trainings more.")
    ] = 0,
    seed: Seed = 0,
    device: Device = "auto",
    afresh: Annotated[bool, typer.Option("--afresh", help="Do not go on from the checkpoint there is.")] = False,
):
    """Train a method's network, score it on subjects it never saw, and write weights and model card.

    Of volumes every fifth subject, by name, is held back for the scores. Weights
    in ~/.medfusion/weights become methods of their own.

    An interrupted training goes on where it stopped. For several GPUs or
    processes, start it with torchrun (not medfusion and selector). The selector
    measures the other methods first, and is to be trained after them.

    [b]Examples[/b]

    python -m MedFusionLib train medfusion --data atlas/ -o my-weights

    python -m MedFusionLib train fwnet --data registered-patients/

    python -m MedFusionLib train selector --data atlas/ -o my-weights

    torchrun --nproc-per-node 2 -m MedFusionLib train sesf --data atlas/ -o out
    """
    from .cohort import find_subjects
    from .fusion.training import atlas, require_settings
    from .fusion.training import train as run_training

    require_settings(method, epochs, steps, folds)
    if not atlas.is_there(data):
        data = find_subjects(data)
        for subject in data:
            if subject.problem:
                raise FileError(subject.problem)
    with _bar() as progress:
        training = run_training(
            method, data, output, epochs, seed, device, not afresh, progress, steps=steps, folds=folds
        )
    if training is None:
        return  # one of torchrun's other processes: the first one tells
    from .metrics import markdown

    rows = {
        group: {name: f"{mean:.3f} ± {spread:.3f}" for name, (mean, spread) in measures.items()}
        for group, measures in training.scores.items()
    }
    out.print(_plain(markdown(rows)), soft_wrap=True)
    out.print(_plain(f"wrote {training.weights} and {training.card}"), soft_wrap=True)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("demo-output"),
    ct: Annotated[Path | None, typer.Option(help="Your own CT instead of the phantom.")] = None,
    mr: Annotated[Path | None, typer.Option(help="Your own MRI.")] = None,
    pet: Annotated[Path | None, typer.Option(help="Your own PET.")] = None,
    method: Method = "medfusion",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of the phantom's motion and noise, and of the registration.")] = 0,
):
    """Do the whole job on a head phantom with known truth, or on your own CT, MRI and PET.

    [b]Examples[/b]

    python -m MedFusionLib demo

    python -m MedFusionLib demo --ct ct.nii.gz --mr t1.nii.gz --pet pet_dicom/
    """
    from .demo import run_demo
    from .outputs import require_folder

    require_folder(output)
    own = {modality: file for modality, file in (("CT", ct), ("MR", mr), ("PT", pet)) if file}
    if len(own) == 1:
        raise typer.BadParameter("give at least two of --ct, --mr and --pet, or none for the phantom.")
    if own:
        subject = _read(list(own.values()), list(own), None)
    else:
        from .phantom import make

        with err.status("Making a head phantom"):
            subject = make(seed)
    run_demo(subject, output, method, device, seed, _bar)


def print_scores(scores):
    """A table of metric names and values."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, f"{value:.4g}")
    if scores:
        out.print(table)


def print_seconds(seconds):
    """The time of each step, in one line."""
    steps = ", ".join(f"{step} {spent:.1f} s" for step, spent in seconds.items())
    out.print(f"time: {steps}; together {sum(seconds.values()):.1f} s", soft_wrap=True)


def _bar():
    """Context manager: a progress bar, and inside it the function progress(fraction, message)."""
    return _Bar()


class _Bar:
    def __enter__(self):
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._progress.add_task("Starting", total=1.0)
        self._progress.start()
        return lambda fraction, message: self._progress.update(
            self._task, completed=float(fraction), description=_plain(message)
        )

    def __exit__(self, *_):
        self._progress.stop()


def _read(paths, modality, series):
    from .files import read_volume

    paths = list(paths)
    for option, values in (("--modality", modality), ("--series", series)):
        if values and len(values) != len(paths):
            raise typer.BadParameter(f"{option} is given {len(values)} times for {len(paths)} volumes.")
    volumes = []
    with err.status("Reading"):
        for n, path in enumerate(paths):
            kind = modality[n].upper() if modality else None
            volume = read_volume(path, kind, series=(series[n] or None) if series else None)
            if volume.modality == "OT" and kind is None:
                err.print(f"Note: {_plain(path.name)} does not say what it is: give --modality for best results.")
            volumes.append(volume)
    return volumes


def _keep_apart(inputs, *outputs):
    from .files import is_same

    for path in filter(None, outputs):
        if any(is_same(path, known) for known in inputs):
            raise FileError(f"{path.name!r} is one of the inputs: write to another file.")


def _is_inside(path, folder):
    from .files import is_same

    path = path.resolve()
    return any(is_same(place, folder) for place in (path, *path.parents))


def _judge(registration, strict):
    quality = registration.quality
    if quality is None or quality.verdict == "good":
        return
    said = f"the registration's verdict is {quality.verdict}: {quality.reason}"
    if strict and quality.verdict == "failed":
        from .errors import RegistrationError

        raise RegistrationError(said)
    _print_messages([said])


def _print_messages(messages):
    for message in messages:
        err.print(f"[yellow]Note:[/yellow] {_plain(message)}", soft_wrap=True)


def _plain(text):
    from rich.markup import escape

    return escape(text)
