"""Trains MedFusion's own network, cross-validates it by subject, and writes its model card.

    python -m MedFusionLib.fusion.training.medfusion_training --data FOLDER --state FOLDER

writes Resources/medfusion.safetensors and Resources/medfusion.md. It resumes from what the state folder keeps.

The network is trained without reference fusions, directly on what a good fusion is measured by: the sources'
gradients kept (Q^AB/F) without artefacts, structure (SSIM inside the head, MS-SSIM), complementary content (SCD);
for CT with MRI also what a radiologist needs: bone as bright as in CT, soft tissue that follows the MRI.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ...volume import MODALITIES
from .. import weights
from ..networks.medfusion_net import MedFusionNet
from . import atlas, medfusion_card
from . import medfusion_data as data
from . import medfusion_losses as losses

log = logging.getLogger(__name__)

WEIGHTS = "medfusion.safetensors"


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters; the card prints them. The last ones weigh the terms of the loss, see `loss`.

    complement_bone: in place of `complement` where a source is CT: there SCD rewards soft tissue as bright as the
    brightest source, which costs the MRI's contrast.
    """

    steps: int = 1800
    batch: int = 3
    rate: float = 6e-3
    decay: float = 1e-4
    seed: int = 0
    gradients: float = 10.0
    artefacts: float = 18.0
    structure: float = 7.0
    scales: float = 7.0
    complement: float = 2.7
    complement_bone: float = 4.3
    soft_correlation: float = 14.0
    soft_edges: float = 8.0
    bone: float = 15.0
    hot: float = 10.0
    range: float = 0.2


SOFT_CORRELATION, SOFT_EDGES, BONE, HOT = 0.905, 0.9, 0.85, 0.97
"""Enough: beyond these a better soft tissue, brighter bone or hotter uptake earns nothing."""


def loss(network, one, rng, settings):
    """Loss of one augmented example, a scalar tensor."""
    images, names, head, bone, soft, hot = data.augment(one, rng)
    index = torch.tensor([MODALITIES.index(name) for name in names])
    fused, excess = _forward(network, images[None], index)
    canvas = [0, data.SIZE - fused.shape[-1], 0, data.SIZE - fused.shape[-2]]
    sources = [image[None, None] for image in images]
    total = settings.range * excess
    complement_weight = settings.complement_bone if "CT" in one.modalities else settings.complement
    pairs = [(a, b) for n, a in enumerate(sources) for b in sources[n + 1 :]]
    for first, second in pairs:
        kept, artefacts = losses.gradient_transfer(first, second, fused)
        whole = [F.pad(image, canvas) for image in (first, second, fused)]
        complement = losses.difference_correlation(*whole)
        total = total + (
            settings.artefacts * artefacts - settings.gradients * kept - complement_weight * complement
        ).sum() / len(pairs)
    inside = (losses.structure(images[None], fused)[0] * head).sum() / head.sum()
    scales = losses.multiscale_structure(F.pad(images[None], canvas), F.pad(fused, canvas)).sum()
    total = total - (settings.structure * inside + settings.scales * scales) / len(sources)
    if "CT" in one.modalities:
        total = total + _reading(one.modalities, sources, fused, bone, soft, settings)
    for source, modality in zip(sources, one.modalities, strict=True):
        if modality in ("PT", "NM"):
            total = total + settings.hot * _dimmed(source, fused, hot, HOT)
    return total


def _forward(network, sources, index):
    """(fused (1, 1, h, w), how far the blend of the bands leaves the sources' range, mean)."""
    size = sources.shape[2:]
    step = 2**network.levels
    padded = F.pad(sources, (0, -size[1] % step, 0, -size[0] % step), mode="replicate")
    _, wanted = network(padded, index)
    settled = wanted.maximum(padded.amin(1)).minimum(padded.amax(1))
    inner = (..., slice(size[0]), slice(size[1]))
    return settled[inner][:, None], (wanted - settled).abs().mean()


def _reading(modalities, sources, fused, bone, soft, settings):
    """What a reader of CT with MRI would miss: solid bone, true soft tissue."""
    total = fused.new_zeros(())
    if bone.sum() > 50:
        total = total + settings.bone * _dimmed(sources[modalities.index("CT")], fused, bone, BONE)
    if "MR" in modalities and "PT" not in modalities and soft.sum() > 200:
        mr, where = sources[modalities.index("MR")], soft > 0
        correlation = losses.correlation(fused[0, 0][where][None], mr[0, 0][where][None]).sum()
        edges = losses.edges_kept(mr, fused, soft[None, None]).sum()
        total = total + settings.soft_correlation * F.relu(SOFT_CORRELATION - correlation)
        total = total + settings.soft_edges * F.relu(SOFT_EDGES - edges)
    return total


def _dimmed(source, fused, where, share):
    """By how much the fusion falls short of a share of a source in a mask (h, w), relative to it, mean."""
    ratio = fused[0, 0] / (source[0, 0] + 1e-3)
    return (F.relu(share - ratio) * where).sum() / where.sum().clamp_min(1)


def train(examples, settings, checkpoint=None, progress=None, keep_every=100):
    """A trained `MedFusionNet`.

    examples: of `medfusion_data`. checkpoint: a file that keeps the state every `keep_every` steps; training resumes
    from it where it exists and was made with the same settings. progress(fraction, message).
    """
    torch.manual_seed(settings.seed)
    network = MedFusionNet()
    optimizer = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=settings.steps, pct_start=0.1)
    start = 0
    if checkpoint and Path(checkpoint).exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["settings"] == asdict(settings):
            start = state["step"]
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
    began, smoothed = time.perf_counter(), None
    sampler = data.Sampler(examples, settings.seed)
    for step in range(start, settings.steps):
        optimizer.zero_grad()
        value = 0.0
        for number in range(step * settings.batch, (step + 1) * settings.batch):
            one, rng = sampler.draw(number)
            term = loss(network, one, rng, settings) / settings.batch
            term.backward()
            value += term.item()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        smoothed = value if smoothed is None else 0.97 * smoothed + 0.03 * value
        if step % 50 == 49:
            log.info(
                "step %d of %d: loss %.3f, %.0f s", step + 1, settings.steps, smoothed, time.perf_counter() - began
            )
        if progress:
            progress((step + 1) / settings.steps, f"step {step + 1}: loss {smoothed:.3f}")
        if checkpoint and ((step + 1) % keep_every == 0 or step + 1 == settings.steps):
            state = {
                "settings": asdict(settings),
                "step": step + 1,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            beside = Path(checkpoint).with_suffix(".part")
            torch.save(state, beside)
            beside.replace(checkpoint)
    return network.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of the atlas: CT-MRI, PET-MRI and SPECT-MRI")
    parser.add_argument("--state", required=True, help="folder that keeps checkpoints and scores")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--folds", type=int, default=2, help="of the cross-validation by subject; 0: none")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings, state = Settings(steps=options.steps), Path(options.state)
    state.mkdir(parents=True, exist_ok=True)
    examples = data.read_atlas(options.data)
    scalars = data.read_atlas(options.data, scalar=True)
    extra = [one for one in scalars if one.group != "CT-MRI"]
    made = data.phantom()

    def held_back(one):
        return one.subject in atlas.HELD_BACK[one.group]

    seen = [one for one in examples + extra if not held_back(one)]
    network = train(seen + made, settings, state / "final.pt")
    weights.save(WEIGHTS, network)
    rows = {"held back": medfusion_card.measure(network, [one for one in examples if held_back(one)])}
    _write_card(settings, rows)
    if not options.folds:
        return
    rows["cross-validated"] = []
    for n, subjects in enumerate(data.folds([one.subject for one in examples], options.folds)):
        log.info("fold %d of %d", n + 1, options.folds)
        seen = [one for one in examples + extra if one.subject not in subjects]
        network = train(seen + made, settings, state / f"fold-{n}.pt")
        unseen = [one for one in examples if one.subject in subjects]
        rows["cross-validated"] += medfusion_card.measure(network, unseen)
    _write_card(settings, rows)


def _write_card(settings, rows):
    text = medfusion_card.write(asdict(settings), rows, weights.sha256(WEIGHTS))
    (weights.FOLDER / WEIGHTS).with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
