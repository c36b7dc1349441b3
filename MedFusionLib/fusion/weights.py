"""Trained weights: `.safetensors` in Resources/, checked against the SHA-256 that the repository records."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ..errors import WeightsError

FOLDER = Path(__file__).resolve().parents[2] / "Resources"
CHECKSUMS = FOLDER / "checksums.json"
"""{file name: SHA-256}; written by the training code."""


def path(name):
    """The weight file. Raises WeightsError if it is absent."""
    file = FOLDER / name
    if not file.is_file():
        raise WeightsError(f"the weights {name} are missing from {FOLDER.name}/: reinstall MedFusion or train them.")
    return file


def sha256(name):
    """Hexadecimal SHA-256 of a weight file's bytes."""
    return hashlib.sha256(path(name).read_bytes()).hexdigest()


def load(name, network):
    """Fill a torch module with the weights of a file, after the checksum. Returns it in evaluation mode."""
    from safetensors.torch import load_file

    if sha256(name) != json.loads(CHECKSUMS.read_text()).get(name):
        raise WeightsError(f"the weights {name} are damaged or not those of this version: reinstall MedFusion.")
    try:
        network.load_state_dict(load_file(path(name)))
    except RuntimeError as error:
        raise WeightsError(f"the weights {name} do not fit the network: reinstall MedFusion.") from error
    return network.eval().requires_grad_(False)


def save(name, network, folder=None):
    """Write a torch module's weights to a folder (Resources/) and record their checksum there."""
    from safetensors.torch import save_file

    folder = FOLDER if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    beside = folder / f"{name}.part"
    save_file(tensors, beside)
    beside.replace(folder / name)
    checksums = folder / CHECKSUMS.name
    known = json.loads(checksums.read_text()) if checksums.exists() else {}
    known[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    checksums.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
