"""`Request` -> `Result`: the one path that all data takes, from the panel, the console and the command line."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from numbers import Integral
from os import PathLike

from .errors import Cancelled, MethodError, RegistrationError
from .normalize import display_range
from .volume import FUNCTIONAL, Volume, is_single, require_different, require_usable, require_volume

MODELS = ("none", "rigid", "affine", "deformable")
UNTRUSTED = ("warn", "stop")
REGISTER_OPTIONS = {"initial", "fixed_mask", "moving_mask", "similarity", "levels"}
"""Keyword arguments of `register` that a request has no field of its own for."""

OWN_OPTIONS = {"initial", "moving_mask"}
"""Those of which every source may have its own."""


@dataclass(frozen=True, eq=False)
class Coloring:
    """How PET or SPECT is laid over the anatomy.

    lut: name of a colour table in `color.LUTS`. opacity: 0..1 of the colour where the uptake is above
    `threshold` (in the volume's own units; None: above the black of its display range).
    """

    lut: str = "PET-Heat"
    opacity: float = 0.5
    threshold: float | None = None


@dataclass(frozen=True, eq=False)
class Request:
    """What to do.

    sources: two or three Volumes, or paths that `read_volume` takes. reference: index of the one that keeps
    its place and gives the grid of the result. registration: "none", "rigid", "affine" or "deformable", of
    every other source to the reference. untrusted: "warn" (say so in the result's messages) or "stop"
    (RegistrationError) when a registration's own verdict is "failed". register_options: further keyword
    arguments of `register` (masks, initial ...); initial and moving_mask may be tuples with one per source, None where
    there is none and for the reference.
    method, mode, axis, device, seed: as `fuse` and `register` take them. coloring: None for no RGB volume;
    ignored where no source is PET or SPECT. evaluate: measure the result against its sources.
    """

    sources: tuple[Volume | str | PathLike, ...]
    reference: int = 0
    registration: str = "rigid"
    method: str = "medfusion"
    mode: str = "volume"
    axis: str = "axial"
    device: str = "auto"
    seed: int = 0
    coloring: Coloring | None = field(default_factory=Coloring)
    evaluate: bool = True
    untrusted: str = "warn"
    register_options: dict = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Result:
    """What came of it.

    fusion: as `fuse` returns it, on the reference's grid. sources: the volumes that were fused, in the order
    of the request, resampled to that grid in their own units. registrations: one `Registration` per source,
    None for the reference. rgb: uint8 (K, J, I, 3) Volume, or None. scores: metric name -> value, empty if not
    asked for. seconds: step -> wall-clock time. messages: what the user should know.
    """

    fusion: object
    sources: tuple[Volume, ...]
    registrations: tuple[object | None, ...]
    rgb: Volume | None
    scores: dict[str, float]
    seconds: dict[str, float]
    messages: tuple[str, ...]


def run(request, progress=None, cancelled=None):
    """Read, register, normalise, fuse, colour and evaluate.

    progress(fraction, message): called often, fraction rises from 0 to 1. cancelled(): asked often; when it
    answers True the run ends with `Cancelled`.

    Raises a `MedFusionError` of `errors` for anything that is wrong with the request or its volumes, before
    any long work where it can be known.
    """
    steps = _Steps(progress, cancelled, seconds={})
    require_settings(request)
    with steps("read", 0.0, 0.05) as report:
        report(0, "Reading")
        sources = [_read(source) for source in ([request.sources] if is_single(request.sources) else request.sources)]
        _check(request, sources)
    fixed = sources[request.reference]
    registrations, aligned = [], []
    messages = [said for source in sources if (said := _plain(source))]
    moving = [n for n in range(len(sources)) if n != request.reference]
    for n, source in enumerate(sources):
        if n == request.reference:
            registrations.append(None)
            aligned.append(source)
            continue
        share = 0.55 / len(moving)
        start = 0.05 + share * moving.index(n)
        with steps("register", start, start + share) as report:
            registration = _register(request, fixed, source, n, report, steps.cancelled, messages)
        registrations.append(registration)
        aligned.append(_resample(registration, source, fixed))
        steps.check()
    from .fusion import fuse

    # Weights and the first-source rule follow the request's order; only the grid is the reference's.
    with steps("fuse", 0.6, 0.9) as report:
        fusion = fuse(aligned, request.method, request.mode, request.axis, request.device, report, steps.cancelled)
    rgb = None
    functional = _functional(aligned)
    if request.coloring and functional is not None:
        from .color import colorize

        with steps("color", 0.9, 0.93):
            rgb = colorize(fusion.volume, functional, request.coloring)
        if said := _colorless(functional, request.coloring.threshold):
            messages.append(said)
    scores = {}
    if request.evaluate:
        from .metrics import QUICK, evaluate

        with steps("evaluate", 0.93, 1.0) as report:
            scores = evaluate(fusion.volume, aligned, names=QUICK, progress=report, cancelled=steps.cancelled)
    steps.check()
    if progress:
        progress(1.0, "Done")
    return Result(fusion, tuple(aligned), tuple(registrations), rgb, scores, steps.seconds, tuple(messages))


def leaned(result, request, towards, amount):
    """A `Result` with its fusion leaned towards a source, see `fusion.lean`, and its colour with it.

    result, request: of the run. towards: index of a source. amount: 0 (as it was fused) to 1 (that source alone).
    No network runs. The scores were of the fusion as it was: there are none.
    """
    from .fusion import lean

    fusion = lean(result.fusion, result.sources, towards, amount)
    rgb = result.rgb
    if rgb is not None:
        from .color import colorize

        rgb = colorize(fusion.volume, _functional(result.sources), request.coloring)
    return replace(result, fusion=fusion, rgb=rgb, scores={})


def _functional(sources):
    """The PET or SPECT that is shown in colour, or None."""
    return next((source for source in sources if source.modality in FUNCTIONAL), None)


def _read(source):
    if not isinstance(source, (str, PathLike)):
        require_volume(source)
        return source
    from .files import read_volume

    return read_volume(source)


def require_settings(request):
    """Raise MethodError for what is wrong with a request whatever its sources are: these may take minutes to read."""
    from .color import require_coloring
    from .fusion.registry import find

    find(request.method)
    for name, value, choices in (
        ("registration", request.registration, MODELS),
        ("untrusted", request.untrusted, UNTRUSTED),
        ("mode", request.mode, ("volume", "slice")),
        ("axis", request.axis, ("axial", "coronal", "sagittal")),
    ):
        if value not in choices:
            raise MethodError(f"{name} {value!r} is not one of {', '.join(choices)}.")
    if request.coloring:
        if not isinstance(request.coloring, Coloring):
            raise MethodError(f"coloring is a {type(request.coloring).__name__}: give a Coloring, or None.")
        require_coloring(request.coloring)
    if not isinstance(request.seed, Integral):
        raise MethodError(f"the seed is {request.seed!r}: give a whole number.")
    if not isinstance(request.register_options, dict):
        raise MethodError(f"register_options is a {type(request.register_options).__name__}: give a dict.")
    unknown = set(request.register_options) - REGISTER_OPTIONS
    if unknown:
        raise MethodError(
            f"register_options hold {', '.join(sorted(unknown))}: choose of {', '.join(sorted(REGISTER_OPTIONS))}."
        )


def require_reference(reference, count):
    """Raise MethodError unless `reference` is the index of one of `count` sources."""
    if not isinstance(reference, Integral) or not 0 <= reference < count:
        raise MethodError(f"the reference is source {reference}, but there are {count} sources (the first is 0).")


def _check(request, sources):
    from .fusion.registry import find

    info = find(request.method)
    if not 2 <= len(sources) <= info.max_sources:
        raise MethodError(f"{info.title} fuses 2 to {info.max_sources} volumes: {len(sources)} given.")
    require_reference(request.reference, len(sources))
    for name in OWN_OPTIONS & set(request.register_options):
        value = request.register_options[name]
        if _is_per_source(value) and len(value) != len(sources):
            raise MethodError(
                f"{name} has {len(value)} entries, but there are {len(sources)} sources: give one for each."
            )
    for source in sources:
        require_usable(source)
    require_different(sources)


def _plain(source):
    """What is to be said of a source of whose values the display range tells none apart; else None."""
    black, white = display_range(source)
    for shade, all_over in (("black", source.array.max() <= black), ("white", source.array.min() >= white)):
        if all_over:
            shown = f"{black:g} to {white:g} {source.units}".rstrip()
            return f"{source.title} is {shade} all over, as its display range is {shown}: give it one that fits."
    return None


def _colorless(functional, threshold):
    """What is to be said where no uptake reaches the threshold of the colours; else None."""
    most = functional.array.max()
    if threshold is None or most >= threshold:
        return None
    ends = f"{most:g} {functional.units}".rstrip()
    return f"{functional.title} is not coloured anywhere: its values end at {ends}, below the threshold {threshold:g}."


def _is_per_source(value):
    # A 4x4 matrix may be a tuple too, of four: no number of sources.
    return isinstance(value, tuple) and len(value) != 4


def _register(request, fixed, moving, place, report, cancelled, messages):
    from .registration import register

    options = {
        name: value[place] if name in OWN_OPTIONS and _is_per_source(value) else value
        for name, value in request.register_options.items()
    }
    options = {name: value for name, value in options.items() if value is not None}
    registration = register(
        fixed,
        moving,
        model=request.registration,
        device=request.device,
        seed=request.seed,
        progress=report,
        cancelled=cancelled,
        **options,
    )
    quality = registration.quality
    if quality is not None and quality.verdict != "good":
        said = f"Registration of {moving.title} to {fixed.title}: {quality.verdict}. {quality.reason}"
        if quality.verdict == "failed" and request.untrusted == "stop":
            raise RegistrationError(said)
        messages.append(said)
    return registration


def _resample(registration, moving, fixed):
    resampled = registration.resample(moving)
    if resampled.array.min() == resampled.array.max():
        raise RegistrationError(
            f"{moving.title} lies outside {fixed.title}: "
            + (
                "choose rigid registration."
                if registration.model == "none"
                else "check that both are of the same part of one patient."
            )
        )
    return resampled


class _Steps:
    """Times named steps, spreads their progress over the whole, and answers for cancelling."""

    def __init__(self, progress, cancelled, seconds):
        self._progress, self.cancelled, self.seconds = progress, cancelled, seconds
        self._furthest = 0.0

    def check(self):
        if self.cancelled and self.cancelled():
            raise Cancelled()

    def __call__(self, name, start, stop):
        return _Step(self, name, start, stop)

    def report(self, fraction, message):
        # What the CPU takes over from another device begins again.
        self._furthest = max(self._furthest, fraction)
        if self._progress:
            self._progress(self._furthest, message)


class _Step:
    def __init__(self, steps, name, start, stop):
        self.steps, self.name, self.start, self.span = steps, name, start, stop - start

    def __enter__(self):
        self.steps.check()
        self.began = time.perf_counter()
        return lambda fraction, message: self.steps.report(self.start + self.span * fraction, message)

    def __exit__(self, *_):
        spent = time.perf_counter() - self.began
        self.steps.seconds[self.name] = self.steps.seconds.get(self.name, 0.0) + spent
