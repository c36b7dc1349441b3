"""Baselines without training, of many scales. Tensors are (B, S, *spatial), of two or three spatial dimensions.

They blend frequency bands, not voxels, so there are no weight maps; sums of bands are kept within 0..1.

Volumes are large and bands are many: filters work in place, on a part of the image at a time, sources one by one.
"""

from __future__ import annotations

import math

import torch

SPLINE = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)

PART = 2**18
"""Voxels that an operation in place works on at a time: bounds its memory, and stays in the processor's cache."""


def spatial(image):
    """The spatial axes of a (B, S, *spatial) tensor that have an extent."""
    return [axis for axis in range(2, image.ndim) if image.shape[axis] > 1]


def filtered(image, taps, axis, dilation=1):
    """Convolve along an axis; the border voxel goes on beyond the border."""
    size, radius = image.shape[axis], len(taps) // 2 * dilation
    index = torch.arange(-radius, size + radius, device=image.device).clamp_(0, size - 1)
    padded = image.index_select(axis, index)
    result = torch.zeros_like(image)
    for n, tap in enumerate(taps):
        result.add_(padded.narrow(axis, n * dilation, size), alpha=tap)
    return result


def smooth(image, dilation=1, taps=SPLINE):
    for axis in spatial(image):
        image = filtered(image, taps, axis, dilation)
    return image


def parts(image, axis):
    """Views of an image that together are all of it, each with whole lines along an axis and at most `PART` voxels."""
    across = _across(image, axis)
    return image.split(max(1, PART * image.shape[across] // image.numel()), across)


def _across(image, axis):
    """The longest axis other than the given one."""
    return max((n for n in range(image.ndim) if n != axis), key=lambda n: image.shape[n])


def smooth_(image, dilation=1, taps=SPLINE):
    """`smooth`, in place."""
    for axis in spatial(image):
        for part in parts(image, axis):
            part.copy_(filtered(part, taps, axis, dilation))
    return image


def box(image, radius):
    """Mean of the voxels within `radius` along each axis, that are in the image."""
    return box_(image.clone(), radius)


def box_(image, radius):
    """`box`, in place."""
    for axis in spatial(image):
        size = image.shape[axis]
        at = torch.arange(size, device=image.device)
        count = (at + radius).clamp_(max=size - 1) - (at - radius).clamp_(min=0) + 1
        count = count.view(-1, *[1] * (image.ndim - axis - 1))
        for part in parts(image, axis):
            part.copy_(_sums(part, radius, axis).div_(count))
    return image


def _sums(image, radius, axis):
    """Sums of 2 * radius + 1 voxels along an axis, zeros beyond the border: of sums of 1, 2, 4 ... neighbours."""
    size, left, step, begin = image.shape[axis], 2 * radius + 1, 1, 0
    beyond = image.new_zeros([*image.shape[:axis], radius, *image.shape[axis + 1 :]])
    sums = torch.cat([beyond, image, beyond], axis)
    result = torch.zeros_like(image)
    while left:
        if left & 1:
            result += sums.narrow(axis, begin, size)
            begin += step
        left >>= 1
        if left:
            length = sums.shape[axis] - step
            sums = sums.narrow(axis, 0, length) + sums.narrow(axis, step, length)
            step *= 2
    return result


def strongest_(best, other):
    """Of two images the value of the larger magnitude, at each voxel; in place of the first, which wins a tie."""
    for mine, its in zip(parts(best, 0), parts(other, 0), strict=True):
        mine.copy_(torch.where(its.abs() > mine.abs(), its, mine))
    return best


class _Slabs:
    """Goes through whole volumes in slabs across the longest axis: tiles of all axes would overlap more.

    `halo`: of a slab. `fuse_part(sources, axis, start, length)`: fused (B, *spatial) of a part of (B, S, *spatial)
    along an axis of it.
    """

    share, fewest = 0.55, 16
    """Of the volume that a slab with its halo may be; slices of a slab, at least."""

    def __init__(self, device):
        self.device = device

    def __call__(self, sources, modalities):
        # One at a time bounds the memory.
        images = [self.fuse_part(one, 2, 0, one.shape[2]) for one in sources.split(1)]
        return torch.cat(images), None

    def fuse_volume(self, read, shape, modalities, store, step):
        """A `Fuser`'s, see `registry`."""
        axis = max(range(3), key=lambda n: shape[n])
        size = shape[axis]
        slices = max(self.fewest, int(self.share * size) - 2 * self.halo)
        if math.prod(shape) <= 4 * PART:
            slices = size
        count = -(-size // slices)
        for n in range(count):
            step(n, count)
            low, high = n * size // count, (n + 1) * size // count
            first, last = max(0, low - self.halo), min(size, high + self.halo)
            inside, around = (
                tuple(slice(*ends) if one == axis else slice(None) for one in range(3))
                for ends in ((low, high), (first, last))
            )
            store(inside, self._fused(read(around), axis, low - first, high - low), None)

    def _fused(self, stack, axis, start, length):
        sources = torch.from_numpy(stack)[None].to(self.device)
        return self.fuse_part(sources, axis + 2, start, length)[0].cpu().numpy()


class Laplacian:
    """Laplacian pyramid: the strongest source in each band, the mean of what is left (Burt and Kolczynski 1993,
    with their match measure left out).

    Four levels, the 5-tap binomial filter, linear interpolation between levels. Decimation ties a voxel to the grid's
    origin, so a volume is not cut into tiles.
    """

    halo = None
    levels = 4

    def __init__(self, device):
        self.device = device

    def __call__(self, sources, modalities):
        return torch.cat([self._fused_(one.clone()) for one in sources.split(1)]), None

    def fuse_volume(self, read, shape, modalities, store, step):
        """A `Fuser`'s, see `registry`."""
        step(0, 1)
        whole = (slice(None),) * 3
        sources = torch.from_numpy(read(whole))[None].to(self.device)
        store(whole, self._fused_(sources)[0].cpu().numpy(), None)

    def _fused_(self, image):
        """(1, *spatial) of (1, S, *spatial), which does not outlive it."""
        sources, bands = image.split(1, 1), []
        for _ in range(self.levels):
            lows, band = [], None
            for source in sources:
                low = self._halved(source)
                detail = source.sub_(self._expand(low, source.shape))
                band = detail if band is None else strongest_(band, detail)
                lows.append(low)
            bands.append(band)
            sources = lows
        fused = torch.cat(list(sources), 1).mean(1, keepdim=True)
        while bands:
            band = bands.pop()
            fused = self._expand(fused, band.shape).add_(band)
        return fused.clamp_(0, 1).squeeze(1)

    @staticmethod
    def _halved(image):
        """Smoothed, every other voxel of it along each axis; a new tensor."""
        if not spatial(image):
            return image.clone()
        for axis in spatial(image):
            shape = list(image.shape)
            shape[axis] = (shape[axis] + 1) // 2
            low = image.new_empty(shape)
            across = _across(image, axis)
            start = 0
            for part in parts(image, axis):
                every = filtered(part, SPLINE, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
                low.narrow(across, start, part.shape[across]).copy_(every)
                start += part.shape[across]
            image = low
        return image

    @staticmethod
    def _expand(image, shape):
        """Twice as many voxels along each axis that has an extent, between their neighbours."""
        for axis in range(2, image.ndim):
            size = shape[axis]
            if size > 1:
                large = image.new_empty([*image.shape[:axis], size, *image.shape[axis + 1 :]])
                every, between = (large[(slice(None),) * axis + (slice(begin, None, 2),)] for begin in (0, 1))
                every.copy_(image)
                odd = size // 2
                between.copy_(image.narrow(axis, 0, odd))
                # The last voxel has no neighbour beyond it where their number is even.
                inner = image.shape[axis] - 1
                between.narrow(axis, 0, inner).add_(image.narrow(axis, 1, inner))
                between.narrow(axis, inner, odd - inner).mul_(2)
                between /= 2
                image = large
        return image


class Wavelet(_Slabs):
    """A trous wavelet: the strongest source in each detail plane, the mean of the remainder.

    The transform is that of Nunez et al. 1999, who give the planes of the one source to the other: departed from, as
    neither source comes first here. Undecimated, so it commutes with shifts: three planes with the cubic B-spline.
    """

    planes = 3
    halo = 2 * (2**planes - 1)
    share = 0.4

    def fuse_part(self, sources, axis, start, length):
        rest = list(sources.split(1, 1))
        fused = torch.zeros_like(rest[0])
        for plane in range(self.planes):
            fused += self._detail(rest, 2**plane)
        fused += sum(rest[1:], rest[0]).div_(len(rest))
        return fused.clamp_(0, 1).narrow(axis, start, length).squeeze(1)

    @staticmethod
    def _detail(rest, dilation):
        """The strongest source in the next plane; the rest of each source takes its place in the list."""
        band = None
        for n, source in enumerate(rest):
            rest[n] = smooth_(source.clone(), dilation)
            # The first plane's source is the caller's.
            detail = source - rest[n] if dilation == 1 else source.sub_(rest[n])
            band = detail if band is None else strongest_(band, detail)
        return band


class Guided(_Slabs):
    """Guided filtering: base and detail layers, each blended by its own edge-aware weights (Li, Kang and Hu 2013).

    Base: mean of 31. Weights: where a source's smoothed Laplacian is the strongest, refined by a guided filter with
    the source as guide, radius 20, regularisation 0.3 (base) and 7, 1e-6 (detail). Departure: the paper's radius of 45
    for the base would make slabs of a volume overlap by 96 voxels.
    """

    halo = 48
    mean = 15
    base, detail = (20, 0.3), (7, 1e-6)

    def fuse_part(self, sources, axis, start, length):
        chosen = self._chosen(sources)
        fused = torch.zeros_like(sources[:, :1].narrow(axis, start, length))
        for filter in (self.base, self.detail):
            self._add(fused, sources, chosen, filter, lambda image: image.narrow(axis, start, length))
        return fused.clamp_(0, 1).squeeze(1)

    def _add(self, fused, sources, chosen, filter, inside):
        """Add a layer. inside(image): the part of an image that `fused` is of."""
        # A copy of the part, so that the rest of it goes.
        weights = [
            inside(self._weight(source, chosen == n, *filter)).clone() for n, source in enumerate(sources.split(1, 1))
        ]
        total = sum(weights[1:], weights[0])
        nowhere = total <= 1e-6
        for weight, source in zip(weights, sources.split(1, 1), strict=True):
            weight.div_(total).masked_fill_(nowhere, 1 / len(weights))
            layer = inside(box(source, self.mean))
            fused.addcmul_(weight, inside(source) - layer if filter is self.detail else layer)

    @staticmethod
    def _chosen(sources):
        """uint8 (B, 1, *spatial): which source is the most salient."""
        taps = torch.exp(-(torch.arange(-5.0, 6.0) ** 2) / (2 * 5.0**2))
        taps = (taps / taps.sum()).tolist()
        best, chosen = None, torch.zeros_like(sources[:, :1], dtype=torch.uint8)
        for n, source in enumerate(sources.split(1, 1)):
            saliency = torch.zeros_like(source)
            for axis in spatial(source):
                for target, part in zip(parts(saliency, axis), parts(source, axis), strict=True):
                    target += filtered(part, (1, -2, 1), axis)
            smooth_(saliency.abs_(), taps=taps)
            if best is None:
                best = saliency
                continue
            chosen.masked_fill_(saliency > best, n)
            torch.maximum(best, saliency, out=best)
        return chosen

    @staticmethod
    def _weight(guide, chosen, radius, regularisation):
        """(B, 1, *spatial), not negative: the choice, filtered (He, Sun and Tang 2010)."""
        mean = box(guide, radius)
        slope = box_(guide * chosen, radius)
        # Filtered twice, here and below: it is cheap, and one image less is held meanwhile.
        slope.addcmul_(mean, box_(chosen.to(guide.dtype), radius), value=-1)
        variance = box_(guide * guide, radius).addcmul_(mean, mean, value=-1).clamp_min_(0)
        slope.div_(variance.add_(regularisation))
        del variance
        offset = box_(chosen.to(guide.dtype), radius).addcmul_(slope, mean, value=-1)
        del mean
        return box_(slope, radius).mul_(guide).add_(box_(offset, radius)).clamp_min_(0)


def load(method, device):
    return {"laplacian": Laplacian, "wavelet": Wavelet, "guided": Guided}[method.name](device)
