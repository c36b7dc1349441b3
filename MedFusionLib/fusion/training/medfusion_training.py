"""Trains MedFusion's own network, cross-validates it by subject, and writes its model card.

    python -m MedFusionLib train medfusion --data FOLDER --folds 2

The network is trained without reference fusions, directly on what a good fusion is measured by: the sources'
gradients kept (Q^AB/F) without artefacts, structure (SSIM inside the head, MS-SSIM), complementary content (SCD);
for CT with MRI also what a radiologist needs: bone as bright as in CT, soft tissue that follows the MRI.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from ...errors import Cancelled, FileError, MethodError
from ...volume import FUNCTIONAL, MODALITIES
from .. import weights
from ..networks.medfusion_net import MedFusionNet
from . import atlas, dataset, medfusion_card
from . import checkpoint as checkpoints
from . import medfusion_data as data
from . import medfusion_losses as losses
from .card import write_text
from .pairs import target_loss

log = logging.getLogger(__name__)

WEIGHTS = "medfusion.safetensors"

FEWEST = 3
"""Steps that the schedule of the learning rate needs to rise and fall."""


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

TARGET = 10.0
"""Weight of being like the fusions that come with the data, where they do: in place of all others but `range`."""


def loss(network, one, rng, settings):
    """Loss of one augmented example, a scalar tensor on the network's device."""
    images, names, *masks, target = data.augment(one, rng)
    device = next(network.parameters()).device
    images, head, bone, soft, hot = (part.to(device) for part in (images, *masks))
    index = torch.tensor([MODALITIES.index(name) for name in names], device=device)
    fused, excess = _forward(network, images[None], index)
    canvas = [0, data.SIZE - fused.shape[-1], 0, data.SIZE - fused.shape[-2]]
    sources = [image[None, None] for image in images]
    total = settings.range * excess
    if target is not None:
        return total + TARGET * target_loss(target.to(device)[None, None], fused)
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
        if modality in FUNCTIONAL:
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


def train(examples, settings, checkpoint=None, progress=None, keep_every=100, device="cpu", cancelled=None, board=None):
    """A trained `MedFusionNet`, on the device it was trained on.

    examples: of `medfusion_data`. checkpoint: a file that keeps the state every `keep_every` steps; training resumes
    from it where it exists and was made of the same examples with the same settings. progress(fraction, message).
    cancelled() -> bool, asked before every step. board: TensorBoard's writer, or None. Raises Cancelled.
    """
    torch.manual_seed(settings.seed)
    network = MedFusionNet().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=settings.steps, pct_start=0.1)
    start, value = 0, float("nan")
    state = checkpoints.load(Path(checkpoint), device) if checkpoint else None
    of_this = {"settings": asdict(settings), "data": dataset.digest(examples)}
    same = state and all(state.get(name) == value for name, value in of_this.items())
    if same and checkpoints.fits(state, network):
        start = state["step"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    elif state:
        log.warning(
            "%s was made of other data or with other settings: the training begins afresh.", Path(checkpoint).name
        )
    began, smoothed = time.perf_counter(), None
    sampler = data.Sampler(examples, settings.seed)
    for step in range(start, settings.steps):
        if cancelled and cancelled():
            raise Cancelled("Cancelled: the last checkpoint is kept, training goes on from there.")
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
        if board:
            board.add_scalar("loss", value, step + 1)
            board.add_scalar("rate", schedule.get_last_lr()[0], step + 1)
        if progress:
            progress((step + 1) / settings.steps, f"step {step + 1} of {settings.steps}: loss {smoothed:.3f}")
        if checkpoint and ((step + 1) % keep_every == 0 or step + 1 == settings.steps):
            state = of_this | {
                "step": step + 1,
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            checkpoints.save(state, Path(checkpoint))
    return network.eval()


def run(given, output, runs, steps, seed, device, resume, folds, progress, cancelled, board):
    """Train on registered pairs and the phantom, score, cross-validate; see `trainer.train` for the arguments.

    given: its data. output: folder of the weights and the card. runs: that of the checkpoints, one for the network and
    one a fold.
    Returns the scores on the subjects held back, {group: {measure: (mean, standard deviation)}}.
    """
    if steps is not None and steps < FEWEST:
        raise MethodError(f"{steps} steps are too few for medfusion: give {FEWEST} or more.")
    settings = Settings(steps=Settings.steps if steps is None else steps, seed=seed)
    parts = [runs / "medfusion.checkpoint.pt", *(runs / f"medfusion-fold-{n}.checkpoint.pt" for n in range(folds))]
    if not resume:
        for file in parts:
            file.unlink(missing_ok=True)
    progress(0, "reading the slices")
    examples, extra, made = _examples(given, progress)
    subjects = [one.subject for one in examples]
    if folds and not 2 <= folds <= len(set(subjects)):
        raise MethodError(f"{folds} folds of {len(set(subjects))} subjects: give 2 to {len(set(subjects))}, or 0.")

    def fitted(number, unseen, board):
        def tell(fraction, message):
            name = "" if number == 0 else f"fold {number} of {folds}, "
            progress((number + fraction) / len(parts), name + message)

        seen = [one for one in examples + extra if not unseen(one)] + made
        network = train(seen, settings, parts[number], tell, device=device, cancelled=cancelled, board=board).cpu()
        return network, medfusion_card.measure(network, [one for one in examples if unseen(one)])

    network, held_back = fitted(0, lambda one: one.held_back, board)
    weights.save(WEIGHTS, network, output)
    rows = {"held back": held_back}
    of_atlas = dataset.is_atlas(given)
    _write_card(settings, rows, output, of_atlas)
    for number, fold in enumerate(data.folds(subjects, folds) if folds else (), 1):
        _, found = fitted(number, lambda one, fold=fold: one.subject in fold, None)
        rows["cross-validated"] = rows.get("cross-validated", []) + found
    if folds:
        _write_card(settings, rows, output, of_atlas)
    return medfusion_card.scores(held_back)


def _examples(given, progress):
    """(examples by luma, PET and SPECT ones by colour bar, the phantom's). Raises FileError.

    The last two have no targets, and are left out where the first have some.
    """
    examples = data.examples(dataset.pairs(given, progress))
    if len({one.held_back for one in examples}) < 2:
        raise FileError("too little head to see in the slices to train on, or in those held back: add slices.")
    if any(max(one.head.shape) > data.SIZE for one in examples):
        raise FileError(f"slices are larger than {data.SIZE} x {data.SIZE}: resample them.")
    if examples[0].target is not None:
        return examples, [], []
    colored = atlas.pairs(given, scalar=True) if dataset.is_folder(given) else []
    return examples, [one for one in data.examples(colored) if one.group != "CT-MRI"], data.phantom()


def _write_card(settings, rows, folder, of_atlas):
    text = medfusion_card.write(asdict(settings), rows, weights.checksum(folder / WEIGHTS), of_atlas)
    write_text(folder / "medfusion.md", text)
