"""Scores a method on slice pairs of subjects that it never saw.

python -m MedFusionLib.fusion.training.score METHOD [METHOD ...] --data FOLDER [--montage FILE] [--stacks]
"""

from __future__ import annotations

import argparse
from importlib import import_module

import numpy as np
import torch

from ...metrics import TASK, pair_scores
from ...metrics.failures import flicker
from .. import registry
from . import atlas

COLUMNS = ("Qabf", "Nabf", "SCD", "SSIM", "head-SSIM", *TASK)
"""Of `MedFusionLib.metrics`; the last four for CT-MRI only."""


STACK_COLUMNS = ("Qabf", "SCD", "SSIM", "Qabf across", "flicker")
"""Of volumes: the first three of slices, the fourth of planes across them."""

EVERY = 8
"""Pixels between the planes across slices that are measured."""


def fuser_of(method, network=None):
    """The `Fuser` of a method on the CPU; with `network` in place of the weights on disk."""
    info = registry.find(method)
    if network is None:
        return registry.load(method, torch.device("cpu"))
    return import_module(f"..{info.home}", __package__).build(network)


def score(method, network=None, pairs=(), keep=None):
    """{group: {measure: (mean, standard deviation)}} over `atlas.Pair`s. keep(pair, fused): sees each result."""
    fuser = fuser_of(method, network)
    rows = {}
    for pair in pairs:
        sources = torch.from_numpy(pair.images)[None]
        with torch.inference_mode():
            if hasattr(fuser, "prepare"):
                fuser.prepare(sources[0][:, None], pair.modalities)
            fused = fuser(sources, pair.modalities)[0]
        rows.setdefault(pair.group, []).append(measure(pair, fused[0].numpy()))
        if keep:
            keep(pair, fused[0].numpy())
    return {group: summary({name: [row[name] for row in found] for name in COLUMNS}) for group, found in rows.items()}


def score_stacks(method, network=None, pairs=()):
    """{"<group>, slices" and "<group>, volume": as `score`'s} over subjects: fused slice by slice, and as volumes."""
    fuser = fuser_of(method, network)
    kinds = {pair.group: pair.modalities for pair in pairs}
    rows = {}
    for (group, _), stack in atlas.stacks(pairs).items():
        sources, modalities = torch.from_numpy(stack), kinds[group]
        with torch.inference_mode():
            if hasattr(fuser, "prepare"):
                fuser.prepare(sources, modalities)
            ways = {
                "slices": fuser(sources.transpose(0, 1), modalities)[0],
                "volume": fuser(sources[None], modalities)[0][0],
            }
        for way, fused in ways.items():
            rows.setdefault(f"{group}, {way}", []).append(_measure_stack(stack, fused.numpy()))
    return {
        label: summary({name: [row[name] for row in found] for name in STACK_COLUMNS}) for label, found in rows.items()
    }


def _measure_stack(stack, fused):
    found = [pair_scores(*stack[:, k], fused[k], 1, STACK_COLUMNS[:3]) for k in range(len(fused))]
    across = []
    for axis in (2, 3):
        for n in range(0, stack.shape[axis], EVERY):
            plane = stack.take(n, axis)
            if plane.std((1, 2)).min() > 0.02:
                across.append(pair_scores(*plane, fused.take(n, axis - 1), 1, ("Qabf",))["Qabf"])
    means = {name: np.nanmean([row[name] for row in found]) for name in STACK_COLUMNS[:3]}
    return means | {"Qabf across": np.mean(across), "flicker": flicker(*(255 * stack), 255 * fused)}


def summary(columns):
    """{measure: (mean, standard deviation)} of {measure: values}, without the measures that have no value."""
    return {
        name: (float(np.nanmean(column)), float(np.nanstd(column)))
        for name, column in columns.items()
        if np.isfinite(column).any()
    }


def measure(pair, fused):
    """{measure: value} of one fused slice (H, W), 0..1."""
    names = COLUMNS if pair.modalities == ("CT", "MR") else COLUMNS[:5]
    return dict.fromkeys(COLUMNS, np.nan) | pair_scores(*pair.images, fused, 1, names)


def table(scores, columns=COLUMNS):
    """Markdown rows of {label: score's answer}."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label, groups in scores.items():
        for group, found in groups.items():
            cells = [f"{found[name][0]:.3f} ± {found[name][1]:.3f}" if name in found else "" for name in columns]
            lines.append(f"| {label}, {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def montage(methods, pairs, file):
    """Write a PNG: a row per pair, columns source 1, source 2, then each method."""
    from PIL import Image

    columns = [[pair.images[n] for pair in pairs] for n in range(2)]
    for method in methods:
        columns.append([])
        score(method, None, pairs, lambda pair, fused, column=columns[-1]: column.append(fused))
    grid = np.concatenate([np.concatenate(column, 0) for column in columns], 1)
    Image.fromarray(np.rint(grid.clip(0, 1) * 255).astype(np.uint8)).save(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--montage")
    parser.add_argument("--stacks", action="store_true", help="volumes too, against the same slice by slice")
    given = parser.parse_args()
    pairs = atlas.pairs(given.data, held_back=True)
    print(table({method: score(method, None, pairs) for method in given.methods}))
    if given.stacks:
        print(table({method: score_stacks(method, None, pairs) for method in given.methods}, STACK_COLUMNS))
    if given.montage:
        groups = [[pair for pair in pairs if pair.group == group] for group in atlas.GROUPS]
        chosen = [group[int(len(group) * share)] for group in groups if group for share in (0.1, 0.3)]
        montage(given.methods, chosen, given.montage)


if __name__ == "__main__":
    main()
