"""Trains the method selector on measured quality, and writes its weights and its card.

python -m MedFusionLib.fusion.training.selector --data FOLDER
"""

from __future__ import annotations

import argparse
import datetime
from collections import Counter

import numpy as np
import torch

from ...metrics import pair_scores
from .. import registry, weights
from ..networks.selector_net import METHODS, OPTIONS, SelectorNet, features
from ..selector import mixed
from . import atlas

MEASURES = ("Qabf", "SSIM", "SCD", "head-SSIM", "bone_solid")
"""The last for CT-MRI only."""

EVERY = 6
"""One training slice in so many: neighbours tell the same."""

STEPS, RATE, DECAY = 400, 1e-2, 0.5


def measured(pairs):
    """(features (N, F), quality (N, options, measures), NaN where there is none) of `atlas.Pair`s."""
    fusers = {name: registry.load(name, torch.device("cpu")) for name in (*METHODS, "maximum")}
    seen, rows = [], []
    for pair in pairs:
        sources = torch.from_numpy(pair.images)[None]
        names = MEASURES if pair.modalities == ("CT", "MR") else MEASURES[:4]
        with torch.inference_mode():
            seen.append(features(sources[0][:, None], pair.modalities))
            fused = {name: fuser(sources, pair.modalities)[0] for name, fuser in fusers.items()}
        row = []
        for name, weight in OPTIONS:
            image = mixed(fused[name], sources, weight)[0].numpy()
            found = pair_scores(*pair.images, image, 1, names)
            row.append([found.get(measure, np.nan) for measure in MEASURES])
        rows.append(row)
    return torch.stack(seen), np.array(rows, np.float32)


def gains(quality, spread):
    """(N, options): the mean over the measures of the gain over the pair's mean option, in units of `spread`."""
    return np.nanmean((quality - quality.mean(1, keepdims=True)) / spread, 2)


def spread_of(quality):
    """(measures,): the standard deviation of each measure between the options of a pair."""
    return np.sqrt(np.nanmean((quality - quality.mean(1, keepdims=True)) ** 2, (0, 1)))


def fit(seen, gain, seed=0):
    """A `SelectorNet` that leaves the least gain behind. seen: (N, F). gain: (N, options)."""
    torch.manual_seed(seed)
    network = SelectorNet()
    network.mean.copy_(seen.mean(0))
    network.scale.copy_(seen.std(0).clamp_min(1e-2))
    gain = torch.as_tensor(gain)
    left = gain.amax(1, keepdim=True) - gain
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    for _ in range(STEPS):
        loss = (network(seen).softmax(1) * left).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def losses(network, seen, gain, single):
    """(selector, best single option): the mean gain that each leaves to the oracle, which knows the best per pair.

    single: the one option that is best on the pairs trained on.
    """
    chosen = network(seen).argmax(1).numpy()
    best = gain.max(1)
    return float((best - gain[np.arange(len(gain)), chosen]).mean()), float((best - gain[:, single]).mean())


def label(option):
    name, weight = option
    return name if weight == 1 else f"{weight:g} {name} + {1 - weight:g} maximum"


def card(network, groups, unseen, gain, single):
    """The model card's text. groups: of the pairs of `unseen` (N, F), whose gains are (N, options)."""
    chosen = network(unseen).argmax(1).numpy()
    lines = [
        "# Method selector (`selector`)",
        "",
        "Chooses a method, and its weight against `maximum`, once per volume; after Rice, The algorithm selection",
        "problem, 1976.",
        "",
        "- Data: The Whole Brain Atlas (K. A. Johnson, J. A. Becker), luma; its slices are not part of this project.",
        f"  One slice in {EVERY} of the subjects that are not held back.",
        f"- Options: {', '.join(METHODS)}, each also half and half with `maximum`, and `maximum`.",
        f"- Quality: the mean of {', '.join(MEASURES)} (the last for CT-MRI), each less its mean over the options",
        "  and in units of its standard deviation between them. Training: least expected loss against the best option,",
        f"  {STEPS} steps of AdamW, rate {RATE:g}; seed 0.",
        f"- Date: {datetime.date.today():%Y-%m-%d}. For research, not a medical device.",
        "",
        "Quality lost against an oracle that knows the best option of each pair, on subjects held back; the single",
        f"option is the best one on the subjects trained on: {label(OPTIONS[single])}.",
        "The best in hindsight is found on the very pairs of its row: a harder comparison than a fair one.",
        "",
        "| | selector | single option | best single in hindsight | pairs | chosen |",
        "|---|---|---|---|---|---|",
    ]
    for group in (*dict.fromkeys(groups), "all"):
        there = np.array([group in (name, "all") for name in groups])
        ours, theirs = losses(network, unseen[there], gain[there], single)
        hindsight = float((gain[there].max(1, keepdims=True) - gain[there]).mean(0).min())
        often = Counter(label(OPTIONS[n]) for n in chosen[there]).most_common(3)
        names = "; ".join(f"{name} ({count})" for name, count in often)
        lines.append(f"| {group} | {ours:.3f} | {theirs:.3f} | {hindsight:.3f} | {there.sum()} | {names} |")
    ours, theirs = losses(network, unseen, gain, single)
    lines += [
        "",
        f"The selector loses {ours / theirs:.0%} of what the single option loses; the aim was at most 50%.",
        "Many options are nearly as good as the best, so little is left to choose by.",
    ]
    lines += ["", "Made by `python -m MedFusionLib.fusion.training.selector --data FOLDER`.", ""]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    given = parser.parse_args()
    seen, quality = measured(atlas.pairs(given.data, held_back=False)[::EVERY])
    spread = spread_of(quality)
    gain = gains(quality, spread)
    network = fit(seen, gain)
    held = atlas.pairs(given.data, held_back=True)
    unseen, quality = measured(held)
    text = card(network, [pair.group for pair in held], unseen, gains(quality, spread), int(gain.mean(0).argmax()))
    weights.save("selector.safetensors", network)
    (weights.FOLDER / "selector.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
