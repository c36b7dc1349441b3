"""Fill the README's generated parts: the demo's picture and what it prints, and the tables of methods and benchmarks.

python Testing/readme.py [all | methods | registration | fusion]

"registration" takes the tables that `make bench-registration` and `registration_trust.py judge` left in bench-output,
and makes the picture beside them;
"fusion" makes its tables of what `make bench-fusion` left there.
"""

import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from MedFusionLib import methods  # noqa: E402
from MedFusionLib.fusion.training.atlas import HELD_BACK  # noqa: E402

README = ROOT / "README.md"
PICTURE = ROOT / "Resources" / "Screenshots" / "demo.jpg"
SHRINK = 0.7

ANATOMICAL_GROUP = "CT-MRI"
ANATOMICAL = ("bone_solid", "soft_corr", "soft_edges", "background", "Qabf", "SCD", "MS-SSIM", "head-SSIM", "Nabf")
FUNCTIONAL = ("Qabf", "SCD", "SSIM", "head-SSIM", "Nabf", "hot_contrast", "overlay_contrast", "flicker")
"""Measures of the fusion tables: of `ANATOMICAL_GROUP`, and of PET-MRI and SPECT-MRI."""

COSTS = {"CPU s, 1 thread": "CPU s", "peak memory / sources": "memory"}
"""Columns of costs.csv and what they are called in the fusion tables."""

FUSION = """\
Measured on registered slice pairs of The Whole Brain Atlas, of the subjects that no training has seen ({there}), PET \
and SPECT by their luma; `copy` rows and `average` are controls: a measure that they win rewards near-copies. \
`make bench-fusion` prints these figures among others, and `python Testing/readme.py fusion` pastes them here.

Higher is better, save for background and Nabf; flicker is at most 1 where nothing flickers. [bone_solid, soft_corr, \
soft_edges and background](MedFusionLib/metrics/task.py) say how bright the CT's bone stays, how closely soft tissue \
and its edges follow the MRI, and how grey the black around the head becomes; \
[hot_contrast](MedFusionLib/metrics/failures.py) is the contrast of the hottest uptake as a share of the PET's or \
SPECT's, overlay_contrast the same in the colour overlay, flicker the change from slice to slice as a share of the \
sources'.{costs}
"""

COSTED = """ CPU s is of one 256 x 256 pair on one thread, memory the peak while a 256 x 256 x 132 pair is fused, \
over the size of its float32 sources."""


CEILING = """\
`medfusion` was aimed at all of the following at once, and misses some. To see how far any blend could come, \
`python Testing/Benchmarks/fusion_ceiling.py` lets the pixels themselves climb towards the aims on the very slices \
that they are measured on, each within the range of its sources. They need not answer for slices that they never saw, \
as a network has to, and hot spots may fade. `python Testing/readme.py fusion` pastes what it prints here."""


def fill(name, text):
    """Replace what stands between `<!-- name:begin -->` and `<!-- name:end -->`."""
    pattern = rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)"
    before = README.read_text(encoding="utf-8")
    after, count = re.subn(pattern, lambda match: match[1] + text + "\n" + match[2], before, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"README.md has no part called {name}.")
    README.write_text(after, encoding="utf-8")


def method_table():
    rows = [
        "| name | method | works in | sources | every value a blend of the sources | paper |",
        "|---|---|---|---|---|---|",
    ]
    for method in methods().values():
        if method.licence == "the user's":
            continue
        ranks = ", ".join(f"{n}-D" for n in method.dimensions)
        count = f"2-{method.max_sources}" if method.max_sources > 2 else "2"
        convex = "yes" if method.convex else "no"
        rows.append(f"| `{method.name}` | {method.title} | {ranks} | {count} | {convex} | {method.paper} |")
    return "\n".join(rows)


def demo():
    """What the demo prints. Writes its picture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "MedFusionLib", "demo", "-o", "demo-output"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        sheet = Image.open(Path(folder) / "demo-output" / "contact-sheet.png").convert("RGB")
        small = sheet.resize((round(SHRINK * sheet.width), round(SHRINK * sheet.height)), Image.Resampling.LANCZOS)
        small.save(PICTURE, quality=88)
    return f"```text\n{done.stdout.rstrip()}\n```"


def registration():
    """What the last `make bench-registration` measured. Writes the picture of a case before and after."""
    from MedFusionLib import phantom
    from MedFusionLib.registration import contact_sheet, register

    table = _measured("table.md", "make bench-registration")
    made = phantom.make(seed=1, spacing=1, rotation=14.0, translation=20.0)
    sheet = Image.fromarray(contact_sheet(made.ct, made.mr, register(made.ct, made.mr)))
    sheet.save(ROOT / "Resources" / "Screenshots" / "registration.jpg", quality=88)
    return table


def trust():
    """What `registration_trust.py judge` last measured, without the single cases."""
    text = _measured("trust-judge.md", "python Testing/Benchmarks/registration_trust.py judge")
    return text.partition("\njudged amiss")[0].strip()


def ceiling():
    """What `fusion_ceiling.py` last measured."""
    return CEILING + "\n\n" + _measured("ceiling.md", "python Testing/Benchmarks/fusion_ceiling.py", "fusion")


def _measured(name, command, folder="registration"):
    """The text of what a benchmark left."""
    file = ROOT / "bench-output" / folder / name
    if not file.exists():
        raise SystemExit(f"nothing measured yet: run {command} first.")
    return file.read_text(encoding="utf-8").strip()


def fusion(folder=ROOT / "bench-output" / "fusion"):
    """What the last `make bench-fusion` measured: a table for each group of pairs."""
    rows = _read_csv(folder / "fusion.csv")
    if not rows:
        raise SystemExit("nothing measured yet: run make bench-fusion first.")
    groups = {}
    for row in rows:
        groups.setdefault(row["group"], {})[row["row"]] = row
    # The costs are those of a method, whatever it fuses: once is enough.
    costs = {row["row"]: row for row in _read_csv(folder / "costs.csv")} if ANATOMICAL_GROUP in groups else {}
    there = []
    for group, found in groups.items():
        one = next(iter(found.values()))
        if not set(one["subjects"].split()) <= set(HELD_BACK[group]):
            raise SystemExit(f"{group} was measured on subjects that training has seen: run make bench-fusion again.")
        there.append(f"{group}: {one['slices']} slices of {len(one['subjects'].split())}")
    tables = [f"**{group}**\n\n{_fusion_table(group, found, costs)}" for group, found in groups.items()]
    text = FUSION.format(there="; ".join(there), costs=COSTED if costs else "")
    return "\n\n".join([text.strip(), *tables])


def _read_csv(file):
    """[{column: text}], empty where there is no such file."""
    if not file.exists():
        return []
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _fusion_table(group, found, costs):
    """Markdown, medfusion first, then the controls. found: {row title: row}; costs: {method: row}, or {}."""
    measures = ANATOMICAL if group == ANATOMICAL_GROUP else FUNCTIONAL
    paid = list(COSTS) if costs and group == ANATOMICAL_GROUP else []
    lines = [["", *measures, *(COSTS[name] for name in paid)], ["---"] + ["---:"] * (len(measures) + len(paid))]
    controls = [title for title in found if title.startswith("copy ")]
    for title in sorted(found, key=lambda one: (one != "medfusion", one not in controls, one != "average")):
        cells = [f"{float(found[title][name]):.3f}" for name in measures]
        cells += [f"{float(costs[title][name]):.3f}" if title in costs else "" for name in paid]
        bold = "**" if title == "medfusion" else ""
        name = title if title in controls else f"`{title}`"
        lines.append([f"{bold}{cell}{bold}" if cell else "" for cell in (name, *cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    fill("methods", method_table())
    if what == "registration":
        fill("registration", registration())
        fill("trust", trust())
    if what == "fusion":
        fill("fusion", fusion())
        fill("ceiling", ceiling())
    if what == "all":
        fill("demo", demo())
