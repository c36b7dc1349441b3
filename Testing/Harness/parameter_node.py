"""`slicer.parameterNodeWrapper`: typed parameters kept in a script module's node, connected to widgets."""

from __future__ import annotations

import enum
import typing
import weakref
from dataclasses import dataclass

import slicer
import vtk


@dataclass(frozen=True)
class WithinRange:
    minimum: float
    maximum: float

    def check(self, name, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{name}: {value} is not within {self.minimum} .. {self.maximum}")


@dataclass(frozen=True)
class Minimum:
    minimum: float

    def check(self, name, value):
        if value < self.minimum:
            raise ValueError(f"{name}: {value} is less than {self.minimum}")


@dataclass(frozen=True)
class Choice:
    choices: list

    def check(self, name, value):
        if value not in self.choices:
            raise ValueError(f"{name}: {value!r} is not one of {self.choices}")


@dataclass(frozen=True)
class Default:
    value: object


class _Parameter:
    """One typed parameter: checks, writes to the node, reads from it."""

    def __init__(self, name, annotation, default):
        self.name = name
        self.rules = ()
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, *rules = typing.get_args(annotation)
            default = next((rule.value for rule in rules if isinstance(rule, Default)), default)
            self.rules = tuple(rule for rule in rules if not isinstance(rule, Default))
        self.is_list = typing.get_origin(annotation) is list
        self.kind = typing.get_args(annotation)[0] if self.is_list else annotation
        self.is_node = isinstance(self.kind, type) and issubclass(self.kind, slicer.vtkMRMLNode)
        self.default = default if default is not _MISSING else self._own_default()

    def _own_default(self):
        if self.is_list:
            return []
        if self.is_node:
            return None
        choice = next((rule.choices[0] for rule in self.rules if isinstance(rule, Choice)), None)
        if choice is not None:
            return choice
        return next(iter(self.kind)) if issubclass(self.kind, enum.Enum) else self.kind()

    def rule(self, kind):
        return next((rule for rule in self.rules if isinstance(rule, kind)), None)

    def check(self, value):
        if self.is_list:
            for item in value:
                self._check_one(item)
            return
        self._check_one(value)

    def _check_one(self, value):
        if self.is_node:
            if value is not None and not isinstance(value, self.kind):
                raise TypeError(f"{self.name}: {value!r} is not a {self.kind.__name__}")
            return
        if value is None:
            raise ValueError(f"{self.name} cannot be None")
        allowed = (int, float) if self.kind is float else (self.kind,)
        # Exact types: a numpy number is no float here, and True is no int.
        if type(value) not in allowed:
            raise TypeError(f"{self.name}: {value!r} is not a {self.kind.__name__}")
        for rule in self.rules:
            rule.check(self.name, value)

    def write(self, node, value):
        if self.is_node:
            identifier = value.GetID() if value is not None else None
            node.SetParameter(self.name, identifier or "")
            node.SetNodeReferenceID(self.name, identifier)
        elif self.is_list:
            for n, item in enumerate(value):
                node.SetParameter(f"{self.name}.{n}", self._text(item))
            node.SetParameter(f"{self.name}.len", str(len(value)))
        else:
            node.SetParameter(self.name, self._text(value))

    def read(self, node):
        if not self.is_in(node):  # as when the scene was closed
            self.write(node, self.default)
        if self.is_node:
            return node.GetNodeReference(self.name)
        if self.is_list:
            count = int(node.GetParameter(f"{self.name}.len") or 0)
            return [self._value(node.GetParameter(f"{self.name}.{n}")) for n in range(count)]
        return self._value(node.GetParameter(self.name))

    def is_in(self, node):
        return node.HasParameter(f"{self.name}.len" if self.is_list else self.name)

    def _text(self, value):
        if isinstance(value, enum.Enum):
            return value.name
        return str(float(value)) if self.kind is float else str(value)

    def _value(self, text):
        if self.kind is bool:
            return text == "True"
        if issubclass(self.kind, enum.Enum):
            return self.kind[text]
        return self.kind(text)


_MISSING = object()


def parameterNodeWrapper(cls):
    """Class decorator: annotated names become typed parameters of a vtkMRMLScriptedModuleNode."""
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = {name: _Parameter(name, hint, getattr(cls, name, _MISSING)) for name, hint in hints.items()}
    members = {"allParameters": parameters}
    for name, parameter in parameters.items():
        members[name] = _property(parameter)
    return type(cls.__name__, (_Wrapped,), {**vars(_Methods), **members, "__doc__": cls.__doc__})


def _property(parameter):
    def read(self):
        return self._values[parameter.name].read()

    def write(self, value):
        parameter.check(value)
        self._values[parameter.name].write(value)

    return property(read, write)


class _Value:
    """A parameter in a node. As in Slicer it is read again when the node says that it was modified, and stops to listen
    when it is collected."""

    def __init__(self, parameter, node):
        self._parameter, self._node, self._tag, self._writing = parameter, node, None, False
        if not (parameter.is_node or parameter.is_list):
            self._value = parameter.read(node)
            this = weakref.ref(self)
            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: this()._modified())

    def __del__(self):
        if self._tag is not None:
            self._node.RemoveObserver(self._tag)

    def _modified(self):
        if not self._writing:
            self._value = self._parameter.read(self._node)

    def read(self):
        return self._parameter.read(self._node) if self._tag is None else self._value

    def write(self, value):
        self._writing = True
        try:
            with slicer.util.NodeModify(self._node):
                self._parameter.write(self._node, value)
                self._value = self._parameter.read(self._node)
        finally:
            self._writing = False


class _Wrapped:
    def __init__(self, parameterNode):
        self.parameterNode = parameterNode
        self._connections, self._next_tag, self._updating = {}, 0, False
        for parameter in self.allParameters.values():
            if not parameter.is_in(parameterNode):
                parameter.write(parameterNode, parameter.default)
        self._values = {name: _Value(parameter, parameterNode) for name, parameter in self.allParameters.items()}


class _Methods:
    """What a wrapped parameter node can do beside its parameters."""

    def isCached(self, name):
        return not self.allParameters[name].is_node

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        return self.parameterNode.RemoveObserver(tag)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, before):
        return self.parameterNode.EndModify(before)

    def connectGui(self, widget):
        """Connect the children of a widget that say their parameter by a property `SlicerParameterName`.

        Returns nothing, as in Slicer up to 5.12 at least: what is connected so is never disconnected.
        """
        found = {}
        for child in slicer.util.findChildren(widget):
            name = child.property("SlicerParameterName")
            if name:
                found[name] = child
        self.connectParametersToGui(found)

    def connectParametersToGui(self, widgets):
        """Connect {parameter name: widget}; returns a tag for `disconnectGui`."""
        from .connectors import connector

        for name in widgets:
            if name not in self.allParameters:
                raise ValueError(f"there is no parameter {name}")
        made = {name: connector(self.allParameters[name], widget) for name, widget in widgets.items()}
        tag, self._next_tag = self._next_tag, self._next_tag + 1
        self._connections[tag] = made
        for name, one in made.items():
            one.write(getattr(self, name))
            one.listen(lambda name=name: self._to_node(name, made[name]))
        # As in Slicer: nothing keeps the tag, and `disconnectGui` leaves the observer, which keeps this object.
        self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._to_gui())
        return tag

    def _to_gui(self):
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for made in self._connections.values():
                    for name, one in made.items():
                        one.write(getattr(self, name))
        finally:
            self._updating = False

    def _to_node(self, name, one):
        with slicer.util.NodeModify(self):
            if not self._updating:
                setattr(self, name, one.read())

    def disconnectGui(self, tag):
        for one in self._connections.pop(tag, {}).values():
            one.stop()
