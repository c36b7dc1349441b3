"""What is missing, told without importing it, and how Slicer is asked to install it."""

import subprocess
import sys
import threading
import tomllib
import types
from pathlib import Path

import pytest

from MedFusionLib import install
from MedFusionLib.errors import InstallError

ROOT = Path(__file__).resolve().parents[2]


class Slicer:
    """Records what Slicer is told to install. `arrives`: whether it then is there."""

    def __init__(self, monkeypatch, version, torch_extension=True, arrives=True):
        self.calls, self._lacking = [], ["torch>=2.5", "monai>=1.5", "safetensors>=0.5"]
        self._arrives = arrives
        util = types.SimpleNamespace(pip_install=self._pip_install)
        root = types.ModuleType("slicer")
        root.util = util
        monkeypatch.setitem(sys.modules, "slicer", root)
        monkeypatch.setattr(install, "missing", lambda: list(self._lacking))
        packaging = None
        if version >= (5, 12):
            packaging = types.ModuleType("slicer.packaging")
            packaging.pip_ensure = self._pip_ensure
        monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
        extension = None
        if torch_extension:
            extension = types.ModuleType("PyTorchUtils")
            extension.PyTorchUtilsLogic = lambda: types.SimpleNamespace(installTorch=self._install_torch)
        monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)

    def _pip_install(self, arguments):
        self._note("pip_install", arguments[2:], Path(arguments[1]).read_text())
        assert arguments[0] == "--constraint"

    def _pip_ensure(self, names, constraints, prompt_install, requester):
        self._note("pip_ensure", names, Path(constraints).read_text())
        assert prompt_install is False
        assert requester == "MedFusion"

    def _install_torch(self, askConfirmation, torchVersionRequirement):
        self._note("PyTorchUtils", [f"torch{torchVersionRequirement}"], "")
        assert askConfirmation is False

    def _note(self, way, names, constraints):
        self.calls.append((way, list(names)))
        for name in ("numpy", "vtk", "SimpleITK"):
            assert way == "PyTorchUtils" or f"\n{name}==" in f"\n{constraints}"
        if self._arrives:
            self._lacking = [one for one in self._lacking if one not in names]


def test_requirements_are_those_of_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(map(str, install.requirements())) == sorted(declared)


def test_nothing_is_missing_where_the_tests_run():
    assert install.missing() == []


def test_a_bare_interpreter_misses_everything_and_imports_nothing(tmp_path):
    code = (
        "import importlib.util, sys\n"
        "sys.path[:0] = [sys.argv[1]]\n"
        "from MedFusionLib import install\n"
        "print(*install.missing(), sep='\\n')\n"
        "assert not {'torch', 'monai', 'numpy'} & set(sys.modules)\n"
    )
    # Isolated and without site-packages, as Slicer's Python is for what was never installed; pip alone is lent.
    import pip

    (tmp_path / "pip").symlink_to(Path(pip.__file__).parent, target_is_directory=True)
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{code}", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(str(one).replace(" ", "") for one in install.requirements())


def test_what_slicer_brings_is_taken_as_it_is(monkeypatch):
    monkeypatch.setattr(install.metadata, "version", lambda name: "0.1")
    lacking = [name.split(">")[0] for name in install.missing()]
    assert "monai" in lacking
    assert not set(lacking) & set(install.SLICERS_OWN)


@pytest.mark.parametrize(("version", "way"), [((5, 10), "pip_install"), ((5, 12), "pip_ensure")])
def test_slicer_installs_after_consent_torch_first(monkeypatch, version, way):
    slicer = Slicer(monkeypatch, version)
    asked = []
    assert install.install(lambda names: asked.append(names) or True)
    assert len(asked) == 1
    assert slicer.calls == [("PyTorchUtils", ["torch>=2.5"]), (way, ["monai>=1.5", "safetensors>=0.5"])]


def test_without_the_pytorch_extension_pip_brings_torch(monkeypatch):
    slicer = Slicer(monkeypatch, (5, 12), torch_extension=False)
    assert install.install(lambda names: True)
    assert slicer.calls == [("pip_ensure", ["torch>=2.5"]), ("pip_ensure", ["monai>=1.5", "safetensors>=0.5"])]


def test_nothing_is_installed_without_consent(monkeypatch):
    slicer = Slicer(monkeypatch, (5, 12))
    assert not install.install(lambda names: False)
    assert slicer.calls == []


def test_every_line_that_pip_says_is_passed_on(monkeypatch, capsys):
    slicer, told = Slicer(monkeypatch, (5, 10)), []
    note = slicer._note

    def speak(*what):
        print("Collecting it\n\n  Downloading", end="")
        aside = threading.Thread(target=print, args=("of another thread",))
        aside.start()
        aside.join()
        print(" it (800 MB)")
        note(*what)

    slicer._note = speak
    assert install.install(lambda names: True, told.append)
    assert told == 2 * ["Collecting it", "Downloading it (800 MB)"]
    printed = capsys.readouterr().out
    assert printed.count(" it (800 MB)\n") == printed.count("of another thread\n") == 2
    print("of something else")
    assert len(told) == 4


def test_what_did_not_arrive_is_named(monkeypatch):
    Slicer(monkeypatch, (5, 12), arrives=False)
    with pytest.raises(InstallError, match=r"still missing: torch>=2\.5, monai>=1\.5"):
        install.install(lambda names: True)


def test_a_failing_pip_is_reported(monkeypatch):
    slicer = Slicer(monkeypatch, (5, 10))

    def fail(way, names, constraints):
        raise subprocess.CalledProcessError(1, ["pip"])

    slicer._note = fail
    with pytest.raises(InstallError, match=r"pip could not install torch.*exit code 1"):
        install.install(lambda names: True)


def test_what_an_interrupted_installation_left_is_missing_and_not_pinned(tmp_path, monkeypatch):
    for name in ("torch-2.6.0", "monai-1.6.0"):
        (tmp_path / f"{name}.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [one.partition(">")[0] for one in install.missing()] == ["torch", "monai"]
    assert not any(line.startswith("torch") for line in install.pinned())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("A non-blocking pip_install is already in progress."),
        TypeError("expected string"),
        AttributeError("module 'slicer.util' has no attribute '_executePythonModule'"),
    ],
)
def test_what_slicer_itself_stumbles_over_is_reported(monkeypatch, error):
    slicer = Slicer(monkeypatch, (5, 12))

    def fail(way, names, constraints):
        raise error

    slicer._note = fail
    with pytest.raises(InstallError, match=rf"could not be installed \({error}\)"):
        install.install(lambda names: True)


def test_a_torch_that_cannot_be_loaded_is_reported(monkeypatch):
    """The PyTorch extension imports what it has installed, and Windows may lack a library for it."""
    slicer = Slicer(monkeypatch, (5, 12))

    def fail(way, names, constraints):
        raise OSError("[WinError 126] c10.dll")

    slicer._note = fail
    with pytest.raises(InstallError, match=r"torch.* could not be installed \(\[WinError 126\] c10\.dll\)"):
        install.install(lambda names: True)
