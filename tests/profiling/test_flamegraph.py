import json
import re
import subprocess
import xml.etree.ElementTree as ET
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainlift.profiling.flamegraph import MOST_FRAMES, build_tree, flame_graph
from chainlift.profiling.recursion import fold_recursion
from chainlift.profiling.stacks import Stacks, read_folded

# What a profile of a short chain and of a long one looks like: 30 samples of 100 in bdrv_is_inserted, then 75.
SHORT = Stacks({
    ("start", *("preadv", "qcow2") * 1, "preadv", "bdrv_is_inserted"): 30,
    ("start", *("preadv", "qcow2") * 1, "preadv", "pread"): 70,
})  # fmt: skip
LONG = Stacks({
    ("start", *("preadv", "qcow2") * 300, "preadv", *["bdrv_is_inserted"] * 150): 40,
    ("start", *("preadv", "qcow2") * 200, "preadv", *["bdrv_is_inserted"] * 100): 35,
    ("start", *("preadv", "qcow2") * 300, "preadv", "pread"): 15,
    ("[qemu-img+0x1f00]", "entry_SYSCALL_64_[k]"): 10,
})  # fmt: skip

names = st.sampled_from(["a", "b", "c", "<&>"])
profiles = st.dictionaries(st.lists(names, min_size=1, max_size=12).map(tuple), st.integers(1, 99), min_size=1).map(
    Stacks
)


@settings(max_examples=60)
@given(profiles)
def test_a_tree_conserves_samples_at_every_frame(stacks):
    root = build_tree(fold_recursion(stacks).counts)
    assert root.samples == stacks.total
    for node in root.walk():
        assert node.samples == node.self_samples + sum(child.samples for child in node.children.values())


@settings(max_examples=60)
@given(profiles, profiles)
def test_a_graph_is_one_well_formed_xml_document(stacks, before):
    root = ET.fromstring(flame_graph(stacks, "<title> & more", before=before))
    data = json.loads(root.find("{http://www.w3.org/2000/svg}metadata").text)
    for view in data["views"].values():
        assert view["samples"][0] == stacks.total
        assert sum(column(view["children"])) == len(view["names"]) - 1


def column(runs):
    return [value for value, count in zip(runs[::2], runs[1::2], strict=True) for _ in range(count)]


def test_a_recursion_shows_its_turns_on_average_and_at_most():
    (start, _) = build_tree(fold_recursion(LONG).counts).children.values()
    (recursion,) = start.children.values()
    assert recursion.most_turns == 300
    assert recursion.turns / recursion.samples == pytest.approx((300 * 55 + 200 * 35) / 90)


def test_a_differential_graph_counts_what_was_there_before():
    text = flame_graph(LONG, "x", before=SHORT)
    data = json.loads(unescape(re.search(r"<metadata>(.*)</metadata>", text, re.DOTALL)[1]))
    assert data["before"] == 100
    view = data["views"]["folded"]
    before = {data["names"][name]: count for name, count in zip(view["names"], column(view["before"]), strict=True)}
    assert before["\u21bb bdrv_is_inserted"] == 30


def test_a_profile_of_very_many_stacks_keeps_its_widest_frames():
    stacks = Stacks({("root", f"f{i}", *"xyz"): 1 + i % 7 for i in range(4000)})
    data = json.loads(unescape(re.search(r"<metadata>(.*)</metadata>", flame_graph(stacks, "x"), re.DOTALL)[1]))
    kept = data["views"]["plain"]
    assert len(kept["names"]) == MOST_FRAMES
    assert kept["samples"][0] == stacks.total


def in_browser(svg, script, tmp_path):
    """Load a graph in headless Chromium, run a script in it, return the object that the script returns."""
    probe = (
        f"<script><![CDATA[document.documentElement.dataset.result = JSON.stringify((() => {{{script}}})())]]></script>"
    )
    page = tmp_path / "graph.svg"
    page.write_text(svg.replace("</svg>", f"{probe}</svg>"))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,800",
        f"--user-data-dir={tmp_path}/user",
    ]
    done = subprocess.run(
        ["chromium", *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


HELPERS = """
const svg = document.documentElement;
const frames = () => [...svg.querySelectorAll(".frame")];
const frame = (name) => frames().find((f) => f.dataset.name.includes(name));
const height = () => +svg.getAttribute("height");
const width = (f) => +f.querySelector("rect").getAttribute("width");
const click = (element) => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const type = (text) => { const input = svg.querySelector("input"); input.value = text;
  input.dispatchEvent(new Event("input", { bubbles: true })); };
const text = (name) => svg.querySelector("." + name).textContent;
"""

needs_chromium = pytest.mark.needs("chromium")


@needs_chromium
@pytest.mark.integration
def test_zoom_search_reset_and_hover_work_in_a_browser(tmp_path):
    script = """
    const seen = { full: width(frame("all")), start: frames().length };
    const inserted = () => frame("bdrv_is_inserted");
    seen.before = width(inserted()) / seen.full;
    inserted().dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
    seen.details = text("details");
    type("is_inserted");
    seen.matched = text("matched");
    click(inserted());
    seen.zoomed = width(inserted()) / seen.full;
    seen.matchedZoomed = text("matched");
    seen.resetEnabled = !svg.querySelector(".reset").disabled;
    click(svg.querySelector(".reset"));
    seen.after = width(inserted()) / seen.full;
    type("(");  // no regular expression, so it is looked for as it stands
    seen.none = text("matched");
    type("pread|is_inserted");
    seen.both = text("matched");
    type("");
    seen.cleared = text("matched");
    return seen;
    """
    seen = in_browser(flame_graph(LONG, "x"), HELPERS + script, tmp_path)
    assert seen["before"] == pytest.approx(0.75, abs=0.01)
    assert "\u21bb bdrv_is_inserted: 75 samples, 75.00 %" in seen["details"]
    assert "126.7 turns on average, 150 at most" in seen["details"]
    assert seen["matched"] == "Matched: 75.00 %"
    assert seen["zoomed"] == pytest.approx(1)
    assert seen["matchedZoomed"] == "Matched: 100.00 %"
    assert seen["resetEnabled"]
    assert seen["after"] == seen["before"]
    assert seen["none"] == "Matched: 0.00 %"
    assert seen["both"] == "Matched: 90.00 %"
    assert seen["cleared"] == ""


@needs_chromium
@pytest.mark.integration
def test_the_keyboard_reaches_every_frame_and_the_plain_stacks_are_a_click_away(tmp_path):
    script = """
    const seen = { path: [] };
    frames()[0].focus();
    for (const key of ["ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"]) {
      press(document.activeElement, key);
      seen.path.push(document.activeElement.dataset.name);
    }
    press(document.activeElement, "Enter");
    seen.zoomed = width(frame("\u2192")) === width(frame("all"));
    seen.focus = document.activeElement.dataset.name;
    press(document.activeElement, "Escape");
    press(document.activeElement, "/");
    seen.search = document.activeElement === svg.querySelector("input");
    click(frame("\u2192"));
    seen.zoomedAgain = width(frame("\u2192")) === width(frame("all"));
    press(svg.querySelector("input"), "Escape");
    seen.left = width(frame("\u2192")) < width(frame("all"));
    const folded = height();
    click(svg.querySelector(".view"));
    seen.view = [svg.dataset.view, text("view"), height() > 10 * folded, !!frame("\u21bb")];
    click(svg.querySelector(".view"));
    seen.back = [svg.dataset.view, height() === folded];
    return seen;
    """
    seen = in_browser(flame_graph(LONG, "x"), HELPERS + script, tmp_path)
    turn = "\u21bb preadv \u2192 qcow2"
    assert (seen["zoomedAgain"], seen["left"]) == (True, True), "Escape leaves from the search field, too"
    assert seen["path"] == ["start", turn, "preadv", "preadv", "preadv", "\u21bb bdrv_is_inserted", "preadv"]
    assert seen["zoomed"]
    assert seen["focus"] == "preadv"
    assert seen["search"]
    assert seen["view"] == ["plain", "Fold recursion", True, False]
    assert seen["back"] == ["folded", True]


def test_a_profile_without_samples_is_drawn_too():
    assert "all" in flame_graph(read_folded(""), "nothing")
