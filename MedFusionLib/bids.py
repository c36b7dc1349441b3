"""Scans of a dataset laid out by BIDS (Gorgolewski et al., Scientific Data 3, 2016, doi:10.1038/sdata.2016.44)."""

from __future__ import annotations

import re
from glob import escape

DATATYPES = {"anat": "MR", "pet": "PT", "ct": "CT", "spect": "NM"}
"""Folders that hold scans of one kind; functional, diffusion and field-map series are not for fusion."""

NO_SCANS = ("mask", "dseg", "probseg")
"""Last words of the names of files that lie among the scans: masks and segmentations."""


def scans(dataset):
    """{name: ((path, modality), ...)} by subject, or by session where there are some: sub-01, sub-01_ses-02.

    dataset: a folder. Those that have none of these scans, as for function alone, are there too. Empty if it is not
    laid out by BIDS: if no subject has a file that is named so.
    """
    found = {}
    for subject in _folders(dataset, "sub-"):
        for place in _folders(subject, "ses-") or [subject]:
            name = subject.name if place is subject else f"{subject.name}_{place.name}"
            found[name] = tuple(_scans_of(place, subject.name))
    # Folders of DICOM series may be called sub-01/ct too.
    return found if any(found.values()) else {}


def _folders(place, start):
    return [path for path in sorted(place.iterdir()) if path.is_dir() and path.name.startswith(start)]


def _scans_of(place, subject):
    for datatype, modality in DATATYPES.items():
        for path in sorted((place / datatype).glob(f"{escape(subject)}_*")):
            kind, *ending = re.split(r"(?=\.nii$|\.nii\.gz$)", path.name.lower().rpartition("_")[2])
            if ending and not kind.endswith(NO_SCANS):
                # A CT lies in anat where the dataset is older than the folder ct.
                yield path, DATATYPES.get(kind, modality)
