"""The README tells what is there."""

import re
from pathlib import Path

import pytest

from MedFusionLib import methods

ROOT = Path(__file__).resolve().parents[2]
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
    assert {name for name, _, _ in parts} >= {"demo", "methods"}
    assert all(first == last and content.strip() for first, content, last in parts)


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
