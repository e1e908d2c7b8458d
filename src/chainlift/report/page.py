"""The page: one self-contained HTML file, and its figures as files beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from chainlift._version import __version__
from chainlift.report import style
from chainlift.report.data import Results
from chainlift.report.figures import draw_all
from chainlift.report.findings import (
    best_growth,
    effect_of,
    failure_sentences,
    first_plain,
    headline,
    is_determined,
    lift_sentences,
    memory_sentence,
    steady,
)
from chainlift.report.measures import (
    HOST,
    MEMORY_READ,
    RANDOM,
    READ,
    STREAM,
    STREAM_HOST,
    STREAM_HOST_MEMORY,
    STREAM_MEMORY,
)
from chainlift.report.profiles import draw_flame_graphs
from chainlift.report.sections import profiles_of, sections_of
from chainlift.report.warnings import warnings
from chainlift.results.store import REPORT, write_atomically
from chainlift.units import format_bytes, format_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from markupsafe import Markup

    from chainlift.report.style import Picture

FIGURES = "figures"

#: Tests in the tiles under the headline, where there is little room.
_TILES = {
    "host": "4 KiB read on the host",
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


def write_report(directories: Sequence[Path]) -> Path:
    """Draw ``report.html``, ``figures/*.svg`` and ``figures/*.png`` into the first of the directories.

    Several directories are laid side by side in one report. The same results give the same bytes.

    :param directories: result directories, at least one.
    :return: the page.
    :raise InputError: if one is no result directory or does not hold what it should.
    :raise MissingToolError: if the extra ``report`` is not installed.
    """
    style.require()
    results = Results.load(directories)
    target = directories[0]
    draw_flame_graphs(results)
    pictures = draw_all(results)
    with style.look():
        (target / FIGURES).mkdir(exist_ok=True)
        for picture in pictures:
            write_atomically(target / FIGURES / f"{picture.name}.svg", style.svg_file(picture))
            (target / FIGURES / f"{picture.name}.png").write_bytes(style.png(picture))
        page = render(results, pictures)
    write_atomically(target / REPORT, page)
    return target / REPORT


def render(results: Results, pictures: list[Picture]) -> str:
    """Return the page as text. What comes out of result files is escaped; nothing is loaded."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("chainlift.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["powers"] = _powers
    environment.filters["inline"] = lambda picture: Markup(style.svg_inline(picture))  # what style escapes
    css = files("chainlift.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    lifts = lift_sentences(results)
    memory = memory_sentence(results)
    return environment.get_template("report.html.j2").render(
        css=Markup(css),
        version=__version__,
        title="What a snapshot chain costs: " + ", ".join(run.label for run in results.runs),
        headline=headline(results),
        leads=[sentence for sentence in (memory, *lifts[:1], _whose(results)) if sentence],
        tiles=_tiles(results),
        warnings=warnings(results),
        failures=failure_sentences(results),
        profiles=bool(profiles_of(results)),
        sections=sections_of(results, pictures),
        sources=", ".join(run.label for run in results.runs),
    )


def _whose(results: Results) -> str | None:
    series = first_plain(results)
    if series is None or len(results.plain) < 2:
        return None
    return f"Sentences and single figures are of {results.label(series, among=results.plain)}; figures show all."


def _powers(text: str) -> Markup:
    """Escape a sentence and raise its exponents: ``length^2.0``."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\^(-?[\d.,]*\d)", r"<sup>\1</sup>", str(escape(text))))


def _tiles(results: Results) -> list[Tile]:
    series = first_plain(results)
    if series is None:
        return []
    tiles = []
    for measure in (HOST[0], RANDOM, READ, STREAM, STREAM_HOST):
        effect = effect_of(results, series, steady(results, series, measure))
        # More random reads through a longer chain are noise, and no headline.
        if effect is not None and (effect.ratio >= 1 or not measure.larger_is_better):
            tiles.append(
                Tile(
                    _TILES[measure.test] + (", CPU" if effect.measure.key == "cpu_request_s" else ""),
                    format_ratio(effect.ratio) + (" fewer" if measure.larger_is_better else ""),
                    f"{measure.format(effect.before)} at {effect.shortest:,}, {measure.format(effect.after)} at "
                    f"{effect.longest:,}",
                )
            )
    found = best_growth(results)
    if found is not None and is_determined(found[1]):
        tiles.append(Tile("The cost grows as", f"length^{found[1].exponent:.1f}", f"of {found[0].subject}"))
    for measure in (MEMORY_READ, STREAM_MEMORY, STREAM_HOST_MEMORY):
        effect = effect_of(results, series, measure)
        if effect is not None and effect.after > effect.before:
            tiles.append(
                Tile(
                    measure.title,
                    f"+{format_bytes(effect.after - effect.before)}",
                    f"{format_bytes(effect.before)} at {effect.shortest:,}, {format_bytes(effect.after)} at "
                    f"{effect.longest:,}",
                )
            )
            break
    return tiles
