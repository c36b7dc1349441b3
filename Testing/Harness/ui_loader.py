"""Loads .ui files with CTK's and Slicer's widgets in them."""

from __future__ import annotations

from xml.etree import ElementTree

from PySide6.QtCore import QBuffer, QByteArray, QObject
from PySide6.QtUiTools import QUiLoader as PySideLoader

from .pythonqt import custom_class, register


@register
class QUiLoader(PySideLoader):
    def createWidget(self, name, parent=None, object_name=""):
        kind = custom_class(name)
        if kind is None:
            return super().createWidget(name, parent, object_name)
        widget = kind(parent) if parent is not None else kind()
        widget.setObjectName(object_name)
        return widget

    def load(self, file, parent=None):
        # Qt's loader cannot connect what PySide6 declares, whose C++ types it does not know.
        tree = ElementTree.fromstring(bytes(file.readAll()))
        connections = tree.find("connections")
        wanted = [] if connections is None else [tuple(c.findtext(t) for t in _ENDS) for c in connections]
        if connections is not None:
            tree.remove(connections)
        buffer = QBuffer()
        buffer.setData(QByteArray(ElementTree.tostring(tree)))
        buffer.open(QBuffer.ReadOnly)
        root = super().load(buffer, parent)
        for sender, signal, receiver, slot in wanted:
            ends = [root if root.objectName() == name else root.findChild(QObject, name) for name in (sender, receiver)]
            if None in ends:
                raise RuntimeError(f"the .ui file connects {sender} to {receiver}, which are not both there")
            getattr(ends[0], signal.split("(")[0]).connect(getattr(ends[1], slot.split("(")[0]))
        return root


_ENDS = ("sender", "signal", "receiver", "slot")
