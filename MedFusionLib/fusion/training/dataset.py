"""What networks learn from: the atlas's slice pairs, or the slices of a user's own registered volumes.

Data is a folder in the atlas's layout (`atlas`), or subjects with two or three volumes on one grid each, as
`cohort.find_subjects` finds them: objects with `name` and `sources`, (path, modality or None for a guess). A volume
called target is a fusion to learn from: all subjects have one, or none.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ...errors import FileError, GeometryError, MedFusionError
from ...files import read_volume
from ...normalize import to_unit
from ...volume import require_different, require_usable
from . import atlas
from .atlas import Pair

SIZE = 256
"""Rows and columns of every slice: those of the atlas."""

FLAT = 0.02
"""Standard deviation under which a slice shows nothing to learn from."""

NAMES = {"PT": "PET", "NM": "SPECT", "CT": "CT", "MR": "MRI", "US": "US", "OT": "other"}
"""How groups name modalities, in the order of a pair's sources."""


def require_split(data):
    """Raise FileError unless there are subjects to learn from and others to score on. Opens no image."""
    if is_folder(data):
        atlas.require_split(data)
    elif len(data) < 2:
        raise FileError("one subject cannot be both learnt from and scored on: give two or more.")


def is_folder(data):
    """Whether data is a folder in the atlas's layout."""
    return isinstance(data, str | Path)


def is_atlas(data):
    """Whether data is The Whole Brain Atlas itself, not other data in its layout."""
    return is_folder(data) and atlas.is_atlas(data)


def pairs(data, progress=None):
    """All `Pair`s, those of subjects held back marked. progress(fraction, message).

    Volumes give a pair for every two of them and every axial slice: 256 x 256, larger ones as means of blocks, smaller
    ones in black. Raises FileError, and what reading raises, naming the subject by its place.
    """
    if is_folder(data):
        return atlas.pairs(data)
    held = atlas.every_fifth([subject.name for subject in data])
    found = []
    for n, subject in enumerate(data):
        if progress:
            progress(n / len(data), f"reading subject {n + 1} of {len(data)}")
        try:
            found += _slices(subject, subject.name in held)
        except MedFusionError as error:
            raise type(error)(f"subject {n + 1} of {len(data)}: {error}") from error
    if len({pair.held_back for pair in found}) < 2:
        raise FileError("the slices to learn from, or those to score on, show nothing: give other volumes.")
    atlas.require_all_or_none(found)
    return found


def _slices(subject, held_back):
    targets = [path for path, _ in subject.sources if path.name.lower().partition(".")[0] == "target"]
    sources = [source for source in subject.sources if source[0] not in targets]
    if len(sources) not in (2, 3) or len(targets) > 1:
        raise FileError(
            f"{len(sources)} volumes and {len(targets)} targets: give two or three volumes, registered to each other,"
            " and one target at the most."
        )
    order = list(NAMES)
    volumes = [read_volume(path, modality) for path, modality in sources]
    volumes.sort(key=lambda volume: order.index(volume.modality))
    target = [replace(one, display_range=_range(one)) for one in map(read_volume, targets)]
    for volume in (*volumes, *target):
        require_usable(volume)
        if not volume.same_grid(volumes[0]):
            raise GeometryError(
                f"{volume.title} is not on the grid of {volumes[0].title}: register them first"
                " (python -m MedFusionLib register)."
            )
    require_different(volumes)
    axis = volumes[0].anatomical_axis("axial")
    stacks, wanted = (
        [np.stack([_fitted(image) for image in np.moveaxis(to_unit(volume), axis, 0)]) for volume in part]
        for part in (volumes, target)
    )
    found = []
    for one, other in combinations(range(len(volumes)), 2):
        modalities = volumes[one].modality, volumes[other].modality
        group = "-".join(NAMES[name] for name in modalities)
        for k, images in enumerate(zip(stacks[one], stacks[other], strict=True)):
            if min(image.std() for image in images) > FLAT:
                aim = wanted[0][k] if wanted else None
                found.append(Pair(np.stack(images), modalities, group, subject.name, k, held_back, aim))
    return found


def _range(target):
    """A fusion's own range; where its file tells none it is 0..1, as MedFusion's, or as far as its values go."""
    low, high = float(target.array.min()), float(target.array.max())
    return target.display_range or ((0.0, 1.0) if low >= 0 and high <= 1 else (min(low, 0.0), high))


def _fitted(image):
    """A slice (H, W) as (SIZE, SIZE): means of blocks where it is larger, black around it."""
    step = -(-max(image.shape) // SIZE)
    rows, columns = (-(-n // step) * step for n in image.shape)
    image = np.pad(image, ((0, rows - image.shape[0]), (0, columns - image.shape[1])), mode="edge")
    image = image.reshape(rows // step, step, columns // step, step).mean((1, 3), dtype=np.float32)
    top, left = ((SIZE - n) // 2 for n in image.shape)
    whole = np.zeros((SIZE, SIZE), np.float32)
    whole[top : top + image.shape[0], left : left + image.shape[1]] = image
    return whole


def digest(found):
    """What tells one set of `Pair`s or `Example`s from another, as hexadecimal digits."""
    made = hashlib.sha256()
    for one in found:
        made.update(f"{one.group} {one.subject} {one.held_back} {one.target is None} ".encode())
        made.update(np.float64(one.images.mean(dtype=np.float64)).tobytes())
    return made.hexdigest()


def card_lines(data, seen, held):
    """What a model card says of the data, a line each. seen, held: `Pair`s learnt from, and scored on."""
    if is_atlas(data):
        return [
            f"- Data: The Whole Brain Atlas (K. A. Johnson, J. A. Becker), {len(seen)} registered slice pairs, luma."
            " For\n  research and education; the images are not part of this project.",
            f"- Subjects trained on: {_subjects(seen)}.",
            f"- Subjects held back: {_subjects(held)}. Both PET subjects may be one person.",
        ]
    counts = [
        ", ".join(
            f"{len({pair.subject for pair in part if pair.group == group})} with {group}"
            for group in sorted({pair.group for pair in part})
        )
        for part in (seen, held)
    ]
    return [
        f"- Data: the user's own, {len(seen)} slice pairs. Subjects are not named here.",
        f"- Subjects trained on: {counts[0]}.",
        f"- Subjects held back, every fifth by name: {counts[1]}.",
    ]


def _subjects(found):
    groups = {}
    for pair in found:
        groups.setdefault(pair.group, {})[pair.subject] = None
    return "; ".join(f"{group}: {', '.join(sorted(who, key=int))}" for group, who in sorted(groups.items()))
