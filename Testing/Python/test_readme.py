"""The README tells what is there."""

import csv
import re
import sys
from pathlib import Path

import pytest

from MedFusionLib import methods

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "Testing"))

import readme  # noqa: E402  (from Testing)

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, method in methods().items() if method.licence != "the user's"])
def test_every_method_is_in_the_table(name):
    method = methods()[name]
    assert re.search(rf"^\| `{re.escape(name)}` \| {re.escape(method.title)} \|", TEXT, re.MULTILINE), (
        "run Testing/readme.py methods"
    )


def test_every_link_into_the_repository_leads_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in target]
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]


def test_the_generated_parts_are_filled():
    parts = re.findall(r"<!-- (\w+):begin -->\n(.*?)<!-- (\w+):end -->", TEXT, re.DOTALL)
    assert {name for name, _, _ in parts} >= {"demo", "methods", "fusion"}
    assert all(first == last and content.strip() for first, content, last in parts)


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def write_csv(file, rows):
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def measured(group, title, subjects, level):
    names = readme.ANATOMICAL if group == "CT-MRI" else readme.FUNCTIONAL
    return {"group": group, "row": title, "slices": 9, "subjects": subjects} | dict.fromkeys(names, level)


def test_the_fusion_tables_are_what_the_benchmark_left(tmp_path):
    titles = ("copy CT", "copy MRI", "maximum", "average", "medfusion")
    rows = [measured("CT-MRI", title, "28 41", n / 8) for n, title in enumerate(titles)]
    write_csv(tmp_path / "fusion.csv", rows)
    text = readme.fusion(tmp_path)
    assert "CT-MRI: 9 slices of 2" in text and "CPU s" not in text
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert [line[0] for line in table[2:]] == [
        "| **`medfusion`**", "| copy CT", "| copy MRI", "| `average`", "| `maximum`"
    ]  # fmt: skip
    assert table[0][1:] == [*readme.ANATOMICAL[:-1], readme.ANATOMICAL[-1] + " |"]
    assert table[2][1] == "**0.500**" and table[6][1] == "0.250"

    write_csv(tmp_path / "costs.csv", [{"row": "medfusion", "CPU s, 1 thread": 0.0123, "peak memory / sources": 2.5}])
    text = readme.fusion(tmp_path)
    assert "| **0.012** | **2.500** |" in text and "CPU s is of" in text

    write_csv(tmp_path / "fusion.csv", [measured("PET-MRI", "medfusion", "30", 0.5)])
    text = readme.fusion(tmp_path)
    assert "| " + " | ".join(readme.FUNCTIONAL) + " |" in text and "CPU s" not in text


def test_figures_of_subjects_trained_on_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="nothing measured yet"):
        readme.fusion(tmp_path)
    write_csv(tmp_path / "fusion.csv", [measured("CT-MRI", "medfusion", "28 7", 0.5)])
    with pytest.raises(SystemExit, match="subjects that training has seen"):
        readme.fusion(tmp_path)
