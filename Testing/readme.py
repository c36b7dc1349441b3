"""Fill the README's generated parts: the demo's picture and what it prints, and the table of methods.

python Testing/readme.py [all | methods]
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from MedFusionLib import methods

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "Resources" / "Screenshots" / "demo.jpg"
SHRINK = 0.7


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


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    fill("methods", method_table())
    if what == "all":
        fill("demo", demo())
