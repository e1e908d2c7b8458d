"""The page of a survey: one self-contained HTML file, whose ranking can be sorted and searched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from chainlift._version import __version__
from chainlift.host.durable import write_atomically
from chainlift.report import style
from chainlift.report.figures.fleet import draw_falls, draw_growth, draw_lengths
from chainlift.report.template import template, template_file
from chainlift.results.survey.overview import Overview, Ranked, danger_of, overview
from chainlift.results.survey.records import bin_label
from chainlift.units import counted, format_bytes, format_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.report.style import Picture
    from chainlift.results.survey.records import Chain
    from chainlift.results.survey.trend import Together, Trend

#: Rows that are there without a script, and lines of each list.
_MOST_LINES: Final = 50
_MOST_FINDINGS: Final = 6
_MOST_PLACES: Final = 6


@dataclass(frozen=True)
class Tile:
    """One figure under the headline."""

    name: str
    value: str
    more: str


def write_page(together: Together, path: Path) -> None:
    """Draw a survey.

    :param path: of the page; nothing else is written.
    :raise MissingToolError: if the extra ``report`` is not installed.
    :raise OSError: if it cannot be written.
    """
    style.require()
    with style.drawing_style():
        text = render(together)
    write_atomically(path, text)


def render(together: Together) -> str:
    """Return the page as text. What comes out of a survey is escaped; nothing is loaded."""
    from markupsafe import Markup

    survey = together.survey
    whole = overview(survey.chains)
    growing = growing_of(together)
    rows = _rows(whole, together)
    return template("survey.html.j2", bytes=format_bytes).render(
        css=Markup(template_file("report.css", "survey.css")),
        js=Markup(template_file("survey.js")),
        # In a script element only "<" could end it.
        data=Markup(json.dumps(rows, separators=(",", ":")).replace("<", "\\u003c")),
        version=__version__,
        title="Which disks suffer from their chains: " + ", ".join(_hosts(together)),
        headline=headline(whole),
        leads=_leads(whole, together),
        tiles=_tiles(whole),
        pictures=_pictures(whole, growing),
        shown=rows["rows"][:_MOST_LINES],
        total=len(rows["rows"]),
        model=survey.head.model,
        policy=survey.head.policy,
        shared=whole.shared[:_MOST_LINES],
        more_shared=max(0, len(whole.shared) - _MOST_LINES),
        broken=[chain for chain in survey.chains if chain.broken is not None][:_MOST_LINES],
        more_broken=max(0, whole.broken - _MOST_LINES),
        growing=growing[:_MOST_LINES],
        left_out=[trouble for trouble in survey.troubles if trouble.left_out][:_MOST_LINES],
        more_left_out=max(0, survey.left_out - _MOST_LINES),
        when=survey.head.started_at.strftime("%Y-%m-%d %H:%M UTC"),
        places=_places(together),
    )


def headline(whole: Overview) -> str:
    """Return what the survey says in one sentence."""
    passed = sum(ranked.danger is not None and ranked.danger.is_passed for ranked in whole.ranking)
    worth = sum(ranked.chain.advice is not None for ranked in whole.ranking)
    if not whole.chains:
        return "There is no chain"
    verb = "is" if worth == 1 else "are"
    parts = [f"{worth:,} of {whole.chains:,} chains {verb} worth doing something about"]
    parts += [f"{passed:,} {'has' if passed == 1 else 'have'} passed a limit"] * bool(passed)
    parts += [f"{whole.broken:,} {'is' if whole.broken == 1 else 'are'} broken"] * bool(whole.broken)
    return ", ".join(parts)


def growing_of(together: Together) -> list[Trend]:
    """Return the chains that grow to a limit, the next to reach it first."""
    growing = [trend for trend in together.trends if trend.days_left is not None]
    return sorted(growing, key=lambda trend: (trend.days_left or 0.0, trend.chain.key))


def _hosts(together: Together) -> list[str]:
    return list(dict.fromkeys(source.host for source in together.survey.sources))


def _places(together: Together) -> list[str]:
    places = [f"{source.host}: {source.path}" for source in together.survey.sources]
    more = len(places) - _MOST_PLACES
    return places if more <= 0 else [*places[:_MOST_PLACES], f"and {more:,} more"]


def _leads(whole: Overview, together: Together) -> list[str]:
    leads = []
    if whole.running_cpu_back_s:
        leads.append(
            f"Of the {counted(whole.running, 'chain')} in use, what is advised gives back "
            f"{format_seconds(whole.running_cpu_back_s)} of the {format_seconds(whole.running_cpu_s)} of CPU time that "
            f"a million reads of 4 KiB from each take, and {format_bytes(whole.running_memory_back_bytes)} of QEMU's "
            "memory."
        )
    if together.new or together.gone:
        leads.append(f"Since the survey before: {together.new:,} new, {together.gone:,} gone.")
    return leads


def _tiles(whole: Overview) -> list[Tile]:
    total = max(1, sum(whole.fall_bytes))
    deep = sum(whole.fall_bytes[5:])
    tiles = [
        Tile("Chains", f"{whole.chains:,}", f"{whole.running:,} in use, {whole.broken:,} broken"),
        Tile(
            "Content below 16 layers", f"{100 * deep / total:.0f} %", f"{format_bytes(deep)} of {format_bytes(total)}"
        ),
        Tile("Nobody can read", format_bytes(whole.unreadable_bytes), "of what is stored"),
        Tile("Shared bases", f"{len(whole.shared):,}", "layers that several chains stand on"),
    ]
    if whole.policy_frees_bytes:
        tiles.append(Tile("The policy frees", format_bytes(whole.policy_frees_bytes), "at most"))
    return tiles


def _pictures(whole: Overview, growing: list[Trend]) -> list[Picture]:
    pictures = [draw_lengths(whole), draw_falls(whole)]
    return [*pictures, draw_growth(growing)] if growing else pictures


def _rows(whole: Overview, together: Together) -> dict[str, Any]:
    """Return the ranking as the page's script takes it: first what something should be done about, then the rest."""
    ranked = {one.chain.key: one for one in whole.ranking}
    others = [chain for chain in together.survey.chains if chain.key not in ranked]
    others.sort(key=lambda chain: (-chain.length, chain.key))
    trends = {trend.chain.key: trend for trend in together.trends}
    rows = [_row(one.chain, one, trends.get(one.chain.key)) for one in whole.ranking]
    rows += [_row(chain, None, trends.get(chain.key)) for chain in others]
    bins = max((len(chain.fall_bytes) for chain in together.survey.chains), default=1)
    return {"bins": [bin_label(number) for number in range(bins)], "rows": rows}


def _row(chain: Chain, ranked: Ranked | None, trend: Trend | None) -> dict[str, Any]:
    """Return a chain; what is not known is left out, so that the page of 10,000 chains stays small."""
    danger, advice, cost = danger_of(chain), chain.advice, chain.cost
    content = max(1, sum(chain.fall_bytes))
    row = {
        "host": chain.host,
        "path": chain.path,
        "uses": ", ".join(f"{use.domain} {use.target}" for use in chain.uses),
        "held": chain.held_by,
        "on": int(chain.is_running),
        "layers": chain.length,
        "passed": round(chain.mean_depth, 1),
        # In per mille of the content, for the small chart.
        "falls": [round(1000 * count / content) for count in chain.fall_bytes],
        "lengths": None if trend is None else [length for _, length in trend.points],
        "perDay": None if trend is None else round(trend.layers_per_day, 1),
        "bytesPerDay": None if trend is None else round(trend.bytes_per_day),
        "cpu": _short(None if cost is None else cost.read_4k_cpu_s),
        "low": _short(None if cost is None else cost.read_4k_cpu_s_low),
        "high": _short(None if cost is None else cost.read_4k_cpu_s_high),
        "memory": _short(None if cost is None else cost.memory_bytes),
        "cpuBack": _short(None if ranked is None else ranked.gives_back_cpu_s),
        "memoryBack": _short(None if ranked is None else ranked.gives_back_memory_bytes),
        "dead": chain.own_shadowed_bytes,
        "disk": chain.disk_bytes,
        "frees": 0 if advice is None else advice.frees_bytes,
        "verb": "" if advice is None else advice.verb,
        "command": "" if advice is None else advice.command,
        "why": "" if advice is None else advice.why,
        "danger": "" if danger is None else danger.what,
        "passedLimit": int(danger is not None and danger.is_passed),
        "broken": chain.broken or "",
        "findings": [one.what for one in chain.findings if one.level != "note"][:_MOST_FINDINGS],
    }
    return {
        name: value for name, value in row.items() if value not in (None, "", [], 0) or name in ("layers", "passed")
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
