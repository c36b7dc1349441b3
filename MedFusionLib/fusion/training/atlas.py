"""Reads The Whole Brain Atlas: registered CT-MRI, PET-MRI and SPECT-MRI slices, and who is held back for tests.

The folder holds `CT-MRI/CT`, `CT-MRI/MRI`, `PET-MRI/PET` ... with `<subject><3-digit slice>.png`, 8 bits, PET
and SPECT in colour. Copyright K. A. Johnson and J. A. Becker: for research and education, not to be passed on.
Other data in this layout may hold fusions to learn from too, `CT-MRI/TARGET` ..., for all slices or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from ...errors import FileError

GROUPS = {"CT-MRI": ("CT", "MR"), "PET-MRI": ("PT", "MR"), "SPECT-MRI": ("NM", "MR")}
"""Folder -> modalities, in the order of the sources."""

HELD_BACK = {"CT-MRI": ("28", "41"), "PET-MRI": ("30",), "SPECT-MRI": ("28", "11", "22")}
"""Subjects that no training sees: the split is fixed. 28 occurs in two groups. There are only two PET subjects,
and they may be one person, so PET figures are to be read with that in mind. Other data in the atlas's layout, without
any of these, is split by `every_fifth`."""

LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, eq=False)
class Pair:
    """One registered pair. images: float32 (2, 256, 256), 0..1, in the order of `modalities`.

    held_back: whether its subject is kept from training, to score on. target: what the fusion should be, float32
    (256, 256), 0..1, or None.
    """

    images: np.ndarray
    modalities: tuple[str, str]
    group: str
    subject: str
    slice: int
    held_back: bool = False
    target: np.ndarray | None = None


def luma(colors):
    """(..., 3) uint8 -> (...) uint8: 0.299 R + 0.587 G + 0.114 B, rounded."""
    return np.rint(colors @ LUMA).astype(np.uint8)


def subjects(folder, group):
    """Subjects of a group, sorted. Raises FileError where the folder is not the atlas."""
    return sorted({file.stem[:-3] for file in _files(folder, group)}, key=int)


def pairs(folder, groups=tuple(GROUPS), held_back=None, scalar=False):
    """`Pair`s of the groups that are there, by subject and slice.

    held_back: True for test subjects only, False for the others, None for all. scalar: PET and SPECT through
    `ColorBar` instead of luma. Raises FileError where there are none.
    """
    found = []
    held = _held_back(folder)
    for group in groups:
        if not (Path(folder) / group).is_dir():
            continue
        files = _files(folder, group)
        convert = luma
        if scalar and group != "CT-MRI":
            convert = ColorBar([_read(file) for file in files[:: max(1, len(files) // 24)]])
        for file in files:
            subject = file.stem[:-3]
            if held_back is not None and held_back != ((group, subject) in held):
                continue
            first, second = _read(file), _read(file.parent.parent / "MRI" / file.name)
            images = [_grey(one, convert) for one in (first, second)]
            if images[0].shape != images[1].shape:
                raise FileError(f"{group}: the two slices of {file.name} differ in size: pairs must be registered.")
            stack = np.stack(images).astype(np.float32) / 255
            target = file.parent.parent / "TARGET" / file.name
            target = _grey(_read(target), luma) / np.float32(255) if target.is_file() else None
            if target is not None and target.shape != images[0].shape:
                raise FileError(f"{group}: the target of {file.name} differs in size from its slices.")
            found.append(
                Pair(stack, GROUPS[group], group, subject, int(file.stem[-3:]), (group, subject) in held, target)
            )
    if not found:
        raise FileError(f"no slice pairs there: the folder should hold {', '.join(GROUPS)}.")
    require_all_or_none(found)
    return found


def require_all_or_none(pairs):
    """Raise FileError where some `Pair`s have targets and others have none."""
    if len({pair.target is None for pair in pairs}) > 1:
        raise FileError("some slices have a target and others have none: give all of them one, or none.")


def stacks(found):
    """{(group, subject): float32 (2, K, 256, 256)} of `pairs`' answer, slices in order."""
    groups = {}
    for pair in sorted(found, key=lambda one: one.slice):
        groups.setdefault((pair.group, pair.subject), []).append(pair.images)
    return {key: np.stack(images, 1) for key, images in groups.items()}


def is_there(folder):
    """Whether the folder is in the atlas's layout."""
    return any((Path(folder) / group).is_dir() for group in GROUPS)


def is_atlas(folder):
    """Whether the folder holds subjects of the atlas that are held back: other data has other subjects."""
    return any(subject in HELD_BACK[group] for group, subject in _all_subjects(folder))


def require_split(folder):
    """Raise FileError unless the folder has subjects to train on and others that are held back. Opens no image."""
    there, held = set(_all_subjects(folder)), _held_back(folder)
    if not there:
        raise FileError(f"no slice pairs there: the folder should hold {', '.join(GROUPS)}.")
    if there == held:
        named = ", ".join(sorted(f"{group} {subject}" for group, subject in held))
        raise FileError(f"all subjects there are held back to score the training ({named}): add others to learn from.")


def every_fifth(names):
    """The set of subjects held back where nothing else says which: every fifth by name, one at least."""
    names = sorted(set(names))
    return set(names[4::5] or names[-1:])


def _all_subjects(folder):
    """[(group, subject)]"""
    groups = [group for group in GROUPS if (Path(folder) / group).is_dir()]
    return [(group, subject) for group in groups for subject in subjects(folder, group)]


def _held_back(folder):
    """{(group, subject)}"""
    there = _all_subjects(folder)
    fixed = {(group, subject) for group, subject in there if subject in HELD_BACK[group]}
    chosen = every_fifth([subject for _, subject in there])
    return fixed or {(group, subject) for group, subject in there if subject in chosen}


class ColorBar:
    """Turns colour images back to scalars, with the colour bar estimated from the images themselves.

    The bar is a curve through RGB that begins at black. A colour's value is its distance from black along
    the curve: the shortest way over a graph that joins neighbouring frequent colours, as in Isomap
    (Tenenbaum et al. 2000). Calling it with (..., 3) uint8 gives uint8; the far end of the curve is 255.
    """

    def __init__(self, images, step=8, neighbors=6):
        """images: (..., 3) uint8 arrays. step: size of the cells of RGB that count as one colour."""
        colors = np.concatenate([image.reshape(-1, 3) for image in images])
        cells, counts = np.unique(colors // step, axis=0, return_counts=True)
        cells = cells[counts >= max(2, 1e-5 * len(colors))] * step + step / 2
        nodes = np.concatenate([np.zeros((1, 3)), cells])
        self._tree = cKDTree(nodes)
        length, near = self._tree.query(nodes, k=min(neighbors, len(nodes)))
        rows = np.repeat(np.arange(len(nodes)), near.shape[1])
        graph = coo_matrix((length.ravel() + 1e-9, (rows, near.ravel())), shape=(len(nodes),) * 2)
        along = dijkstra(graph, directed=False, indices=0)
        reached = np.isfinite(along)
        self._tree = cKDTree(nodes[reached])
        self._values = along[reached] / max(along[reached].max(), 1e-9)

    def __call__(self, colors):
        flat = np.asarray(colors, np.float64).reshape(-1, 3)
        unique, back = np.unique(flat, axis=0, return_inverse=True)
        length, near = self._tree.query(unique, k=min(3, len(self._values)))
        length, near = length.reshape(len(unique), -1), near.reshape(len(unique), -1)
        share = 1 / (length + 1e-3)
        values = (self._values[near] * share).sum(1) / share.sum(1)
        return np.rint(255 * values)[back.ravel()].astype(np.uint8).reshape(np.shape(colors)[:-1])


def _files(folder, group):
    kind = group.split("-")[0]
    files = sorted((Path(folder) / group / kind).glob("*.png"))
    if not files:
        raise FileError(f"no PNG slices in {group}/{kind}: give the folder that holds {', '.join(GROUPS)}.")
    for file in files:
        if not file.stem.isdigit() or len(file.stem) < 4 or not (file.parent.parent / "MRI" / file.name).is_file():
            raise FileError(f"{group}: {file.name} is not <subject><3-digit slice>.png with a partner in MRI/.")
    return files


def _grey(image, convert):
    """uint8 (H, W) of an image that may be in colour, which convert(image) makes grey."""
    return convert(image) if image.ndim == 3 else image


def _read(file):
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(file)
        return np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise FileError(f"{file.name} cannot be read as a PNG: copy it again.") from error
