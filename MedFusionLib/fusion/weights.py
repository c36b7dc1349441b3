"""Trained weights: `.safetensors` in Resources/, checked against the SHA-256 that the repository records."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from functools import lru_cache
from pathlib import Path

from ..errors import WeightsError

log = logging.getLogger(__name__)

_ENGINE = Path(__file__).resolve().parents[1]

FOLDER = (_ENGINE if (_ENGINE / "Resources").is_dir() else _ENGINE.parent) / "Resources"
"""Inside the engine in a wheel; beside it in a checkout and in Slicer's extension."""

CHECKSUMS = FOLDER / "checksums.json"
"""{file name: SHA-256}; written by the training code."""

MOST_HEADER = 2**24


def path(name):
    """The weight file. Raises WeightsError if it is absent."""
    file = FOLDER / name
    if not file.is_file():
        raise WeightsError(f"the weights {name} are missing from {FOLDER.name}/: reinstall MedFusion or train them.")
    return file


def sha256(name):
    """Hexadecimal SHA-256 of a weight file's bytes."""
    return hashlib.sha256(path(name).read_bytes()).hexdigest()


def checksum(file):
    """The SHA-256 that the folder of a weight file records for it, or None."""
    try:
        return json.loads((file.parent / CHECKSUMS.name).read_text()).get(file.name)
    except (OSError, ValueError):
        return None


@lru_cache
def _digest(file, size, modified):
    # The panel asks for the methods at every change of a parameter: a file is read again only when it changed.
    return hashlib.sha256(file.read_bytes()).hexdigest()


def shapes(file):
    """{tensor name: shape} from the header of a .safetensors file; nothing of it is run and no torch is needed.

    Raises WeightsError for a file that is none.
    """
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MOST_HEADER:
                raise ValueError
            header = json.loads(stream.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{Path(file).name} is not a .safetensors file: train the method again.") from error


def own_folder():
    """Where a user's own weights lie: $MEDFUSION_WEIGHTS, or .medfusion/weights in the home folder."""
    return Path(os.environ.get("MEDFUSION_WEIGHTS") or Path.home() / ".medfusion" / "weights")


def own(shipped):
    """[(method name, label, file)] of a user's own weights that can be used.

    shipped: {method name: file name of its weights in Resources/}. A file is called <method>.safetensors (label
    "own") or <method>-<label>.safetensors. It must have the SHA-256 that checksums.json beside it records (`save`
    writes both) and the tensors of the shipped weights; one that has not is left out, and the log says why.
    """
    found = []
    try:
        files = sorted(own_folder().glob("*.safetensors"))
    except (OSError, RuntimeError):  # a user without a home folder, or with somebody else's, as in containers
        files = []
    for file in files:
        method, _, label = file.stem.partition("-")
        try:
            if method not in shipped:
                raise WeightsError(f"{file.name} is for no method with weights: name it <method>-<label>.safetensors.")
            state = file.stat()
            if _digest(file, state.st_size, state.st_mtime_ns) != checksum(file):
                raise WeightsError(f"{file.name} has not the checksum in {CHECKSUMS.name} beside it: train it again.")
            if shapes(file) != shapes(path(shipped[method])):
                raise WeightsError(f"{file.name} does not fit the network of {method}: train it with this version.")
        except (WeightsError, OSError) as error:
            _tell(file, str(error))
            continue
        found.append((method, label or "own", file))
    return found


@lru_cache
def _tell(file, reason):
    # Once, not at every change of a parameter in the panel.
    log.warning("own weights left out: %s", reason)


def load(name, network):
    """Fill a torch module with the weights of a file, after the checksum. Returns it in evaluation mode."""
    from safetensors.torch import load_file

    if sha256(name) != checksum(path(name)):
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
    beside.chmod(0o644)
    beside.replace(folder / name)
    checksums = folder / CHECKSUMS.name
    known = json.loads(checksums.read_text()) if checksums.exists() else {}
    known[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    checksums.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n")
