"""The page of a survey."""

import json
import re

import pytest
from tests.support.browser import opened
from tests.support.surveys import advice, chain, cost, survey

from chainlift.report.survey import headline, render, write_page
from chainlift.results.survey.overview import overview
from chainlift.results.survey.records import Found, Trouble, Use
from chainlift.results.survey.trend import lay_together

EVIL = "</script><script>document.title='x'</script>"


def fleet(count):
    return survey(
        *(
            chain(f"vm{number:05}/disk.qcow2", number % 400, cost=cost(1e-5 + number * 1e-8), advice=advice(1e-5))
            for number in range(count)
        )
    )


def rows_of(dom):
    table = dom.partition("</table>")[0]
    return [re.sub(r"<[^>]+>", " ", row).split() for row in table.split("<tr>")[2:]]


@pytest.mark.integration
def test_ten_thousand_chains_are_ranked_by_the_page_itself(tmp_path):
    write_page(lay_together([fleet(10_000)]), tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 6 << 20
    text = (tmp_path / "page.html").read_text()
    # What it shows first is kept, then it is as if the head of the column had been clicked.
    copy = "document.querySelector('main').append(document.querySelector('#table').cloneNode(true))"
    click = "document.querySelectorAll('#table thead button')[1].click()"
    (tmp_path / "clicked.html").write_text(text.replace("</body>", f"<script>{copy};{click}</script></body>"))
    dom, console = opened(tmp_path / "clicked.html", tmp_path / "chromium")
    assert console == []
    by_name, first = (rows_of(part) for part in dom.split('id="table"')[1:])
    assert (len(by_name), len(first)) == (50, 50)
    assert first[0][:2] == ["1", "/srv/vm09999/disk.qcow2"]
    assert by_name[0][:2] == ["10000", "/srv/vm00000/disk.qcow2"]
    assert "50 of 10,000" in dom
    assert dom.count('class="chart"') == 100


@pytest.mark.integration
def test_what_is_hostile_stays_text(tmp_path):
    whole = survey(
        chain(
            EVIL, 300, cost=cost(1e-3), advice=advice(1e-5, command=f"chainlift index '{EVIL}'", why=EVIL),
            uses=(Use(domain=EVIL, target="vda", is_running=True),), held_by=EVIL, is_running=True, shared_base=EVIL,
        ),
        chain("b", 1, broken=EVIL, findings=(Found(level="problem", what=EVIL, action=EVIL),)),
    )  # fmt: skip
    whole.add(Trouble(host=EVIL, path=EVIL, what=EVIL))
    write_page(lay_together([whole]), tmp_path / "page.html")
    dom, console = opened(tmp_path / "page.html", tmp_path / "chromium")
    assert console == []
    assert "<title>Which disks suffer from their chains: h1</title>" in dom
    assert len(rows_of(dom.partition('id="table"')[2])) == 2


def test_the_data_are_what_was_found():
    whole = survey(chain("a", 30, cost=cost(2e-4), advice=advice(1e-5), own_shadowed_bytes=5), chain("b", 2))
    text = render(lay_together([whole]))
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    first, second = data["rows"]
    assert (first["path"], first["layers"], first["cpu"], first["low"]) == ("/srv/a", 30, 2e-4, 1.33e-4)
    assert first["cpuBack"] == 190
    assert (first["dead"], first["falls"]) == (5, [500, 0, 0, 0, 0, 500])
    assert "command" not in second
    assert "a model" in text


def test_several_days_have_lines():
    days = [survey(chain("a", 10 + day, libvirt_longest=24), day=day) for day in range(3)]
    text = render(lay_together(days))
    assert "Next to reach a limit" in text
    assert '"lengths":[10,11,12]' in text


@pytest.mark.parametrize(
    ("chains", "said"),
    [
        ([], "There is no chain"),
        ([chain("a", 2)], "0 of 1 chains are worth doing something about"),
        (
            [chain("a", 99, advice=advice(1e-5), crash_layers=50), chain("b", 2, broken="x")],
            "1 of 2 chains is worth doing something about, 1 has passed a limit, 1 is broken",
        ),
    ],
)
def test_the_headline(chains, said):
    assert headline(overview(chains)) == said
    assert said in render(lay_together([survey(*chains)]))
