"""Every fusion method on slices of the phantom, side by side with the sources, for the README and to look at.

python Testing/montage.py [picture, default Resources/Screenshots/methods.jpg]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from MedFusionLib import fuse, methods, phantom  # noqa: E402
from MedFusionLib.normalize import to_unit  # noqa: E402
from MedFusionLib.registration import register  # noqa: E402

PICTURE = ROOT / "Resources" / "Screenshots" / "methods.jpg"
LEVEL = 0.62
"""Height of the axial slice in the head."""

COLUMNS, BAND = 6, 14


def scans():
    """[(title, two Volumes of one axial slice)] of CT with MRI and of PET with MRI, on the grid of the CT."""
    made = phantom.make(seed=5, spacing=1, rotation=0, translation=0)
    k = int(LEVEL * made.ct.size[2])
    volumes = [made.ct] + [register(made.ct, one, model="none").resample(one) for one in (made.mr, made.pet)]
    ct, mr, pet = (
        volume.with_array(
            np.ascontiguousarray(volume.array[k : k + 1]), view=None if volume.view is None else volume.view[k : k + 1]
        )
        for volume in volumes
    )
    return [("CT + MRI", (ct, mr)), ("PET + MRI", (pet, mr))]


def tiles(sources):
    """[(title, (J, I) image, 0..1)] of the sources and of every method that ships with MedFusion."""
    found = [(source.modality, to_unit(source)[0]) for source in sources]
    for method in methods().values():
        if method.licence != "the user's":
            fused = fuse(sources, method.name, mode="slice", axis="axial", device="cpu")
            found.append((method.name, fused.volume.array[0]))
    return found


def picture():
    sheets = []
    for title, sources in scans():
        found = tiles(sources)
        height, width = found[0][1].shape
        rows = -(-len(found) // COLUMNS)
        sheet = Image.new("L", (COLUMNS * width, rows * (height + BAND) + BAND))
        draw = ImageDraw.Draw(sheet)
        draw.text((3, 1), title, fill=255)
        for n, (name, image) in enumerate(found):
            left, top = n % COLUMNS * width, BAND + n // COLUMNS * (height + BAND)
            values = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
            sheet.paste(Image.fromarray(values), (left, top + BAND))
            draw.text((left + 3, top + 1), name, fill=200)
        sheets.append(sheet)
    whole = Image.new("L", (max(s.width for s in sheets), sum(s.height for s in sheets)))
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    picture().save(target, quality=88)
    print(f"wrote {target.name}")
