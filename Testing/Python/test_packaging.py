"""The extension's CMake files, run for real: what the build tree and the install tree hold, and that it imports."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = "lib/Slicer-5.10/qt-scripted-modules"
CMAKE = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs cmake: pip install .[test]")


def expected():
    """Relative paths that the extension must hold, beside each other, from the files of this tree."""
    engine = [path for path in (ROOT / "MedFusionLib").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    weights = [path for kind in ("safetensors", "json", "md") for path in (ROOT / "Resources").rglob(f"*.{kind}")]
    outer = {path.relative_to(ROOT).as_posix() for path in [*engine, *weights, ROOT / "pyproject.toml"]}
    module = ROOT / "MedFusion"
    inner = [module / "MedFusion.py", *(path for path in (module / "Resources").rglob("*") if path.is_file())]
    return outer | {path.relative_to(module).as_posix() for path in inner}


def held(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """(build tree, install tree) of the extension, by a copy of its sources and the stand-in for Slicer."""
    base = tmp_path_factory.mktemp("extension")
    source = base / "source"
    hidden = shutil.ignore_patterns(".*", "__pycache__", "build", "*-output", "runs")
    shutil.copytree(ROOT, source, ignore=hidden)
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


def test_only_modules_lie_where_slicer_looks_for_modules():
    scripts = [path.name for path in (ROOT / "MedFusion").glob("*.py")]
    assert scripts == ["MedFusion.py"]
