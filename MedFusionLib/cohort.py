"""The whole job for every subject of a cohort, resumable, with a summary of how each one went."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path

from . import bids
from .errors import Cancelled, FileError, MedFusionError
from .files import OF_THE_SYSTEM, is_same, plain, read_volume, require_text
from .outputs import NAMES, REPORT, write_result, write_table
from .pipeline import Request, require_settings, run
from .volume import MODALITIES

log = logging.getLogger(__name__)

SUMMARY = "summary.csv"

BESIDE = (".json", ".raw", ".zraw", ".raw.gz", ".hdr", ".bval", ".bvec", ".txt", ".csv", ".pdf", ".db", ".ini")
"""Endings of what lies beside scans and is none: second files of .mhd, .nhdr and .img, notes, what Windows leaves."""

_NO_FOLDER = re.compile(
    r"""[\\/:*?"<>|\x00-\x1f]|\.$|^(con|prn|aux|nul|(com|lpt)[0-9¹²³])\s*(\.|$)""",
    re.IGNORECASE,
)
"""In names that cannot be folders on Windows, where results may go: a colon would lead to another disk."""


@dataclass(frozen=True)
class Subject:
    """name: of its folder in the output. sources: (path, modality or None for a guess) of two or three volumes.
    problem: why these could not be looked for, where that is so."""

    name: str
    sources: tuple[tuple[Path, str | None], ...]
    problem: str = ""


def find_subjects(cohort):
    """The `Subject`s of a folder (one subfolder each), a BIDS dataset (each session counts as one) or a CSV file
    (column subject, and columns by modality). One whose folder may not be looked into has that as its problem.

    Raises FileError for a cohort that is missing, empty or not to be read, or a CSV file that is not such a table.
    """
    cohort = Path(cohort)
    require_text(cohort)
    if cohort.is_dir():
        try:
            subjects = _subjects_of_bids(cohort) or [
                _subject_of_folder(folder) for folder in sorted(cohort.iterdir()) if _is_visible_folder(folder)
            ]
        except PermissionError as error:
            raise FileError(_barred(error)) from error
    elif cohort.is_file():
        subjects = _subjects_of_table(cohort)
    else:
        raise FileError(f"there is no file or folder {cohort.name!r}: check the path.")
    if not subjects:
        raise FileError(f"{cohort.name!r} holds no subjects: give a folder with one subfolder each, or a CSV file.")
    return subjects


def run_cohort(subjects, output, settings, again=False, progress=None, cancelled=None):
    """Run the pipeline for every subject, into a folder of its own under `output`.

    settings: keyword arguments of `pipeline.Request` but sources and reference. again: True: also those that are
    finished (the same settings and weights, unchanged source files). progress and cancelled: as in `pipeline.run`.

    A subject that fails does not stop the others. Returns a dict per subject (subject, state "done", "kept" or
    "failed", seconds, message, scores), which summary.csv in `output` holds too, updated after every subject.
    Raises MethodError for settings that no subject could be done with, FileError where the summary cannot be written,
    Cancelled.
    """
    require_settings(Request((), **settings))
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{output.name!r} cannot be made ({error.strerror}): choose another place.") from error
    rows = []
    for n, subject in enumerate(subjects):
        part = _share(progress, n, len(subjects))
        rows.append(_run_subject(subject, output / subject.name, settings, again, part, cancelled))
        try:
            write_table(output / SUMMARY, rows)
        except FileError as error:
            # Windows lets no one replace what a spreadsheet shows: there is time to close it until the last subject.
            if n + 1 == len(subjects) or not (output / SUMMARY).is_file():
                raise
            log.warning("%s", error)
    return rows


def _run_subject(subject, folder, settings, again, progress, cancelled):
    row = {"subject": subject.name, "state": "failed", "seconds": "", "message": ""}
    began = time.perf_counter()
    try:
        if subject.problem:
            raise FileError(subject.problem)
        try:
            mark = _fingerprint(subject, settings)
        except PermissionError as error:
            raise FileError(_barred(error)) from error
        if not again and (kept := _finished(folder, mark)) is not None:
            return row | {"state": "kept", "message": "; ".join(kept["messages"])} | kept["scores"]
        if (count := len(subject.sources)) not in (2, 3):
            raise FileError(
                f"this subject has {count} scan{'s' * (count != 1)}: give two or three, each a file or a folder with"
                " one DICOM series. What else lies in its folder must go elsewhere, or a CSV file can name the scans."
            )
        for path, _ in subject.sources:
            if any(is_same(path, folder / name) for name in NAMES):
                raise FileError(f"{path.name!r} would be written over by the results: choose another folder for them.")
        volumes = [read_volume(path, modality) for path, modality in subject.sources]
        read = time.perf_counter() - began
        order = {modality: place for place, modality in enumerate(MODALITIES)}
        reference = min(range(len(volumes)), key=lambda n: order[volumes[n].modality], default=0)
        request = Request(tuple(volumes), reference, **settings)
        result = run(request, progress, cancelled)
        result.seconds["read"] += read
        unknown = [
            f"{volume.title} does not say what it is: a CSV file can, by the name of its column."
            for volume, (_, modality) in zip(volumes, subject.sources, strict=True)
            if volume.modality == "OT" and modality is None
        ]
        result = replace(result, messages=(*result.messages, *unknown))
        write_result(result, request, folder, lambda place: (place / "request.sha256").write_text(mark + "\n"))
        row |= {"state": "done", "message": "; ".join(result.messages)}
        return row | {"seconds": round(time.perf_counter() - began, 1)} | result.scores
    except (Cancelled, KeyboardInterrupt):
        raise
    except MedFusionError as error:
        message = str(error)
    except Exception as error:
        # Whatever it is, the other subjects have a right to their turn.
        log.debug("A subject failed.", exc_info=True)
        message = f"{type(error).__name__}: {error}"
    if os.path.isfile(folder / REPORT):  # False too where the folder may not be looked into
        message += " What its folder holds is the result of an earlier run."
    return row | {"seconds": round(time.perf_counter() - began, 1), "message": message}


def _subjects_of_bids(dataset):
    found = bids.scans(dataset)
    subjects = [
        Subject(name, (), _barred(scans)) if isinstance(scans, OSError) else Subject(name, scans)
        for name, scans in found.items()
        if scans
    ]
    if len(subjects) < len(found):
        without = len(found) - len(subjects)
        log.warning("%d subjects or sessions without %s are left out.", without, ", ".join(bids.DATATYPES))
    return subjects


def _subject_of_folder(folder):
    try:
        found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        scans = [path for path in found if path.is_dir() or not path.name.lower().endswith(BESIDE)]
    except OSError as error:
        return Subject(folder.name, (), _barred(error))
    return Subject(folder.name, tuple((path, None) for path in scans))


def _subjects_of_table(path):
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            # Spreadsheets write semicolons where the comma is the decimal sign.
            first = file.readline()
            separator = max(",;\t", key=first.count)
            file.seek(0)
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, delimiter=separator)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{path.name!r} cannot be read as a CSV file: save it as UTF-8 text.") from error
    titles, *lines = [line for line in lines if any(line)] or [[]]
    titles = [title.upper() for title in titles]
    used = [n for n, title in enumerate(titles) if title in MODALITIES]
    if "SUBJECT" not in titles or not used or not lines:
        raise FileError(
            f"{path.name!r} needs the column subject, columns of paths named by modality ({', '.join(MODALITIES)}), and"
            " a line for each subject."
        )
    subjects, seen = [], set()
    for line in lines:
        if len(line) > len(titles):
            raise FileError(
                f"{path.name!r} has a line of more cells than titles: put text that holds {separator!r} in quotes."
            )
        line += [""] * (len(titles) - len(line))
        name = line[titles.index("SUBJECT")]
        if not name or _NO_FOLDER.search(name):
            raise FileError(
                f"{path.name!r} has a subject {name!r}: use names that can be folders on every system, without"
                ' \\ / : * ? " < > | and a dot at the end, and none of CON, NUL, COM1 and the like.'
            )
        if plain(name) in seen:
            raise FileError(
                f"{path.name!r} has the subject {name!r} twice: use each name once (to many disks capitals and small"
                " letters are the same)."
            )
        seen.add(plain(name))
        subjects.append(Subject(name, tuple((path.parent / line[n], titles[n]) for n in used if line[n])))
    return subjects


def _barred(error):
    """What an OSError about a file or folder comes to."""
    return f"{Path(error.filename).name!r} may not be read ({error.strerror}): check its permissions."


def _is_visible_folder(path):
    return path.is_dir() and not path.name.startswith(".") and path.name not in OF_THE_SYSTEM


def _fingerprint(subject, settings):
    """Changes with the settings, the weights, and the sources' names, sizes and times."""
    from . import __version__
    from .fusion.registry import find, weights_hash

    files = []
    for path, modality in subject.sources:
        beside = path.suffix.lower() in (".mhd", ".nhdr", ".img")
        parts = path.parent.glob(f"{escape(path.stem)}.*") if beside else [path]
        for file in sorted(path.rglob("*") if path.is_dir() else parts):
            if file.is_file():
                state = file.stat()
                files.append((file.name, modality, state.st_size, state.st_mtime_ns))
    coloring = settings.get("coloring")
    plain = settings | {"coloring": asdict(coloring) if coloring else None}
    weights = weights_hash(find(settings["method"]))
    text = json.dumps([__version__, weights, plain, files], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(folder, mark):
    """The report of a finished subject all of whose files are there, or None."""
    try:
        if (folder / "request.sha256").read_text().strip() == mark:
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
            if all((folder / name).is_file() for name in report["files"]):
                return report
    except (OSError, ValueError):
        pass
    return None


def _share(progress, n, count):
    if progress is None:
        return None
    return lambda fraction, message: progress((n + fraction) / count, f"{n + 1} of {count}: {message}")
