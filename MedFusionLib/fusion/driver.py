"""Feeds volumes to a fusion method: slices along an axis, whole volumes, or overlapping tiles."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from .. import device as devices
from ..errors import Cancelled, GeometryError, MethodError
from ..normalize import display_range, to_unit
from ..volume import Volume, require_different, require_usable
from . import registry

log = logging.getLogger(__name__)

BATCH_VOXELS = 2**22
"""Voxels a source that a CPU batch holds: bounds the memory of a network's activations."""


@dataclass(frozen=True, eq=False)
class Fusion:
    """What `fuse` returns.

    volume: fused Volume on the first source's grid, float32, 0 (black) .. 1 (white).
    weights: one Volume per source, summing to 1 at every voxel, or None where the method has none.
    """

    volume: Volume
    weights: tuple[Volume, ...] | None


def fuse(sources, method="medfusion", mode="volume", axis="axial", device="auto", progress=None, cancelled=None):
    """Fuse two or three volumes on one grid.

    sources: scalar Volumes with the same grid (resample first). method: a name of `methods()`.
    mode: "volume" or "slice"; axis: "axial", "coronal" or "sagittal" (the nearest grid axis), for slices.
    A 2-D method in volume mode fuses axial slices. One intensity mapping per volume, never per slice.
    progress(fraction, message); cancelled() -> bool, asked before every batch.

    Raises VolumeError, GeometryError, MethodError, WeightsError, DeviceError, Cancelled.
    """
    info = registry.find(method)
    sources = list(sources)
    _check(sources, info, mode)
    chosen = devices.choose(device)
    stack = np.empty((len(sources), *sources[0].array.shape), np.float32)
    for unit, source in zip(stack, sources, strict=True):
        to_unit(source, out=unit)
    modalities = tuple(source.modality for source in sources)
    plane = None if mode == "volume" and 3 in info.dimensions and min(stack.shape[1:]) > 1 else axis
    try:
        fused, weights = _run(info, stack, modalities, sources[0], plane, chosen, progress, cancelled)
    except Exception as error:
        if chosen.type == "cpu" or not devices.is_out_of_memory(error):
            raise
        log.warning("%s ran out of memory: the CPU takes over.", chosen)
        import torch

        fused, weights = _run(info, stack, modalities, sources[0], plane, torch.device("cpu"), progress, cancelled)
    return _result(info, sources, mode, axis, fused, weights)


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


def _run(info, stack, modalities, first, plane, device, progress, cancelled):
    import torch

    fuser = registry.load(info.name, device)
    with torch.inference_mode():
        if hasattr(fuser, "prepare"):
            fuser.prepare(torch.from_numpy(stack), modalities)
        fused = np.empty(stack.shape[1:], np.float32)
        weights = None
        for done, (where, batch) in enumerate(parts := list(_parts(stack, first, plane, fuser))):
            if cancelled and cancelled():
                raise Cancelled()
            inner, cut = where
            values, shares = fuser(torch.from_numpy(batch(stack)).to(device), modalities)
            _store(fused, values[(slice(None), *cut)].cpu().numpy(), inner, plane, first)
            if shares is not None:
                if weights is None:
                    weights = np.empty_like(stack)
                for n in range(len(stack)):
                    _store(weights[n], shares[:, n][(slice(None), *cut)].cpu().numpy(), inner, plane, first)
            if progress:
                progress((done + 1) / len(parts), f"{info.title}: {done + 1} of {len(parts)}")
    return fused, weights


def _parts(stack, first, plane, fuser):
    """((target slices, slices of the batch to keep), function that cuts the batch out of the stack)."""
    if plane is not None:
        along = first.anatomical_axis(plane)
        slices = np.moveaxis(stack, along + 1, 1)
        per_batch = max(1, BATCH_VOXELS // slices[0, 0].size)
        for start in range(0, slices.shape[1], per_batch):
            span = slice(start, start + per_batch)
            keep = (slice(None), slice(None))
            yield (
                (span, keep),
                lambda s, span=span: np.ascontiguousarray(np.moveaxis(s, along + 1, 1)[:, span].swapaxes(0, 1)),
            )
        return
    shape = np.array(stack.shape[1:])
    halo = fuser.halo
    core = shape if halo is None else _tile(shape, halo)
    for corner in np.ndindex(*(-(-shape // core))):
        low = np.array(corner) * core
        high = np.minimum(low + core, shape)
        pad = 0 if halo is None else halo
        outer_low, outer_high = np.maximum(low - pad, 0), np.minimum(high + pad, shape)
        inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        outer = tuple(slice(a, b) for a, b in zip(outer_low, outer_high, strict=True))
        cut = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, outer_low, strict=True))
        yield (inner, cut), lambda s, outer=outer: np.ascontiguousarray(s[(slice(None), *outer)])[None]


def _tile(shape, halo):
    """Tile core (3,): the whole volume where it is small, else split its longest axis until it fits."""
    core = np.array(shape)
    while np.prod(np.minimum(core + 2 * halo, shape)) > BATCH_VOXELS and core.max() > max(32, 2 * halo):
        longest = int(core.argmax())
        core[longest] = -(-core[longest] // 2)
    return core


def _store(target, values, inner, plane, first):
    if plane is None:
        target[inner] = values[0]
    else:
        np.moveaxis(target, first.anatomical_axis(plane), 0)[inner] = values


def _result(info, sources, mode, axis, fused, weights):
    from .. import __version__

    provenance = {
        "MedFusion.Version": __version__,
        "MedFusion.Method": info.name,
        "MedFusion.Mode": mode if mode == "volume" else f"slice, {axis}",
        "MedFusion.Weights": registry.weights_hash(info),
    }
    for n, source in enumerate(sources, 1):
        black, white = display_range(source)
        provenance[f"MedFusion.Source{n}"] = f"{source.modality} {source.units} {black:.6g}..{white:.6g}"
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
