"""Registration of 3-D scans of one patient: rigid, affine and deformable. `register` is the way in."""

from .result import Grid, Quality, Registration

__all__ = ["Grid", "Quality", "Registration", "contact_sheet", "register"]


def __getattr__(name):
    # Results are read where no torch may be loaded; computing them is another matter.
    if name == "register":
        from .driver import register

        return register
    if name == "contact_sheet":
        from .pictures import contact_sheet

        return contact_sheet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
