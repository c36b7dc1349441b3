"""Slicer's widgets that show the scene: on slicer-core's real MRML."""

from __future__ import annotations

from functools import wraps

import slicer
import vtk
from PySide6.QtCore import Property, Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QWidget

from .pythonqt import register

LATE = -10.0
"""Priority at which Slicer's scene models hear that a node goes: after modules."""


def _while_it_lives(observer):
    """A widget that its parent has taken along loses its attributes, not its observers."""

    @wraps(observer)
    def observe(self, *arguments):
        if vars(self):
            observer(self, *arguments)

    return observe


@register
class qMRMLWidget(QWidget):
    mrmlSceneChanged = Signal(object)
    signatures = {"mrmlSceneChanged(vtkMRMLScene*)": ("mrmlSceneChanged", 1)}  # noqa: RUF012

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


@register
class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """What a module's panel lies in; it knows whether the module is shown."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._entered = False

    def enter(self):
        self._entered = True

    def exit(self):
        self._entered = False

    isEntered = Property(bool, lambda self: self._entered)


@register
class qMRMLNodeComboBox(QWidget):
    """The node selector. A node that is added later is offered, not chosen.

    As Slicer's it is filled anew after an import, which chooses nothing, and goes on to the neighbour of a node that it
    loses (Qt's combo boxes do).
    """

    currentNodeChanged = Signal(object)
    signatures = {  # noqa: RUF012
        "currentNodeChanged(vtkMRMLNode*)": ("currentNodeChanged", 1),
        "currentNodeChanged(bool)": ("currentNodeChanged", 1),
    }
    raises_type_errors = True

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = self._node = None
        self._kinds, self._tags = [], []
        self._flags = {"add": True, "remove": True, "rename": False, "none": False, "hidden": False, "children": True}
        self._none_text = "None"
        self._combo = QComboBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.activated.connect(self._picked)
        self._shown = []
        self.setEnabled(False)

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if self._scene is not None:
            for tag in self._tags:
                self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        self.setEnabled(scene is not None)
        if scene is not None:
            self._tags = [
                scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, self._changed),
                scene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, self._changed),
                scene.AddObserver(slicer.vtkMRMLScene.EndCloseEvent, self._changed),
                scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, self._lose, LATE),
                scene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, self._imported),
            ]
        self._refresh()
        if self._node is None and not self._flags["none"] and self._offered():
            self.setCurrentNode(self._offered()[0])

    def currentNode(self):
        return self._node

    def setCurrentNode(self, node):
        if node is not None and not isinstance(node, vtk.vtkObject):
            raise TypeError(f"setCurrentNode() takes a vtkMRMLNode, not {type(node).__name__}")
        if node is not None and node not in self._offered():
            node = None
        if node is self._node:
            return
        self._node = node
        self._mark()
        self.currentNodeChanged.emit(node)

    def setCurrentNodeID(self, identifier):
        self.setCurrentNode(self._scene.GetNodeByID(identifier) if self._scene and identifier else None)

    def _offered(self):
        if self._scene is None:
            return []
        nodes = [self._scene.GetNthNode(n) for n in range(self._scene.GetNumberOfNodes())]
        return [node for node in nodes if self._fits(node)]

    def _fits(self, node):
        if node.GetHideFromEditors() and not self._flags["hidden"]:
            return False
        if self._flags["children"]:
            return any(node.IsA(kind) for kind in self._kinds)
        return node.GetClassName() in self._kinds

    @_while_it_lives
    def _changed(self, caller, event):
        if not self._scene.IsImporting():
            self._refresh()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    @_while_it_lives
    def _lose(self, caller, event, node):
        if node not in self._shown or self._scene.IsClosing():
            return
        index = self._shown.index(node)
        del self._shown[index]
        self._combo.removeItem(index)
        if node is self._node:
            self._node = self._shown[min(index, len(self._shown) - 1)] if self._shown else None
            self._mark()
            self.currentNodeChanged.emit(self._node)

    @_while_it_lives
    def _imported(self, caller, event):
        if self._node is not None:
            self._node = None
            self.currentNodeChanged.emit(None)
        self._refresh()

    def _refresh(self):
        nodes = self._offered()
        if self._node is not None and self._node not in nodes:
            self._node = None
            self.currentNodeChanged.emit(None)
        self._shown = ([None] if self._flags["none"] else []) + nodes
        self._combo.clear()
        self._combo.addItems([node.GetName() if node else self._none_text for node in self._shown])
        self._mark()

    def _mark(self):
        self._combo.setCurrentIndex(self._shown.index(self._node) if self._node in self._shown else -1)

    def _picked(self, index):
        self.setCurrentNode(self._shown[index])

    def _set_kinds(self, kinds):
        self._kinds = list(kinds)
        self._refresh()

    def _set_flag(self, name, on):
        self._flags[name] = bool(on)
        self._refresh()

    def _set_none_text(self, text):
        self._none_text = text
        self._refresh()

    nodeTypes = Property("QStringList", lambda self: self._kinds, _set_kinds)
    currentNodeID = Property(
        str, lambda self: self._node.GetID() if self._node else "", lambda self, i: self.setCurrentNodeID(i)
    )
    noneDisplay = Property(str, lambda self: self._none_text, _set_none_text)
    addEnabled = Property(bool, lambda self: self._flags["add"], lambda self, on: self._set_flag("add", on))
    removeEnabled = Property(bool, lambda self: self._flags["remove"], lambda self, on: self._set_flag("remove", on))
    renameEnabled = Property(bool, lambda self: self._flags["rename"], lambda self, on: self._set_flag("rename", on))
    noneEnabled = Property(bool, lambda self: self._flags["none"], lambda self, on: self._set_flag("none", on))
    showHidden = Property(bool, lambda self: self._flags["hidden"], lambda self, on: self._set_flag("hidden", on))
    showChildNodeTypes = Property(
        bool, lambda self: self._flags["children"], lambda self, on: self._set_flag("children", on)
    )
