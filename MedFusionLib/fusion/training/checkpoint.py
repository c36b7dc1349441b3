"""Checkpoints of a training: tensors and plain numbers, written beside and moved into place."""

from __future__ import annotations

from pickle import UnpicklingError

import torch

from ...errors import FileError


def load(file, device="cpu"):
    """The state that `save` left in a file, its tensors on a device; None where there is none.

    Nothing in the file can run. Raises FileError for a damaged one.
    """
    if not file.is_file():
        return None
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise FileError(f"the checkpoint {file.name} is damaged: delete it, or train afresh.") from error


def save(state, file):
    """Write a dict of tensors, numbers and strings; what was there stays until it is complete."""
    beside = file.with_suffix(".part")
    torch.save(state, beside)
    beside.replace(file)
