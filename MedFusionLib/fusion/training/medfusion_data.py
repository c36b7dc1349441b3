"""What MedFusion's own network learns from: registered slice pairs of the atlas, and slices of the phantom."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from ...volume import FUNCTIONAL

SIZE = 256
"""Width and height of training images: those of the atlas."""

MARGIN = 8

HOTTEST, WARM = 0.03, 0.4
"""The hottest part of the head is a hot spot, where its uptake is above this."""


@dataclass(frozen=True, eq=False)
class Example:
    """Registered slices of one head.

    images: float32 (S, SIZE, SIZE), 0..1. modalities: S DICOM terms. group: what is sampled evenly (an atlas
    folder or "phantom"); subject: what is kept together when data is split. head, bone, soft, hot: boolean masks
    (SIZE, SIZE): inside the head; the inner part of bone, empty where no source is CT; soft tissue away from
    bone and skin; high uptake, empty where no source is PET or SPECT.
    held_back: whether the subject is kept from training, to score on. target: what the fusion should be, or None.
    """

    images: np.ndarray
    modalities: tuple[str, ...]
    group: str
    subject: str
    name: str
    head: np.ndarray
    bone: np.ndarray
    soft: np.ndarray
    hot: np.ndarray
    held_back: bool = False
    target: np.ndarray | None = None


def head_mask(images):
    """The largest connected bright region of the brightest source, its holes filled. images: (S, H, W), 0..1."""
    opened = ndimage.binary_opening(images.max(0) > 25 / 255, iterations=2)
    labels, count = ndimage.label(ndimage.binary_fill_holes(opened))
    if count == 0:
        return np.zeros(labels.shape, bool)
    return labels == 1 + np.bincount(labels.ravel())[1:].argmax()


def example(images, modalities, group, subject, name, bone_level=230 / 255, **more):
    """An `Example` with its masks, or None where there is too little head to learn from. more: its last fields."""
    head = head_mask(images)
    if head.sum() < 800:
        return None
    bone = np.zeros_like(head)
    if "CT" in modalities:
        bone = (images[modalities.index("CT")] >= bone_level) & head
    soft = ndimage.binary_erosion(head, iterations=4) & ~ndimage.binary_dilation(bone, iterations=3)
    uptake = [image for image, modality in zip(images, modalities, strict=True) if modality in FUNCTIONAL]
    hot = np.zeros_like(head)
    if uptake:
        hot = head & (uptake[0] >= max(WARM, np.quantile(uptake[0][head], 1 - HOTTEST)))
    return Example(images, modalities, group, subject, name, head, ndimage.binary_erosion(bone), soft, hot, **more)


def examples(pairs):
    """Examples of `atlas.Pair`s."""
    found = [
        example(
            pair.images,
            pair.modalities,
            pair.group,
            pair.subject,
            f"{pair.subject}{pair.slice:03}",
            held_back=pair.held_back,
            target=pair.target,
        )
        for pair in pairs
    ]
    return [one for one in found if one is not None]


def phantom(seeds=(11, 12), spacing=1.2):
    """Examples of axial phantom slices: CT with PET, and CT with MRI and PET, which the atlas lacks."""
    from ... import phantom as phantoms
    from ...normalize import to_unit

    found = []
    for seed in seeds:
        made = phantoms.make(seed, spacing, rotation=0, translation=0)
        volumes = [to_unit(made.ct)]
        for moving in (made.mr, made.pet):
            matrix = np.linalg.inv(moving.affine) @ made.ct.affine
            flip = np.eye(4)[[2, 1, 0, 3]]
            into = flip @ matrix @ flip
            volumes.append(
                ndimage.affine_transform(to_unit(moving), into[:3, :3], into[:3, 3], made.ct.array.shape, order=1)
            )
        stack = np.stack(volumes)
        for k in range(0, stack.shape[1], 4):
            images = np.zeros((3, SIZE, SIZE), np.float32)
            height, width = (min(SIZE, n) for n in stack.shape[2:])
            images[:, :height, :width] = stack[:, k, :height, :width]
            name = f"{seed}-{k}"
            found.append(example(images[[0, 2]], ("CT", "PT"), "phantom", f"phantom {seed}", name, 0.6))
            found.append(example(images, ("CT", "MR", "PT"), "phantom", f"phantom {seed}", name, 0.6))
    return [one for one in found if one is not None]


def folds(subjects, count):
    """`count` sets of subjects, as even in their examples as they come. subjects: one entry per example."""
    sizes = sorted(((subjects.count(one), one) for one in set(subjects)), reverse=True)
    split = [(0, set()) for _ in range(count)]
    for size, one in sizes:
        smallest = min(range(count), key=lambda n: split[n][0])
        split[smallest] = (split[smallest][0] + size, split[smallest][1] | {one})
    return [part for _, part in split]


def augment(one, rng):
    """(images (S, h, w), modalities, head, bone, soft, hot, target) of an example: the head, at times altered.

    Contrast, brightness and noise stand for the windows and scanners that the atlas lacks: not where there is a target,
    which would have to change with them. Now and then a modality is withheld (OT), so that unknown ones work too.
    """
    rows, columns = (np.flatnonzero(one.head.any(axis)) for axis in (1, 0))
    jitter = [MARGIN + rng.randrange(8) for _ in range(2)]
    cut = tuple(
        slice(max(0, span[0] - extra), min(SIZE, span[-1] + MARGIN + 1))
        for span, extra in zip((rows, columns), jitter, strict=True)
    )
    images, head, bone, soft, hot, target = (
        None if x is None else torch.from_numpy(np.ascontiguousarray(x[(..., *cut)]))
        for x in (one.images, one.head, one.bone, one.soft, one.hot, one.target)
    )
    modalities = list(one.modalities)
    if rng.random() < 0.35 and target is None:
        shape = (-1, 1, 1)
        gamma = torch.tensor([2 ** rng.uniform(-0.8, 0.8) for _ in modalities]).view(shape)
        gain = torch.tensor([rng.uniform(0.7, 1) for _ in modalities]).view(shape)
        images = images**gamma * gain
        if rng.random() < 0.3:
            noise = torch.from_numpy(np.random.default_rng(rng.randrange(2**31)).normal(0, 0.02, images.shape))
            images = (images + noise.float()).clamp(0, 1)
    if rng.random() < 0.1:
        modalities[rng.randrange(len(modalities))] = "OT"
    return images, modalities, head.float(), bone.float(), soft.float(), hot.float(), target


class Sampler:
    """Draws examples: groups in turn, the phantom less often, and subjects evenly within a group."""

    def __init__(self, examples, seed):
        self._seed, self._groups = seed, {}
        for one in examples:
            self._groups.setdefault(one.group, {}).setdefault(one.subject, []).append(one)
        names = sorted(self._groups)
        self._turns = [name for name in names if name != "phantom"] * 2 + [n for n in names if n == "phantom"]

    def draw(self, number):
        """(example, random generator) of the `number`-th draw: the same whatever was drawn before."""
        rng = random.Random(self._seed * 1_000_003 + number)
        subjects = self._groups[self._turns[number % len(self._turns)]]
        return rng.choice(subjects[rng.choice(sorted(subjects))]), rng
