"""Scans of a dataset laid out by BIDS (Gorgolewski et al., Scientific Data 3, 2016, doi:10.1038/sdata.2016.44)."""

from __future__ import annotations

import re

DATATYPES = {"anat": "MR", "pet": "PT", "ct": "CT", "spect": "NM"}
"""Folders that hold scans of one kind; functional, diffusion and field-map series are not for fusion."""

NO_SCANS = ("mask", "dseg", "probseg")
"""Last words of the names of files that lie among the scans: masks and segmentations."""


def scans(dataset):
    """{name: ((path, modality), ...)} by subject, or by session where there are some: sub-01, sub-01_ses-02.

    dataset: a folder. Those that have none of these scans, as for function alone, are there too, and those of which a
    folder may not be looked into, with the OSError that says so. Empty if it is not laid out by BIDS: if no subject has
    a file that is named so.
    """
    found = {}
    for subject in _folders(dataset, "sub-"):
        try:
            places = _folders(subject, "ses-") or [subject]
        except OSError as error:
            found[subject.name] = error
            continue
        for place in places:
            name = subject.name if place is subject else f"{subject.name}_{place.name}"
            try:
                found[name] = tuple(_scans_of(place, subject.name))
            except OSError as error:
                found[name] = error
    # Folders of DICOM series may be called sub-01/ct too.
    return found if any(isinstance(scans, tuple) and scans for scans in found.values()) else {}


def _folders(place, start):
    return [path for path in sorted(place.iterdir()) if path.is_dir() and path.name.startswith(start)]


def _scans_of(place, subject):
    for datatype, modality in DATATYPES.items():
        folder = place / datatype
        # A glob would take a folder that may not be looked into for an empty one.
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            kind, *ending = re.split(r"(?=\.nii$|\.nii\.gz$)", path.name.lower().rpartition("_")[2])
            if path.name.startswith(f"{subject}_") and ending and not kind.endswith(NO_SCANS):
                # A CT lies in anat where the dataset is older than the folder ct.
                yield path, DATATYPES.get(kind, modality)
