"""Feeds volumes to a fusion method: slices along an axis, whole volumes, or overlapping tiles."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np

from .. import device as devices
from ..errors import Cancelled, GeometryError, MethodError
from ..volume import Volume, require_different, require_several, require_usable
from . import registry
from .units import Units

BATCH_VOXELS = 2**20
"""Voxels a source that a batch of slices or a tile holds, at the most."""

PREPARING = 0.5
"""Of the progress that a fuser's `prepare` is told as, where it tells how far it is."""

FEWEST_BATCHES = 16
"""That a volume without overlaps is cut into: a batch is held several times over, as it goes in and comes out."""


@dataclass(frozen=True, eq=False)
class Fusion:
    """What `fuse` returns.

    volume: fused Volume on the first source's grid, float32, 0 (black) .. 1 (white).
    weights: one Volume per source, summing to 1 at every voxel, or None where the method has none.
    """

    volume: Volume
    weights: tuple[Volume, ...] | None


def fuse(
    sources,
    method="medfusion",
    mode="volume",
    axis="axial",
    device="auto",
    progress=None,
    cancelled=None,
):
    """Fuse two or three volumes on one grid.

    sources: scalar Volumes with the same grid (resample first). method: a name of `methods()`.
    mode: "volume" or "slice"; axis: "axial", "coronal" or "sagittal" (the nearest grid axis), for slices.
    A single slice is fused as it lies. One intensity mapping per volume, never per slice. How the arrays lie in memory
    does not matter; a mirrored grid gives the mirrored result, but for rounding, only by methods whose filters are
    symmetric (those without training, save `laplacian`, and `medfusion` where all sizes are multiples of 16).
    progress(fraction, message); cancelled() -> bool, asked before every batch.
    What a scan does not show (its `view`) is taken from the brightest of the others, and so are its weights: beyond an
    MRI of a few slices the CT goes on as it is, instead of fading into black. What none shows stays.

    Raises VolumeError, GeometryError, MethodError, WeightsError, DeviceError, Cancelled.
    """
    info = registry.find(method)
    sources = require_several(sources)
    _check(sources, info, mode)
    chosen = devices.choose(device)
    units = Units(sources)
    modalities = tuple(source.modality for source in sources)
    plane = None if mode == "volume" and 3 in info.dimensions and min(units.shape) > 1 else axis
    first = sources[0]
    found = devices.run_on(
        chosen, lambda device: _run(info, units, modalities, first, plane, device, progress, cancelled)
    )
    return _result(info, sources, units.ranges, mode, axis, *found)


def _check(sources, info, mode):
    if not 2 <= len(sources) <= info.max_sources:
        raise MethodError(f"{info.title} fuses 2 to {info.max_sources} volumes: {len(sources)} given.")
    if mode not in ("volume", "slice"):
        raise MethodError(f"mode {mode!r} is neither 'volume' nor 'slice'.")
    for source in sources:
        require_usable(source)
        if not source.same_grid(sources[0]):
            raise GeometryError(
                f"{source.title} is not on the grid of {sources[0].title}: register or resample it first."
            )
    require_different(sources)


def _run(info, units, modalities, first, plane, device, progress, cancelled):
    import torch

    fuser = registry.load(info.name, device)
    fused = np.empty(units.shape, np.float32)
    weights = None
    lock = Lock()
    prepared = 0.0

    def step(done, count):
        if cancelled and cancelled():
            raise Cancelled()
        if progress and done:
            progress(prepared + (1 - prepared) * done / count, f"{info.title}: {done} of {count}")

    def preparing(done, count):
        nonlocal prepared
        step(0, count)
        prepared = PREPARING * done / count
        if progress and done:
            progress(prepared, f"{info.title}: preparing, {done} of {count}")

    def store(window, values, shares):
        nonlocal weights
        # Shares that sum to 1 but for rounding may lead a little beyond the range.
        np.clip(values, 0, 1, out=fused[window])
        if shares is not None:
            # Fusers that work in threads store from them.
            with lock:
                if weights is None:
                    weights = np.empty((units.count, *units.shape), np.float32)
            weights[(slice(None), *window)] = shares
            units.settle(window, weights[(slice(None), *window)])

    with torch.inference_mode():
        if hasattr(fuser, "prepare"):
            fuser.prepare(torch.from_numpy(units()), modalities, preparing)
        if plane is None and hasattr(fuser, "fuse_volume"):
            axis = first.slice_axis(fuser.along) if hasattr(fuser, "along") else 0
            read, shape, put = _turned(units, units.shape, store, axis)
            fuser.fuse_volume(read, shape, modalities, put, step)
        else:
            along = None if plane is None else first.slice_axis(plane)
            parts = list(_parts(units.shape, along, fuser.halo))
            for done, (outer, inner, cut) in enumerate(parts):
                step(done, len(parts))
                batch = units(outer)
                # Slices go as a batch of 2-D images, a tile as a batch of one.
                batch = batch[None] if along is None else np.ascontiguousarray(np.moveaxis(batch, along + 1, 0))
                values, shares = fuser(torch.from_numpy(batch).to(device), modalities)
                values, shares = values.cpu().numpy(), None if shares is None else shares.cpu().numpy()
                if along is None:
                    values, shares = values[0][cut], None if shares is None else shares[0][(slice(None), *cut)]
                else:
                    values = np.moveaxis(values, 0, along)
                    shares = None if shares is None else np.moveaxis(shares, 0, along + 1)
                store(inner, values, shares)
        step(1, 1)
    return fused, weights, getattr(fuser, "provenance", {})


def _turned(read, shape, store, axis):
    """`fuse_volume`'s read, shape and store of a volume whose slices follow each other on `axis`, as its first one."""
    if axis == 0:
        return read, shape, store

    def window(turned):
        rest = list(turned)
        rest.insert(axis, rest.pop(0))
        return tuple(rest)

    def put(turned, values, shares):
        store(window(turned), np.moveaxis(values, 0, axis), np.moveaxis(shares, 1, axis + 1))

    rest = [size for n, size in enumerate(shape) if n != axis]
    return (
        lambda turned: np.ascontiguousarray(np.moveaxis(read(window(turned)), axis + 1, 1)),
        (shape[axis], *rest),
        put,
    )


def _parts(shape, along, halo):
    """(slices to read, slices to write, slices of the result to keep), all over (K, J, I).

    along: axis whose slices are images of their own, None for tiles that overlap by `halo`.
    """
    if along is not None:
        # A few at least: a fuser may work on them side by side.
        most = max(4, shape[along] // FEWEST_BATCHES)
        per_batch = max(1, min(most, BATCH_VOXELS * shape[along] // int(np.prod(shape))))
        for start in range(0, shape[along], per_batch):
            window = [slice(None)] * 3
            window[along] = slice(start, start + per_batch)
            yield tuple(window), tuple(window), (slice(None),) * 3
        return
    shape = np.array(shape)
    core = shape if halo is None else _tile(shape, halo)
    pad = 0 if halo is None else halo
    for corner in np.ndindex(*(-(-shape // core))):
        low = np.array(corner) * core
        high = np.minimum(low + core, shape)
        outer_low, outer_high = np.maximum(low - pad, 0), np.minimum(high + pad, shape)
        outer = tuple(slice(a, b) for a, b in zip(outer_low, outer_high, strict=True))
        inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        cut = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, outer_low, strict=True))
        yield outer, inner, cut


def _tile(shape, halo):
    """Tile core (3,): the whole volume where it is small, else split its longest axis until it fits."""
    core = np.array(shape)
    # Without an overlap small tiles cost nothing.
    most = 4 * BATCH_VOXELS if halo else min(BATCH_VOXELS, int(np.prod(shape)) // FEWEST_BATCHES)
    while np.prod(np.minimum(core + 2 * halo, shape)) > most and core.max() > max(32, 2 * halo):
        longest = int(core.argmax())
        core[longest] = -(-core[longest] // 2)
    return core


def recorded(source, black, white):
    """What the provenance of a fusion says of a source."""
    return f"{source.modality} {source.units} {black:.6g}..{white:.6g}"


def _result(info, sources, ranges, mode, axis, fused, weights, more):
    from .. import __version__

    provenance = {
        "MedFusion.Version": __version__,
        "MedFusion.Method": info.name,
        "MedFusion.Mode": mode if mode == "volume" else f"slice, {axis}",
        "MedFusion.Weights": registry.weights_hash(info),
        **more,
    }
    for n, (source, ends) in enumerate(zip(sources, ranges, strict=True), 1):
        provenance[f"MedFusion.Source{n}"] = recorded(source, *ends)
    first = sources[0]
    names = "+".join(source.modality for source in sources)
    volume = Volume(fused, first.affine, "OT", "", f"{names} {info.name}", (0.0, 1.0), provenance)
    if weights is None:
        return Fusion(volume, None)
    maps = [
        Volume(share, first.affine, "OT", "", f"weight of {source.name or source.modality}", (0.0, 1.0), provenance)
        for share, source in zip(weights, sources, strict=True)
    ]
    return Fusion(volume, tuple(maps))
