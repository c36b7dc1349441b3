"""The Python packages that MedFusion needs: which are missing here, and how Slicer gets them.

They are declared once, in pyproject.toml, which lies beside this package in a checkout and in Slicer's extension.
"""

from __future__ import annotations

import importlib
import io
import sys
import tempfile
import threading
import tomllib
from contextlib import nullcontext, redirect_stdout
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError

from .errors import InstallError

try:
    from packaging.requirements import Requirement
except ImportError:  # Slicer 5.10 has it inside pip alone
    from pip._vendor.packaging.requirements import Requirement

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"

SLICERS_OWN = ("numpy", "vtk", "SimpleITK", "pydicom", "scipy")
"""What Slicer brings, built for itself: taken as it is, never replaced."""


def requirements():
    """list of `packaging` Requirements: what the engine imports."""
    if PYPROJECT.is_file():
        declared = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        declared = metadata.requires("MedFusion") or []
    parsed = map(Requirement, declared)
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]


def missing():
    """Requirements that are not met here, as text ("monai>=1.5"). Reads the packages' metadata and imports none."""
    importlib.invalidate_caches()
    return [str(requirement) for requirement in requirements() if not _is_met(requirement)]


def install(consent=None, progress=None):
    """Install what is `missing` into Slicer's Python, once the user agrees; whether everything is there now.

    consent(names) -> bool is asked before anything is downloaded; None: by Slicer's dialog. progress(line) is called
    with every line that pip says, as Slicer prints it. torch comes from the PyTorch extension where that is installed,
    which chooses the build for the graphics card.

    Raises InstallError if packages are missing afterwards.
    """
    lacking = missing()
    if not lacking:
        return True
    if not (consent or _ask)(lacking):
        return False
    told = redirect_stdout(_Teller(sys.stdout, progress)) if progress else nullcontext()
    with tempfile.TemporaryDirectory() as folder, told:
        try:
            # Before the others: monai and torchmetrics would pull a build that Slicer's user did not choose.
            for name in [one for one in lacking if Requirement(one).name == "torch"]:
                _install_torch(name, folder)
                lacking.remove(name)
            if lacking:
                _pip(lacking, folder)
        except CalledProcessError as error:
            raise InstallError(
                f"pip could not install {', '.join(lacking)} (exit code {error.returncode}): see Slicer's log for its"
                " words, and check the network and the free disk space."
            ) from error
        except Exception as error:
            # Of the PyTorch extension, which imports what it has installed and calls what Slicer says is going, or of
            # Slicer: it is installing already, or finds no version of what an interrupted installation left.
            raise InstallError(
                f"{', '.join(lacking)} could not be installed ({error}): restart Slicer and try again."
            ) from error
    lacking = missing()
    if lacking:
        raise InstallError(f"These packages are still missing: {', '.join(lacking)}. Restart Slicer and try again.")
    return True


class _Teller(io.TextIOBase):
    """A stream that hands on what is printed, and tells of it line by line, but not of what other threads print."""

    def __init__(self, stream, tell):
        self._stream, self._tell, self._begun = stream, tell, ""
        self._thread = threading.get_ident()

    def write(self, text):
        self._stream.write(text)
        if threading.get_ident() != self._thread:
            return len(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._tell(line.strip())
        return len(text)

    def flush(self):
        self._stream.flush()


def _is_met(requirement):
    if requirement.name in SLICERS_OWN and find_spec(requirement.name):
        return True
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _version(name):
    """The version of an installed package; None without one, or where an interrupted installation left only a part."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError):
        return None


def _install_torch(requirement, folder):
    try:
        from PyTorchUtils import PyTorchUtilsLogic
    except ImportError:
        _pip([requirement], folder)
    else:
        wanted = str(Requirement(requirement).specifier)
        PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=wanted)


def _pip(names, folder):
    import slicer

    constraints = Path(folder) / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in pinned()))
    try:
        from slicer.packaging import pip_ensure
    except ImportError:  # before Slicer 5.12
        slicer.util.pip_install(["--constraint", str(constraints), *names])
    else:
        pip_ensure(names, constraints=constraints, prompt_install=False, requester="MedFusion")


def pinned():
    """pip constraints that hold what Slicer brings, and an installed torch, at their present versions."""
    present = {name: _version(name) for name in (*SLICERS_OWN, "torch")}
    return [f"{name}=={version}" for name, version in present.items() if version]


def _ask(names):
    import slicer

    listed = "\n".join(f"  {name}" for name in names)
    torch = any(Requirement(name).name == "torch" for name in names)
    size = " PyTorch may take several gigabytes." if torch else ""
    return slicer.util.confirmOkCancelDisplay(
        f"MedFusion needs these Python packages. They are downloaded from the Python Package Index and installed into"
        f" Slicer's Python:{size}\n\n{listed}",
        windowTitle="MedFusion: install Python packages",
    )
