"""Scores as a table to read."""

from __future__ import annotations

import math


def markdown(rows):
    """A Markdown table of {row title: {measure: value}}; columns in the order in which they first appear.

    Numbers have four significant digits; a measure that a row lacks, or that is not defined there, is "–".
    """
    columns = list(dict.fromkeys(name for values in rows.values() for name in values))
    lines = [["", *columns], ["---"] + ["---:"] * len(columns)]
    for title, values in rows.items():
        lines.append([title, *(_text(values.get(name)) for name in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _text(value):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return value if isinstance(value, str) else f"{value:.4g}"
