"""What a bare import may cost, and what must stay out of Slicer's own process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def loaded(code):
    """Top-level packages that are loaded after `code`, in a fresh interpreter."""
    code += "\nimport sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    (
        "import MedFusionLib",
        "import MedFusionLib as mf; mf.Volume, mf.Request, mf.Result, mf.MedFusionError, mf.methods, mf.Registration",
        "import MedFusionLib as mf; mf.lean, mf.fuse",
        "import MedFusionLib.normalize, MedFusionLib.worker, MedFusionLib.files, MedFusionLib.fusion.registry",
        "import MedFusionLib.cli",
    ),
)
def test_no_torch(code):
    assert not loaded(code) & {"torch", "monai", "skimage", "torchmetrics"}


def test_the_package_alone_loads_nothing_heavy():
    assert not loaded("import MedFusionLib") & {"numpy", "SimpleITK", "torch", "scipy", "slicer"}


def test_every_public_name_is_there():
    import MedFusionLib

    for name in MedFusionLib.__all__:
        assert getattr(MedFusionLib, name) is not None
    assert set(MedFusionLib.__all__) <= set(dir(MedFusionLib))
    with pytest.raises(AttributeError, match="no attribute 'fusee'"):
        _ = MedFusionLib.fusee
