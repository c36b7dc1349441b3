"""A `pipeline.Result` -> the files that people keep of it."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from .errors import FileError
from .files import WRITABLE, require_text, takes_files, write_volume
from .normalize import display_range

REPORT = "report.json"
"""Written last: a folder that holds it is whole."""

NAMES = ("fused.nrrd", "color.nrrd", "scores.csv", REPORT)
"""What a result's files are always called."""


def write_result(result, request, folder, more=None):
    """Write a result into a folder: all of it, or nothing. What an earlier result left there and this one has not, such
    as the colour volume of another pair, goes.

    fused.nrrd, color.nrrd (with PET or SPECT), MR-to-CT.h5 and the like (ITK transforms: load them in Slicer and put
    them on the moving volume), MR-to-CT.png and the like (to judge the registration by, see
    `registration.contact_sheet`), scores.csv, report.json (what was done, with what, how long it took, what to know).
    more(folder): writes further files there.

    Returns the names of the files. Raises FileError where they cannot be written.
    """
    from .registration import contact_sheet

    labels = label(result.sources)
    with folder_beside(folder, _earlier(Path(folder))) as place:
        write_volume(result.fusion.volume, place / "fused.nrrd")
        if result.rgb is not None:
            write_volume(result.rgb, place / "color.nrrd")
        for name, moving, registration in zip(labels, request.sources, result.registrations, strict=True):
            if registration is not None and registration.model != "none":
                both = f"{name}-to-{labels[request.reference]}"
                registration.write(place / f"{both}.h5")
                contact_sheet(result.sources[request.reference], moving, registration, place / f"{both}.png")
        if result.scores:
            write_table(place / "scores.csv", [{"metric": k, "value": v} for k, v in result.scores.items()])
        if more:
            more(place)
        names = sorted([*(file.name for file in place.iterdir()), REPORT])
        said = json.dumps(report(result, request) | {"files": names}, indent=2, allow_nan=False)
        (place / REPORT).write_text(said + "\n", encoding="utf-8")
    return names


def _earlier(folder):
    """Names of the files of the result that lies in a folder, as its report says, if it is one of MedFusion's."""
    try:
        said = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        mine = "MedFusion.Version" in said["fusion"]
        return {name for name in said["files"] if mine and Path(name).name == name}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def report(result, request):
    """What `report.json` holds: JSON types only, and nothing that names the patient or their files."""
    labels = label(result.sources)
    return {
        "sources": [
            {"label": name, "modality": source.modality, "units": source.units, "display_range": display_range(source)}
            for name, source in zip(labels, result.sources, strict=True)
        ],
        "reference": labels[request.reference],
        "registrations": {
            name: {
                "model": registration.model,
                "matrix": registration.matrix.tolist(),
                "verdict": registration.quality.verdict if registration.quality else "",
                "reason": registration.quality.reason if registration.quality else "",
                "measured": _measured(registration.quality),
            }
            for name, registration in zip(labels, result.registrations, strict=True)
            if registration is not None
        },
        "fusion": result.fusion.volume.attributes,
        "scores": {name: value if math.isfinite(value) else None for name, value in result.scores.items()},
        "seconds": {step: round(seconds, 3) for step, seconds in result.seconds.items()},
        "messages": [_anonymous(message, result.sources, labels) for message in result.messages],
    }


def _measured(quality):
    """The figures of a `Quality`, {} for None; what could not be measured is None."""
    figures = asdict(quality) if quality else {}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
        if name not in ("verdict", "reason")
    }


def _anonymous(message, sources, labels):
    """A message with its volumes' labels for their names, which may be the patient's."""
    for source, name in zip(sources, labels, strict=True):
        message = message.replace(source.title, f"the {name}")
    return message


def label(volumes):
    """A short name for each volume: its modality, numbered where several share one."""
    modalities = [volume.modality for volume in volumes]
    return [
        modality if modalities.count(modality) == 1 else f"{modality}{modalities[: n + 1].count(modality)}"
        for n, modality in enumerate(modalities)
    ]


def write_table(path, rows):
    """A CSV file of dicts, columns in the order in which they first appear; written beside and moved into place."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    partial = path.with_name(f".{path.name}.partial")
    try:
        # Of names that are no UTF-8, which would end a whole cohort, the rest is kept.
        with open(partial, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise FileError(
            f"{path.name!r} cannot be written ({error.strerror}): close it in other programs, or choose another place."
        ) from error


def require_folder(folder):
    """Raise FileError if `folder` is a file, or could not be made or written to, as far as that can be told before."""
    require_text(folder)
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder.name!r} is a file: name a folder for the results.")
    if folder.name.lower().endswith(WRITABLE) and not folder.exists():
        raise FileError(f"{folder.name!r} is a file's name, and the results are several: name a folder.")
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not takes_files(there):
        raise FileError(f"{folder.name!r} cannot be written: {there.name!r} is no folder you may write to.")


@contextlib.contextmanager
def folder_beside(folder, earlier=()):
    """A new folder beside `folder`; what is in it at the end is moved there, `REPORT` last (an earlier one goes first).
    On error nothing of it stays, and all is there that was. earlier: names of files in `folder` that go."""
    folder = Path(folder)
    require_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=".medfusion-", dir=folder.parent)
    except OSError as error:
        raise FileError(f"{folder.name!r} cannot be made ({error.strerror}): choose another place.") from error
    with beside:
        try:
            yield Path(beside.name)
            folder.mkdir(exist_ok=True)
            _move(Path(beside.name), folder, earlier)
        except FileError:
            raise
        except OSError as error:
            what = error.strerror or error
            raise FileError(
                f"the results cannot be written to {folder.name!r}"
                f" ({Path(error.filename).name}: {what}): close what other programs have open of them, free some space"
                " or choose another place."
                if error.filename
                else f"the results cannot be written to {folder.name!r} ({what}): free some space or choose another"
                " place."
            ) from error


def _move(place, folder, earlier):
    """Move the files of `place` to `folder`, for those of the same names and `earlier` ones: all of them, or none."""
    new = sorted((file.name for file in place.iterdir()), key=lambda name: name == REPORT)
    aside = place / "aside"
    aside.mkdir()
    try:
        # At first out of the way: what another program has open, as a spreadsheet the scores, does not go on Windows.
        for name in sorted({*earlier, *new}, key=lambda name: name != REPORT):
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            with contextlib.suppress(FileNotFoundError):
                os.replace(folder / name, aside / name)
        for name in new:
            os.replace(place / name, folder / name)
    except OSError:
        for name in new:
            if not (place / name).exists():
                (folder / name).unlink()
        for file in sorted(aside.iterdir(), key=lambda file: file.name == REPORT):
            os.replace(file, folder / file.name)
        raise
