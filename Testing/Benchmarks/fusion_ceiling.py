"""How near any blend can come to all of `medfusion`'s aims at once, on the slices of the subjects held back.

    python Testing/Benchmarks/fusion_ceiling.py --data ../shared/data/harvard

writes the tables to --output too. No network: the pixels themselves climb towards the aims, from where `medfusion` left
them, each within the range of its sources. An aim that the means over the slices miss weighs more and more, one that
they reach less and less. The pixels know the measures and the slices, so a network, which has to answer for slices it
never saw, will stay below what they reach; that gradient ascent reaches no more is no proof that nothing can.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from MedFusionLib.errors import MedFusionError  # noqa: E402
from MedFusionLib.fusion import registry, weights  # noqa: E402
from MedFusionLib.fusion.networks.medfusion_net import MedFusionNet  # noqa: E402
from MedFusionLib.fusion.training import atlas, medfusion_losses  # noqa: E402
from MedFusionLib.fusion.training.medfusion_card import TARGETS, fused  # noqa: E402
from MedFusionLib.fusion.training.medfusion_data import examples  # noqa: E402
from MedFusionLib.metrics import markdown, pair_scores  # noqa: E402

ASK_EVERY = 15
"""Steps between two measurements, which set the weights of the aims anew."""

HARDER, LIGHTEST, HEAVIEST = 1.5, 0.05, 200.0
"""By how much the weight of an aim changes at most at a time, and the weights' range."""

SOLID = 0.82
"""bone_solid counts bone of 0.8 of the CT's level: a little above, for a slope to follow."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=ROOT.parent / "shared" / "data" / "harvard", help="the atlas's folder")
    parser.add_argument("--groups", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--every", type=int, default=6, help="one slice in so many")
    parser.add_argument("--steps", type=int, default=450, help="of the ascent")
    parser.add_argument("--output", default=ROOT / "bench-output" / "fusion" / "ceiling.md", help="file for the tables")
    options = parser.parse_args()
    tables = []
    network = weights.load(registry.find("medfusion").weights, MedFusionNet())
    for group in options.groups:
        slices = examples(atlas.pairs(options.data, (group,), held_back=True))[options.every // 2 :: options.every]
        aims = TARGETS[group]
        begun = [torch.from_numpy(fused(network, one)) for one in slices]
        table = {
            "medfusion": means(slices, begun, aims),
            "pixels that climb": means(slices, climbed(slices, begun, aims, options.steps), aims),
            "maximum": means(slices, [torch.from_numpy(one.images).amax(0) for one in slices], aims),
            "aim": {name: abs(aim) for name, aim in aims.items()},
        }
        tables.append(f"**{group}**, {len(slices)} slices\n\n{markdown(table)}\n")
        print(tables[-1], flush=True)
    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(tables), encoding="utf-8")
    return 0


def means(slices, images, aims):
    """{measure: mean over the slices where it is defined} of fused images (H, W)."""
    found = [
        pair_scores(*one.images, image.numpy(), data_range=1, names=tuple(aims))
        for one, image in zip(slices, images, strict=True)
    ]
    return {name: float(np.nanmean([row[name] for row in found])) for name in aims}


def climbed(slices, images, aims, steps):
    """The images after `steps` of ascent towards the aims."""
    ranges = [(sources.amin(0), sources.amax(0)) for sources in (torch.from_numpy(one.images) for one in slices)]
    places = [
        torch.logit(((image - low) / (high - low + 1e-6)).clamp(0.03, 0.97)).requires_grad_()
        for image, (low, high) in zip(images, ranges, strict=True)
    ]
    weight = dict.fromkeys(aims, 5.0)
    optimizer = torch.optim.Adam(places, 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, pct_start=0.1)

    def blended(n):
        low, high = ranges[n]
        return low + (high - low) * torch.sigmoid(places[n])

    for step in range(steps):
        optimizer.zero_grad()
        for n, one in enumerate(slices):
            worth = sum(
                weight[name] * value for name, value in smooth_measures(one, blended(n)).items() if name in aims
            )
            (-worth / len(slices)).backward()
        optimizer.step()
        schedule.step()
        if step % ASK_EVERY == ASK_EVERY - 1:
            reached = means(slices, [blended(n).detach() for n in range(len(slices))], aims)
            for name, aim in aims.items():
                # A negative aim is an upper bound.
                short = (aim - reached[name]) / aim if aim > 0 else (reached[name] + aim) / -aim
                factor = HARDER ** float(np.clip(20 * short, -1, 1))
                weight[name] = float(np.clip(weight[name] * factor, LIGHTEST, HEAVIEST))
    return [blended(n).detach() for n in range(len(slices))]


def smooth_measures(one, image):
    """{measure: scalar tensor to raise} of an image (H, W) of an example, without those that it has no region for."""
    first, second = (torch.from_numpy(source)[None, None] for source in one.images)
    image = image[None, None]
    kept, artefacts = medfusion_losses.gradient_transfer(first, second, image)
    maps = [medfusion_losses.structure(source, image)[0] for source in (first, second)]
    head = torch.from_numpy(one.head)[None, None]
    found = {
        "Qabf": kept.sum(),
        "Nabf": -artefacts.sum(),
        "SCD": medfusion_losses.difference_correlation(first, second, image).sum(),
        "SSIM": sum(part.mean() for part in maps) / 2,
        "head-SSIM": sum(part[head].mean() for part in maps) / 2,
        "MS-SSIM": sum(medfusion_losses.multiscale_structure(source, image).sum() for source in (first, second)) / 2,
    }
    if one.bone.any():
        level = image[0, 0][torch.from_numpy(one.bone)] / (first[0, 0][torch.from_numpy(one.bone)] + 1e-3)
        found["bone_solid"] = -F.relu(SOLID - level).mean()
    if one.modalities == ("CT", "MR") and one.soft.any():
        soft = torch.from_numpy(one.soft)
        found["soft_corr"] = medfusion_losses.correlation(image[0, 0][soft][None], second[0, 0][soft][None]).sum()
        found["soft_edges"] = medfusion_losses.edges_kept(second, image, soft[None, None].float()).sum()
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MedFusionError as error:
        sys.exit(f"{error}")
