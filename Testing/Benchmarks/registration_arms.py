"""What is compared: arms of cases, the tools that take part in each, and the bars that MedFusion is held to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from registration_cases import atlas_cases, full_size_case, gpu_case, phantom_cases, still_cases, template_cases
from registration_peers import GPU_TOOLS, TOOLS

SHARED = Path(__file__).resolve().parents[3] / "shared"
TEMPLATES = SHARED / "measure" / "regbench.py"
ATLAS = SHARED / "data" / "harvard"


@dataclass(frozen=True)
class Bar:
    """figure: "mean", "p95", "worst", "seconds", "megabytes" or "folded". limit: absolute, or times a peer's figure.

    of: "best" (peer in that figure), "fastest" (peer with a mean under 1 mm), a tool's name, or None: absolute.
    """

    figure: str
    limit: float
    of: str | None = None


@dataclass(frozen=True)
class Arm:
    """make(seed) yields `pairs` `Case`s. seeds: how many there are. fresh: in new processes, for peaks of its own."""

    name: str
    title: str
    model: str
    make: object
    pairs: int
    seeds: int
    bars: tuple[Bar, ...] = ()
    fresh: bool = False
    tools: dict = None

    def names(self):
        tools = TOOLS if self.tools is None else self.tools
        return [name for name, tool in tools.items() if self.model in tool.models]


_QUICK = (Bar("seconds", 0.4, "fastest"), Bar("megabytes", 1.0, "elastix"))
_RIGID = (Bar("mean", 1.0, "best"), Bar("p95", 0.9, "best"), Bar("worst", 2.0), *_QUICK)
_WHOLE = (
    Bar("mean", 1.0, "best"), Bar("mean", 0.08), Bar("seconds", 0.25, "fastest"), Bar("megabytes", 600.0),
)  # fmt: skip
_AFFINE = (Bar("mean", 1.0, "best"), Bar("seconds", 0.4, "fastest"))
_DEFORMABLE = (Bar("mean", 0.8, "convexAdam"), Bar("folded", 0.0), Bar("seconds", 1.0, "convexAdam"))


def arms():
    """(arms that can be run here, lines that say what cannot and why)."""
    found, missing = [], []
    if TEMPLATES.exists():
        found += [
            Arm("rigid", "rigid, CT/T2/PET/SPECT to T1", "rigid",
                _templates("CT-T1", "T2-T1", "PET-T1", "SPECT-T1", model="rigid"), 4, 10, _RIGID),
            Arm("epi", "rigid, EPI to T1 (no scalp)", "rigid", _templates("EPI-T1", model="rigid"), 1, 10,
                (Bar("mean", 0.8, "best"), *_QUICK)),
            Arm("affine", "affine, CT/T2/PET/SPECT to T1", "affine",
                _templates("CT-T1", "T2-T1", "PET-T1", "SPECT-T1", model="affine"), 4, 3, _AFFINE),
            Arm("deformable", "deformable, T1 to T2 and PD", "deformable",
                _templates("T2", "PD", model="deformable"), 2, 3, _DEFORMABLE),
        ]  # fmt: skip
    else:
        missing.append("Real templates are not there: the phantom's cases alone.")
    # Alone, the phantom stands in for the templates.
    few = 1 if found else 4
    bars = ((), (), ()) if found else (_RIGID, _AFFINE, _DEFORMABLE)
    found += [
        Arm("full", "rigid, full-size phantom", "rigid", lambda seed: [full_size_case(seed)], 1, 2, _WHOLE, fresh=True),
        Arm("phantom", "rigid, phantom", "rigid", lambda seed: phantom_cases(seed, "rigid"), 2, few, bars[0]),
        Arm("phantom-affine", "affine, phantom", "affine", lambda seed: phantom_cases(seed, "affine"), 2, few, bars[1]),
        Arm("phantom-deformable", "deformable, phantom", "deformable",
            lambda seed: phantom_cases(seed, "deformable"), 1, few, bars[2]),
        # convexAdam wants both scans on one grid.
        Arm("still", "deformable, phantom that nothing deforms", "deformable", still_cases, 2, 2,
            tools={"MedFusion": TOOLS["MedFusion"]}),
    ]  # fmt: skip
    if ATLAS.is_dir():
        found.append(Arm("atlas", "rigid, atlas stacks", "rigid", lambda seed: atlas_cases(ATLAS, seed), 3, 1))
    else:
        missing.append("The Whole Brain Atlas is not there: no cases of it.")
    if _cuda():
        found += [
            Arm("gpu", "GPU, rigid, 512x512x200 to 256^3", "rigid", lambda seed: [gpu_case(seed, "rigid")], 1, 2,
                (Bar("seconds", 1.0),), tools=GPU_TOOLS, fresh=True),
            Arm("gpu-deformable", "GPU, deformable, 512x512x200 to 256^3", "deformable",
                lambda seed: [gpu_case(seed, "deformable")], 1, 2, (Bar("seconds", 5.0),), tools=GPU_TOOLS, fresh=True),
        ]  # fmt: skip
    else:
        missing.append("No CUDA device: the GPU arms were skipped.")
    return found, missing


def _templates(*pairs, model):
    return lambda seed: template_cases(TEMPLATES, pairs, seed, model)


def _cuda():
    import torch

    return torch.cuda.is_available()
