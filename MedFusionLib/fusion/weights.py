"""Trained weights: `.safetensors` in Resources/, checked against the SHA-256 that the repository records."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from functools import lru_cache
from pathlib import Path

from ..errors import FileError, WeightsError

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
    return _recorded(file.parent).get(file.name)


def _recorded(folder):
    """{file name: SHA-256} of a folder; {} where it records none, or nothing that can be read."""
    try:
        known = json.loads((folder / CHECKSUMS.name).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


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
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{Path(file).name} is not a .safetensors file: train the method again.") from error


def own_folder():
    """Where a user's own weights lie: $MEDFUSION_WEIGHTS, or .medfusion/weights in the home folder."""
    # Absolute: `path` takes a relative file for one of Resources/.
    return Path(os.environ.get("MEDFUSION_WEIGHTS") or Path.home() / ".medfusion" / "weights").absolute()


def own(shipped):
    """[(method name, label, file)] of a user's own weights that can be used.

    shipped: {method name: file name of its weights in Resources/}. A file is called <method>.safetensors (label
    "own") or <method>-<label>.safetensors. It must have the SHA-256 that checksums.json beside it records (`save`
    writes both) and the tensors of the shipped weights; one that has not is left out, and the log says why.
    """
    found = []
    try:
        files = sorted(own_folder().glob("*.safetensors"), key=lambda file: file.stem)
    except (OSError, RuntimeError):  # a user without a home folder, or with somebody else's, as in containers
        files = []
    for file in files:
        method, _, label = file.stem.partition("-")
        label = label or "own"
        try:
            if method not in shipped:
                raise WeightsError(f"{file.name} is for no method with weights: name it <method>-<label>.safetensors.")
            state = file.stat()
            if _digest(file, state.st_size, state.st_mtime_ns) != checksum(file):
                raise WeightsError(f"{file.name} has not the checksum in {CHECKSUMS.name} beside it: train it again.")
            if shapes(file) != shapes(path(shipped[method])):
                raise WeightsError(f"{file.name} does not fit the network of {method}: train it with this version.")
            if any(known[:2] == (method, label) for known in found):
                raise WeightsError(f"{file.name} is {method}-{label} as another file there is: name it otherwise.")
        except (WeightsError, OSError) as error:
            _tell(file, str(error))
            continue
        found.append((method, label, file))
    return found


@lru_cache
def _tell(file, reason):
    # Once, not at every change of a parameter in the panel.
    log.warning("own weights left out: %s", reason)


def load(name, network):
    """Fill a torch module with the weights of a file, after the checksum. Returns it in evaluation mode."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if sha256(name) != checksum(path(name)):
        raise WeightsError(f"the weights {name} are damaged or not those of this version: reinstall MedFusion.")
    try:
        network.load_state_dict(load_file(path(name)))
    except (RuntimeError, SafetensorError) as error:
        raise WeightsError(f"the weights {name} do not fit the network: reinstall MedFusion.") from error
    if not all(value.isfinite().all() for value in network.state_dict().values()):
        raise WeightsError(f"the weights {name} hold NaN or infinite values: train the method again.")
    return network.eval().requires_grad_(False)


def save(name, network, folder=None):
    """Write a torch module's weights to a folder (Resources/) and record their checksum there: both, or neither.

    Raises FileError where they cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from ..files import written_beside

    folder = FOLDER if folder is None else Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    try:
        with written_beside(folder / name) as partial:
            save_file(tensors, partial)
            partial.chmod(0o644)
            known = _recorded(folder) | {name: hashlib.sha256(partial.read_bytes()).hexdigest()}
            text = json.dumps(dict(sorted(known.items())), indent=2) + "\n"
            partial.with_name(CHECKSUMS.name).write_text(text)
    except SafetensorError as error:
        raise FileError(f"the weights {name} cannot be written ({error}): free some space.") from error
