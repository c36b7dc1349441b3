"""What methods fuse: the sources of a fusion, each as 0 (black) to 1 (white) of its display range."""

from __future__ import annotations

import numpy as np

from ..normalize import display_range, scale


class Units:
    """The sources as 0..1, made part by part: a second copy of the whole would cost more than the fusion.

    Beyond a source's field of view (`Volume.view`) stands the brightest of those that show the place.
    """

    def __init__(self, sources):
        self._views = [source.view for source in sources]
        self.ranges = [display_range(source) for source in sources]
        self._sources = [(source.array, *ends) for source, ends in zip(sources, self.ranges, strict=True)]
        self.shape = sources[0].array.shape
        self.count = len(sources)

    def __call__(self, window=(...,)):
        """float32 (S, ...): the part that `window` indexes, by default all of it, what a source lacks filled in."""
        stack = self._shown(window)
        if self._lacks(window):
            best, _ = self._brightest(stack, window)
            for target, view in zip(stack, self._views, strict=True):
                if view is not None:
                    np.copyto(target, best, where=~view[window] & (best >= 0))
        return stack

    def settle(self, window, shares):
        """What was filled in belongs to the source that it came from: so do its shares (S, ...), in place."""
        if not self._lacks(window):
            return
        best, owner = self._brightest(self._shown(window), window)
        for share, view in zip(shares, self._views, strict=True):
            if view is not None:
                moved = np.where(view[window] | (best < 0), 0, share)
                share -= moved
                for n, other in enumerate(shares):
                    other += moved * (owner == n)

    def _lacks(self, window):
        return any(view is not None and not view[window].all() for view in self._views)

    def _brightest(self, stack, window):
        """(float32, uint8) of the window: the highest value of the sources that show a voxel, and which has it; -1
        where none does: what lies there stays as it is."""
        best = np.full(stack.shape[1:], -1, np.float32)
        owner = np.zeros(best.shape, np.uint8)
        for n, (unit, view) in enumerate(zip(stack, self._views, strict=True)):
            brighter = unit > best
            if view is not None:
                brighter &= view[window]
            np.copyto(best, unit, where=brighter)
            owner[brighter] = n
        return best, owner

    def _shown(self, window):
        first = self._sources[0][0][window]
        stack = np.empty((self.count, *first.shape), np.float32)
        for target, (array, black, white) in zip(stack, self._sources, strict=True):
            scale(array[window], black, white, out=target)
        return stack
