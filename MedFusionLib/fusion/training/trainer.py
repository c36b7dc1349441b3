"""Trains a network by its recipe: resumable, mixed precision on GPUs, several processes by torchrun."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ... import device as devices
from ...errors import Cancelled, FileError, MethodError
from .. import weights
from . import atlas
from .card import write_card
from .recipes import RECIPES
from .score import score

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What `train` answers. weights, card: the files; scores: {group: {measure: (mean, spread)}}; loss: the last."""

    weights: Path
    card: Path
    scores: dict
    loss: float


class _Step(torch.nn.Module):
    """The loss as a forward pass, so that several processes average its gradients."""

    def __init__(self, network, loss):
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, *batch):
        return self.loss(self.network, *batch)


def train(method, data, output=None, epochs=None, seed=0, device="auto", resume=True, progress=None, cancelled=None):
    """Train a method's network on the pairs below a folder and score it on the subjects held back.

    method: a name in `recipes.RECIPES`. data: the atlas folder, see `atlas`. output: folder for weights, card,
    checkpoint and TensorBoard log; None: the project's Resources/, checkpoint and log in runs/<method>/.
    epochs: None: the recipe's. resume: go on from the checkpoint of the same method and seed, if there is one.
    progress(fraction, message). cancelled() -> bool, asked before every step; the last epoch stays on disk.

    Under torchrun every process trains on its own share and the first one writes. Returns a `Training`.
    Raises MethodError, FileError, DeviceError, Cancelled.
    """
    if method not in RECIPES:
        raise MethodError(f"{method!r} has nothing to train here: choose one of {', '.join(RECIPES)}.")
    recipe = RECIPES[method]
    epochs = recipe.epochs if epochs is None else epochs
    if epochs < 1:
        raise MethodError(f"{epochs} epochs train nothing: give 1 or more.")
    rank, processes = _join(device)
    try:
        chosen = devices.choose(device)
        if processes > 1 and chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        seen = atlas.pairs(data, held_back=False)
        folder = weights.FOLDER if output is None else Path(output)
        runs = Path("runs") / method if output is None else folder
        runs.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        network = recipe.network().to(chosen)
        last = _fit(recipe, network, seen, runs, epochs, seed, chosen, resume, progress, cancelled, rank, processes)
        if rank:
            return None
        name = f"{method}.safetensors"
        if output is None:
            weights.save(name, network)
        else:
            weights.save(name, network, folder)
        scores = score(method, network.cpu().eval(), atlas.pairs(data, held_back=True))
        card = write_card(method, recipe, folder, epochs, seed, scores, seen)
        return Training(folder / name, card, scores, last)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"the training of {method} cannot write its files: {error.strerror}. Free some space."
        ) from error
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


def _fit(recipe, network, seen, runs, epochs, seed, device, resume, progress, cancelled, rank, processes):
    optimizer = torch.optim.Adam(network.parameters(), recipe.rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, recipe.every, recipe.decay)
    checkpoint = runs / "checkpoint.pt"
    start, last = 0, float("nan")
    if resume and checkpoint.is_file():
        # Tensors and plain numbers only: nothing in the file can run.
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["seed"] == seed and state["epochs"] <= epochs:
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            start, last = state["epochs"], state["loss"]
    if start == 0 and recipe.pretrain:
        recipe.pretrain(network, seen, seed)
    step = _Step(network, recipe.loss)
    if processes > 1:
        step = DistributedDataParallel(step)
    board = _board(runs) if rank == 0 else None
    half = device.type == "cuda"
    scaler = torch.amp.GradScaler(enabled=half)
    for epoch in range(start, epochs):
        total = 0.0
        for number in range(recipe.steps):
            if cancelled and cancelled():
                raise Cancelled("Cancelled: the last full epoch is kept, training goes on from there.")
            # Each step has its own stream: a resumed run sees what an unbroken one would have seen.
            draw = (((seed * 10007 + epoch) * 10007) + number) * 64 + rank
            batch = recipe.batch(seen, torch.Generator().manual_seed(draw), recipe.size)
            with torch.autocast(device.type, enabled=half):
                loss = step(*(part.to(device) for part in batch))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += float(loss.detach())
            if progress and rank == 0:
                done = (epoch * recipe.steps + number + 1) / (epochs * recipe.steps)
                progress(done, f"epoch {epoch + 1} of {epochs}: loss {total / (number + 1):.4f}")
        schedule.step()
        last = total / recipe.steps
        log.info("epoch %d of %d: loss %.4f", epoch + 1, epochs, last)
        if rank == 0:
            if board:
                board.add_scalar("loss", last, epoch + 1)
                board.add_scalar("rate", schedule.get_last_lr()[0], epoch + 1)
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"schedule": schedule.state_dict(), "epochs": epoch + 1, "seed": seed, "loss": last}
            beside = checkpoint.with_suffix(".part")
            torch.save(state, beside)
            beside.replace(checkpoint)
    if board:
        board.close()
    return last


def _board(runs):
    """TensorBoard's writer, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.warning("no TensorBoard log: pip install MedFusion[train] brings it.")
        return None
    return SummaryWriter(runs / "tensorboard")
