import csv
import re

import pytest
from click.testing import CliRunner
from tests.support.json_schemas import valid
from tests.support.results import host_read

from chainlift.cli.study import command
from chainlift.report import compare_runs, write_paper
from chainlift.report.paper import latex, markdown
from chainlift.report.tables import Column, Entry, Table


def thrice(costs, **more):
    return [host_read(n, v * (1 + 0.01 * (r - 1)), repeat=r, **more) for n, v in costs.items() for r in range(3)]


def test_figures_tables_and_statistics_are_written_alike_each_time(recorded, tmp_path):
    first, second = (write_paper([recorded], tmp_path / name) for name in ("a", "b"))
    names = {path.name for path in first}
    assert {"host-reads.pdf", "memory-read.pdf", "tables.tex", "tables.md", "derived.csv"} <= names
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))
    assert (tmp_path / "a/host-reads.pdf").read_bytes().startswith(b"%PDF-")
    with (tmp_path / "a/derived.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    reads = [r for r in rows if (r["variant"], r["quantity"], r["lift"]) == ("4k-strided-d1", "cpu_request_s", "none")]
    assert [int(row["length"]) for row in reads] == [1, 10, 30, 100, 300]
    assert reads[0]["ratio"] == ""
    assert all(float(r["ratio_low"]) < float(r["ratio"]) < float(r["ratio_high"]) for r in reads[1:])
    assert all(float(r["median_low"]) < float(r["median"]) < float(r["median_high"]) for r in reads)


def test_each_figure_has_an_environment_of_its_column_or_the_page(recorded, tmp_path):
    written = write_paper([recorded], tmp_path)
    text = (tmp_path / "figures.tex").read_text(encoding="utf-8")
    figures = re.findall(r"\\includegraphics\[width=(\\\w+)\]\{(\S+)\}", text)
    assert {name for _, name in figures} == {path.name for path in written if path.suffix == ".pdf"}
    assert set(figures) >= {(r"\textwidth", "host-reads.pdf")}
    assert text.count(r"\begin{figure") == text.count(r"\end{figure") == text.count(r"\caption{") == len(figures)
    assert not re.search(r"(?<!\\)[%&]", text)


@pytest.mark.needs("latex")
def test_where_latex_is_installed_each_figure_is_written_as_pgf(recorded, tmp_path):
    written = write_paper([recorded], tmp_path)
    assert {p.stem for p in written if p.suffix == ".pgf"} == {p.stem for p in written if p.suffix == ".pdf"}
    assert r"\begin{pgfpicture}" in (tmp_path / "host-reads.pgf").read_text()


def test_what_has_a_meaning_in_a_language_is_escaped_in_it():
    table = Table(
        "50 % of a_b", (Column("x", "A|B", numeric=False), Column("y", "µs")), ((Entry("", "c & d"), Entry(1, "1")),)
    )
    assert r"\caption{50 \% of a\_b}" in latex(table)
    assert r"c \& d & 1 \\" in latex(table)
    assert r"\begin{tabular}{lr}" in latex(table)
    assert "| A\\|B | µs |" in markdown(table)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in markdown(table).splitlines()[2:]}) == 1


def test_two_runs_agree_where_their_intervals_say_so(make):
    mine = make(*thrice({1: 0.01, 300: 0.40}), name="mine")
    theirs = make(*thrice({1: 0.02, 300: 0.801}), *thrice({1000: 9}), name="theirs")
    cells, ratios = compare_runs(mine, theirs)
    printed = CliRunner().invoke(command, ["compare", str(mine), str(theirs), "--json"])
    assert valid("study compare", printed.stdout)["tables"] == [cells.as_data(), ratios.as_data()]
    rows = {(r["measure"], r["length"]): r for r in cells.as_data()["rows"]}
    assert rows["4 KiB strided, depth 1", 300]["verdict"] == "differs: less here"
    assert rows["4 KiB strided, depth 1", 300]["ratio"] == pytest.approx(0.5, abs=0.01)
    assert not any(length == 1000 for _, length in rows)
    (ratio, *_) = ratios.as_data()["rows"]
    assert (ratio["length"], ratio["verdict"]) == ("300 over 1", "agrees")
    assert ratio["mine"] == pytest.approx(40)
    verdicts = [row["verdict"] for row in cells.as_data()["rows"]]
    differ = sum(verdict.startswith("differs") for verdict in verdicts)
    assert cells.note == f"{len(verdicts) - differ} of {len(verdicts)} agree, {differ} differ"


def test_one_sample_agrees_with_nothing_and_differs_from_nothing(make):
    tables = compare_runs(make(host_read(1, 0.01), name="a"), make(host_read(1, 0.1), name="b"))
    assert {row["verdict"] for row in tables[0].as_data()["rows"]} == {"measured once"}
    assert re.fullmatch(r"of \d+ a run has one sample", tables[0].note)
