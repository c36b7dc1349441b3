"""CTK's widgets that the panel uses."""

from __future__ import annotations

from PySide6.QtCore import Property, QEvent, Qt, Signal
from PySide6.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QGroupBox,
    QHBoxLayout,
    QLineEdit,
    QSlider,
    QToolButton,
    QWidget,
)

from .pythonqt import register


@register
class ctkCollapsibleButton(QWidget):
    """A titled section that folds."""

    contentsCollapsed = Signal(bool)

    def __init__(self, *args):
        text = args[0] if args and isinstance(args[0], str) else ""
        super().__init__(next((a for a in args if isinstance(a, QWidget)), None))
        self._collapsed = self._folding = False
        self._button = QToolButton(self)
        self._button.setObjectName("")
        self._button.setText(text)
        self._button.setToolButtonStyle(Qt.ToolButtonTextBesideIcon)
        self._button.setAutoRaise(True)
        self._button.setStyleSheet("QToolButton { font-weight: bold; border: none; text-align: left; }")
        self._button.clicked.connect(lambda: self._set_collapsed(not self._collapsed))
        self._arrow()

    def resizeEvent(self, event):
        self._button.setGeometry(0, 0, self.width(), 22)
        super().resizeEvent(event)

    def _arrow(self):
        self._button.setArrowType(Qt.RightArrow if self._collapsed else Qt.DownArrow)

    def event(self, event):
        if self.layout() is not None:
            margins = self.layout().contentsMargins()
            if margins.top() < 26:
                self.layout().setContentsMargins(margins.left(), 28, margins.right(), 4)
        return super().event(event)

    def _set_collapsed(self, collapsed):
        self._collapsed = bool(collapsed)
        self._folding = True
        for child in self.findChildren(QWidget, options=Qt.FindDirectChildrenOnly):
            if child is not self._button:
                child.setVisible(not self._collapsed and child.property("visibilityToParent") is not False)
        self._folding = False
        self.setMaximumHeight(24 if self._collapsed else 16777215)
        self._arrow()
        self.contentsCollapsed.emit(self._collapsed)

    def childEvent(self, event):
        super().childEvent(event)
        if event.added() and isinstance(event.child(), QWidget):
            event.child().installEventFilter(self)
            if self._collapsed:
                self._folding = True
                event.child().hide()
                self._folding = False

    def eventFilter(self, child, event):
        # As in CTK: what the module hides stays hidden when the section unfolds, what it shows is shown only then.
        asked = event.type() in (QEvent.ShowToParent, QEvent.HideToParent) and not self._folding
        if asked and child is not self._button:
            shown = event.type() == QEvent.ShowToParent
            child.setProperty("visibilityToParent", shown)
            if shown and self._collapsed:
                self._folding = True
                child.hide()
                self._folding = False
        return False

    def showEvent(self, event):
        super().showEvent(event)
        self._set_collapsed(self._collapsed)

    collapsed = Property(bool, lambda self: self._collapsed, _set_collapsed)
    text = Property(str, lambda self: self._button.text(), lambda self, text: self._button.setText(text))


@register
class ctkCollapsibleGroupBox(QGroupBox):
    def __init__(self, parent=None):
        super().__init__(parent)
        self._collapsed = False

    collapsed = Property(bool, lambda self: self._collapsed, lambda self, on: setattr(self, "_collapsed", on))


@register
class ctkSliderWidget(QWidget):
    """A slider with a spin box; its values are doubles."""

    valueChanged = Signal(float)
    signatures = {"valueChanged(double)": ("valueChanged", 1)}  # noqa: RUF012

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider, self._spin = QSlider(Qt.Horizontal), QDoubleSpinBox()
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spin)
        self._spin.setRange(0, 99)
        self._slider.setRange(0, 1000)
        self._slider.sliderMoved.connect(self._moved)
        self._spin.valueChanged.connect(self._changed)

    def _moved(self, place):
        low, high = self._spin.minimum(), self._spin.maximum()
        self._spin.setValue(low + (high - low) * place / 1000)

    def _changed(self, value):
        low, high = self._spin.minimum(), self._spin.maximum()
        self._slider.setValue(round(1000 * (value - low) / (high - low)) if high > low else 0)
        self.valueChanged.emit(value)

    def _set_step(self, step):
        self._spin.setSingleStep(step)

    value = Property(float, lambda self: self._spin.value(), lambda self, v: self._spin.setValue(v))
    minimum = Property(float, lambda self: self._spin.minimum(), lambda self, v: self._spin.setMinimum(v))
    maximum = Property(float, lambda self: self._spin.maximum(), lambda self, v: self._spin.setMaximum(v))
    singleStep = Property(float, lambda self: self._spin.singleStep(), _set_step)
    decimals = Property(int, lambda self: self._spin.decimals(), lambda self, n: self._spin.setDecimals(n))


@register
class ctkRangeWidget(QWidget):
    def __init__(self, parent=None):
        super().__init__(parent)
        self._limits, self._values = [0.0, 99.0], [0.0, 99.0]

    def setValues(self, low, high):
        least, most = self._limits
        self._values = [max(least, float(low)), min(most, float(high))]

    def _set_limit(self, which, value):
        self._limits[which] = float(value)
        self.setValues(*self._values)

    minimum = Property(float, lambda self: self._limits[0], lambda self, v: self._set_limit(0, v))
    maximum = Property(float, lambda self: self._limits[1], lambda self, v: self._set_limit(1, v))
    minimumValue = Property(float, lambda self: self._values[0], lambda self, v: self.setValues(v, self._values[1]))
    maximumValue = Property(float, lambda self: self._values[1], lambda self, v: self.setValues(self._values[0], v))


@register
class ctkDoubleSpinBox(QDoubleSpinBox):
    pass


@register
class ctkComboBox(QComboBox):
    def __init__(self, parent=None):
        super().__init__(parent)
        self._default = ""

    defaultText = Property(str, lambda self: self._default, lambda self, text: setattr(self, "_default", text))


@register
class ctkPathLineEdit(QWidget):
    def __init__(self, parent=None):
        super().__init__(parent)
        self._edit = QLineEdit(self)

    currentPath = Property(str, lambda self: self._edit.text(), lambda self, path: self._edit.setText(path))
