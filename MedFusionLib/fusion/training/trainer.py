"""Trains a method: resumable; by a recipe also in mixed precision on GPUs and in several processes by torchrun."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ... import device as devices
from ...errors import Cancelled, FileError, MethodError
from .. import weights
from . import checkpoint as checkpoints
from . import dataset
from .card import write_card
from .recipes import RECIPES
from .score import score, score_stacks

log = logging.getLogger(__name__)

COUNTED = {"medfusion": "steps", "selector": None}
"""Methods with a way of training of their own, and what counts its length; all others train by epochs of a recipe."""


@dataclass(frozen=True)
class Training:
    """What `train` answers.

    weights, card: the files. scores: {group: {measure: (mean, spread)}}. loss: the last epoch's, NaN without epochs.
    """

    weights: Path
    card: Path
    scores: dict
    loss: float = float("nan")


class _Step(torch.nn.Module):
    """The loss as a forward pass, so that several processes average its gradients."""

    def __init__(self, network, loss):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, *batch):
        return self.loss(self.network, *batch)


def train(
    method,
    data,
    output=None,
    epochs=None,
    seed=0,
    device="auto",
    resume=True,
    progress=None,
    cancelled=None,
    steps=None,
    folds=0,
):
    """Train a method on registered pairs and score it on the subjects held back.

    method: a name in `recipes.RECIPES` or `COUNTED`. data: the atlas's folder, or subjects with volumes, see `dataset`.
    output: folder for weights, card, checkpoint and TensorBoard log; None: the project's Resources/, or of volumes
    `weights.own_folder()`, with checkpoint and log in runs/<method>/. epochs: of a recipe; steps: of medfusion; None:
    as many as the shipped weights had. The selector is fitted in one go, to quality that it measures first; its result
    depends on neither seed nor device.
    resume: go on from the checkpoint of the same method and seed, if there is one.
    progress(fraction, message). cancelled() -> bool, asked before every step; the last checkpoint stays on disk.
    folds: of medfusion's cross-validation by subject, each a training of its own; 0: none.

    Under torchrun every process trains a recipe on its own share and the first one writes; the others get None.
    Returns a `Training`. Raises MethodError, FileError, DeviceError, Cancelled.
    """
    require_settings(method, epochs, steps, folds)
    dataset.require_split(data)
    own = weights.FOLDER if dataset.is_folder(data) else weights.own_folder()
    folder = own if output is None else Path(output)
    runs = Path("runs") / method if output is None else folder
    say = progress or (lambda fraction, message: None)
    try:
        for place in (folder, runs):
            place.mkdir(parents=True, exist_ok=True)
        if method == "selector":
            from . import selector

            scores = selector.run(data, folder, runs, resume, say, cancelled)
        elif method == "medfusion":
            from . import medfusion_training

            chosen, board = devices.choose(device), _board(runs, method)
            more = (steps, seed, chosen, resume, folds, say, cancelled, board)
            scores = medfusion_training.run(data, folder, runs, *more)
            if board:
                board.close()
        else:
            return _by_recipe(method, data, folder, runs, epochs, seed, device, resume, say, cancelled)
        return Training(folder / f"{method}.safetensors", folder / f"{method}.md", scores)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"the training of {method} cannot write its files: {error.strerror}. Free some space."
        ) from error


def require_settings(method, epochs, steps, folds):
    """Raise MethodError for what is wrong with `train`'s arguments whatever the data are."""
    if method not in RECIPES and method not in COUNTED:
        raise MethodError(f"{method!r} has nothing to train here: choose one of {', '.join((*COUNTED, *RECIPES))}.")
    counted = COUNTED.get(method, "epochs")
    for name, count in (("epochs", epochs), ("steps", steps)):
        if count is not None and name != counted:
            instead = f"give {counted}" if counted else "it is fitted in one go"
            raise MethodError(f"{method} does not train by {name}: {instead}.")
        if count is not None and count < 1:
            raise MethodError(f"{count} {name} train nothing: give 1 or more.")
    if folds and method != "medfusion":
        raise MethodError(f"{method} is not cross-validated in folds: leave them out.")
    if method in COUNTED and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise MethodError(f"{method} trains in one process: start it without torchrun.")


def _by_recipe(method, data, folder, runs, epochs, seed, device, resume, progress, cancelled):
    recipe = RECIPES[method]
    epochs = recipe.epochs if epochs is None else epochs
    rank, processes = _join(device)
    try:
        chosen = devices.choose(device)
        if processes > 1 and chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        everyone = dataset.pairs(data, progress if rank == 0 else None)
        seen, held = ([pair for pair in everyone if pair.held_back == part] for part in (False, True))
        if everyone[0].target is not None and not recipe.targets:
            log.warning("%s does not learn from targets: they are left out.", method)
        if recipe.volumes:
            # What the data lacks for it is told before the first stage has taken its time.
            recipe.volumes.batch(seen, torch.Generator(), recipe.volumes.size)
        torch.manual_seed(seed)
        network = recipe.network().to(chosen)
        last = _fit(
            method, recipe, network, seen, runs, epochs, seed, chosen, resume, progress, cancelled, rank, processes
        )
        if rank:
            return None
        name = f"{method}.safetensors"
        weights.save(name, network, folder)
        scores = score(method, network.cpu().eval(), held)
        stacks = score_stacks(method, network, held) if recipe.volumes else None
        card = write_card(method, recipe, folder, epochs, seed, scores, data, seen, held, stacks)
        return Training(folder / name, card, scores, last)
    finally:
        if processes > 1:
            dist.destroy_process_group()


def _join(device):
    """(rank, number of processes); joins torchrun's group where there is one."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1:
        return 0, 1
    dist.init_process_group("nccl" if torch.cuda.is_available() and device != "cpu" else "gloo")
    return dist.get_rank(), processes


def _fit(method, recipe, network, seen, runs, epochs, seed, device, resume, progress, cancelled, rank, processes):
    stages = [replace(recipe, epochs=epochs), *([recipe.volumes] if recipe.volumes else [])]
    total = sum(stage.epochs for stage in stages)
    checkpoint = runs / f"{method}.checkpoint.pt"
    begin, start, last = 0, 0, float("nan")
    state = checkpoints.load(checkpoint, device) if resume else None
    of_this = {"seed": seed, "data": dataset.digest(seen)}
    same = state and all(state.get(name) == value for name, value in of_this.items())
    same = same and checkpoints.fits(state, network)
    # Of another length, a training whose second stage has not begun can go on.
    if same and (state["total"] == total or state["epochs"] <= min(epochs, epochs + state["total"] - total)):
        network.load_state_dict(state["network"])
        start, last = state["epochs"], state["loss"]
    elif state:
        log.warning(
            "%s is of other data, another seed or version, or more epochs: the training begins afresh.", checkpoint.name
        )
    if start == 0 and recipe.pretrain:
        recipe.pretrain(network, seen, seed)
    board = _board(runs, method) if rank == 0 else None
    half = device.type == "cuda"
    for stage in stages:
        network.requires_grad_(False)
        learning = list(stage.learns(network))
        for parameter in learning:
            parameter.requires_grad_(True)
        optimizer = torch.optim.Adam(learning, stage.rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, stage.every, stage.decay)
        scaler = torch.amp.GradScaler(enabled=half)
        if begin < start < begin + stage.epochs:
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            scaler.load_state_dict(state.get("scaler", {}) or scaler.state_dict())
        step = _Step(network, stage.loss)
        if processes > 1:
            # A batch need not use all of a network: the branches of modalities that are not in it have no gradient.
            step = DistributedDataParallel(step, find_unused_parameters=True)
        for epoch in range(max(start, begin), begin + stage.epochs):
            summed = 0.0
            for number in range(stage.steps):
                if cancelled and cancelled():
                    raise Cancelled("Cancelled: the last full epoch is kept, training goes on from there.")
                # Each step has its own stream: a resumed run sees what an unbroken one would have seen.
                draw = (((seed * 10007 + epoch) * 10007) + number) * 64 + rank
                batch = stage.batch(seen, torch.Generator().manual_seed(draw), stage.size)
                with torch.autocast(device.type, enabled=half):
                    loss = step(*(part.to(device) for part in batch))
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                summed += float(loss.detach())
                if progress and rank == 0:
                    done = (epoch + (number + 1) / stage.steps) / total
                    progress(done, f"epoch {epoch + 1} of {total}: loss {summed / (number + 1):.4f}")
            schedule.step()
            last = summed / stage.steps
            log.info("epoch %d of %d: loss %.4f", epoch + 1, total, last)
            if rank == 0:
                if board:
                    board.add_scalar("loss", last, epoch + 1)
                    board.add_scalar("rate", schedule.get_last_lr()[0], epoch + 1)
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"schedule": schedule.state_dict(), "scaler": scaler.state_dict()}
                state |= {"epochs": epoch + 1, "total": total}
                checkpoints.save(state | of_this | {"loss": last}, checkpoint)
        begin += stage.epochs
    if board:
        board.close()
    return last


def _board(runs, method):
    """TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no TensorBoard log: pip install MedFusion[train] brings it.")
        return None
    return SummaryWriter(runs / "tensorboard" / method)
