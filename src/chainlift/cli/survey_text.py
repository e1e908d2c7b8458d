"""How a survey looks on a terminal of 60 to 160 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from chainlift.cli.bars import bar, percent
from chainlift.cli.fitted import shorten, wrapped
from chainlift.errors import one_line
from chainlift.results.survey.overview import READS, Overview, Ranked, overview
from chainlift.results.survey.records import bin_label
from chainlift.units import counted, format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.results.survey.records import Chain
    from chainlift.results.survey.trend import Together, Trend

_MOST_TROUBLES: Final = 20
_MOST_SHARED: Final = 5
#: Of the ranking: columns besides the name's.
_COLUMNS: Final = (("layers", 8), ("passed", 8), ("CPU", 13), ("gives back", 13), ("memory", 10))


def lines(together: Together, width: int, *, top: int, can_draw: bool) -> Iterator[str]:
    """Yield the lines.

    :param width: columns.
    :param top: how many chains are ranked.
    :param can_draw: whether the terminal has block characters.
    """
    survey = together.survey
    whole = overview(survey.chains)
    yield from _head(together, whole, width)
    if survey.chains:
        yield ""
        yield from _lengths(whole, width, can_draw=can_draw)
        yield ""
        yield from _falls(whole, width, can_draw=can_draw)
        yield from _shared(whole, width)
        yield from _broken(survey.chains, width)
        yield from _ranking(whole, survey.head.model, width, top)
        yield from _growing(together, width, top)
    yield from _troubles(together, width)


def _head(together: Together, whole: Overview, width: int) -> Iterator[str]:
    survey = together.survey
    hosts = list(dict.fromkeys(source.host for source in survey.sources))
    for host in hosts:
        places = [source.path for source in survey.sources if source.host == host]
        yield click.style(one_line(f"{host}: {', '.join(places)}"), bold=True)
    parts = [counted(whole.chains, "chain")]
    if survey.end is not None and len(hosts) == 1:
        parts = [f"{counted(survey.end.images, 'image')} in {parts[0]}, on disk {format_bytes(survey.end.disk_bytes)}"]
    parts += [f"{whole.running} in use"] + [f"{whole.broken} broken"] * bool(whole.broken)
    parts += [f"{survey.left_out} left out"] * bool(survey.left_out)
    yield from wrapped("  ", ", ".join(parts), width)
    if whole.unreadable_bytes:
        yield f"  of what is stored nobody can read {format_bytes(whole.unreadable_bytes)}" + (
            f"; the policy frees up to {format_bytes(whole.policy_frees_bytes)}" if whole.policy_frees_bytes else ""
        )
    if whole.running_memory_bytes:
        yield from wrapped(
            "  ",
            f"the running ones take QEMU {format_bytes(whole.running_memory_bytes)} of memory for their chains; what "
            f"is advised gives back {format_bytes(whole.running_memory_back_bytes)}, and of a million reads from each "
            f"{format_seconds(whole.running_cpu_back_s)} of {format_seconds(whole.running_cpu_s)} of CPU time",
            width,
        )
    if together.new or together.gone:
        yield f"  since the survey before: {together.new} new, {together.gone} gone"


def _lengths(whole: Overview, width: int, *, can_draw: bool) -> Iterator[str]:
    yield click.style("Length of chains", bold=True) + click.style("  (layers over the base, chains)", dim=True)
    labels = [bin_label(number) for number in range(len(whole.lengths))]
    room = width - max(map(len, labels)) - 4 - 9 - 15
    for number, count in enumerate(whole.lengths):
        drawn = bar(count, max(whole.lengths), room, can_draw=can_draw)
        running = whole.running_lengths[number] if number < len(whole.running_lengths) else 0
        yield (
            f"  {labels[number]:<{max(map(len, labels))}}  {click.style(drawn, fg='blue')}{' ' * (room - len(drawn))}"
            f"{count or '-':>9}{f'{running} in use' if running else '':>15}"
        )


def _falls(whole: Overview, width: int, *, can_draw: bool) -> Iterator[str]:
    yield click.style("How far reads fall", bold=True) + click.style(
        "  (layers passed, share of the content)", dim=True
    )
    total = sum(whole.fall_bytes)
    labels = [bin_label(number) for number in range(len(whole.fall_bytes))] or ["0"]
    room = width - max(map(len, labels)) - 4 - 12 - 10
    for label, count in zip(labels, whole.fall_bytes, strict=False):
        drawn = bar(count, max(whole.fall_bytes), room, can_draw=can_draw)
        yield (
            f"  {label:<{max(map(len, labels))}}  {click.style(drawn, fg='blue')}{' ' * (room - len(drawn))}"
            f"{format_bytes(count) if count else '-':>12}{percent(count, total) if count else '':>10}"
        )


def _shared(whole: Overview, width: int) -> Iterator[str]:
    if not whole.shared:
        return
    yield ""
    yield click.style("Shared bases", bold=True)
    for base in whole.shared[:_MOST_SHARED]:
        path = shorten(one_line(base.path), width - 30)
        yield f"  {path}: {base.chains} chains, {format_bytes(base.disk_bytes)}"
    if (more := len(whole.shared) - _MOST_SHARED) > 0:
        yield click.style(f"  and {more} more", dim=True)


def _broken(chains: Sequence[Chain], width: int) -> Iterator[str]:
    broken = [chain for chain in chains if chain.broken is not None]
    if not broken:
        return
    yield ""
    yield click.style("Broken", bold=True)
    for chain in broken[:_MOST_TROUBLES]:
        yield from wrapped(click.style("  x ", fg="red", bold=True), f"{chain.path}: {chain.broken}", width)
        for finding in chain.findings[:1]:
            if finding.action:
                yield from wrapped("    ", finding.action, width)
    if (more := len(broken) - _MOST_TROUBLES) > 0:
        yield click.style(f"  and {more} more", dim=True)


def _ranking(whole: Overview, model: str, width: int, top: int) -> Iterator[str]:
    ranking = whole.ranking[:top]
    if not ranking:
        return
    many_hosts = len({ranked.chain.host for ranked in whole.ranking}) > 1
    yield ""
    note = f"  (CPU time of {READS // 1_000_000} million reads of 4 KiB)"
    yield click.style("What to do first", bold=True) + click.style(note, dim=True)
    room = width - sum(columns for _, columns in _COLUMNS)
    yield f"{'    chain':<{room}}" + "".join(f"{title:>{columns}}" for title, columns in _COLUMNS)
    for number, ranked in enumerate(ranking, start=1):
        yield _row(number, ranked, room)
        yield from _notes(ranked, width, f"on {ranked.chain.host}" if many_hosts else "")
        if ranked.chain.advice is not None and ranked.chain.advice.command:
            yield f"    {ranked.chain.advice.command}"
    if (more := len(whole.ranking) - len(ranking)) > 0:
        yield click.style(f"    and {more} more (--top, --json, --report)", dim=True)
    if model:
        yield from wrapped("    ", f"predicted{_within(ranking)}: {model}", width, dim=True)


def _within(ranking: Sequence[Ranked]) -> str:
    """Say how far off the predicted CPU times may be."""
    spreads = [
        cost.read_4k_cpu_s_high / cost.read_4k_cpu_s
        for ranked in ranking
        if (cost := ranked.chain.cost) is not None and cost.read_4k_cpu_s and cost.read_4k_cpu_s_high
    ]
    return f", nine of ten within a factor of {max(spreads):.1f}" if spreads else ""


def _row(number: int, ranked: Ranked, room: int) -> str:
    chain, cost = ranked.chain, ranked.chain.cost
    cpu = "-" if cost is None or cost.read_4k_cpu_s is None else format_seconds(READS * cost.read_4k_cpu_s)
    back = "-" if ranked.gives_back_cpu_s is None else format_seconds(ranked.gives_back_cpu_s)
    memory = "-" if ranked.gives_back_memory_bytes is None else format_bytes(ranked.gives_back_memory_bytes)
    name = shorten(one_line(chain.path), room - 5)
    figures = (f"{chain.length:,}", f"{chain.mean_depth:.1f}", cpu, back, memory)
    return f"{number:>3} {name:<{room - 4}}" + "".join(
        f"{figure:>{columns}}" for figure, (_, columns) in zip(figures, _COLUMNS, strict=True)
    )


def _notes(ranked: Ranked, width: int, host: str) -> Iterator[str]:
    chain, danger = ranked.chain, ranked.danger
    if danger is not None:
        sign = click.style(
            "    x " if danger.is_passed else "    ! ", fg="red" if danger.is_passed else "yellow", bold=True
        )
        yield from wrapped(sign, danger.what, width)
    notes = [host] * bool(host)
    notes += [f"domain {use.domain} ({use.target}){' runs' if use.is_running else ''}" for use in chain.uses[:3]]
    notes += [chain.held_by] * bool(chain.held_by and not chain.uses)
    if chain.advice is not None:
        notes += [chain.advice.why] * bool(chain.advice.why)
        notes += [f"frees up to {format_bytes(chain.advice.frees_bytes)}"] * bool(chain.advice.frees_bytes)
    if notes:
        yield from wrapped("    ", "; ".join(notes), width, dim=True)


def _growing(together: Together, width: int, top: int) -> Iterator[str]:
    growing = sorted(
        (trend for trend in together.trends if trend.days_left is not None),
        key=lambda trend: (trend.days_left, trend.chain.key),
    )[:top]
    if not growing:
        return
    yield ""
    yield click.style("Next to reach a limit", bold=True)
    for trend in growing:
        yield from wrapped("  ", _growth(trend), width)


def _growth(trend: Trend) -> str:
    assert trend.days_left is not None
    when = "has passed it" if not trend.days_left else f"in {trend.days_left:.0f} days, if it goes on like that"
    return (
        f"{trend.chain.path}: {trend.chain.length} layers, {trend.layers_per_day:+.1f} a day: "
        f"the limit of {trend.limit} {when}"
    )


def _troubles(together: Together, width: int) -> Iterator[str]:
    left_out = [trouble for trouble in together.survey.troubles if trouble.left_out]
    if not left_out:
        return
    yield ""
    yield click.style("Left out", bold=True)
    for trouble in left_out[:_MOST_TROUBLES]:
        yield from wrapped(click.style("  x ", fg="red", bold=True), f"{trouble.path}: {trouble.what}", width)
    if (more := len(left_out) - _MOST_TROUBLES) > 0:
        yield click.style(f"  and {more} more (--json)", dim=True)
