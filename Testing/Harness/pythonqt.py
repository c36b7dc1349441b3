"""PythonQt's manners over PySide6: properties are attributes, unknown names raise, signals connect by signature.

A wrapper class stands for one Qt class and inherits no other, as PythonQt's do not for `isinstance`.
"""

from __future__ import annotations

import enum
import inspect
import re
import traceback
import weakref

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import QObject

_MODULES = (QtWidgets, QtGui, QtCore)
_classes = {}
_custom = {}

_NUMBERS = {"int", "uint", "double", "float", "qlonglong"}


class Enumerator(int):
    """An enumerator: an int, as in PythonQt, that still knows what PySide6 wants."""

    def __new__(cls, member):
        value = member.value
        self = int.__new__(cls, value)
        self.member = member
        return self

    def __or__(self, other):
        if isinstance(other, Enumerator) and isinstance(self.member, enum.Flag):
            return Enumerator(self.member | other.member)
        return int(self) | int(other)


class WrapperType(type):
    """Class attributes: enumerators and static methods."""

    def __getattr__(cls, name):
        if name.startswith("__") or "_pyside" not in vars(cls):
            raise AttributeError(name)
        found = enumerator(cls._pyside, name)
        if found is not None:
            return found
        attribute = inspect.getattr_static(cls._pyside, name, None)
        if callable(getattr(cls._pyside, name, None)) and not name.startswith("_"):
            if isinstance(attribute, staticmethod) or type(attribute).__name__ == "builtin_function_or_method":
                return lambda *args: wrap(getattr(cls._pyside, name)(*map(unwrap, args)))
            return lambda self, *args: getattr(self, name)(*args)
        raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")


class Wrapper(metaclass=WrapperType):
    """A Qt object as PythonQt shows it."""

    _pyside = QObject

    def __init__(self, *args, **keywords):
        if keywords:
            raise ValueError(f"Called constructor of {type(self).__name__} with keyword arguments")
        try:
            made = type(self)._pyside(*map(unwrap, args))
        except TypeError as error:
            raise ValueError(
                f"Could not find matching overload for given arguments to {type(self).__name__}: {error}"
            ) from None
        _bind(self, made)

    def __getattr__(self, name):
        made = object.__getattribute__(self, "_made")
        if name == "name":
            return made.objectName()
        meta = made.metaObject()
        index = meta.indexOfProperty(name)
        if index >= 0 and name not in getattr(type(made), "methods_only", ()):
            return _read(made, meta.property(index))
        if name in made.dynamicPropertyNames():
            return wrap(made.property(name))
        if name == "exec_":
            name = "exec"
        elif name == "exec":
            raise AttributeError(name)
        attribute = None if name.startswith("_") else getattr(made, name, None)
        if isinstance(attribute, QtCore.SignalInstance):
            return Signal(self, name)
        if callable(attribute):
            return Method(self, name, attribute)
        found = enumerator(type(made), name)
        if found is not None:
            return found
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")

    def __setattr__(self, name, value):
        made = object.__getattribute__(self, "_made")
        if name == "name":
            name = "objectName"
        meta = made.metaObject()
        index = meta.indexOfProperty(name)
        if index < 0:
            raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
        description = meta.property(index)
        if not description.isWritable():
            raise AttributeError(f"Property '{name}' of {type(self).__name__} object is not writable")
        try:
            value = _as_type(value, description)
        except (TypeError, ValueError):
            raise AttributeError(
                f"Property '{name}' of type '{description.typeName()}' does not accept an object of type"
                f" {type(value).__name__}"
            ) from None
        if name == "toolTip" and value and not value.startswith("<"):
            value = f"<p>{value}</p>"  # as Slicer's application makes of every tool tip
        made.setProperty(name, value)

    def __repr__(self):
        return f"{type(self).__name__} ({type(self).__name__} at: {id(self._made):#x})"

    def __hash__(self):
        return hash(id(self._made))

    def __eq__(self, other):
        return isinstance(other, Wrapper) and self._made is other._made

    def className(self):
        return self._made.metaObject().className().rsplit("::")[-1]

    def inherits(self, name):
        if any(base.__name__ == name for base in type(self._made).__mro__):
            return True
        return self._made.inherits(name)

    def children(self):
        return tuple(wrap(child) for child in self._made.children())

    def parent(self):
        return wrap(self._made.parent())

    def findChild(self, kind, name=""):
        return wrap(self._made.findChild(kind._pyside, name or None))

    def findChildren(self, kind, name=""):
        return tuple(wrap(child) for child in self._made.findChildren(kind._pyside, name or None))

    def setProperty(self, name, value):
        return self._made.setProperty(name, unwrap(value))

    def property(self, name):
        return wrap(self._made.property(name))

    def connect(self, signature, slot):
        """Connect by "signal(types)"; whether there is such a signal."""
        found = _signal(self._made, signature)
        if found is None:
            return False
        name, count = found
        receive = _receiver(count, lambda args: _call(slot, args, exact=isinstance(slot, Method)))
        _remember(self._made, (signature, slot), receive)
        getattr(self._made, name).connect(receive)
        return True

    def disconnect(self, signature, slot):
        found = _signal(self._made, signature)
        connections = getattr(self._made, "_harness_connections", [])
        for entry in list(connections):
            (known, receiver), receive = entry
            if found and known == signature and receiver == slot:
                getattr(self._made, found[0]).disconnect(receive)
                connections.remove(entry)
                return True
        return False


class Method:
    """A method of a wrapped object."""

    def __init__(self, owner, name, function):
        self._owner, self._name, self._function = owner, name, function

    def __call__(self, *args, **keywords):
        if keywords:
            raise ValueError(f"{self._name}() takes no keyword arguments")
        types = _parameter_types(self._owner._made, self._name, len(args))
        args = [_argument(arg, kind) for arg, kind in zip(args, types, strict=True)] if types else map(unwrap, args)
        try:
            return wrap(self._function(*args))
        except TypeError as error:
            if getattr(type(self._owner._made), "raises_type_errors", False):
                raise
            raise ValueError(f"Could not find matching overload for given arguments to {self._name}: {error}") from None

    def __eq__(self, other):
        return isinstance(other, Method) and (self._owner, self._name) == (other._owner, other._name)

    def __hash__(self):
        return hash((self._owner, self._name))


class Signal:
    """A signal as an attribute: `widget.clicked.connect(slot)` passes all it has to what can take it."""

    def __init__(self, owner, name):
        self._owner, self._name = owner, name

    def connect(self, slot):
        made = self._owner._made

        meta = made.metaObject()
        methods = [meta.method(index) for index in range(meta.methodCount())]
        counts = [m.parameterCount() for m in methods if bytes(m.name()).decode() == self._name]
        receive = _receiver(max(counts), lambda args: _call(slot, args, exact=isinstance(slot, Method)))
        _remember(made, (self._name, slot), receive)
        getattr(made, self._name).connect(receive)

    def disconnect(self, slot):
        self._owner.disconnect(self._name, slot)

    def emit(self, *args):
        getattr(self._owner._made, self._name).emit(*map(unwrap, args))


class LayoutItem:
    """What a layout holds: no QObject, but it leads to one."""

    def __init__(self, item):
        self._item = item

    def widget(self):
        return wrap(self._item.widget())

    def layout(self):
        return wrap(self._item.layout())


def enumerator(kind, name):
    """The enumerator `name` of a PySide6 class or namespace, as PythonQt has it, or None."""
    if name.startswith("_"):
        return None
    for base in kind.__mro__:
        for value in vars(base).values():
            if isinstance(value, type) and issubclass(value, enum.Enum) and name in value.__members__:
                return Enumerator(value[name])
    return None


def wrapper_class(name):
    """The wrapper class of a Qt class; None for what is no QObject. Raises AttributeError for unknown names."""
    if name in _classes:
        return _classes[name]
    found = _custom.get(name) or _of_qt(name)
    if found is None:
        raise AttributeError(f"module has no attribute '{name}'")
    if not (isinstance(found, type) and issubclass(found, QObject)):
        return None
    _classes[name] = WrapperType(name, (Wrapper,), {"_pyside": found})
    return _classes[name]


def _of_qt(name):
    # PySide6 makes its classes when they are first asked for: vars() does not list them.
    return next((getattr(m, name) for m in _MODULES if hasattr(m, name)), None)


def plain(name):
    """A PySide6 class that is no QObject: a value class, or a namespace of enumerators."""
    return _of_qt(name)


def register(kind):
    """Offer a PySide6 subclass under its own name; usable as a decorator."""
    _custom[kind.__name__] = kind
    return kind


def custom_class(name):
    return _custom.get(name)


def wrap(value):
    """What PythonQt hands over for a value of PySide6."""
    if isinstance(value, QObject):
        known = getattr(value, "_harness_wrapper", lambda: None)()
        if known is not None:
            return known
        for kind in type(value).__mro__:
            try:
                cls = wrapper_class(kind.__name__)
            except AttributeError:
                continue
            if cls is not None:
                made = cls.__new__(cls)
                _bind(made, value)
                return made
    if isinstance(value, QtWidgets.QLayoutItem):
        return LayoutItem(value)
    if isinstance(value, enum.Enum):
        return Enumerator(value) if isinstance(value.value, int) else value
    if isinstance(value, list):
        return tuple(wrap(item) for item in value)
    return value


def unwrap(value):
    """What PySide6 takes for a value of PythonQt."""
    if isinstance(value, Wrapper):
        return value._made
    if isinstance(value, Enumerator):
        return value.member
    if isinstance(value, (list, tuple)):
        return [unwrap(item) for item in value]
    return value


def _bind(wrapper, made):
    object.__setattr__(wrapper, "_made", made)
    made._harness_wrapper = weakref.ref(wrapper)


def _read(made, description):
    name = description.name()
    try:
        value = made.property(name)
    except RuntimeError:
        value = getattr(made, name)()
    if value is None and description.typeName() == "QString":
        value = ""
    return wrap(value)


def _as_type(value, description):
    """`value` as a property of this type takes it in PythonQt; raises TypeError or ValueError if it does not."""
    kind = description.typeName()
    value = unwrap(value)
    if kind == "QString":
        return str(value)
    if kind == "bool":
        return bool(value)
    if kind in _NUMBERS:
        if isinstance(value, (str, bytes)) or value is None:
            raise TypeError
        return int(value) if kind in ("int", "uint", "qlonglong") else float(value)
    if kind == "QStringList":
        if isinstance(value, str):
            raise TypeError
        return [str(item) for item in value]
    return value


def _parameter_types(made, name, count):
    meta = made.metaObject()
    for index in range(meta.methodCount()):
        method = meta.method(index)
        if bytes(method.name()).decode() == name and method.parameterCount() == count:
            return [bytes(kind).decode() for kind in method.parameterTypes()]
    return None


def _argument(value, kind):
    value = unwrap(value)
    if kind == "QString":
        return str(value)
    if kind in ("int", "double") and isinstance(value, (int, float)):
        return int(value) if kind == "int" else float(value)
    if kind == "bool" and isinstance(value, (int, float)):
        return bool(value)
    return value


def _signal(made, signature):
    """(PySide6's name of the signal, how many arguments it passes), or None."""
    custom = getattr(type(made), "signatures", {})
    if signature in custom:
        return custom[signature]
    match = re.fullmatch(r"(\w+)\((.*)\)", signature)
    if not match or made.metaObject().indexOfSignal(_normal(signature)) < 0:
        return None
    return match[1], len([kind for kind in match[2].split(",") if kind])


def _normal(signature):
    return bytes(QtCore.QMetaObject.normalizedSignature(signature)).decode()


def _receiver(count, deliver):
    """A function of exactly `count` arguments: PySide6 passes as many as it sees that one takes."""
    if count == 0:
        return lambda: deliver(())
    if count == 1:
        return lambda first: deliver((first,))
    return lambda first, second, *rest: deliver((first, second, *rest)[:count])


def _remember(made, key, receive):
    if not hasattr(made, "_harness_connections"):
        made._harness_connections = []
    made._harness_connections.append((key, receive))


def _call(slot, args, exact):
    """Call a slot with as many arguments as it can take; print what it raises."""
    args = [wrap(arg) for arg in args]
    try:
        slot(*(args if exact else args[: _arity(slot, len(args))]))
    except Exception:
        traceback.print_exc()


def _arity(slot, most):
    try:
        parameters = inspect.signature(slot).parameters.values()
    except (TypeError, ValueError):
        return most
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return most
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
