"""The extension's CMake files and the wheel, made for real: what they hold, and that it works from there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from MedFusionLib import read_volume, write_volume
from MedFusionLib.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
MODULES = "lib/Slicer-5.10/qt-scripted-modules"
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")

HIDDEN = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "*-output", "runs")


def expected():
    """Relative paths that the extension must hold, beside each other, from the files of this tree."""
    engine = [path for path in (ROOT / "MedFusionLib").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    weights = [path for kind in ("safetensors", "json", "md") for path in (ROOT / "Resources").rglob(f"*.{kind}")]
    outer = {path.relative_to(ROOT).as_posix() for path in [*engine, *weights, ROOT / "pyproject.toml"]}
    module = ROOT / "MedFusion"
    inner = [module / "MedFusion.py", *(path for path in (module / "Resources").rglob("*") if path.is_file())]
    return outer | {path.relative_to(module).as_posix() for path in inner}


def held(folder, base=None):
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(base or folder).as_posix() for path in files}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """(build tree, install tree) of the extension, by a copy of its sources and the stand-in for Slicer."""
    if CMAKE is None:
        pytest.skip("needs cmake: pip install .[test]")
    base = tmp_path_factory.mktemp("extension")
    source = base / "source"
    shutil.copytree(ROOT, source, ignore=HIDDEN)
    settings = {"Slicer_DIR": ROOT / "Testing/CMake", "CMAKE_INSTALL_PREFIX": base / "install", "BUILD_TESTING": "ON"}
    # A scripted extension compiles nothing: no compiler is looked for.
    for language in ("C", "CXX"):
        settings |= {f"CMAKE_{language}_COMPILER": sys.executable, f"CMAKE_{language}_COMPILER_FORCED": "ON"}
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    for command in (
        [CMAKE, "-S", source, "-B", base / "build", *defines],
        [CMAKE, "--build", base / "build"],
        [CMAKE, "--install", base / "build"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return base / "build" / MODULES, base / "install" / MODULES


def test_trees_hold_every_file(trees):
    for tree in trees:
        assert held(tree) == expected()


def test_engine_imports_from_each_tree(trees):
    for tree in trees:
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "import MedFusionLib\n"
            "from MedFusionLib import install, worker\n"
            "from MedFusionLib.fusion import weights\n"
            "assert MedFusionLib.__file__.startswith(sys.argv[1])\n"
            "assert weights.FOLDER.parent.samefile(sys.argv[1])\n"
            "assert 'monai' in [requirement.name for requirement in install.requirements()]\n"
            "assert 'torch' not in sys.modules\n"
        )
        command = [sys.executable, "-P", "-c", code, str(tree)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tree.parent, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that the wheel of a copy of this tree was installed into."""
    base = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, base / "source", ignore=HIDDEN)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    for command in (
        [*pip, "wheel", *offline, "--wheel-dir", base, base / "source"],
        [*pip, "install", *offline, "--target", base / "site", "--find-links", base, "MedFusion"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(base / "source")
    return base / "site"


def test_a_wheel_holds_the_engine_and_the_weights(installed):
    engine = {path for path in expected() if path.startswith("MedFusionLib/")}
    weights = {f"MedFusionLib/Resources/{path.name}" for path in (ROOT / "Resources").iterdir() if path.is_file()}
    assert held(installed / "MedFusionLib", installed) == engine | weights
    assert [path.name for path in installed.iterdir() if path.suffix != ".dist-info"] == ["MedFusionLib"]


def test_an_installed_wheel_fuses_with_its_own_weights(installed, tmp_path):
    grid = np.diag([2.0, 2.0, 3.0, 1.0])
    k, j, i = np.indices((8, 40, 40))
    disc = (np.hypot(j - 20, i - 20) < 16).astype(np.float32)
    write_volume(Volume(disc * (200 + 10 * i), grid, "MR"), tmp_path / "mr.nrrd")
    write_volume(Volume(disc * 1040 - 1000 + 9 * k, grid, "CT", "HU"), tmp_path / "ct.nrrd")
    code = "import MedFusionLib; print(MedFusionLib.__file__); from MedFusionLib.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "fuse", "ct.nrrd", "mr.nrrd", "-o", "fused.nrrd"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed)), done.stdout
    fused = read_volume(tmp_path / "fused.nrrd")
    known = json.loads((ROOT / "Resources" / "checksums.json").read_text())
    assert fused.attributes["MedFusion.Weights"] == known["medfusion.safetensors"]
    assert fused.array[4, 20, 20] > fused.array[4, 0, 0]


def test_only_modules_lie_where_slicer_looks_for_modules():
    scripts = [path.name for path in (ROOT / "MedFusion").glob("*.py")]
    assert scripts == ["MedFusion.py"]
