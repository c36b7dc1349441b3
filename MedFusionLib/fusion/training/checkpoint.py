"""Checkpoints of a training: tensors and plain numbers, written beside and moved into place."""

from __future__ import annotations

from pickle import UnpicklingError

import torch

from ...errors import FileError
from ...files import written_beside


def load(file, device="cpu"):
    """The state that `save` left in a file, its tensors on a device; None where there is none.

    Nothing in the file can run. Raises FileError for a damaged one.
    """
    if not file.is_file():
        return None
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        if not isinstance(state, dict):
            raise ValueError
        return state
    # What the unpickler meets in bytes that are no pickle it tells by any of these.
    except (RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, UnpicklingError) as error:
        raise FileError(f"the checkpoint {file.name} is damaged: delete it, or train afresh.") from error


def save(state, file):
    """Write a dict of tensors, numbers and strings; what was there stays until it is complete.

    Raises FileError where it cannot be written.
    """
    try:
        with written_beside(file) as partial:
            torch.save(state, partial)
    except RuntimeError as error:
        # torch's answer to a full disk.
        raise FileError(f"the checkpoint {file.name} cannot be written: free some space.") from error


def fits(state, network):
    """Whether a state's "network" is of a module like this one: another version's may have other layers."""
    held = state.get("network")
    return isinstance(held, dict) and _shapes(held) == _shapes(network.state_dict())


def _shapes(tensors):
    return {name: tuple(value.shape) for name, value in tensors.items()}
