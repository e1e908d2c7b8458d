"""A report's figures and tables as a paper takes them: PDF, LaTeX, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import re
import shutil
from typing import TYPE_CHECKING

from chainlift.host.durable import write_atomically
from chainlift.report import style
from chainlift.report.data import Results
from chainlift.report.figures import draw_all
from chainlift.report.measures import host_cpu
from chainlift.report.tables import tables_of
from chainlift.results.intervals import median_interval, ratio_interval

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.report.style import Picture
    from chainlift.report.table import Table

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "µ": r"\textmu{}", "±": r"$\pm$",
}  # fmt: skip
_DERIVED = (
    "run", "qemu", "lift", "setting", "test", "variant", "quantity", "length", "samples", "median", "median_low",
    "median_high", "min", "max", "base_length", "ratio", "ratio_low", "ratio_high",
)  # fmt: skip


def write_paper(directories: Sequence[Path], out: Path) -> list[Path]:
    """Write every figure as a PDF file, every table as LaTeX and Markdown, and what is derived from samples as CSV.

    Where a LaTeX is installed, which measures the text, every figure is written as PGF too. ``figures.tex`` sets each
    one in its column's or the page's width with its caption. The same results give the same bytes.

    :param out: a directory, made where it is not there.
    :return: what was written.
    :raise InputError: if one is no result directory or does not hold what it should.
    :raise MissingToolError: if the extra ``report`` is not installed.
    """
    style.require()
    results = Results.load(directories)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with style.drawing_style():
        pictures = draw_all(results)
        for picture in pictures:
            stream = io.BytesIO()
            metadata = {"CreationDate": None, "Title": picture.title, "Creator": "chainlift"}
            picture.figure.savefig(stream, format="pdf", metadata=metadata)
            written.append(out / f"{picture.name}.pdf")
            written[-1].write_bytes(stream.getvalue())
        if engine := _tex_engine():
            written += [_write_pgf(picture, out, engine) for picture in pictures]
    tables = [table.visible for table in tables_of(results)]
    for name, text in (
        ("figures.tex", "\n".join(_figure(picture) for picture in pictures)),
        ("tables.tex", "\n".join(latex(table) for table in tables)),
        ("tables.md", "\n".join(markdown(table) for table in tables)),
        ("derived.csv", derived(results)),
    ):
        written.append(out / name)
        write_atomically(written[-1], text)
    return written


def _tex_engine() -> str | None:
    """Return a LaTeX that is installed, by the name that matplotlib has for it."""
    return next((name for name in ("lualatex", "xelatex", "pdflatex") if shutil.which(name)), None)


def _write_pgf(picture: Picture, out: Path, engine: str) -> Path:
    from matplotlib import rc_context

    path = out / f"{picture.name}.pgf"
    # The document's own fonts.
    with rc_context({"pgf.texsystem": engine, "pgf.rcfonts": False}):
        picture.figure.savefig(path, format="pgf")
    return path


def _figure(picture: Picture) -> str:
    r"""Return a figure's environment: of the page's width where it was drawn for it, else of a column's."""
    star, width = ("*", r"\textwidth") if picture.wide else ("", r"\columnwidth")
    lines = [rf"\begin{{figure{star}}}", r"\centering", rf"\includegraphics[width={width}]{{{picture.name}.pdf}}"]
    lines += [rf"\caption{{{_tex(picture.title)}. {_tex(picture.caption)}}}", rf"\label{{fig:{picture.name}}}"]
    return "\n".join([*lines, rf"\end{{figure{star}}}", ""])


def latex(table: Table) -> str:
    """Return a table for LaTeX with the package booktabs."""
    kinds = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [r"\begin{table}", rf"\caption{{{_tex(table.title)}}}", rf"\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    lines.append(" & ".join(_tex(column.title) for column in table.columns) + r" \\")
    lines.append(r"\midrule")
    lines += [" & ".join(_tex(entry.text) for entry in row) + r" \\" for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def markdown(table: Table) -> str:
    """Return a table as Markdown with its title over it."""
    lines = [f"**{table.title}**", "", "| " + " | ".join(_cell(column.title) for column in table.columns) + " |"]
    lines.append("|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|")
    lines += ["| " + " | ".join(_cell(entry.text) for entry in row) + " |" for row in table.rows]
    return "\n".join([*lines, ""])


def derived(results: Results) -> str:
    """Return median, ratio to the shortest chain of the series, and their 95 % intervals, one row a cell, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_DERIVED)
    for measure in (both for m in results.measures() for both in ((m, host_cpu(m)) if m.key == "request_s" else (m,))):
        for series in results.series:
            cells = {n: c for n, c in results.cells(series, measure).items() if c.values}
            for length, cell in cells.items():
                base = min(cells)
                middle, ratio = median_interval(cell.values), ratio_interval(cell.values, cells[base].values)
                ends = ("", "") if middle is None else (middle.low, middle.high)
                over = (base, cell.median / cells[base].median if cells[base].median else "")
                bounds = ("", "") if ratio is None else (ratio.low, ratio.high)
                name = (
                    series.run,
                    series.qemu,
                    series.lift,
                    series.setting,
                    measure.test,
                    measure.variant,
                    measure.key,
                )
                row = (length, len(cell.values), cell.median, *ends, cell.summary.low, cell.summary.high)
                writer.writerow([*name, *row, *(("", "", "", "") if length == base else (*over, *bounds))])
    return text.getvalue()


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def _cell(text: str) -> str:
    return re.sub(r"([|\\`*_<>])", r"\\\1", text)
