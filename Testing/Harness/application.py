"""Makes `qt`, `ctk` and the rest of `slicer` importable over slicer-core."""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from pathlib import Path

import slicer
import slicer.util as util
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QApplication

from . import ctk_widgets, pythonqt, qmrml_widgets, ui_loader


class Application:
    """`slicer.app`, as far as a module without a main window sees it."""

    applicationName = "Slicer"
    slicerHome = ""
    majorVersion, minorVersion = 5, 13

    def __init__(self):
        self.temporaryPath = tempfile.gettempdir()

    def testingEnabled(self):
        return True

    def layoutManager(self):
        return None

    def mrmlScene(self):
        return slicer.mrmlScene

    def processEvents(self):
        QApplication.processEvents()

    def setOverrideCursor(self, cursor):
        QApplication.setOverrideCursor(pythonqt.unwrap(cursor))

    def restoreOverrideCursor(self):
        QApplication.restoreOverrideCursor()


def start():
    """Make the stand-ins importable and start Qt, once. Set QT_QPA_PLATFORM=offscreen where there is no screen."""
    if "qt" in sys.modules:
        return
    application = QApplication.instance() or QApplication(["Slicer"])
    application.setStyle("Fusion")
    sys.modules["qt"] = _Classes("qt", lambda name: name.startswith("Q"))
    sys.modules["ctk"] = _Classes("ctk", lambda name: name.startswith("ctk"))
    slicer.app = Application()
    slicer.app._application = application
    for name, kind in vars(qmrml_widgets).items():
        if name.startswith(("qMRML", "qSlicer")):
            setattr(slicer, name, pythonqt.wrapper_class(kind.__name__))
    from . import parameter_node

    _offer("parameterNodeWrapper", vars(parameter_node))
    _offer("i18n", {"tr": lambda text: text, "translate": lambda context, text: text, "getContext": str})
    util.mainWindow = lambda: None
    from . import scripted_module

    _offer("ScriptedLoadableModule", vars(scripted_module))
    new_scene()


def load(path):
    """Load a scripted module's file as Slicer's module factory does in developer mode; the Python module.

    Its folder goes on `sys.path`, its module object describes itself, and `slicer.modules` knows it.
    """
    from .scripted_module import ModuleParent

    path = Path(path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    loaded = importlib.import_module(path.stem)
    parent = ModuleParent(path)
    parent.self = getattr(loaded, path.stem)(parent)
    if not hasattr(slicer, "modules"):
        slicer.modules = types.SimpleNamespace()
    setattr(slicer.modules, path.stem.lower(), parent)
    return loaded


def new_scene():
    """Give `slicer.mrmlScene` an empty scene with Slicer's colour tables and a slice view; the view's logic."""
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene
    logic = slicer.vtkSlicerApplicationLogic()
    logic.SetMRMLScene(scene)
    colors = slicer.vtkMRMLColorLogic()
    colors.SetMRMLScene(scene)
    view = slicer.vtkMRMLSliceLogic()
    view.SetMRMLApplicationLogic(logic)
    view.SetMRMLScene(scene)
    view.AddSliceNode("Red")
    view.GetSliceNode().SetOrientationToAxial()
    slicer.app._scene_parts = (logic, colors, view)
    return view


def _offer(name, members):
    module = types.ModuleType(f"slicer.{name}")
    vars(module).update({key: value for key, value in members.items() if not key.startswith("__")})
    sys.modules[f"slicer.{name}"] = module
    setattr(slicer, name, module)


class _Classes(types.ModuleType):
    """A module of PythonQt's: Qt's classes by name."""

    def __init__(self, name, offers):
        super().__init__(name)
        self._offers = offers

    def __getattr__(self, name):
        if name == "Qt" and self.__name__ == "qt":
            return _Namespace
        if name.startswith("_") or not self._offers(name):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        if name == "QVariant":
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return pythonqt.wrapper_class(name) or _value_class(name)


class _NamespaceType(type):
    def __getattr__(cls, name):
        found = pythonqt.enumerator(Qt, name)
        if found is None:
            raise AttributeError(f"Qt has no attribute '{name}'")
        return found


class _Namespace(metaclass=_NamespaceType):
    """`qt.Qt`."""


def _value_class(name):
    """A class that is no QObject, its enumerators as ints."""
    kind = pythonqt.plain(name)

    class Value(metaclass=_ValueType):
        _kind = kind

        def __new__(cls, *args):
            return kind(*map(pythonqt.unwrap, args))

    Value.__name__ = name
    return Value


class _ValueType(type):
    def __getattr__(cls, name):
        found = pythonqt.enumerator(cls._kind, name)
        if found is not None:
            return found
        return getattr(cls._kind, name)


_ = (ctk_widgets, ui_loader)  # imported for the widgets that they register
