"""Scans of a dataset laid out by BIDS (Gorgolewski et al., Scientific Data 3, 2016, doi:10.1038/sdata.2016.44)."""

from __future__ import annotations

DATATYPES = {"anat": "MR", "pet": "PT", "ct": "CT", "spect": "NM"}
"""Folders that hold scans of one kind; functional, diffusion and field-map series are not for fusion."""

ENDINGS = (".nii", ".nii.gz")

NO_SCANS = ("mask", "dseg", "probseg")
"""Last words of the names of files that lie among the scans: masks and segmentations."""


def scans(dataset):
    """{name: ((path, modality), ...)} by subject, or by session where there are some: sub-01, sub-01_ses-02.

    dataset: a folder. Empty if it is not laid out by BIDS.
    """
    found = {}
    for subject in _folders(dataset, "sub-"):
        for place in _folders(subject, "ses-") or [subject]:
            if any((place / datatype).is_dir() for datatype in DATATYPES):
                name = subject.name if place is subject else f"{subject.name}_{place.name}"
                found[name] = tuple(_scans_of(place))
    return found


def _folders(place, start):
    return [path for path in sorted(place.iterdir()) if path.is_dir() and path.name.startswith(start)]


def _scans_of(place):
    for datatype, modality in DATATYPES.items():
        for path in sorted((place / datatype).glob("*.nii*")):
            name, _, ending = path.name.partition(".")
            if f".{ending}" in ENDINGS and not name.endswith(NO_SCANS):
                yield path, modality
