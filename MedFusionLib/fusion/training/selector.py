"""Trains the method selector on measured quality, and writes its weights and its card.

python -m MedFusionLib train selector --data FOLDER
"""

from __future__ import annotations

import hashlib
import logging
import time

import numpy as np
import torch

from ...errors import Cancelled, FileError
from .. import registry, trial, weights
from ..networks.selector_net import MEASURES, METHODS, MODALITIES, OPTIONS, SelectorNet, kinds, relative
from . import checkpoint as checkpoints
from . import dataset
from .card import write_text
from .score import summary

log = logging.getLogger(__name__)

EVERY = 3
"""One slice in so many: neighbours tell the same."""

KEEP_EVERY = 10
"""Pairs that an interrupted measuring may lose."""

RIDGE, KIND = 3.0, 1.0
"""Penalty on the coefficients, and what the biases by modality count beside the general ones."""


def measured(pairs, checkpoint=None, progress=None, cancelled=None):
    """What `fit` learns from, of `atlas.Pair`s, and the median seconds that a trial took.

    (trials (N, options, measures), kinds (N, MODALITIES), quality (N, options, measures)), NaN where there is none.
    checkpoint: a file that keeps what is measured; a later call with the same pairs and methods goes on from it.
    progress(fraction, message). cancelled() -> bool, asked before every pair. Raises Cancelled.
    """
    device = torch.device("cpu")
    fusers = {name: registry.load(name, device) for name in (*METHODS, "maximum")}
    trials, quality, seconds = [], [], []
    made_of = _digest(pairs)
    state = checkpoints.load(checkpoint) if checkpoint else None
    if state and state["made_of"] == made_of:
        trials, quality = (list(state[name].numpy()) for name in ("trials", "quality"))
        seconds = state["seconds"]
    elif state:
        log.warning("%s is of other slices, methods or measures: the measuring begins afresh.", checkpoint.name)
    for done, pair in enumerate(pairs[len(trials) :], len(trials) + 1):
        if cancelled and cancelled():
            raise Cancelled("Cancelled: what is measured is kept, training goes on from there.")
        sources = torch.from_numpy(pair.images)
        with torch.inference_mode():
            start = time.perf_counter()
            trials.append(trial.measured(fusers, trial.sample(sources[:, None]), pair.modalities, device))
            seconds.append(time.perf_counter() - start)
            images = trial.options(fusers, sources[None], pair.modalities)
            quality.append(np.array([trial.scores(pair.images, one[0].numpy(), pair.modalities) for one in images]))
        if progress:
            progress(done / len(pairs), f"measured {done} of {len(pairs)} pairs")
        if checkpoint and (done % KEEP_EVERY == 0 or done == len(pairs)):
            arrays = {"trials": torch.from_numpy(np.array(trials)), "quality": torch.from_numpy(np.array(quality))}
            checkpoints.save({"made_of": made_of, "seconds": seconds, **arrays}, checkpoint)
    kind = np.array([kinds(pair.modalities).numpy() for pair in pairs])
    return (np.array(trials), kind, np.array(quality)), float(np.median(seconds))


def _digest(pairs):
    """What measured quality depends on: measures, images and the weights of the methods, as a hexadecimal SHA-256."""
    found = hashlib.sha256(" ".join(MEASURES).encode())
    for name in METHODS:
        found.update(registry.weights_hash(registry.find(name)).encode())
    for pair in pairs:
        found.update(pair.images.tobytes())
    return found.hexdigest()


def gains(quality, spread):
    """(N, options): the mean over the measures of the gain over the pair's mean option, in units of `spread`."""
    return trial.mean((quality - quality.mean(1, keepdims=True)) / spread, 2)


def spread_of(quality):
    """(measures,): the standard deviation of each measure between the options of a pair; 1 where there is none."""
    between = np.sqrt(trial.mean((quality - quality.mean(1, keepdims=True)) ** 2, (0, 1)))
    return np.where(between > 1e-6, between, 1)


def fit(trials, kind, gain, subjects):
    """A `SelectorNet` by ridge regression of the gains (N, options); every one of the `subjects` (N,) has one voice."""
    network = SelectorNet()
    scale = spread_of(trials)
    inputs = relative(torch.from_numpy(trials)).numpy() / scale
    general = np.broadcast_to(np.eye(len(OPTIONS)), (*gain.shape, len(OPTIONS)))
    by_kind = [KIND * kind[:, n, None, None] * general for n in range(len(MODALITIES))]
    inputs = np.concatenate([inputs, general, *by_kind], 2)
    # Only differences between the options of a pair count.
    inputs = inputs - inputs.mean(1, keepdims=True)
    voice = 1 / np.array([np.sum(subjects == one) for one in subjects])
    voice = voice / voice.mean()
    products = np.einsum("n,nof,nog->fg", voice, inputs, inputs)
    found = np.linalg.solve(products + RIDGE * np.eye(len(products)), np.einsum("n,nof,no->f", voice, inputs, gain))
    slope, bias, kind_bias = np.split(found, [len(MEASURES), len(MEASURES) + len(OPTIONS)])
    with torch.no_grad():
        network.scale.copy_(torch.from_numpy(scale))
        network.slope.copy_(torch.from_numpy(slope))
        network.bias.copy_(torch.from_numpy(bias))
        network.kind_bias.copy_(torch.from_numpy(KIND * kind_bias).view(len(MODALITIES), -1))
    return network.eval().requires_grad_(False)


def choose(network, trials, kind):
    """(N,) indices of `OPTIONS`."""
    return network(torch.from_numpy(trials).float(), torch.from_numpy(kind)).argmax(1).numpy()


def cross_validated(data, subjects):
    """(gains (N, options), selector's choice (N,), single option (N,)), each subject judged by what the others taught.

    data: `measured`'s. subjects: (N,) folds. The single option is the one best on the others.
    """
    gain = np.empty(data[2].shape[:2])
    chosen, single = np.empty(len(gain), int), np.empty(len(gain), int)
    for subject in np.unique(subjects):
        unseen = subjects == subject
        trials, kind, quality = (part[~unseen] for part in data)
        spread = spread_of(quality)
        known = gains(quality, spread)
        network = fit(trials, kind, known, subjects[~unseen])
        gain[unseen] = gains(data[2][unseen], spread)
        chosen[unseen] = choose(network, data[0][unseen], data[1][unseen])
        single[unseen] = known.mean(0).argmax()
    return gain, chosen, single


def lost(gain, chosen):
    """(N,): the gain that the choice (N,) leaves to the oracle, which knows the best option of each pair."""
    return gain.max(1) - gain[np.arange(len(gain)), chosen]


def volumes(data, members):
    """`measured`'s data of volumes instead of slices: the slices that `members` (N,) of one name share."""
    trials, kind, quality = data
    parts = [np.flatnonzero(members == one) for one in dict.fromkeys(members)]
    return (
        np.stack([trial.mean(trials[part[trial.spread(len(part))]], 0) for part in parts]),
        np.stack([kind[part[0]] for part in parts]),
        np.stack([trial.mean(quality[part], 0) for part in parts]),
    )


def stacks(found):
    """(N,) names of the volumes that `atlas.Pair`s belong to: group, a blank, subject."""
    return np.array([f"{pair.group} {pair.subject}" for pair in found])


def run(data, output, runs, resume, progress, cancelled):
    """Measure registered pairs, fit, score, write weights and card; see `trainer.train` for the arguments.

    output: folder of the weights and the card. runs: that of the checkpoint.
    Returns the scores of its choices on the subjects held back, {group: {measure: (mean, standard deviation)}}.
    """
    from .selector_card import card

    found = dataset.pairs(data, progress)[::EVERY]
    seen = np.array([not pair.held_back for pair in found])
    if seen.all() or not seen.any() or len({pair.subject for pair in found}) < 2:
        raise FileError(f"one slice in {EVERY} is used: too few of the subjects to learn from, or of those held back.")
    checkpoint = runs / "selector.checkpoint.pt"
    if not resume:
        checkpoint.unlink(missing_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures, seconds = measured(found, checkpoint, progress, cancelled)
    finally:
        torch.set_num_threads(threads)
    trials, kind, quality = (part[seen] for part in figures)
    network = fit(trials, kind, gains(quality, spread_of(quality)), stacks(found)[seen])
    text = card(figures, found, seen, network, seconds, dataset.is_atlas(data))
    weights.save("selector.safetensors", network, output)
    write_text(output / "selector.md", text)
    return _scores(network, figures, found, ~seen)


def _scores(network, data, found, unseen):
    """{group: {measure: (mean, standard deviation)}} of what the network chooses for the unseen (N,) pairs."""
    places = np.flatnonzero(unseen)
    quality = data[2][places, choose(network, data[0][places], data[1][places])]
    scores = {}
    for group in dict.fromkeys(found[n].group for n in places):
        columns = quality[[found[n].group == group for n in places]].T
        scores[group] = summary(dict(zip(MEASURES, columns, strict=True)))
    return scores
