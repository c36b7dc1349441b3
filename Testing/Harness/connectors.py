"""How parameters and widgets follow each other."""

from __future__ import annotations

import enum

from .parameter_node import Choice, Minimum, WithinRange

_LIMITED = ("ctkSliderWidget", "QDoubleSpinBox", "QSpinBox", "QSlider", "ctkDoubleSpinBox")


def connector(parameter, widget):
    """The connector of a parameter with a wrapped widget. Raises RuntimeError where the two do not go together."""
    kind = widget.className()
    if parameter.is_node and kind == "qMRMLNodeComboBox":
        return _Node(widget, parameter.kind)
    if parameter.kind is bool and kind in ("QCheckBox", "QPushButton"):
        return _Property(widget, "checked", "toggled(bool)")
    if parameter.kind in (int, float) and kind in _LIMITED:
        if parameter.kind is int and kind not in ("QSpinBox", "QSlider"):
            raise RuntimeError(f"no connector of an int with a {kind}")
        limits = parameter.rule(WithinRange) or parameter.rule(Minimum)
        if limits is not None:
            widget.minimum = limits.minimum
            if isinstance(limits, WithinRange):
                widget.maximum = limits.maximum
        whole = parameter.kind is int
        return _Property(widget, "value", "valueChanged(int)" if whole else "valueChanged(double)")
    if parameter.kind is str and kind == "QLineEdit":
        return _Property(widget, "text", "textChanged(QString)")
    choice = parameter.rule(Choice)
    is_enum = isinstance(parameter.kind, type) and issubclass(parameter.kind, enum.Enum)
    if kind == "QComboBox" and (is_enum or choice):
        return _Combo(widget, parameter.kind if is_enum else None, choice)
    raise RuntimeError(f"no connector of parameter {parameter.name} with a {kind}")


class _Connector:
    def __init__(self, widget, signature):
        self.widget, self.signature, self._slot = widget, signature, None

    def listen(self, changed):
        self._slot = lambda *_: changed()
        if not self.widget.connect(self.signature, self._slot):
            raise RuntimeError(f"{self.widget.className()} has no signal {self.signature}")

    def stop(self):
        self.widget.disconnect(self.signature, self._slot)


class _Property(_Connector):
    def __init__(self, widget, name, signature):
        super().__init__(widget, signature)
        self.name = name

    def read(self):
        return getattr(self.widget, self.name)

    def write(self, value):
        if getattr(self.widget, self.name) != value:
            setattr(self.widget, self.name, value)


class _Node(_Connector):
    def __init__(self, widget, kind):
        super().__init__(widget, "currentNodeChanged(vtkMRMLNode*)")
        # As Slicer's does it: by an object, which an abstract class has not, and instead of what the .ui file says.
        widget.nodeTypes = (kind().GetClassName(),)

    def read(self):
        return self.widget.currentNode()

    def write(self, value):
        self.widget.setCurrentNode(value)


class _Combo(_Connector):
    def __init__(self, widget, kind, choice):
        super().__init__(widget, "currentIndexChanged(int)")
        self.kind = kind
        widget.clear()
        widget.addItems([member.name for member in kind] if kind else [str(one) for one in choice.choices])

    def read(self):
        return self.kind[self.widget.currentText] if self.kind else self.widget.currentText

    def write(self, value):
        self.widget.currentText = value.name if self.kind else value
