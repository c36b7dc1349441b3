"""What networks learn from that fuse pairs of crops: the quality of their fusion, and what a reader looks for."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import FileError
from ..networks.pairwise import KINDS, OTHER, kinds_of
from ..weighing import weighted
from .medfusion_losses import correlation, difference_correlation, edges_kept, gradient_transfer, structure

WIDTH = 96

BONE, HOT = 0.9, 0.75
"""CT that is bone; the share of a crop's highest uptake that is hot."""

SOFT, SOFT_EDGES = 0.85, 0.8
"""Correlation with the MRI, and its edges kept, that are enough in soft tissue: more hides the CT's own detail."""

FRUITLESS = 10_000
"""Crops in a row that show nothing, after which no others are drawn."""

DEPTH = 8
"""Slices of a stack: SSIM's window wants more than 5."""

COMPLEMENT = 2.0
"""Weight of SCD beside `reading_loss`: with less the fusion becomes the MRI with the CT's bone pasted on it."""


def integer(generator, end):
    """A whole number from 0 up to, and without, `end`."""
    return int(torch.randint(end, (), generator=generator))


def require_size(shape, width):
    """Raise FileError for images (H, W) smaller than square crops of a width."""
    if min(shape) < width:
        raise FileError(f"slices of {shape[0]} x {shape[1]} are too small: give some of {width} x {width} or more.")


def corner(generator, shape, width):
    """(top, left) of a square crop of images (H, W), drawn at random. Raises FileError for images smaller than it."""
    require_size(shape, width)
    return tuple(integer(generator, n - width + 1) for n in shape)


def several(count, draw):
    """`count` times what draw() answers, where that is not None.

    Raises FileError where it is so again and again: black slices would be drawn for ever.
    """
    found, fruitless = [], 0
    while len(found) < count:
        one = draw()
        fruitless = fruitless + 1 if one is None else 0
        if one is not None:
            found.append(one)
        elif fruitless == FRUITLESS:
            raise FileError("the slices to learn from show next to nothing: give others.")
    return found


def pair_batch(pairs, generator, size):
    """(sources,): (size, 2, 96, 96) crops, turned at random, of pairs that are not empty there.

    Where the pairs have targets, these follow: (size, 1, 96, 96).
    """
    crops = torch.stack([crop for crop, _ in _crops(pairs, generator, size)])
    return crops[:, :2], *_targets(crops)


def kind_batch(pairs, generator, size):
    """(sources, kinds): as `pair_batch`, with int64 (size, 2) kinds; every eighth crop hides them.

    Half of the crops are of CT-MRI, where the sources differ most; sources come in either order. Targets follow where
    there are any.
    """
    groups = _with_bone_and_without(pairs, lambda pair: pair.modalities)
    images, kinds = [], []
    for n in range(size):
        ((crop, pair),) = _crops(groups[n % len(groups)], generator, 1)
        known = torch.tensor(kinds_of(pair.modalities))
        if torch.rand((), generator=generator) < 1 / 8:
            known = torch.full_like(known, OTHER)
        turn = integer(generator, 2)
        images.append(torch.cat([crop[:2].roll(turn, 0), crop[2:]]))
        kinds.append(known.roll(turn))
    crops = torch.stack(images)
    return crops[:, :2], torch.stack(kinds), *_targets(crops)


def stack_batch(pairs, generator, size):
    """(sources, kinds): `size` crops that follow each other through a subject, (size, 2, 96, 96), turned as one.

    Half of the stacks are of CT-MRI. pairs: a subject's in their order. kinds: int64 (size, 2). Targets follow where
    there are any.
    """
    subjects = {}
    for pair in pairs:
        subjects.setdefault((pair.group, pair.subject), []).append(pair)
    stacks = [stack for stack in subjects.values() if len(stack) >= size]
    if not stacks:
        raise FileError(f"no subject has {size} slices: volumes cannot be learnt from single ones. Add some.")
    groups = _with_bone_and_without(stacks, lambda stack: stack[0].modalities)

    def draw():
        group = groups[integer(generator, len(groups))]
        stack = group[integer(generator, len(group))]
        first = integer(generator, len(stack) - size + 1)
        images = torch.from_numpy(np.stack([_images(pair) for pair in stack[first : first + size]]))
        top, left = corner(generator, images.shape[2:], WIDTH)
        crop = images[..., top : top + WIDTH, left : left + WIDTH]
        if crop[size // 2, :2].std((1, 2)).min() <= 0.02:
            return None
        kinds = torch.tensor([kinds_of(stack[0].modalities)]).expand(size, -1)
        crop = torch.rot90(crop, integer(generator, 4), (2, 3)).contiguous()
        return crop[:, :2], kinds, *_targets(crop)

    return several(1, draw)[0]


def _with_bone_and_without(items, modalities):
    """[the items with a CT, those without], without empty lists. modalities(item): DICOM terms."""
    groups = [[item for item in items if ("CT" in modalities(item)) == bone] for bone in (True, False)]
    return [group for group in groups if group]


def _crops(pairs, generator, count):
    """[(crop (2, 96, 96), or (3, 96, 96) with the target, its pair)] where both sources show something."""

    def draw():
        pair = pairs[integer(generator, len(pairs))]
        images = torch.from_numpy(_images(pair))
        top, left = corner(generator, images.shape[1:], WIDTH)
        crop = images[:, top : top + WIDTH, left : left + WIDTH]
        shows = crop[:2].std((1, 2)).min() > 0.02
        return (torch.rot90(crop, integer(generator, 4), (1, 2)), pair) if shows else None

    return several(count, draw)


def _images(pair):
    """(2, H, W), or (3, H, W) with the target."""
    return np.concatenate([pair.images, *([] if pair.target is None else [pair.target[None]])])


def _targets(crops):
    """[the targets (B, 1, H, W)] of crops (B, 2 or 3, H, W), [] where they have none."""
    return [crops[:, 2:]] if crops.shape[1] > 2 else []


def target_loss(targets, fused):
    """Mean absolute error + (1 - mean SSIM) of fusions (B, 1, H, W) that should be as their targets."""
    return F.l1_loss(fused, targets) + 1 - structure(targets, fused)[0].mean()


def quality_loss(sources, fused, complement=0.5):
    """(1 - Qabf) + complement (1 - SCD / 2) + (1 - mean SSIM) of sources (B, 2, H, W), their fusion (B, 1, H, W)."""
    first, second = sources[:, :1], sources[:, 1:]
    quality = gradient_transfer(first, second, fused)[0].mean()
    differences = difference_correlation(first, second, fused).mean()
    likeness = sum(structure(source, fused)[0].mean() for source in (first, second)) / 2
    return (1 - quality) + complement * (1 - differences / 2) + (1 - likeness)


def stack_loss(network, sources, kinds, targets=None):
    """`quality_loss` of slices and of both planes across them, and `reading_loss`, of a stack's fusion.

    Or `target_loss` where there are targets. network: a `ThroughNet`. sources, kinds, targets: see `stack_batch`.
    """
    fused = weighted(sources, network.stack(sources, kinds))[:, None]
    if targets is not None:
        return target_loss(targets, fused)
    total = quality_loss(sources, fused, COMPLEMENT) + reading_loss(sources, kinds, fused)
    for rows, columns in ((2, 3), (3, 2)):
        across = (image.permute(rows, 1, 0, columns) for image in (sources, fused))
        total = total + quality_loss(*across, COMPLEMENT) / 2
    return total


def reading_loss(sources, kinds, fused):
    """What a reader would miss, of sources (B, 2, H, W), kinds (B, 2) and their fusion (B, 1, H, W).

    Bone darker than in CT, hot spots darker than in PET or SPECT, and, beside CT, soft tissue that does not follow
    the MRI and its edges. Crops whose kinds are hidden count nothing.
    """
    total = fused.new_zeros(())
    for n in range(2):
        source, other = sources[:, n : n + 1], sources[:, 1 - n : 2 - n]
        bone = (kinds[:, n] == KINDS["CT"]).view(-1, 1, 1, 1) & (source > BONE)
        uptake = (kinds[:, n] == KINDS["PT"]).view(-1, 1, 1, 1)
        hot = uptake & (source > HOT * source.amax((2, 3), keepdim=True)) & (source > other)
        for where in (bone, hot):
            lost = F.relu(source - fused) * where
            total = total + lost.sum() / where.sum().clamp_min(1)
        soft = (kinds[:, n] == KINDS["MR"]) & (kinds[:, 1 - n] == KINDS["CT"])
        for index in soft.nonzero()[:, 0]:
            mr, result = source[index : index + 1], fused[index : index + 1]
            where = _soft_tissue(mr, other[index : index + 1])
            if where.sum() > 200:
                follows = correlation(result[where][None], mr[where][None])
                edges = edges_kept(mr, result, where)
                total = total + (F.relu(SOFT - follows) + F.relu(SOFT_EDGES - edges)).sum() / len(kinds)
    return total


def _soft_tissue(mr, ct):
    """Mask of (1, 1, H, W) images: more than 4 pixels inside the head, and more than 3 from bone."""

    def dilated(mask, reach):
        return F.max_pool2d(mask.float(), 2 * reach + 1, 1, reach) > 0

    return ~dilated(torch.maximum(mr, ct) < 0.1, 4) & ~dilated(ct > BONE, 3)
