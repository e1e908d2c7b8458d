"""Pages lead to files and headings that are there, and the first page is short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def headings(page):
    """The anchors of a page, as its readers make them of headings."""
    found = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in found}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
        name, _, heading = target.partition("#")
        place = (ROOT / page).parent / name if name else ROOT / page
        assert place.exists(), f"{page} leads to {target}"
        assert not heading or heading in headings(place), f"{page} leads to {target}"


def test_the_first_page_is_short_and_leads_to_all_others():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert not {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"} - set(
        re.findall(r"\]\(([^)#]+)\)", text)
    )
