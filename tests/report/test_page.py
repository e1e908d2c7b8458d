import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from tests.support.browser import console_of
from tests.support.results import RECORDED, host_read

from chainlift.errors import InputError, MissingToolError
from chainlift.report import style, write_report
from chainlift.report.data import Results
from chainlift.report.figures import draw_all
from chainlift.report.page import render
from chainlift.results.model import ChainShape, FilePlace, GuestFacts, QemuFacts
from chainlift.results.store import ResultDirectory

_VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """What a page holds, as far as the tests ask; HTML whose elements do not nest fails the test."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._note(dict(attrs))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self._note(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def _note(self, attributes):
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for name in ("href", "xlink:href", "src"):
            if attributes.get(name):
                (self.links if attributes[name].startswith("#") else self.addresses).append(attributes[name])


def test_the_page_is_whole_and_loads_nothing(drawn):
    text = (drawn / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert all(address.startswith("data:") for address in page.addresses), page.addresses
    assert "url(http" not in text
    assert "@import" not in text
    assert "script" not in page.tags


def test_the_headline_is_computed_from_the_run(make):
    path = write_report([make(host_read(1, 0.010), host_read(300, 0.430))])
    assert (
        "A 4 KiB read through 300 layers takes 43 times the CPU time of one through 1 (measured once)."
        in path.read_text(encoding="utf-8")
    )


def test_every_figure_is_an_svg_and_a_png_file_and_stands_in_the_page(drawn):
    text = (drawn / "report.html").read_text(encoding="utf-8")
    names = {"lift", "host-reads", "host-cpu", "read", "stream", "memory-boot", "memory-read", "memory-stream", "chain"}
    assert {p.name for p in (drawn / "figures").iterdir()} == {f"{n}.{e}" for n in names for e in ("svg", "png")}
    for name in names:
        ET.parse(drawn / f"figures/{name}.svg")
        assert (drawn / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        inside = "lift-0" if name == "lift" else name
        inline = re.search(rf'<svg role="img" aria-labelledby="{inside}-title {inside}-alt".*?</svg>', text, re.DOTALL)
        assert inline is not None
        described = ET.fromstring(inline[0]).find("{http://www.w3.org/2000/svg}desc")
        assert described is not None
        assert len(described.text or "") > 40


def test_text_in_the_page_is_text_and_in_files_is_drawn(drawn):
    page = (drawn / "report.html").read_text(encoding="utf-8")
    assert re.search(r"<text[^>]*>layers</text>", page)
    assert "<text" not in (drawn / "figures/lift.svg").read_text(encoding="utf-8")


def test_figures_in_the_page_follow_the_colour_scheme(drawn):
    page = (drawn / "report.html").read_text(encoding="utf-8")
    svg = page[page.index('<svg role="img"') : page.rindex("</svg>")]
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", svg)) == set(), "every colour is a variable of the style sheet"
    used = set(re.findall(r"var\((--\w+)\)", svg))
    assert used <= set(re.findall(r"(--\w+):", page))


def test_the_same_results_give_the_same_bytes(drawn, recorded):
    assert write_report([recorded]) == recorded / "report.html"
    names = sorted(p.relative_to(drawn) for p in drawn.rglob("*") if p.is_file())
    assert len(names) > 10
    for name in names:
        assert (recorded / name).read_bytes() == (drawn / name).read_bytes(), name


HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}]]>$x^2$"


def test_hostile_strings_are_shown_and_not_obeyed(make):
    path = make(
        host_read(1, 0.01, qemu=HOSTILE),
        host_read(300, 0.4, qemu=HOSTILE),
        host_read(1, 0.01, qemu="b"),
        host_read(500, 0.4, qemu=HOSTILE, outcome="crashed", signal=11, detail=HOSTILE, metrics={}),
        host_read(1, 0.2, variant=HOSTILE.replace("-", "")),
        plan=f"# {HOSTILE}\n",
        cpu=HOSTILE,
        host_kernel=HOSTILE,
        limits=[HOSTILE],
        guest=GuestFacts(kind=HOSTILE, memory_bytes=1, vcpus=1),
        files=[FilePlace(path=HOSTILE, file_system=HOSTILE, device=HOSTILE)],
        qemus=[QemuFacts(label=HOSTILE, binary=HOSTILE, version=HOSTILE, source=HOSTILE, accelerator="tcg")],
    )
    hostile = path.rename(path.with_name("<img src=x onerror=alert(2)>&"))
    text = write_report([hostile]).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "alert(1)" in text
    assert "49" not in re.findall(r"&#39;&amp;(\d+)", text), "no template in a string is run"
    for file in (hostile / "figures").glob("*.svg"):
        assert not [e for e in ET.parse(file).iter() if e.tag.endswith("script")]


def test_a_crash_is_a_result(make):
    path = make(
        host_read(1, 0.01),
        host_read(300, 0.4),
        host_read(1000, 0, outcome="crashed", signal=11, detail="stack overflow in bdrv_co_preadv_part", metrics={}),
    )
    text = write_report([path]).read_text(encoding="utf-8")
    assert "QEMU 7.2.22 crashed, signal 11 (SIGSEGV), at length 1,000 (host 4k-strided-d1)." in text
    assert "stack overflow in bdrv_co_preadv_part" in text


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [host_read(300, 0.4)],
        [host_read(1, 0.4, outcome="crashed", signal=11, metrics={})],
        [host_read(0, 0.1), host_read(10, 0.2)],
        [host_read(1, 0.0), host_read(10, 0.0)],
        [host_read(300, 0.1, lift="index")],
        [host_read(1, 0.1, test="read", variant="", metrics={"wall_s": 5.0})],
        [host_read(1, 0.1, test="memory", variant="boot-halt", metrics={"peak_rss_bytes": 1e9})],
        [host_read(n, 0.1, test="random", variant="", metrics={"iops": 100.0 / n}) for n in (1, 300)],
        [host_read(1, 0.1, test="random", variant="", metrics={"latency_p99_s": 0.1})],
        [host_read(1, 0.1, test="limits", variant="read", metrics={"longest": 906.0, "open_s": 3.0})],
        [host_read(1, 0.1, test="profile", variant="read", metrics={"samples": 10.0, "share_is_inserted": 0.5})],
        [host_read(1, 0.1, test="live", variant="", metrics={"stall_s": 0.1})],
        [host_read(1, 0.1, metrics={})],
    ],
    ids=lambda samples: f"{samples[0].test}-{samples[0].length}-{samples[0].outcome}" if samples else "none",
)  # fmt: skip
def test_partial_results_are_drawn_as_far_as_they_go(make, samples):
    results = Results.load([make(*samples, environment=False)])
    with style.drawing_style():
        Page(render(results, draw_all(results)))


def test_what_was_planned_and_is_missing_is_said(make):
    text = write_report([make(host_read(1, 0.1), plan='tests = ["host", "stream"]\n')]).read_text(encoding="utf-8")
    assert "Planned and not in these results: stream" in text


def test_several_runs_lie_side_by_side(make):
    one = make(*[host_read(n, 0.01 * n) for n in (1, 30, 300)], name="one")
    other = make(*[host_read(n, 0.02 * n) for n in (1, 30, 300)], name="other")
    text = write_report([one, other]).read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    for name in ("one", "other"):
        assert f"Environment of {name}" in text
        assert re.search(rf"<text[^>]*>{name}</text>", text)
    assert not (other / "report.html").exists()


def test_every_flame_graph_is_shown_in_a_frame_of_its_own(make):
    path = make(host_read(1, 0.1))
    (path / "profiles").mkdir()
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="400"><script>1</script></svg>'
    (path / "profiles/read-300.svg").write_text(svg)
    text = write_report([path]).read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("iframe") == 1
    assert "script" not in page.tags
    assert 'sandbox="allow-scripts"' in text
    assert 'height="408"' in text


def test_a_directory_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a result directory"):
        write_report([tmp_path])
    with pytest.raises(InputError, match="no result directory"):
        write_report([])


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra_one_line_says_what_to_install(make, monkeypatch, package):
    path = make(host_read(1, 0.1))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingToolError, match=rf"{package}; pip install 'chainlift\[report\]'"):
        write_report([path])
    assert not (path / "figures").exists()


@pytest.mark.integration
def test_the_page_opens_without_a_word_on_the_console(recorded, tmp_path):
    (recorded / "profiles").mkdir()
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="900" height="400"><script>document.title = "x"</script></svg>'
    (recorded / "profiles/read-300.svg").write_text(svg)
    assert console_of(write_report([recorded]), tmp_path / "chromium") == []


@pytest.mark.integration
def test_the_console_is_really_read(drawn, tmp_path):
    path = tmp_path / "broken.html"
    path.write_text(
        (drawn / "report.html").read_text().replace("</body>", '<script>throw new Error("wrong")</script></body>')
    )
    assert any("Content Security Policy" in line for line in console_of(path, tmp_path / "chromium"))


def test_the_recorded_results_are_small_and_real():
    size = sum(p.stat().st_size for p in RECORDED.rglob("*") if p.is_file())
    assert size < 100_000
    shape = ResultDirectory.open(RECORDED / "by-hand").chain()
    assert isinstance(shape, ChainShape)
    assert shape.length == 300


def test_throughput_is_drawn_with_the_pivot_marked(make):
    path = make(host_read(1, 0.1))
    (path / "live").mkdir()
    (path / "live/read.csv").write_text("time_s,bytes_per_s,event\n0,1e6,\n1,1e6,\n1.5,,pivot\n2,4e7,\n3,4e7,\n")
    text = write_report([path]).read_text(encoding="utf-8")
    assert re.search(r"<text[^>]*>pivot ended</text>", text)
    assert "read, over 3.00 s: median at first 977 KiB/s, after pivot 38.1 MiB/s." in text
    rows = "0,1e6,\n0.5,,pivot begins\n1,1e6,\n1.5,,pivot\n2,4e7,\n3,4e7,\n"
    (path / "live/read.csv").write_text(f"time_s,bytes_per_s,event\n{rows}")
    text = write_report([path]).read_text(encoding="utf-8")
    assert re.search(r"<text[^>]*>pivot</text>", text), "a line stands where the switch began"
    assert "read, over 3.00 s: median at first 977 KiB/s, after pivot 38.1 MiB/s." in text
    (path / "live/read.csv").write_text("time_s\nx\n")
    with pytest.raises(InputError, match=r"read\.csv: is no recording of throughput"):
        write_report([path])
