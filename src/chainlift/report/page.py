"""The page: one self-contained HTML file, and its figures as files beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from chainlift._version import __version__
from chainlift.host.durable import write_atomically
from chainlift.report import style
from chainlift.report.data import Results
from chainlift.report.effects import (
    Effect,
    Verdict,
    bounds,
    effect_of,
    host_measures,
    steady,
    subject_series,
    verdict_of,
)
from chainlift.report.figures import draw_all
from chainlift.report.findings import (
    failure_sentences,
    headline,
    lift_sentences,
    memory_effect,
    memory_sentence,
)
from chainlift.report.growths import main_growth
from chainlift.report.measures import RANDOM, READ, STREAM, STREAM_HOST
from chainlift.report.profiles import draw_flame_graphs
from chainlift.report.sections import profiles_of, sections_of
from chainlift.report.template import template, template_file
from chainlift.report.warnings import warnings
from chainlift.results.store import REPORT
from chainlift.units import format_bytes, format_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from markupsafe import Markup

    from chainlift.report.style import Picture

FIGURES = "figures"

#: Tests in the tiles under the headline, where there is little room.
_TILES = {
    "random": "Random read in the guest",
    "read": "Read in the guest",
    "stream": "Streaming",
}


@dataclass(frozen=True)
class Tile:
    """One figure under the headline."""

    name: str
    value: str
    more: str


def write_report(directories: Sequence[Path], out: Path | None = None) -> Path:
    """Draw ``report.html``, ``figures/*.svg`` and ``figures/*.png``.

    Several directories are laid side by side in one report. The same results give the same bytes.

    :param directories: result directories, at least one.
    :param out: where the page and its figures go; the first of the directories where it is not given.
    :return: the page.
    :raise InputError: if one is no result directory or does not hold what it should.
    :raise MissingToolError: if the extra ``report`` is not installed.
    """
    style.require()
    results = Results.load(directories)
    target = directories[0] if out is None else out
    target.mkdir(parents=True, exist_ok=True)
    draw_flame_graphs(results)
    pictures = draw_all(results)
    with style.drawing_style():
        (target / FIGURES).mkdir(exist_ok=True)
        for picture in pictures:
            write_atomically(target / FIGURES / f"{picture.name}.svg", style.svg_file(picture))
            (target / FIGURES / f"{picture.name}.png").write_bytes(style.png(picture))
        page = render(results, pictures)
    write_atomically(target / REPORT, page)
    return target / REPORT


def render(results: Results, pictures: list[Picture]) -> str:
    """Return the page as text. What comes out of result files is escaped; nothing is loaded."""
    from markupsafe import Markup

    lifts = lift_sentences(results)
    memory = memory_sentence(results)
    return template("report.html.j2", powers=_powers).render(
        css=Markup(template_file("report.css")),
        version=__version__,
        title="What a snapshot chain costs: " + ", ".join(run.title for run in results.runs),
        headline=headline(results),
        leads=[sentence for sentence in (memory, *lifts[:1], _whose(results)) if sentence],
        tiles=(tiles := _tiles(results)),
        tiles_a_row=ceil(len(tiles) / ceil(len(tiles) / 5)) if tiles else 1,
        warnings=warnings(results),
        failures=failure_sentences(results),
        profiles=bool(profiles_of(results)),
        sections=sections_of(results, pictures),
        sources=", ".join(run.label for run in results.runs),
    )


def _whose(results: Results) -> str | None:
    series = subject_series(results)
    if series is None or len(results.shown) < 2:
        return None
    return f"Sentences and single figures are of {results.label(series, among=results.shown)}; figures show all."


def _powers(text: str) -> Markup:
    """Escape a sentence and raise its exponents: ``length^2.0``."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\^(-?[\d.,]*\d)", r"<sup>\1</sup>", str(escape(text))))


def _tiles(results: Results) -> list[Tile]:
    series = subject_series(results)
    if series is None:
        return []
    measures = (*host_measures(results)[:1], RANDOM, READ, STREAM, STREAM_HOST)
    effects = [effect_of(results, series, steady(results, series, m)) for m in measures]
    tiles = [_effect_tile(effect) for effect in effects if effect is not None]
    found = main_growth(results)
    if found is not None and found[2].is_told:
        _, measure, growth = found
        ends = f"95 %: {growth.exponent_low:.1f} to {growth.exponent_high:.1f}; of {measure.subject}"
        tiles.append(Tile("The cost grows as", f"length^{growth.exponent:.1f}", ends))
    memory = memory_effect(results)
    if memory is not None:
        more = memory.after - memory.before
        untold = verdict_of(memory.difference, 0.0) is Verdict.UNTOLD
        value = "no difference told" if untold else f"{'+' if more >= 0 else ''}{format_bytes(more)}"
        ends = bounds(memory.difference, format_bytes)
        tiles.append(Tile(memory.measure.title, value, _more(memory, ends)))
    return tiles


def _effect_tile(effect: Effect) -> Tile:
    measure = effect.measure
    size = f"{measure.title.split()[0]} {measure.title.split()[1]} read on the host" if measure.test == "host" else ""
    name = (size or _TILES[measure.test]) + (", CPU" if measure.key == "cpu_request_s" else "")
    if effect.verdict is Verdict.UNTOLD:
        return Tile(name, "no difference told", _more(effect, bounds(effect.interval)))
    value = effect.ratio if effect.ratio >= 1 or not measure.larger_is_better else 1 / effect.ratio
    fewer = (" fewer" if effect.ratio >= 1 else " more") if measure.larger_is_better else ""
    interval = effect.interval if value == effect.ratio or effect.interval is None else effect.interval.inverse()
    return Tile(name, format_ratio(value) + fewer, _more(effect, bounds(interval)))


def _more(effect: Effect, ends: str) -> str:
    write = effect.measure.format
    said = f"95 %: {ends}; " if ends else "measured once; "
    return f"{said}{write(effect.before)} at {effect.shortest:,}, {write(effect.after)} at {effect.longest:,}"
